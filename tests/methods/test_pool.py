"""A pool of networks: its recording, its blends, the calibration, and real statistics that are kept."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hf_condense.methods._embeddings as embeddings_module
import hf_condense.methods._recordings as recordings_module
from hf_condense.base.errors import NonFiniteLossError
from hf_condense.base.paths import cache_folder
from hf_condense.engine import build
from hf_condense.engine.run import Run
from hf_condense.methods._embeddings import KeptTensors
from hf_condense.methods._pool import Pool, PoolConfig, calibration_loss, pool_recipe, recorded_pool
from hf_condense.methods.dm import DistributionMatching
from hf_condense.methods.m3d import KernelMoments
from hf_condense.networks.flat import parameter_vector
from hf_condense.testing import law_resume, quick_method, toy_dataset
from tests.reference.distribution import distribution_matching
from tests.reference.pool import blended, calibration
from tests.support.draws import normal
from tests.support.observed_step import augmented_rows, objective_of_step

POOL = {"networks": "pool", "pool_size": 3, "pool_updates": 6, "lr_pool": 0.05, "batch_pool": 12}
CONFIG = PoolConfig(**POOL)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))


@pytest.fixture
def run() -> Run:
    return objective_of_step(DistributionMatching, {"cache": False}, 0).run


@pytest.fixture
def real_draws(monkeypatch) -> Iterator[list[int]]:
    """Return a list that collects the number of every real batch that is drawn from now on."""
    numbers: list[int] = []
    original = Run.real_batch

    def spy(run, classes, n, t):
        numbers.append(t)
        return original(run, classes, n, t)

    monkeypatch.setattr(Run, "real_batch", spy)
    return numbers


def recorded(run: Run, config: PoolConfig = CONFIG, *, cache: bool = True) -> Pool:
    return recorded_pool(dataclasses.replace(run, cache=cache), config)


def images(method: str, ds: Any = None, **options: Any) -> torch.Tensor:
    return quick_method(method, **options).condense(ds or toy_dataset()).synthetic.stored["images"]


# Recording


def test_a_pair_is_a_network_before_and_after_training(run: Run) -> None:
    pool = recorded(run)
    first, last = pool.pairs.window(1, 0, 2)
    assert torch.equal(first, parameter_vector(run.factory.build(run.seed, "expert", 1)))
    assert float((last - first).abs().max()) > 1e-3
    assert len(pool.pairs) == 3


def test_recipe_follows_the_options() -> None:
    config = dataclasses.replace(CONFIG, augment_pool="flip", cutmix_pool=0.5, pool_updates=7)
    recipe = pool_recipe(config, 36)
    assert (recipe.lr, recipe.batch_size, recipe.augment, recipe.cutmix_probability) == (0.05, 12, "flip", 0.5)
    assert recipe.updates(36, 7) == 7
    assert pool_recipe(CONFIG, 36).augment is None


def test_recipe_is_momentum_descent_whose_rate_falls_twice() -> None:
    """After two thirds and five sixths of the updates, the rate falls to a fifth, and the momentum goes on."""
    recipe = pool_recipe(CONFIG, 36)
    assert (recipe.optimiser, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 5e-4)
    assert recipe.milestones == pytest.approx((2 / 3, 5 / 6))
    assert (recipe.gamma, recipe.restart_optimiser) == (0.2, False)
    assert (recipe.cosine, recipe.flatness, recipe.view_area) == (0.0, 0.0, None)


def test_flips_colours_and_cutout_are_always_applied_and_one_of_the_others() -> None:
    config = dataclasses.replace(CONFIG, augment_pool="scale_cutout_crop_color_rotate_flip")
    always, one = pool_recipe(config, 36).augmentations()
    assert (set(always.families), always.mode) == ({"flip", "color", "cutout"}, "all")
    assert (set(one.families), one.mode) == ({"scale", "crop", "rotate"}, "single")
    (listed,) = pool_recipe(dataclasses.replace(CONFIG, augment_pool="color"), 36).augmentations()
    assert (listed.families, listed.mode) == (("color",), "all")
    assert pool_recipe(CONFIG, 36).augmentations() == []


@pytest.mark.parametrize("rows", [36, 37])
def test_training_takes_as_many_epochs_as_the_updates_need(rows: int) -> None:
    """The schedule is that of the capped updates, of which there should be enough."""
    recipe = pool_recipe(dataclasses.replace(CONFIG, pool_updates=13), rows)  # batches of 12: 3 or 4 updates an epoch
    assert recipe.epochs == (5 if rows == 36 else 4)
    assert recipe.updates(rows) >= 13


def test_pool_is_recorded_once_and_shared_by_methods(trained: list[int]) -> None:
    for method in ("dm", "m3d", "dance", "ncfm", "dm"):
        quick_method(method, networks="pool").condense(toy_dataset())
    assert trained == [0, 1]


def test_wrong_options_are_refused_before_the_pool_is_trained(trained: list[int]) -> None:
    for method in ("dm", "ncfm"):
        with pytest.raises(ValueError, match="init should be one of"):
            quick_method(method, networks="pool", init="hreding").condense(toy_dataset())
    assert trained == []


def test_larger_pool_records_only_what_is_missing(run: Run, trained: list[int]) -> None:
    first = recorded(run).pairs.window(2, 0, 2).clone()
    more = recorded(run, dataclasses.replace(CONFIG, pool_size=5, lr_img=3.0))
    assert trained == [0, 1, 2, 3, 4]
    assert torch.equal(more.pairs.window(2, 0, 2), first)


@pytest.mark.parametrize(
    "changes",
    [{"pool_updates": 5}, {"lr_pool": 0.04}, {"batch_pool": 9}, {"augment_pool": "flip"}, {"cutmix_pool": 1.0}],
)
def test_other_options_give_other_networks(run: Run, changes: dict) -> None:
    one, other = recorded(run), recorded(run, dataclasses.replace(CONFIG, **changes))
    assert one.pairs.files[0].parent != other.pairs.files[0].parent
    assert torch.equal(one.pairs.window(0, 0, 1), other.pairs.window(0, 0, 1))
    assert not torch.equal(one.pairs.window(0, 1, 1), other.pairs.window(0, 1, 1))


def test_other_seeds_and_datasets_give_other_networks(trained: list[int]) -> None:
    images("dm", networks="pool")
    images("dm", networks="pool", seed=1)
    images("dm", toy_dataset(rows=13), networks="pool")
    assert trained == [0, 1] * 3
    assert len(list(cache_folder("experts").iterdir())) == 3


def test_interrupted_recording_resumes_with_what_is_missing_or_damaged(run: Run, trained: list[int]) -> None:
    pool = recorded(run)
    before = [pool.pairs.window(e, 0, 2).clone() for e in range(3)]
    pool.pairs.files[1].unlink()
    pool.pairs.files[2].write_bytes(pool.pairs.files[2].read_bytes()[:-7])
    again = recorded(run)
    assert trained == [0, 1, 2, 1, 2]
    for e in range(3):
        assert torch.equal(again.pairs.window(e, 0, 2), before[e])


def test_pool_without_cache_gives_the_same_images_and_leaves_no_file(trained: list[int]) -> None:
    cached = images("dm", networks="pool")
    cached_files = sorted(cache_folder("experts").rglob("*"))
    assert torch.equal(images("dm", networks="pool", cache=False), cached)
    assert trained == [0, 1, 0, 1]
    assert sorted(cache_folder("experts").rglob("*")) == cached_files


def test_experts_and_pools_with_equal_numbers_are_kept_apart(trained: list[int]) -> None:
    quick_method("mtt").condense(toy_dataset())
    quick_method("dm", networks="pool").condense(toy_dataset())
    assert trained == [0, 1, 0, 1]


def test_recording_is_logged_and_shown_under_its_own_name(run: Run, caplog, monkeypatch) -> None:
    titles: list[str] = []
    original = recordings_module.progress_bar

    def spy(total, title, *args, **options):
        titles.append(title)
        return original(total, title, *args, **options)

    monkeypatch.setattr(recordings_module, "progress_bar", spy)
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        recorded(run)
    assert titles == ["Recording pool networks"]
    assert "recorded 3 pool networks in" in caplog.text


# Blends


def place(pool: Pool, run: Run, draw: int) -> tuple[int, float]:
    """Return the pair of a draw, which has its trained weights, and how far its blend lies from the first ones."""
    trained, blend = pool.trained(run, draw), pool.blend(run, draw)
    (number,) = (n for n in range(len(pool.pairs)) if torch.equal(pool.pairs.window(n, 1, 1)[0], trained))
    first, last = (weights.double() for weights in pool.pairs.window(number, 0, 2))
    position = float((blend.double() - first) @ (last - first) / (last - first).square().sum())
    torch.testing.assert_close(blend.double(), first + position * (last - first), rtol=0, atol=1e-6)
    return number, position


def test_blends_lie_between_both_ends_and_draws_differ(run: Run) -> None:
    pool = recorded(run)
    numbers, positions = zip(*(place(pool, run, draw) for draw in range(40)), strict=True)
    assert set(numbers) == {0, 1, 2}
    assert -1e-6 < min(positions) < 0.15
    assert 0.85 < max(positions) < 1 + 1e-6
    assert torch.equal(pool.blend(run, 3), pool.blend(run, 3))
    assert not torch.equal(pool.blend(run, 3), pool.blend(run, 4))
    for number in range(3):
        own = [position for n, position in zip(numbers, positions, strict=True) if n == number]
        assert max(own) - min(own) > 0.3, "the position does not follow from the pair"


def ends(run: Run, method: Any, draw: int) -> tuple[nn.Module, nn.Module, float]:
    """Return the networks of both ends of a draw, and the position between them."""
    pool = recorded_pool(run, method.config)
    number, position = place(pool, run, draw)
    networks = []
    for weights in pool.pairs.window(number, 0, 2):
        network = run.factory.build(0)
        torch.nn.utils.vector_to_parameters(weights.clone(), network.parameters())
        networks.append(network.train())
    return *networks, position


@pytest.mark.parametrize("network", ["convnet-w8-d1", "convnet-w8-d1-bn"])
def test_dm_step_under_a_pool_equals_the_textbook(network: str) -> None:
    t, draw = 4, 3
    run, method, value, gradient = objective_of_step(DistributionMatching, {**POOL, "ipm": 3, "network": network}, t)
    first, last, position = ends(run, method, draw)
    real, synthetic = augmented_rows(run, method, draw)
    net = blended(first, last, position).train()
    if network.endswith("bn"):  # batch norm sees the rows of all classes at once, so that plain loops do not apply
        embed = {id(rows): net.embed(torch.cat([*rows.values()]).double()) for rows in (real, synthetic)}
        parts = [embed[id(rows)].split([len(r) for r in rows.values()]) for rows in (real, synthetic)]
        expected = sum((r.mean(0).detach() - s.mean(0)).square().sum() for r, s in zip(*parts, strict=True))
    else:
        expected = distribution_matching(real, synthetic, lambda x: net.embed(x.double()))
    (expected_gradient,) = torch.autograd.grad(expected, run.synthetic.stored["images"])
    assert value == pytest.approx(expected.item(), rel=1e-4)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-3, atol=1e-4 * scale)


# Calibration


@pytest.mark.parametrize("method", [DistributionMatching, KernelMoments])
@pytest.mark.parametrize(("factor", "ipc"), [(1, 2), (2, {0: 1, 1: 3, 2: 2})])
def test_calibration_of_a_step_equals_the_textbook(method, factor: int, ipc: object) -> None:
    weight = 0.7
    options = {**POOL, "factor": factor, "ipm": 1, "lr_img": 1.0}
    without = objective_of_step(method, options, 0, ipc)
    with_it = objective_of_step(method, {**options, "calibration": weight}, 0, ipc)
    run, instance, value, gradient = with_it
    _, last, _ = ends(run, instance, 0)
    _, synthetic = augmented_rows(run, instance, 0)
    targets = {c: torch.eye(3)[c].expand(len(rows), 3).double() for c, rows in synthetic.items()}
    expected = weight * calibration({c: s.double() for c, s in synthetic.items()}, targets, last.double())
    (expected_gradient,) = torch.autograd.grad(expected, run.synthetic.stored["images"])
    assert value - without.value == pytest.approx(expected.item(), rel=1e-3)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(gradient - without.gradient, expected_gradient.float(), rtol=1e-3, atol=1e-4 * scale)
    assert float(expected_gradient.abs().max()) > 0


def test_calibration_sees_batches_as_the_training_of_the_pool_did(monkeypatch) -> None:
    modes: list[bool] = []
    logits = Run.logits

    def watched(run: Run, images: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        modes.append(network.training)
        return logits(run, images, network)

    monkeypatch.setattr(Run, "logits", watched)
    quick_method("dm", **POOL, calibration=1.0, steps=1).condense(toy_dataset(), network="convnet-w4-bn")
    assert set(modes) == {True}


def test_calibration_loss_is_the_sum_of_the_means_of_the_classes() -> None:
    logits, labels = normal(5, 3).requires_grad_(), torch.tensor([0, 0, 2, 2, 2])
    losses = -logits.log_softmax(1)[torch.arange(5), labels]
    torch.testing.assert_close(calibration_loss(logits, labels, labels), losses[:2].mean() + losses[2:].mean())
    parts = [calibration_loss(logits[rows], labels[rows], labels[rows]) for rows in (slice(2), slice(2, 5))]
    torch.testing.assert_close(sum(parts), calibration_loss(logits, labels, labels))
    soft = normal(5, 3, seed=1).softmax(1)
    assert torch.autograd.gradcheck(lambda x: calibration_loss(x, soft, labels, 2.0), logits)


def test_calibration_loss_of_soft_targets_is_least_where_the_logits_agree() -> None:
    soft, labels = normal(2, 3, seed=1).softmax(1), torch.tensor([0, 1])
    logits = soft.log().requires_grad_()
    calibration_loss(logits, soft, labels).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_calibration_follows_the_soft_labels_of_the_set() -> None:
    class Labelled(DistributionMatching):
        def initialise(self, run):
            synthetic = super().initialise(run)
            synthetic.soft_labels = 3 * torch.eye(3).roll(1, 0)[synthetic.row_labels]
            return synthetic

    options = {**POOL, "calibration": 1.0, "ipm": 1}
    run, instance, value, _ = objective_of_step(Labelled, options, 0)
    _, last, _ = ends(run, instance, 0)
    _, synthetic = augmented_rows(run, instance, 0)
    targets = {c: (3 * torch.eye(3).roll(1, 0)[c]).softmax(0).expand(2, 3).double() for c in synthetic}
    expected = calibration({c: s.double() for c, s in synthetic.items()}, targets, last.double())
    rest = objective_of_step(Labelled, {**options, "calibration": 0.0}, 0).value
    assert value - rest == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("method", ["dance", "ncfm"])
def test_one_class_per_chunk_gives_the_same_step(method: str, monkeypatch) -> None:
    cls = {"dance": DistributionMatching, "ncfm": KernelMoments}[method]
    kernel = {"kernel": "characteristic", "normalise": True} if method == "ncfm" else {}
    options = {**POOL, **kernel, "calibration": 0.5, "lr_img": 1.0, "batch_syn": 2, "factor": 2}
    whole = objective_of_step(cls, options, 1)
    monkeypatch.setattr(build, "memory_budget", lambda device: 1)
    chunked = objective_of_step(cls, options, 1)
    assert (whole.run.plan.classes_per_chunk, chunked.run.plan.classes_per_chunk) == (3, 1)
    assert chunked.value == pytest.approx(whole.value, rel=1e-5)
    torch.testing.assert_close(chunked.gradient, whole.gradient, rtol=1e-4, atol=1e-6)


# Draws


CHARACTERISTIC = {"kernel": "characteristic", "normalise": True, "lr_img": 1.0}


@pytest.mark.parametrize("ipm", [1, 2])
def test_finite_draws_take_turns_and_embed_real_rows_once_each(ipm: int, real_draws: list[int]) -> None:
    images("dm", **POOL, draws=3, ipm=ipm, steps=9 * ipm)
    assert sorted(real_draws) == [0, 1, 2]


def test_draws_take_turns_in_orders_that_differ() -> None:
    steps: list[int] = []

    def note(run: Run, done: int, loss: float) -> None:
        own = parameter_vector(run.compiled_network())
        fresh = (parameter_vector(run.factory.build(run.seed, "network", draw)) for draw in range(4))
        steps.append(next(draw for draw, weights in enumerate(fresh) if torch.equal(own, weights)))

    images("dm", draws=4, ipm=2, steps=6 * 4 * 2, callbacks=[note])
    assert steps[::2] == steps[1::2], "a draw lasts for ipm steps"
    turns = [tuple(steps[::2][first : first + 4]) for first in range(0, 24, 4)]
    assert all(sorted(turn) == [0, 1, 2, 3] for turn in turns)
    assert len(set(turns)) > 2
    assert turns[0] != (0, 1, 2, 3)


def test_without_draws_each_network_sees_new_real_rows(real_draws: list[int]) -> None:
    images("dm", **POOL, steps=4)
    assert real_draws == [0, 1, 2, 3]


@pytest.mark.parametrize("options", [{}, {"kernel": "linear"}, CHARACTERISTIC])
@pytest.mark.parametrize("networks", ["fresh", "pool"])
def test_statistics_that_do_not_fit_are_computed_again_with_the_same_result(
    options: dict, networks: str, real_draws: list[int], monkeypatch, caplog
) -> None:
    pool = POOL if networks == "pool" else {}
    options = {**pool, **options, "draws": 2, "ipm": 1, "steps": 5}
    kept = images("m3d", **options)
    assert len(real_draws) == 2
    assert "fits into memory" not in caplog.text
    monkeypatch.setattr(embeddings_module, "memory_budget", lambda device: 0)
    assert torch.equal(images("m3d", **options), kept)
    assert len(real_draws) == 2 + 5
    assert caplog.text.count("fits into memory for 0 of 2 draws (0 B)") == 1


def test_size_of_what_is_kept_is_logged(caplog) -> None:
    """Of each draw, DM keeps one mean embedding of 128 floats for each of three classes."""
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        images("dm", draws=1000, steps=1)
    assert "of the real images of 1000 draws takes about 1.5 MB" in caplog.text


def test_draws_change_the_images(real_draws: list[int]) -> None:
    assert not torch.equal(images("dm", **POOL, draws=1), images("dm", **POOL))


class WithDropout(nn.Module):
    """A network with dropout, as classes of a user may have it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, num_classes)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(images))


