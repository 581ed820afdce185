"""Trajectory matching (MTT, TESLA) against slow references and closed forms."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_condense.base.errors import NonFiniteLossError
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.engine import build
from hf_condense.engine.method import Loss
from hf_condense.engine.registry import get_method
from hf_condense.engine.run import Run
from hf_condense.engine.task import Task
from hf_condense.methods import _student
from hf_condense.methods._experts import ExpertConfig
from hf_condense.methods._images import ImageConfig
from hf_condense.methods._student import TrajectoryMethod
from hf_condense.methods.esp import SubspaceProjection
from hf_condense.methods.mtt import TrajectoryMatching, distance_ratio
from hf_condense.methods.tesla import ConstantMemoryMatching
from hf_condense.networks import training
from hf_condense.networks.architectures import WithEmbedding
from hf_condense.testing import law_resume, quick_method, toy_dataset
from tests.reference import trajectory as reference
from tests.support.trajectory_step import ObservedMethod, observe

ALL = "color_crop_cutout_flip_scale_rotate"
FOLLOWING = ("mtt", "tesla", "esp", "datm")
CASES = {
    "plain": {"augment": "none"},
    "augmented": {"augment": ALL},
    "patches": {"augment": ALL, "factor": 2},
    "batches": {"augment": ALL, "batch_syn": 2, "student_steps": 4},
    "classes of different sizes": {"augment": "none", "ipc": {0: 1, 1: 3, 2: 2}},
    "labels of a teacher": {"augment": "none", "soft_labels": "teacher", "teacher_updates": 2, "temperature": 3.0},
    "dct": {"storage": "dct", "expand": 3, "lr_img": 1.0},
    "siren": {"storage": "siren"},
    "learned labels": {"augment": "none", "soft_labels": "learned", "teacher_updates": 2, "temperature": 2.0},
}


def textbook(observed: ObservedMethod, *, unrolled: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the textbook's objective and its gradients by learned tensor."""
    net, window, config = observed.method.net.net, observed.window, observed.method.config
    start, target = (reference.unflattened(net, point) for point in (window.points[0], window.points[-1]))
    steps = [observed.step(observed.t, n) for n in range(config.student_steps)]
    learned = observed.run.synthetic.parameters()
    reached = reference.trained(
        net, start, steps, learned["student_lr"], observed.method.loss_temperature, unrolled=unrolled
    )
    value = reference.distance_ratio(reached, start, target)
    gradients = torch.autograd.grad(value, list(learned.values()))
    return value, dict(zip(learned, gradients, strict=True))


def assert_equals_textbook(observed: ObservedMethod, *, unrolled: bool) -> None:
    value, gradients = observed.objective()
    expected_value, expected_gradients = textbook(observed, unrolled=unrolled)
    torch.testing.assert_close(value, expected_value.detach(), rtol=1e-9, atol=1e-12)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max()))
        assert float(gradient.abs().max()) > 0, name


@pytest.mark.parametrize("case", CASES)
def test_mtt_equals_the_textbook(case: str) -> None:
    assert_equals_textbook(observe(TrajectoryMatching, **CASES[case]), unrolled=True)


