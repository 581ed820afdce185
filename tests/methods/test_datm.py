"""Difficulty-aligned trajectories (DATM): windows that expand, starts and labels of experts, skipped updates."""

import dataclasses
from typing import Any

import pytest
import torch

from hf_condense.engine.registry import get_method
from hf_condense.engine.run import Run
from hf_condense.engine.task import Task
from hf_condense.methods._expert_rows import correct_positions, correct_rows, mean_of_correct, trained_expert
from hf_condense.methods._images import statistics_rows
from hf_condense.methods._windows import latest_start
from hf_condense.methods.datm import DifficultyAlignedMatching
from hf_condense.methods.esp import SubspaceProjection
from hf_condense.methods.mtt import TrajectoryMatching
from hf_condense.methods.tesla import ConstantMemoryMatching
from hf_condense.networks.augment import ALL_FAMILIES
from hf_condense.testing import law_resume, quick_method, toy_dataset
from tests.reference import trajectory as reference
from tests.support.trajectory_step import ObservedMethod, observe

METHODS = [TrajectoryMatching, ConstantMemoryMatching, SubspaceProjection, DifficultyAlignedMatching]
LABELS = {"soft_labels": "learned", "labels_from": "experts", "temperature": 2.0}


def starts_of(observed: ObservedMethod, t: int, seeds: int = 40) -> set[int]:
    """Return the starts of windows that are drawn in a step with different seeds."""
    run, method = observed.run, observed.method
    trajectories = [method.experts.window(e, 0, 6) for e in range(2)]
    starts = set()
    for seed in range(seeds):
        run.seed = seed
        points = type(method).window(method, run, t).points
        starts |= {s for e in range(2) for s in range(5) if torch.equal(trajectories[e][s : s + len(points)], points)}
    return starts


@pytest.mark.parametrize("method", [TrajectoryMatching, SubspaceProjection])
@pytest.mark.parametrize(("minimum", "first", "last", "steps"), [(0, 1, 4, 6), (1, 2, 4, 7), (0, 3, 3, 5)])
def test_windows_expand_as_the_reference_says(method: type, minimum: int, first: int, last: int, steps: int) -> None:
    options = {"min_start": minimum, "first_max_start": first, "max_start": last, "expansion_steps": steps}
    observed = observe(method, expert_span=1, **options)
    for t in (0, 2, 3, 5, 6, 50):
        assert starts_of(observed, t) == set(reference.starts(minimum, first, last, steps, t)), t