def with_dropout(*, channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    return WithDropout(num_classes)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dm", {**POOL, "draws": 2, "calibration": 0.5}),
        ("m3d", {**POOL, **CHARACTERISTIC, "draws": 2, "ipm": 2}),
        ("m3d", {"optimiser": "adamw", "weight_decay": 0.1, "lr_img": 0.1}),
        ("dm", {"network": with_dropout, "draws": 2}),
        ("dm", {"network": with_dropout, "ipm": 3}),
    ],
    ids=["calibration", "characteristic", "adamw", "dropout with draws", "dropout within a network"],
)
def test_resumed_run_equals_the_straight_run(method: str, options: dict) -> None:
    law_resume(quick_method(method, **options))


class Stop(Exception):
    """Raised by a callback to end a run."""


def stop(run: Run, done: int, loss: float) -> None:
    if done == 2:
        raise Stop


@pytest.mark.parametrize("method", ["dance", "ncfm"])
@pytest.mark.parametrize("form", [{}, {"factor": 2}, {"storage": "dct"}, {"storage": "siren"}])
def test_every_storage_form_learns_and_resumes(method: str, form: dict, tmp_path: Path) -> None:
    ds = toy_dataset(size=16)
    under_test = quick_method(method, **form, batch_syn=2, draws=2, steps=3)
    straight = under_test.condense(ds, 2)
    with pytest.raises(Stop):
        under_test.condense(ds, 2, checkpoint_dir=tmp_path, checkpoint_every=1, callbacks=[stop])
    resumed = under_test.condense(ds, 2, checkpoint_dir=tmp_path)
    short = quick_method(method, **form, batch_syn=2, draws=2, steps=1).condense(ds, 2)
    for name, tensor in straight.synthetic.all().items():
        assert torch.equal(tensor, resumed.synthetic.all()[name]), name
    assert any(
        not torch.equal(tensor, short.synthetic.all()[name]) for name, tensor in straight.synthetic.all().items()
    )