@pytest.mark.parametrize("memory", [1, 2**40])
@pytest.mark.parametrize("case", CASES)
def test_tesla_equals_autograd_of_its_truncated_objective(
    case: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test one chunk, and one chunk per class."""
    monkeypatch.setattr(build, "memory_budget", lambda device: memory)
    observed = observe(ConstantMemoryMatching, **CASES[case])
    assert len(list(observed.run.chunks())) == (3 if memory == 1 else 1)
    assert_equals_textbook(observed, unrolled=False)


@pytest.mark.parametrize("case", ["augmented", "batches", "learned labels"])
def test_graphs_that_are_kept_save_a_pass_and_change_rounding_only(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    gradient = TrajectoryMethod.chunk_gradient
    monkeypatch.setattr(
        TrajectoryMethod, "chunk_gradient", lambda *args, **more: computed.append(1) or gradient(*args, **more)
    )
    sets, counts = [], []
    for keeps in (True, False):
        if not keeps:
            monkeypatch.setattr(ConstantMemoryMatching, "passes", 1)
        sets.append(quick_method("tesla", steps=3, **CASES[case]).condense(toy_dataset()))
        counts.append(len(computed))
        computed.clear()
    assert [small.recipe.plan["keep_graphs"] for small in sets] == [True, False]
    assert counts[1] == 2 * counts[0]
    torch.testing.assert_close(*(small.synthetic.images for small in sets), atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", [TrajectoryMatching, ConstantMemoryMatching])
def test_images_that_pass_the_student_one_by_one_give_the_same_gradient(
    method: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_CPU_SECOND_DERIVATIVE_BYTES", 0)
    observed = observe(method, **CASES["batches"])
    assert observed.method._rows_at_a_time == 1
    assert_equals_textbook(observed, unrolled=method is TrajectoryMatching)


def test_single_steps_of_mtt_and_tesla_are_equal() -> None:
    """With a single step there is nothing to truncate."""
    values = [observe(method, student_steps=1).objective() for method in (TrajectoryMatching, ConstantMemoryMatching)]
    torch.testing.assert_close(values[0][0], values[1][0])
    for name, gradient in values[0][1].items():
        torch.testing.assert_close(gradient, values[1][1][name])


@pytest.mark.parametrize("method", [TrajectoryMatching, ConstantMemoryMatching])
def test_student_that_does_not_move_has_objective_one(method: type) -> None:
    observed = observe(method)
    observed.run.synthetic.student_lr.data.zero_()
    assert observed.objective()[0].item() == 1.0


@pytest.mark.parametrize("method", [TrajectoryMatching, ConstantMemoryMatching])
def test_set_that_replays_the_expert_has_objective_zero(method: type) -> None:
    """The set is all real rows, in whole batches, at the expert's rate and for as many steps."""
    observed = observe(
        method,
        ipc=12,
        t=0,
        augment="none",
        batch_expert=36,
        snapshot_every=1,
        student_steps=3,
        expert_span=3,
        lr_student=0.1,
        soft_labels="none",
    )
    observed.run.synthetic.stored["images"].data = observed.run.source.at(torch.arange(36)).double()
    assert observed.objective()[0].item() < 1e-9


def test_objective_of_a_linear_softmax_student_equals_its_closed_form() -> None:
    """d CE / d W = (p - e_y) x^T, so one step's objective has a closed form."""

    def linear(channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        return WithEmbedding(nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, num_classes, bias=False)))

    options = {"augment": "none", "student_steps": 1, "snapshots": 4, "expert_span": 3, "lr_lr": 0.0}
    observed = observe(TrajectoryMatching, network=linear, **options)
    window, synthetic = observed.window, observed.run.synthetic
    weight = window.points[0].reshape(3, -1)
    rows = synthetic.stored["images"].detach().flatten(1)
    error = (rows @ weight.T).softmax(1) - torch.eye(3, dtype=torch.float64)[synthetic.labels]
    reached = weight - observed.method.config.lr_student * error.T @ rows / len(rows)
    target = window.points[-1].reshape(3, -1)
    expected = (reached - target).square().sum() / (weight - target).square().sum()
    torch.testing.assert_close(observed.objective()[0], expected, rtol=1e-7, atol=0)