def test_windows_expand_over_the_first_half_of_a_run_of_any_length() -> None:
    for steps in (6, 15):
        observed = observe(TrajectoryMatching, expert_span=1, first_max_start=1, max_start=4)
        observed.method.config = dataclasses.replace(observed.method.config, steps=steps)
        for t in (0, steps // 4, steps // 2 - 1, steps // 2, steps - 1):
            assert starts_of(observed, t) == set(reference.starts(0, 1, 4, steps // 2, t)), (steps, t)
        assert observed.method.identity(observed.run)["steps"] == steps


def test_latest_start_grows_from_the_first_value_to_the_last() -> None:
    for first, last, steps in ((10, 20, 1000), (20, 40, 2000), (1, 3, 7), (4, 4, 1)):
        for t in (0, 1, steps // 3, steps - 1, steps, 3 * steps):
            expected = reference.starts(0, first, last, steps, t)[-1] + 1
            assert latest_start(first, last, steps, t) == expected


def test_windows_without_new_options_are_drawn_as_ever() -> None:
    """Pin the draws, so that sets of earlier versions can be made again."""
    observed = observe(TrajectoryMatching, max_start=2)
    run, method = observed.run, observed.method
    for draw in range(20):
        generator = run.rng("window", draw)
        expert, start = (int(torch.randint(2, (), generator=generator)) for _ in range(2))
        expected = method.experts.window(expert, start, method.config.expert_span + 1)
        assert torch.equal(type(method).window(method, run, draw).points, expected)


def experts_of(observed: ObservedMethod) -> list[reference.Weights]:
    """Return the last weights of the experts in float64."""
    vectors = [observed.method.experts.window(e, 5, 1)[0].double() for e in range(len(observed.method.experts))]
    return [reference.unflattened(observed.method.net.net, vector) for vector in vectors]


@pytest.mark.parametrize("options", [{"ipc": 2}, {"ipc": 11}, {"ipc": 4, "factor": 2}], ids=["few", "most", "repeated"])
@pytest.mark.parametrize("method", [TrajectoryMatching, SubspaceProjection])
def test_first_rows_are_those_that_experts_get_right(method: type, options: dict) -> None:
    observed = observe(method, t=0, init="correct", expert_span=2, **options)
    run, net = observed.run, observed.method.net.net
    chosen = []
    for c, count in run.counts.items():
        positions = run.source.positions(c)
        order = torch.randperm(12, generator=run.rng("correct", run.source.class_names[c])).tolist()
        rows = run.source.at(torch.tensor(positions)).double()
        correct = reference.correct_first(net, experts_of(observed), rows, c, order, count)
        chosen += [i + positions.start for i in correct]
    expected = run.start(torch.tensor(chosen)).stored["images"]
    torch.testing.assert_close(observed.run.synthetic.stored["images"].float(), expected.detach())
    plain = run.start("real").stored["images"]
    assert not torch.equal(plain, expected), "the start should differ from random rows"


def test_rows_are_asked_for_only_as_long_as_some_are_missing() -> None:
    asked: list[tuple[str, list[int]]] = []

    def judge(name: str, right: set[int]) -> Any:
        def is_right(rows: torch.Tensor) -> torch.Tensor:
            asked.append((name, rows.tolist()))
            return torch.tensor([int(row) in right for row in rows])

        return is_right

    order = torch.tensor([4, 2, 9, 7])
    judges = [judge("a", {9}), judge("b", {2, 9, 7}), judge("c", {4})]
    assert correct_rows(order, 2, judges).tolist() == [9, 2]
    assert asked == [("a", [4, 2, 9, 7]), ("b", [4, 2, 7])]
    assert correct_rows(order, 9, judges).tolist() == [9, 2, 7, 4, 9, 2, 7, 4, 9]
    assert correct_rows(order, 2, []).tolist() == [4, 2]


@pytest.mark.parametrize("options", [{}, {"factor": 2}, {"ipc": {0: 1, 1: 3, 2: 2}, "init": "correct"}])
@pytest.mark.parametrize("method", METHODS)
def test_first_labels_are_the_mean_logits_of_experts_that_are_right(method: type, options: dict) -> None:
    observed = observe(method, t=0, lr_label=1e-12, expert_span=2, **LABELS, **options)
    synthetic = observed.run.synthetic
    rows, labels = synthetic.all()
    net, experts = observed.method.net.net, experts_of(observed)
    expected = [
        reference.mean_logits_of_correct(net, experts, row, int(label)) for row, label in zip(rows, labels, strict=True)
    ]
    torch.testing.assert_close(synthetic.soft_labels, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert synthetic.soft_labels.requires_grad


def test_rows_that_no_expert_gets_right_have_the_mean_of_all() -> None:
    logits = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    means = mean_of_correct(iter(logits), labels)
    right = logits.argmax(2) == labels
    assert bool((right.sum(0) == 0).any())
    assert bool((right.sum(0) > 1).any())
    for i in range(7):
        chosen = logits[right[:, i], i] if right[:, i].any() else logits[:, i]
        torch.testing.assert_close(means[i], chosen.mean(0))
        assert not right[:, i].any() or int(means[i].argmax()) == int(labels[i])


def test_statistics_of_experts_with_batch_norm_are_plain_means_over_real_rows() -> None:
    observed = observe(TrajectoryMatching, t=0, network="convnet-w4-d1-bn")
    run = observed.run
    with torch.no_grad():
        network = trained_expert(run, observed.method.experts, 0)
        norm = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
        seen: list[torch.Tensor] = []
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network(run.source.sample(run.classes, statistics_rows(3), run.seed, "statistics").flatten(0, 1))
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen[0].var((0, 2, 3)))


def test_statistics_of_experts_with_dropout_are_not_random() -> None:
    def network(channels: int, num_classes: int, image_size: tuple[int, int]) -> torch.nn.Module:
        height, width = image_size
        return torch.nn.Sequential(
            torch.nn.Dropout2d(0.5),
            torch.nn.BatchNorm2d(channels),
            torch.nn.Flatten(),
            torch.nn.Linear(channels * height * width, num_classes),
        )

    observed = observe(TrajectoryMatching, t=0, network=network)
    means = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            expert = trained_expert(observed.run, observed.method.experts, 0)
        means.append(
            next(module for module in expert.modules() if isinstance(module, torch.nn.BatchNorm2d)).running_mean.clone()
        )
    assert torch.equal(*means)


def test_experts_with_batch_norm_label_rows_one_by_one() -> None:
    """Only parameters of experts are recorded, so the statistics are computed anew, from real rows."""
    observed = observe(TrajectoryMatching, t=0, network="convnet-w4-d1-bn", **LABELS)
    run, method = observed.run, observed.method
    before = torch.get_rng_state()
    with torch.no_grad():
        network = trained_expert(run, method.experts, 0)
        rows = run.source.at(torch.arange(30))
        alone = torch.cat([network(row[None]) for row in rows])
        torch.testing.assert_close(network(rows), alone)
        accuracy = (alone.argmax(1) == run.source.labels[:30]).float().mean()
    assert torch.equal(before, torch.get_rng_state())
    assert float(accuracy) > 0.5
    norm = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert float((norm.running_var - 1).abs().min()) > 1e-4


def test_recipe_names_the_experts_that_gave_the_labels() -> None:
    options = {
        "experts": 3,
        "snapshots": 4,
        "snapshot_every": 2,
        "preset": "default",
        "storage": "pixels",
        "soft_labels": "learned",
    }
    small = quick_method("datm", **options, max_start=2, first_max_start=1, expert_span=2).condense(toy_dataset())
    teacher = small.recipe.teacher
    assert (teacher["networks"], teacher["updates"], teacher["network"]) == (3, 6, "convnet-w8")
    assert small.recipe.teacher_text.startswith("3 networks convnet-w8 after 6 updates; seed 0")


@pytest.mark.parametrize("momentum", [0.5, 0.0])
@pytest.mark.parametrize("method", ["mtt", "tesla", "esp"])
def test_steps_above_the_bound_leave_images_labels_rate_and_momentum(method: str, momentum: float) -> None:
    """Descend by the reference, which leaves these steps out, and compare after every step."""
    options = {**LABELS, "steps": 10, "pixel_range": "free", "decay": False, "student_steps": 2}
    # The rates are small, so that the values depend on the windows and not on what was skipped before.
    options |= {"lr_img": 0.1, "lr_label": 0.1, "momentum": momentum, "momentum_label": 0.9}
    rates = {} if method == "esp" else {"lr_lr": 1e-6}

    def values_of(most: float | None) -> tuple[list[float], list[dict[str, torch.Tensor]], list[dict]]:
        values: list[float] = []
        positions: list[dict[str, torch.Tensor]] = []
        gradients: list[dict[str, torch.Tensor]] = []

        def record(run: Run, done: int, loss: float) -> None:
            learned = run.synthetic.parameters()
            values.append(loss)
            positions.append({name: tensor.detach().clone() for name, tensor in learned.items()})
            gradients.append({name: tensor.grad.clone() for name, tensor in learned.items()})

        quick_method(method, **options, **rates, most_ratio=most, callbacks=[record]).condense(toy_dataset())
        return values, positions, gradients

    most = sorted(values_of(None)[0])[6]
    values, positions, gradients = values_of(most)
    skipped = [t for t, value in enumerate(values) if value > most]
    assert skipped, "some steps should be skipped"
    assert any(value <= most for value in values[skipped[0] :]), "and others that follow should not"
    speeds = {"images": (0.1, momentum), "soft_labels": (0.1, 0.9), "student_lr": (1e-6, momentum)}
    for name, last in positions[-1].items():
        rate, share = speeds[name]
        moves = [parts[name].double() for parts in gradients]
        first = positions[0][name].double() + (rate * moves[0] if values[0] <= most else 0)
        expected = reference.descended(torch.zeros_like(first), moves, values, most, rate, share)
        torch.testing.assert_close(last - first, expected, rtol=0.01, atol=0.02 * float(expected.abs().max()))
        assert float(expected.abs().max()) > 20 * 2**-24 * float(last.abs().max())
        for t in skipped:
            if t:
                assert torch.equal(positions[t][name], positions[t - 1][name]), (name, t)


def test_skipped_steps_leave_the_average() -> None:
    values: list[float] = []
    positions: list[torch.Tensor] = []

    def record(run: Run, done: int, loss: float) -> None:
        values.append(loss)
        positions.append(run.synthetic.stored["images"].detach().clone())

    options = {"steps": 8, "average": 0.3, "lr_img": 50.0, "pixel_range": "free", "callbacks": [record]}
    quick_method("mtt", **options).condense(toy_dataset())
    most = sorted(values)[4]
    values.clear()
    positions.clear()
    quick_method("mtt", **options, most_ratio=most).condense(toy_dataset())
    made = [position for value, position in zip(values, positions, strict=True) if value <= most]
    assert 1 < len(made) < 8, "some steps should be skipped"
    average = made[0]
    for n, position in enumerate(made[1:], 1):
        decay = min(0.3, n / (n + 10))
        average = decay * average + (1 - decay) * position
    # What a run returns was copied into its synthetic set, in normalised units.
    assert not torch.allclose(average, made[-1])
    runs: list[Run] = []
    last = quick_method("mtt", **{**options, "callbacks": [lambda run, done, loss: runs.append(run)]}, most_ratio=most)
    last.condense(toy_dataset())
    torch.testing.assert_close(runs[0].synthetic.stored["images"].detach(), average)


def test_first_skipped_update_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    small = quick_method("datm", most_ratio=1e-9, steps=3).condense(toy_dataset())
    (message,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert "the update of step 0 is skipped, because its objective is" in message
    assert "above most_ratio=1e-09; so were 1 of 1 updates so far" in message
    still = quick_method("datm", most_ratio=1e-9, steps=1).condense(toy_dataset())
    assert torch.equal(small.synthetic.images, still.synthetic.images)


RESUMED = {"most_ratio": 1.0, "min_start": 1, "first_max_start": 2, "max_start": 4, "expansion_steps": 3}


@pytest.mark.parametrize("method", ["mtt", "tesla", "esp", "datm"])
def test_resumed_runs_are_equal_bit_for_bit(method: str) -> None:
    law_resume(quick_method(method, **LABELS, **RESUMED, init="correct", momentum_label=0.9, expert_span=1))


@pytest.mark.parametrize("storage", ["patches", "dct", "siren"])
def test_rows_of_other_storage_forms_are_labelled_by_experts(storage: str) -> None:
    runs: list[Run] = []
    ds = toy_dataset(size=16)
    expand = {} if storage == "patches" else {"expand": 4}
    options = {"storage": storage, "soft_labels": "learned", "steps": 1, **expand}
    bench = quick_method("datm", **options, callbacks=[lambda run, *_: runs.append(run)])
    small = bench.condense(ds, 1)
    assert small.synthetic.soft_labels.shape == (12, 3)
    assert bool(torch.isfinite(small.synthetic.decoded()[0]).all())
    gradients = [tensor.grad for tensor in runs[0].synthetic.parameters().values()]
    assert len(gradients) == 3
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_start": 4}, r"min_start=4 should be below the latest start of a window, 4 in the first step"),
        (
            {"min_start": 2, "first_max_start": 2, "max_start": 4},
            r"min_start=2 should be below .*, 2 in the first step",
        ),
        ({"first_max_start": 4, "max_start": 3}, r"first_max_start=4 should be at most max_start=3, to which"),
        ({"first_max_start": 9}, r"first_max_start=9 should be at most max_start=8, to which"),
        ({"init": "corect"}, r"init should be one of 'correct', 'real', 'noise', .*did you mean 'correct'"),
        ({"labels_from": "expert"}, r"labels_from should be one of 'teacher', 'experts'; got 'expert'"),
        ({"most_ratio": 0}, r"most_ratio should be larger than 0; got 0"),
        ({"momentum_label": 1.0}, r"momentum_label should be smaller than 1; got 1.0"),
        ({"expansion_steps": 0}, r"expansion_steps should be at least 1; got 0"),
        ({"expansion_steps": 3}, r"expansion_steps=3 has no effect without first_max_start"),
    ],
)
@pytest.mark.parametrize("method", ["mtt", "esp"])
def test_options_that_make_no_sense_raise_value_error(method: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick_method(method, **{"expert_span": 2, **options}).condense(toy_dataset())


def test_latest_start_beyond_the_last_window_is_told(caplog) -> None:
    quick_method("mtt", snapshots=4, expert_span=2, max_start=50).condense(toy_dataset())
    assert "max_start=50 is beyond the last window, which starts below 2" in caplog.text


@pytest.mark.parametrize(
    ("ipc", "classes", "side", "expected"),
    [
        (1, 10, 32, {"student_steps": 80, "max_start": 4, "first_max_start": None, "most_ratio": 1.1, "lr_label": 5}),
        (
            10,
            10,
            28,
            {"first_max_start": 10, "max_start": 20, "expansion_steps": 1000, "batch_syn": None, "lr_img": 100},
        ),
        (50, 10, 32, {"first_max_start": 20, "max_start": 40, "expansion_steps": 2000, "lr_img": 1000}),
        (500, 10, 32, {"min_start": 40, "max_start": 60, "student_steps": 40, "first_max_start": None}),
        (1, 100, 32, {"expert_span": 3, "student_steps": 40, "first_max_start": 10, "max_start": 20}),
        (50, 100, 32, {"min_start": 20, "max_start": 70, "init": "real"}),
        (100, 100, 32, {"min_start": 30, "lr_img": 50, "init": "correct"}),
        (1, 200, 64, {"first_max_start": 15, "max_start": 20, "expansion_steps": 2000, "lr_img": 1e4}),
        (10, 200, 64, {"min_start": 10, "max_start": 50, "lr_img": 100, "batch_syn": 500, "lr_lr": 1e-4}),
        (50, 200, 64, {"min_start": 40, "max_start": 70, "lr_img": 100, "batch_syn": 1000}),
    ],
)
def test_paper_preset_follows_the_table(ipc: int, classes: int, side: int, expected: dict) -> None:
    values = DifficultyAlignedMatching.presets["paper"].values(Task(ipc, classes, (3, side, side)))
    assert expected.items() <= values.items()
    shared = {"steps": 10_000, "soft_labels": "learned", "labels_from": "experts", "momentum_label": 0.9, "zca": True}
    assert shared.items() <= values.items()
    assert (values["experts"], values["snapshots"], values["flatness"], values["surrogate_gap"]) == (
        100,
        101,
        0.01,
        0.3,
    )
    assert values["max_start"] + values["expert_span"] <= values["snapshots"]


@pytest.mark.parametrize("ipc", [1, 10])
def test_short_presets_use_the_parts_that_pay(ipc: int) -> None:
    for name in ("quick", "default"):
        values = get_method("datm").presets[name].values(Task(ipc, 10, (3, 32, 32)))
        assert values["first_max_start"] < values["max_start"]
        assert "expansion_steps" not in values  # half of the run, however long it is
        assert (values["init"], values["most_ratio"]) == ("correct", 1.0)
        assert values.get("soft_labels", "none") == ("none" if ipc < 4 else "learned")
        assert values["lr_student"] == (0.012 if ipc < 4 else 0.03)
        DifficultyAlignedMatching.Config.build(
            {k: v for k, v in values.items() if k not in ("network", "storage", "expand")}
        )


def test_paper_preset_whitens_only_images_that_can_be_whitened() -> None:
    cls = get_method("datm")
    shapes = {64: True, 65: False, 128: False}
    assert {side: cls.presets["paper"].values(Task(1, 10, (3, side, side)))["zca"] for side in shapes} == shapes


def test_number_of_steps_identifies_a_run_whose_windows_expand_over_a_share_of_them() -> None:
    observed = observe(TrajectoryMatching)
    for options, follows in (
        ({"first_max_start": 1}, True),
        ({"first_max_start": 1, "expansion_steps": 2}, False),
        ({}, False),
    ):
        identities = [
            TrajectoryMatching(TrajectoryMatching.Config(steps=n, **options)).identity(observed.run) for n in (4, 8)
        ]
        assert (identities[0] != identities[1]) is follows


def test_first_rows_of_other_seeds_are_others() -> None:
    observed = observe(TrajectoryMatching, t=0, init="correct", expert_span=2)
    chosen = set()
    for seed in range(3):
        observed.run.seed = seed
        chosen.add(tuple(correct_positions(observed.run, observed.method.experts).tolist()))
    assert len(chosen) == 3


@pytest.mark.parametrize(
    ("ipc", "classes", "row"),
    [
        (10, 10, (80, 2, 0, 10, 20, 1000, 100, 2, 1e-5)),
        (1000, 10, (100, 2, 40, None, 60, None, 50, 10, 1e-5)),
        (10, 100, (80, 2, 0, 30, 50, 2000, 1000, 10, 1e-5)),
    ],
)
def test_paper_preset_has_whole_rows_of_the_table(ipc: int, classes: int, row: tuple) -> None:
    values = DifficultyAlignedMatching.presets["paper"].values(Task(ipc, classes, (3, 32, 32)))
    names = ("student_steps", "expert_span", "min_start", "first_max_start", "max_start", "expansion_steps")
    assert tuple(values[name] for name in (*names, "lr_img", "lr_label", "lr_lr")) == row


def test_first_start_beyond_the_last_window_is_told(caplog: pytest.LogCaptureFixture) -> None:
    options = {"snapshots": 4, "expert_span": 2, "first_max_start": 50, "expansion_steps": 2, "max_start": None}
    quick_method("datm", **options).condense(toy_dataset())
    assert "first_max_start=50 is beyond the last window, which starts below 2" in caplog.text


@pytest.mark.parametrize(
    ("ipc", "classes", "side", "row"),
    [
        (1, 10, 32, (80, 2, 0, None, 4, None, 100, None, 5, 1e-7)),
        (50, 10, 32, (80, 2, 0, 20, 40, 2000, 1000, None, 2, 1e-5)),
        (500, 10, 32, (40, 2, 40, None, 60, None, 50, 1000, 10, 1e-5)),
        (1, 100, 32, (40, 3, 0, 10, 20, 1000, 1000, 1000, 10, 1e-5)),
        (50, 100, 32, (80, 2, 20, None, 70, None, 1000, 1000, 10, 1e-5)),
        (100, 100, 32, (80, 2, 30, None, 70, None, 50, 1000, 10, 1e-5)),
        (1, 200, 64, (40, 2, 0, 15, 20, 2000, 1e4, 1000, 10, 1e-4)),
        (10, 200, 64, (40, 2, 10, None, 50, None, 100, 500, 10, 1e-4)),
        (50, 200, 64, (20, 2, 40, None, 70, None, 100, 1000, 10, 1e-4)),
    ],
)
def test_paper_preset_has_the_other_rows_of_the_table_too(ipc: int, classes: int, side: int, row: tuple) -> None:
    values = DifficultyAlignedMatching.presets["paper"].values(Task(ipc, classes, (3, side, side)))
    names = ("student_steps", "expert_span", "min_start", "first_max_start", "max_start", "expansion_steps", "lr_img")
    assert tuple(values[name] for name in (*names, "batch_syn", "lr_label", "lr_lr")) == row


@pytest.mark.parametrize(("ipc", "most"), [(1, 1.1), (10, 1.0), (500, 1.0)])
def test_paper_preset_guards_updates_and_learns_free_pixels_along_augmented_experts(ipc: int, most: float) -> None:
    values = DifficultyAlignedMatching.presets["paper"].values(Task(ipc, 10, (3, 32, 32)))
    assert (values["most_ratio"], values["pixel_range"], values["lr_student"]) == (most, "free", 0.01)
    assert values["augment_expert"] == ALL_FAMILIES


def test_short_presets_expand_windows_and_learn_labels_as_measured() -> None:
    quick = DifficultyAlignedMatching.presets["quick"].values
    few, many = (quick(Task(ipc, 10, (3, 32, 32))) for ipc in (1, 10))
    long = quick(Task(1, 10, (3, 32, 32), storage="dct", expand=16))
    starts = [(values["first_max_start"], values["max_start"]) for values in (few, many, long)]
    assert starts == [(4, 8), (4, 12), (6, 15)]
    assert (few["lr_label"], many["lr_label"]) == (5.0, 20.0)


def test_student_steps_of_a_form_of_many_rows_take_some_of_them() -> None:
    """Ten images in each of ten classes decode into 800 rows."""
    quick = DifficultyAlignedMatching.presets["quick"].values
    batches = [quick(Task(10, 10, (3, 32, 32), storage="dct", expand=expand)).get("batch_syn") for expand in (1, 8)]
    assert batches == [None, 500]


@pytest.mark.parametrize(("values", "told"), [([2.0], True), ([2.0] * 10, True), ([0.5, 2.0], False)])
def test_set_whose_updates_were_all_skipped_is_told_as_such(
    values: list[float], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    method = observe(TrajectoryMatching, t=0, most_ratio=1.0).method
    method._skipped = 0, 0
    caplog.clear()
    assert method.rate(len(values) - 1, values) == 0
    skipped = sum(value > 1 for value in values)
    assert f"so were {skipped} of {len(values)} updates so far" in caplog.text
    assert ("The set is still the one that learning started from" in caplog.text) is told


@pytest.mark.parametrize("method", [TrajectoryMatching, SubspaceProjection])
def test_choice_to_compile_identifies_a_run_along_experts(method: type) -> None:
    observed = observe(method, t=0)
    runs = [dataclasses.replace(observed.run, compile=choice) for choice in (False, True)]
    assert observed.method.identity(runs[0]) != observed.method.identity(runs[1])