def test_kept_tensors_stay_within_their_limit() -> None:
    full: list[int] = []
    kept = KeptTensors(80, full.append)
    made: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.zeros(10)  # 40 bytes

    for name in ("a", "b", "c", "a", "c", "d"):
        kept.get(name, lambda name=name: make(name))
    assert made == ["a", "b", "c", "c", "d"]
    assert full == [2]
    kept.clear()
    kept.get("a", lambda: make("a again"))
    assert made[-1] == "a again"


def test_what_is_kept_of_real_rows_is_forgotten_when_a_step_is_cut_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[KeptTensors] = []
    original = KeptTensors.__init__

    def watched(self: KeptTensors, *args: Any) -> None:
        original(self, *args)
        made.append(self)

    def cut(run: Run, done: int, loss: float) -> None:
        if done == 2:
            run.plan = dataclasses.replace(run.plan, classes_per_chunk=1)

    monkeypatch.setattr(KeptTensors, "__init__", watched)
    options = {"ipm": 10, "steps": 4, "cache": False}
    whole = quick_method("dm", **options).condense(toy_dataset())
    sizes = [len(kept._tensors) for kept in made]
    made.clear()
    cut_smaller = quick_method("dm", callbacks=[cut], **options).condense(toy_dataset())
    assert sizes == [1]
    assert [len(kept._tensors) for kept in made] == [1, 3], "the second one is of chunks of one class"
    torch.testing.assert_close(cut_smaller.synthetic.images, whole.synthetic.images, rtol=1e-4, atol=1e-5)