def test_mtt_passes_gradcheck() -> None:
    observed = observe(
        TrajectoryMatching, ipc=1, student_steps=2, augment="color_scale", network="convnet-w2-d1-sigmoid"
    )

    def objective(images: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        observed.run.synthetic.stored["images"], observed.run.synthetic.student_lr = images, rate
        ((loss, _),) = observed.method.losses(observed.run, observed.t)
        return loss

    images, rate = observed.run.synthetic.stored["images"], observed.run.synthetic.student_lr
    assert torch.autograd.gradcheck(objective, (images, rate), fast_mode=True)


def test_distance_ratio_is_one_at_the_start_and_zero_at_the_target() -> None:
    start, target = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert distance_ratio(start, start, target).item() == 1
    assert distance_ratio(target, start, target).item() == 0


@pytest.mark.parametrize("method", [TrajectoryMatching, ConstantMemoryMatching])
def test_learned_rate_is_stored_and_stays_positive(method: type) -> None:
    observed = observe(method)
    observed.run.synthetic.student_lr.data.fill_(-3.0)
    observed.method.after_update(observed.run, observed.t + 1)
    assert 0 < float(observed.run.synthetic.finished().student_lr) < 1e-3
    fixed = quick_method(method.info.name, lr_lr=0.0, lr_student=0.03).condense(toy_dataset())
    assert isinstance(fixed, CondensedDataset)
    assert float(fixed.synthetic.student_lr) == pytest.approx(0.03)
    learned = quick_method(method.info.name, lr_lr=1e-3, lr_student=0.03).condense(toy_dataset())
    assert float(learned.synthetic.student_lr) != pytest.approx(0.03, rel=1e-4)


def test_rate_that_is_not_learned_stays_although_it_is_below_the_least_learned_one() -> None:
    small = quick_method("mtt", lr_lr=0.0, lr_student=1e-6, steps=1).condense(toy_dataset())
    assert float(small.synthetic.student_lr) == pytest.approx(1e-6)


class Dropping(nn.Module):
    """A network with dropout that fails on an empty batch."""

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(channels * 64, 8), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x.view(x.size(0), -1)))
        return self.last(F.dropout(hidden, 0.5, self.training))