def test_what_is_kept_of_a_draw_that_never_comes_again_is_forgotten() -> None:
    counts: list[int] = []

    class Watched(DistributionMatching):
        def after_update(self, run, t):
            counts.append(len(self._summaries._tensors))

    objective_of_step(Watched, {"ipm": 2}, 7)
    assert counts == [1] * 7


# AdamW


@pytest.mark.parametrize(("rate", "is_large"), [(1.0, True), (0.03, False)])
def test_rate_of_adamw_that_looks_like_one_of_sgd_is_warned_of(
    rate: float, is_large: bool, caplog: pytest.LogCaptureFixture
) -> None:
    quick_method("dm", optimiser="adamw", lr_img=rate, steps=1).condense(toy_dataset())
    assert ("looks like a rate for SGD" in caplog.text) == is_large


def test_first_step_of_adamw_moves_every_pixel_by_the_rate_and_decays_it() -> None:
    rate, weight_decay = 0.01, 0.5
    options = {"optimiser": "adamw", "lr_img": rate, "pixel_range": "free", "augment": "none", "steps": 1}
    starts: list[torch.Tensor] = []
    finals: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for decay in (0.0, weight_decay):

        def observe(run: Run, done: int, loss: float) -> None:
            starts.append(run.start("real").stored["images"].detach())
            finals.append(run.synthetic.stored["images"].detach().clone())
            gradients.append(run.synthetic.stored["images"].grad.clone())

        quick_method("dm", **options, weight_decay=decay, callbacks=[observe]).condense(toy_dataset())
    clear = gradients[0].abs() > 1e-5
    assert float(clear.float().mean()) > 0.5
    step = -rate * gradients[0].sign()
    torch.testing.assert_close((finals[0] - starts[0])[clear], step[clear], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(finals[1] - finals[0], -rate * weight_decay * starts[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("storage", "lr_stored", "rate"),
    [
        ("pixels", None, 2.0),
        ("pixels", 0.25, 0.25),
        ("dct", None, 2.0),
        ("siren", None, 0.001),
        ("siren", 0.25, 0.25),
    ],
)
def test_rate_of_adamw_is_the_stored_rate_or_that_of_the_form_or_else_the_image_rate(
    storage: str, lr_stored: float | None, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 20)
    rates: list[float] = []

    class Observed(DistributionMatching):
        def optimiser(self, run):
            optimiser = super().optimiser(run)
            rates.append(optimiser.param_groups[0]["lr"])
            return optimiser

    given = {} if lr_stored is None else {"lr_stored": lr_stored}
    objective_of_step(Observed, {"optimiser": "adamw", "lr_img": 2.0, "storage": storage, **given}, 0)
    assert rates == [rate]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": 0.5}, r"calibration=0.5 needs trained networks, but networks='fresh'; pass networks='pool'"),
        ({"draws": 4, "reuse_real": False}, "draws=4 has no effect with reuse_real=False; it needs reuse_real=True"),
        ({"networks": "pool", "cutmix_pool": 1.5}, "cutmix_pool should be at most 1; got 1.5"),
        ({"networks": "pool", "augment_pool": "flipp"}, "augment_pool: unknown augmentation 'flipp'"),
        ({"networks": "pools"}, "networks should be one of .*; got 'pools'"),
        ({"networks": "pool", "pool_size": 0}, "pool_size should be at least 1; got 0"),
        ({"draws": 0}, "draws should be at least 1; got 0"),
        ({"optimiser": "adam"}, "optimiser should be one of .*'adamw'.*; got 'adam'"),
        ({"weight_decay": -1.0}, "weight_decay should be at least 0; got -1.0"),
    ],
)
@pytest.mark.parametrize("method", ["dm", "m3d"])
def test_bad_options_raise_value_error_before_anything_is_trained(
    method: str, options: dict, message: str, trained: list[int]
) -> None:
    with pytest.raises(ValueError, match=message):
        quick_method(method, **options).condense(toy_dataset())
    assert trained == []


def test_no_pool_is_trained_for_fresh_networks(trained: list[int]) -> None:
    images("dm")
    assert trained == []


def test_diverging_networks_raise_non_finite_loss_error() -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"of pool network 0 are not finite .* a smaller lr_pool usually helps"
    ):
        images("dm", networks="pool", lr_pool=1e30, pool_updates=8, cache=False)


def test_frozen_parameters_raise_value_error(trained: list[int]) -> None:
    def half_frozen(*, channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        network = WithDropout(num_classes)
        network.body.requires_grad_(False)
        return network

    with pytest.raises(ValueError, match=r"2 parameters of the network are frozen \("):
        images("dm", networks="pool", network=half_frozen)
    assert trained == []
    images("dm", network=half_frozen)


def test_one_class_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"'dm' trains networks to tell classes apart, .* one class, 'only'"):
        quick_method("dm", networks="pool").condense(toy_dataset(("only",)), 1)


def test_calibration_loss_at_a_temperature_is_that_of_divided_logits_times_its_square() -> None:
    logits, soft, labels = normal(5, 3), normal(5, 3, seed=1).softmax(1), torch.tensor([0, 0, 2, 2, 2])
    expected = 4 * calibration_loss(logits / 2, soft, labels)
    torch.testing.assert_close(calibration_loss(logits, soft, labels, 2.0), expected)