@pytest.mark.parametrize("memory", [1, 2**40])
@pytest.mark.parametrize(
    ("method", "steps"), [(TrajectoryMatching, 2), (ConstantMemoryMatching, 1), (SubspaceProjection, 1)]
)
def test_networks_with_dropout_get_exact_gradients(
    method: type, steps: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with finite differences: what is computed twice must drop the same units."""
    monkeypatch.setattr(build, "memory_budget", lambda device: memory)
    observed = observe(method, t=0, network=Dropping, student_steps=steps, augment="none", lr_student=0.5)
    observed.method._start_step = -1  # so that ESP starts a second time, in float64
    gradient = observed.objective()[1]["images"].flatten()
    pixels = observed.run.synthetic.stored["images"].data.view(-1)
    for i in gradient.abs().topk(3).indices.tolist():
        values = []
        for change in (1e-5, -2e-5):
            pixels[i] += change
            values.append(float(observed.objective()[0]))
        pixels[i] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient[i]), rel=1e-3)


@pytest.mark.parametrize("method", ["mtt", "tesla", "esp"])
def test_chunks_without_rows_in_the_batch_do_no_harm(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "memory_budget", lambda device: 1)
    small = quick_method(method, batch_syn=1, cache=False).condense(toy_dataset(), network=Dropping)
    assert len(small) == 6


AVERAGED = {"average": 0.5}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mtt", {**AVERAGED, "temperature": 2.0, "soft_labels": "learned", "teacher_updates": 2}),
        ("mtt", {"zca": True, "pixel_range": "free", "soft_labels": "teacher", "teacher_updates": 2}),
        ("tesla", {**AVERAGED, "zca": True, "pixel_range": "free", "cache": False}),
        ("esp", {**AVERAGED, "beside": "m3d"}),
        ("esp", {"form": "projected", "blocks": "layer"}),
        ("esp", {"form": "point"}),
        ("esp", {"form": "rollout", "batch_syn": 2}),
        ("esp", {"beside": "dm", "network": "convnet-w8-d1-bn"}),
    ],
)
def test_resumed_runs_with_options_are_equal_bit_for_bit(method: str, options: dict) -> None:
    law_resume(quick_method(method, **options))


def test_windows_are_parts_of_an_expert_and_start_before_max_start() -> None:
    observed = observe(TrajectoryMatching, max_start=2, expert_span=3)
    starts = set()
    for draw in range(60):
        points = type(observed.method).window(observed.method, observed.run, draw).points
        trajectories = [observed.method.experts.window(e, 0, 6) for e in range(2)]
        matches = [(e, s) for e in range(2) for s in range(3) if torch.equal(trajectories[e][s : s + 4], points)]
        assert len(matches) == 1
        starts.add(matches[0])
    assert starts == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_batches_are_disjoint_parts_of_permutations_that_differ_by_draw_and_by_pass() -> None:
    observed = observe(TrajectoryMatching, batch_syn=4, ipc=3)  # of 9 rows, so that a pass has three batches
    beginnings = set()
    for draw in range(4):
        batches = [observed.method.batch(observed.run, draw, n) for n in range(6)]
        assert [batch.size for batch in batches] == [int(batch.mask.sum()) for batch in batches] == [4, 4, 1] * 2
        for parts in (batches[:3], batches[3:]):
            assert bool(torch.stack([batch.mask for batch in parts]).any(0).all())
            beginnings.add(tuple(parts[0].mask.tolist()))
    assert len(beginnings) > 6, "of eight passes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_span": 6}, r"expert_span=6 needs at least 7 snapshots of an expert; got snapshots=6"),
        ({"average": 1.0}, r"average should be smaller than 1"),
        ({"zca": True}, r"zca=True .* It requires pixel_range='free' and storage='pixels'; got 'valid' and 'pixels'"),
        ({"zca": True, "pixel_range": "free", "factor": 2}, r"got 'free' and 'patches'"),
        ({"student_steps": 0}, r"student_steps should be at least 1"),
    ],
)
def test_options_that_make_no_sense_raise_value_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick_method("mtt", **options).condense(toy_dataset())


def test_step_of_a_student_that_overflows_is_skipped() -> None:
    """The update of such a step is not made, so that its gradient may be anything."""
    shared = {"steps": 1, "augment": "none", "cache": False}
    diverged = quick_method("tesla", most_ratio=1.0, lr_student=1e15, **shared).condense(toy_dataset())
    skipped = quick_method("tesla", most_ratio=1e-30, **shared).condense(toy_dataset())
    assert torch.equal(diverged.synthetic.images, skipped.synthetic.images), "no update was made"
    with pytest.raises(NonFiniteLossError, match="not finite at step 0"):
        quick_method("tesla", lr_student=1e15, **shared).condense(toy_dataset())


def test_step_whose_value_is_no_number_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ConstantMemoryMatching.losses

    def losses(self: ConstantMemoryMatching, run: Run, t: int) -> Iterator[Loss]:
        for loss, value in original(self, run, t):
            yield Loss(loss, value * (torch.nan if t == 1 else 1))

    images: list[torch.Tensor] = []
    monkeypatch.setattr(ConstantMemoryMatching, "losses", losses)
    record = lambda run, done, loss: images.append(run.synthetic.stored["images"].detach().clone())  # noqa: E731
    quick_method("tesla", most_ratio=1e9, steps=3, callbacks=[record]).condense(toy_dataset())
    assert [torch.equal(a, b) for a, b in pairwise(images)] == [True, False]


@pytest.mark.parametrize(("average", "decays"), [(0.5, (1 / 11, 2 / 12)), (0.1, (1 / 11, 0.1))])
def test_average_of_the_images_is_the_result(average: float, decays: tuple[float, float]) -> None:
    images = []
    small = quick_method(
        "tesla",
        callbacks=[lambda run, done, loss: images.append(run.synthetic.stored["images"].detach().clone())],
        pixel_range="free",
        steps=3,
        average=average,
    ).condense(toy_dataset())
    second = images[0] + (1 - decays[0]) * (images[1] - images[0])
    third = second + (1 - decays[1]) * (images[2] - second)
    recipe = small.recipe
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (recipe.mean, recipe.std))
    torch.testing.assert_close(small.synthetic.images, third * std + mean)
    assert not torch.equal(third, images[2])


def test_rollout_that_does_not_fit_into_memory_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    options = {"student_steps": 40, "steps": 1, "max_memory": "1MiB"}
    quick_method("mtt", **options).condense(toy_dataset())
    assert (
        "MiB of memory, but may use 1.0 MiB; it is tried all the same. If it fails: fewer student_steps" in caplog.text
    )
    assert "'tesla', which keeps one step at a time" in caplog.text
    caplog.clear()
    quick_method("tesla", **options).condense(toy_dataset())
    assert "student_steps" not in caplog.text


def test_memory_of_a_rollout_grows_with_its_steps_and_its_batch() -> None:
    cases: list[dict] = [{"student_steps": 2}, {"student_steps": 6}, {"student_steps": 2, "batch_syn": 3}]
    observed = [observe(TrajectoryMatching, **options) for options in cases]
    few, many, small = (build.workload_of(each.run, each.method).step_bytes(each.run.plan) for each in observed)
    assert many == 3 * few
    assert small < few


@pytest.mark.parametrize("method", FOLLOWING)
def test_plan_counts_the_rows_of_a_batch(method: str) -> None:
    instance, run = get_method(method), observe(TrajectoryMatching, ipc={0: 1, 1: 3, 2: 2}).run
    whole, batched = (instance(instance.Config(batch_syn=n)) for n in (None, 2))
    assert (whole.rows_per_step(run), whole.most_rows(run)) == ({0: 1, 1: 3, 2: 2}, 6)
    # All rows of a batch may be of one class.
    assert (batched.rows_per_step(run), batched.most_rows(run)) == ({0: 1, 1: 2, 2: 2}, 2)


@pytest.mark.parametrize(
    ("ipc", "classes", "side", "expected"),
    [
        (1, 10, 32, {"student_steps": 50, "max_start": 2, "lr_img": 100, "lr_lr": 1e-7, "zca": True}),
        (10, 10, 28, {"student_steps": 30, "max_start": 20, "lr_student": 0.001, "lr_lr": 1e-5, "zca": True}),
        (50, 10, 32, {"student_steps": 30, "max_start": 40, "lr_img": 1000, "zca": False}),
        (1, 100, 32, {"student_steps": 20, "expert_span": 3, "lr_img": 1000, "zca": True}),
        (50, 100, 32, {"student_steps": 80, "batch_syn": 125}),
        (10, 200, 64, {"student_steps": 20, "max_start": 40, "lr_img": 1e4, "batch_syn": 200}),
        (50, 200, 64, {"expert_span": 2, "max_start": 40, "lr_img": 1e4, "batch_syn": 300}),
        (7, 10, 32, {"student_steps": 30, "max_start": 20}),
    ],
)
def test_paper_presets_follow_the_table(ipc: int, classes: int, side: int, expected: dict) -> None:
    task = Task(ipc, classes, (3, side, side))
    values = TrajectoryMatching.presets["paper"].values(task)
    assert expected.items() <= values.items()
    assert values["steps"] == 5000
    assert (values["experts"], values["snapshots"]) == (100, 51)
    tesla_values = ConstantMemoryMatching.presets["paper"].values(task)
    assert tesla_values["steps"] == 10_000
    if (ipc, classes) == (1, 10):
        assert (tesla_values["max_start"], tesla_values["lr_img"]) == (5, 1000)


@pytest.mark.parametrize(("channels", "rate", "steps"), [(3, 1000, 8), (1, 200, 12)])
def test_quick_runs_in_frequencies_follow_short_windows(channels: int, rate: float, steps: int) -> None:
    task = Task(10, 10, (channels, 32, 32), storage="dct", expand=8)
    for method in (TrajectoryMatching, ConstantMemoryMatching):
        values = method.presets["quick"].values(task)
        assert (values["expert_span"], values["lr_img"], values["student_steps"]) == (2, rate, steps)


@pytest.mark.parametrize("preset", ["default", "quick"])
@pytest.mark.parametrize("ipc", [1, 3, 4, 50])
@pytest.mark.parametrize(("storage", "expand"), [("pixels", 1), ("patches", 4), ("dct", 8)])
def test_presets_of_all_methods_share_their_experts_and_fit_their_windows(
    preset: str, ipc: int, storage: str, expand: int
) -> None:
    task = Task(ipc, 10, (3, 32, 32), storage=storage, expand=expand)
    expert_options = {f.name for f in fields(ExpertConfig)} - {f.name for f in fields(ImageConfig)} | {"network"}
    presets = [get_method(name).presets[preset].values(task) for name in FOLLOWING]
    shared = [{name: value for name, value in values.items() if name in expert_options} for values in presets]
    assert {"experts", "snapshot_every", "lr_expert", "network"} <= shared[0].keys()
    assert shared[0]["snapshots"] == (13 if ipc < 4 and expand < 8 else 25)
    assert all(values == shared[0] for values in shared)
    for values in presets:
        assert values["expert_span"] + values["max_start"] <= values["snapshots"]


def test_units_are_dropped_anew_in_every_step_of_every_student() -> None:
    observed = observe(TrajectoryMatching, network=Dropping, augment="none")
    method, run, start = observed.method, observed.run, observed.window.start

    def gradient(draw: int, n: int) -> torch.Tensor:
        return method.whole_gradient(run, start, method.batch(run, draw, n))

    gradients = [gradient(draw, n) for draw, n in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert not any(torch.equal(a, b) for a, b in combinations(gradients, 2))
    assert torch.equal(gradient(1, 0), gradients[2])


def test_chunks_drop_units_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    observed, keys = observe(TrajectoryMatching, augment="none"), []
    original = _student.seeded_globals

    def watched(*key: Any, **options: Any) -> Any:
        keys.append(key)
        return original(*key, **options)

    monkeypatch.setattr(_student, "seeded_globals", watched)
    for classes in ((0,), (1,), (2,)):
        batch = observed.method.batch(observed.run, 0, 0)
        observed.method.chunk_gradient(observed.run, observed.window.start, batch, classes)
    assert len(keys) == len(set(keys)) == 3


def test_graphs_of_all_student_steps_are_kept_where_they_fit() -> None:
    assert observe(ConstantMemoryMatching, student_steps=3).run.plan.keep_graphs
    assert observe(SubspaceProjection, form="rollout", student_steps=3).run.plan.keep_graphs
    assert not observe(SubspaceProjection, form="free", student_steps=3).run.plan.keep_graphs


@pytest.mark.parametrize(
    ("ipc", "classes", "side", "row"),
    [
        (50, 10, 32, (30, 2, 40, 1000, 0.001, 1e-5, False, None)),
        (10, 100, 32, (20, 2, 20, 1000, 0.01, 1e-5, False, None)),
        (1, 200, 64, (10, 2, 10, 1e4, 0.01, 1e-4, False, None)),
        (50, 200, 64, (20, 2, 40, 1e4, 0.01, 1e-4, False, 300)),
    ],
)
def test_paper_preset_has_whole_rows_of_the_table(ipc: int, classes: int, side: int, row: tuple) -> None:
    values = TrajectoryMatching.presets["paper"].values(Task(ipc, classes, (3, side, side)))
    names = ("student_steps", "expert_span", "max_start", "lr_img", "lr_student", "lr_lr", "zca", "batch_syn")
    assert tuple(values[name] for name in names) == row


@pytest.mark.parametrize("method", FOLLOWING)
def test_experts_of_whitened_sets_are_trained_on_whitened_images(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whitened: list[bool] = []
    original = _student.recorded_experts

    def watched(run: Run, config: Any) -> Any:
        whitened.append(run.source.whitening is not None)
        return original(run, config)

    monkeypatch.setattr(_student, "recorded_experts", watched)
    for zca in (True, False):
        quick_method(method, zca=zca, pixel_range="free", steps=1).condense(toy_dataset(), 1)
    assert whitened == [True, False]