def test_kept_tensors_have_all_their_room_again_after_clearing() -> None:
    kept = KeptTensors(40)
    kept.get("a", lambda: torch.zeros(10))
    kept.clear()
    first = kept.get("b", lambda: torch.ones(10))
    assert kept.get("b", lambda: torch.zeros(10)) is first


def test_choice_to_compile_identifies_a_run_with_a_pool_alone(run: Run) -> None:
    runs = [dataclasses.replace(run, compile=choice) for choice in (False, True)]
    for networks, differ in (("pool", True), ("fresh", False)):
        method = DistributionMatching(DistributionMatching.Config(networks=networks))
        assert (method.identity(runs[0]) != method.identity(runs[1])) is differ


def test_dropout_draws_anew_for_every_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, original = [], Run.embed
    monkeypatch.setattr(Run, "embed", lambda self, rows: seeds.append(torch.initial_seed()) or original(self, rows))
    quick_method("dm", steps=3, cache=False).condense(toy_dataset())
    assert len(set(seeds)) == len(seeds) >= 6


def test_steps_chunks_and_parts_of_a_step_drop_units_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple] = []
    original = embeddings_module.seeded_globals

    def watched(*key: Any, **options: Any) -> Any:
        keys.append(key)
        return original(*key, **options)

    monkeypatch.setattr(embeddings_module, "seeded_globals", watched)
    monkeypatch.setattr(build, "memory_budget", lambda device: 1)  # one class per chunk
    images("dm", **POOL, calibration=1.0, ipm=1, steps=2)
    assert len(keys) == len(set(keys)) == 2 * 3 * 3, "real rows, synthetic rows and the calibration"


def test_draws_that_are_kept_are_counted_and_priced_over_all_chunks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of each draw and class, DM keeps a mean embedding of 512 bytes; there is room for four of them."""
    monkeypatch.setattr(build, "memory_budget", lambda device: 1)  # one class per chunk
    monkeypatch.setattr(embeddings_module, "memory_budget", lambda device: 2 * 4 * 512)
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        images("dm", draws=1000, steps=3)
    assert "of the real images of 1000 draws takes about 1.5 MB" in caplog.text
    assert "fits into memory for 1 of 1000 draws" in caplog.text
