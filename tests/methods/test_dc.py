"""Gradient matching (DC, DSA) against a slow reference and closed forms."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hf_condense.engine import build
from hf_condense.engine.run import Run
from hf_condense.engine.task import Task
from hf_condense.methods import dc
from hf_condense.methods.dc import (
    GradientMatching,
    absolute_distance,
    batched_gradients,
    cosine_distance,
    freeze_batch_statistics,
    layerwise_distance,
    looped_gradients,
    loops,
    squared_distance,
)
from hf_condense.methods.dsa import SiameseGradientMatching
from hf_condense.methods.idc import MultiFormationMatching
from hf_condense.networks.factory import network_factory
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet
from hf_condense.testing import quick_method, toy_dataset
from tests.reference.gradient import convolution_matching, gradient_matching
from tests.support.draws import normal
from tests.support.observed_step import augmented_rows, objective_of_step

DISTANCES = {
    "layerwise": layerwise_distance,
    "cosine": cosine_distance,
    "mse": squared_distance,
    "l1": absolute_distance,
}


def rows_in_float64(run: Run, method: Any, draw: int) -> list[dict[int, torch.Tensor]]:
    """Return the real and the synthetic rows of a step by class."""
    return [{c: rows.double() for c, rows in by_class.items()} for by_class in augmented_rows(run, method, draw)]


class WithUnusedPart(nn.Module):
    """A network with a parameter that its forward pass does not use."""

    def __init__(self, channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 3)
        self.head = nn.Linear(channels * image_size[0] * image_size[1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))


@pytest.mark.parametrize("distance", DISTANCES)
def test_parameters_that_are_not_used_match_in_both_ways(distance: str) -> None:
    options = {"distance": distance, "outer_loop": 1, "network": WithUnusedPart, "cache": False}
    looped, batched = (
        quick_method("dc", class_gradients=way, **options).condense(toy_dataset()) for way in ("loop", "batched")
    )
    start = quick_method("dc", **{**options, "lr_img": 1e-12}).condense(toy_dataset()).synthetic.images
    assert looped.synthetic.images.isfinite().all()
    assert not torch.equal(looped.synthetic.images, start), "the images have moved"
    torch.testing.assert_close(looped.synthetic.images, batched.synthetic.images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("class_gradients", ["loop", "batched"])
@pytest.mark.parametrize(("method", "factor"), [(GradientMatching, 1), (SiameseGradientMatching, 2)])
def test_step_equals_the_textbook(method: type, factor: int, class_gradients: str, distance: str) -> None:
    """Take a step in the middle of an outer loop, so that the network has been trained on the set."""
    options = {
        "distance": distance,
        "class_gradients": class_gradients,
        "factor": factor,
        "outer_loop": 3,
        "inner_loop": 2,
    }
    run, instance, value, gradient = objective_of_step(method, options, t=1)
    real, synthetic = rows_in_float64(run, instance, 1)
    expected = gradient_matching(copy.deepcopy(instance._net).double(), real, synthetic, distance)
    (expected_gradient,) = torch.autograd.grad(expected, run.synthetic.stored["images"])
    assert value == pytest.approx(expected.item(), rel=1e-4)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-3, atol=2e-4 * scale)


LEARNED = {"soft_labels": "learned", "temperature": 2.5, "teacher_updates": 3, "lr_label": 0.5}


@pytest.mark.parametrize("class_gradients", ["loop", "batched"])
@pytest.mark.parametrize(
    ("method", "more", "matching"),
    [
        (GradientMatching, {"outer_loop": 3, "batch_syn": 2}, gradient_matching),
        (SiameseGradientMatching, {"outer_loop": 3, "factor": 2}, gradient_matching),
        (MultiFormationMatching, {"outer_loop": 3, "distance": "l1", "network": "convnet-w4-d2"}, convolution_matching),
    ],
)
def test_step_with_learned_labels_equals_the_textbook(
    method: type, more: dict[str, Any], matching: Callable[..., torch.Tensor], class_gradients: str
) -> None:
    """Compare the value, and its gradients by the images and by the labels."""
    options = {**LEARNED, "class_gradients": class_gradients, "inner_loop": 2, **more}
    run, instance, value, gradient = objective_of_step(method, options, 1, 3)
    real, synthetic = rows_in_float64(run, instance, 1)
    images, soft_labels = run.synthetic.stored["images"], run.synthetic.soft_labels
    targets = {}
    for c in run.classes:
        numbers = instance.row_numbers(run, [c], 1)
        targets[c] = (soft_labels[run.synthetic.rows[c] if numbers is None else numbers].double() / 2.5).softmax(1)
    net = copy.deepcopy(instance._net).double()
    expected = matching(net, real, synthetic, instance.config.distance, targets, 2.5)
    by_images, by_labels = torch.autograd.grad(expected, [images, soft_labels])
    assert value == pytest.approx(expected.item(), rel=1e-4)
    for got, wanted in ((gradient, by_images), (soft_labels.grad, by_labels)):
        scale = float(wanted.abs().max())
        assert scale > 0
        torch.testing.assert_close(got, wanted.float(), rtol=1e-3, atol=2e-3 * scale)


@pytest.mark.parametrize("batch_syn", [None, 2])
def test_classes_of_different_sizes_take_the_loop_and_equal_the_textbook(batch_syn: int | None) -> None:
    options = {"class_gradients": "batched", "outer_loop": 2, "inner_loop": 1, "batch_syn": batch_syn}
    run, instance, value, _ = objective_of_step(GradientMatching, options, 0, {0: 1, 1: 3, 2: 2})
    real, synthetic = rows_in_float64(run, instance, 0)
    expected = gradient_matching(copy.deepcopy(instance._net).double(), real, synthetic, "layerwise")
    assert value == pytest.approx(expected.item(), rel=1e-4)


def test_looped_and_batched_gradients_agree_in_float64() -> None:
    net = network_factory("convnet-w6-d2", channels=3, image_size=(8, 8), num_classes=4).build(0).double()
    images, labels = normal(3, 2, 3, 8, 8), torch.tensor([[0, 0], [1, 1], [3, 3]])
    probabilities = normal(3, 2, 4, seed=1).softmax(-1)
    for targets, temperature in ((labels, 1.0), (probabilities, 3.0)):
        looped = looped_gradients(net, images.unbind(), targets.unbind(), temperature)
        batched = batched_gradients(net, images.unbind(), targets.unbind(), temperature)
        for first, second, parameter in zip(looped, batched, net.parameters(), strict=True):
            assert first.shape == (3, *parameter.shape)
            torch.testing.assert_close(first, second)


def test_gradient_of_one_sample_under_a_linear_softmax_equals_its_closed_form() -> None:
    """The closed form is d CE / d W = (p - e_y) x^T."""
    net = nn.Linear(5, 3, bias=False).double()
    x = normal(1, 5)
    (gradient,) = looped_gradients(net, [x], [torch.tensor([2])])
    error = net(x).softmax(1) - torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient[0], (error.T @ x).detach(), check_dtype=True)


def test_layerwise_distance_is_zero_only_for_parallel_rows_and_ignores_scale_and_vectors() -> None:
    weight, bias = normal(2, 3, 4, 2, 2), normal(2, 5, seed=1)
    scale = normal(2, 3, 1, 1, 1, seed=2).abs() + 0.1
    other_bias = normal(2, 5, seed=3)
    assert layerwise_distance([weight, bias], [weight * scale, other_bias]).item() == pytest.approx(0, abs=1e-4)
    assert layerwise_distance([weight, bias], [-weight, bias]).item() == pytest.approx(2 * 6, rel=1e-5)
    one_row_flipped = weight.clone()
    one_row_flipped[0, 0] = -one_row_flipped[0, 0]
    assert layerwise_distance([weight, bias], [one_row_flipped, bias]).item() == pytest.approx(2, rel=1e-4)


def test_rows_without_a_gradient_have_distance_one_and_stay_finite() -> None:
    zeros = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    loss = layerwise_distance([zeros], [normal(1, 2, 3)])
    loss.backward()
    assert loss.item() == 2
    assert bool(torch.isfinite(zeros.grad).all())


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_pass_gradcheck(distance: str) -> None:
    real = [normal(2, 3, 2, seed=2), normal(2, 4, seed=3)]
    first, second = normal(2, 3, 2).requires_grad_(), normal(2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: DISTANCES[distance]([a, b], real), (first, second))


def test_equal_gradients_have_distance_zero() -> None:
    net = network_factory("convnet-w4-d1", channels=1, image_size=(8, 8), num_classes=2).build(0).double()
    images, targets = normal(2, 3, 1, 8, 8), torch.tensor([[0] * 3, [1] * 3])
    gradients = looped_gradients(net, images.unbind(), targets.unbind())
    assert cosine_distance(gradients, gradients).item() == pytest.approx(0, abs=1e-5)
    assert squared_distance(gradients, gradients).item() == 0


@pytest.mark.parametrize("ipc", [1, 2, 7, 10, 15, 49, 50, 51, 1000])
def test_loops_are_in_range_for_every_ipc(ipc: int) -> None:
    outer, inner = loops(ipc)
    assert outer == min(ipc, 50)
    assert 1 <= inner <= 50
    if ipc > 1:
        assert inner == 50 if ipc < 10 else 400 <= outer * inner <= 600


def test_quick_runs_of_many_images_have_short_outer_loops() -> None:
    values = GradientMatching.presets["quick"].values
    assert [values(Task(ipc, 10, (3, 32, 32)))["outer_loop"] for ipc in (1, 10, 100)] == [1, 10, 10]


def test_paper_preset_follows_the_table() -> None:
    expected = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {ipc: loops(ipc) for ipc in expected} == expected


def test_network_is_trained_between_updates_and_replaced_after_an_outer_loop() -> None:
    weights = {}

    class Watched(GradientMatching):
        def losses(self, run, t):
            yield from super().losses(run, t)
            weights[t] = next(self._net.parameters()).detach().clone()

    from hf_condense.engine import registry

    registry.register_method(Watched, "watched")
    try:
        bench = quick_method("watched", steps=4, outer_loop=2, inner_loop=3, lr_net=0.1)
        bench.condense(toy_dataset(), 1)
    finally:
        registry.unregister_method("watched")
    run_network = objective_of_step(GradientMatching, {"outer_loop": 2, "inner_loop": 1}, 2, 1).run
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], next(run_network.network("network", 2).parameters()))


def test_batch_statistics_are_frozen_while_classes_are_matched() -> None:
    run, instance, _, gradient = objective_of_step(GradientMatching, {"network": "convnet-w4-d1-bn"}, 0)
    norm = next(module for module in instance._net.modules() if isinstance(module, nn.BatchNorm2d))
    assert not norm.training
    assert bool(torch.isfinite(gradient).all())
    before = norm.running_mean.clone()
    freeze_batch_statistics(instance._net, run, 1)
    assert not torch.equal(before, norm.running_mean)


def test_batch_statistics_are_frozen_with_other_rows_in_each_step() -> None:
    run = objective_of_step(GradientMatching, {"network": "convnet-w4-d1-bn"}, 0).run
    means = []
    for t in (0, 1, 0):
        net = run.network("network", 0)
        freeze_batch_statistics(net, run, t)
        norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
        means.append(norm.running_mean.clone())
    first, second, again = means
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_learned_soft_labels_move_and_are_resumed_exactly(tmp_path) -> None:
    ds = toy_dataset(rows=12)
    bench = quick_method("dc", soft_labels="learned", temperature=2.0, teacher_updates=3, outer_loop=2, inner_loop=1)
    straight = bench.condense(ds)

    def stop(run, done, loss):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.condense(ds, checkpoint_dir=tmp_path, checkpoint_every=1, callbacks=[stop])
    resumed = bench.condense(ds, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert torch.equal(straight.synthetic.soft_labels, resumed.synthetic.soft_labels)
    start = quick_method("dc", soft_labels="learned", temperature=2.0, teacher_updates=3, steps=1, lr_label=1e-30)
    assert not torch.equal(straight.synthetic.soft_labels, start.condense(ds).synthetic.soft_labels)
    assert straight.recipe.temperature == 2.0


@pytest.mark.parametrize(("labels_of", "temperature"), [({}, 1.0), (LEARNED, 2.5)])
def test_inner_loop_is_plain_descent_on_the_updated_set(labels_of: dict[str, Any], temperature: float) -> None:
    options = {"outer_loop": 3, "inner_loop": 2, "lr_net": 0.1, "augment": "none", **labels_of}
    run, instance, _, _ = objective_of_step(GradientMatching, options, 1)  # the set is that after the first update
    images, targets = (tensor.detach() for tensor in run.synthetic.all())
    if labels_of:
        targets = (run.synthetic.soft_labels.detach() / temperature).softmax(1)
    net = run.factory.build(run.seed, "network", 0)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        loss = temperature**2 * nn.functional.cross_entropy(net(images) / temperature, targets)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients, strict=True):
                p -= 0.1 * g
    assert not torch.equal(next(net.parameters()), before[0])
    for p, expected in zip(instance._net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-6)


def test_inner_loop_is_augmented_as_the_step_is() -> None:
    """Train the first network in plain steps, and compare its weights with those of the method in step 1."""
    options = {"outer_loop": 3, "inner_loop": 3, "lr_net": 0.1}
    run, instance, _, _ = objective_of_step(SiameseGradientMatching, options, 1)
    images, labels = (tensor.detach() for tensor in run.synthetic.all())
    recipe = TrainingRecipe(
        "plain",
        epochs=3,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.0,
        milestones=(),
        augment="color_crop_cutout_flip_scale_rotate",
    )
    net = run.factory.build(run.seed, "network", 0)
    train_network(net, TrainingSet(images, labels, 3), recipe, run.seed, "inner", 0)
    for p, expected in zip(instance._net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["dc", "dsa", "idc"])
def test_network_with_frozen_parameters_raises_value_error(method: str) -> None:
    def half_frozen(channels: int, num_classes: int, image_size: tuple[int, int]) -> torch.nn.Module:
        layers = [torch.nn.Flatten(), torch.nn.Linear(channels * image_size[0] * image_size[1], 5)]
        layers[1].requires_grad_(False)
        return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(5, num_classes))

    with pytest.raises(ValueError, match=r"2 parameters of the network are frozen \(net.1.weight, ...\)"):
        quick_method(method, network=half_frozen, cache=False).condense(toy_dataset())


def test_lengths_of_loops_are_those_of_the_class_with_most_images() -> None:
    options = {"outer_loop": None, "inner_loop": None}
    method = objective_of_step(GradientMatching, options, 0, {0: 1, 1: 10, 2: 2}).method
    assert (method._outer, method._inner) == loops(10)


def test_inner_loop_that_no_network_takes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for options in ({"preset": "quick", "steps": 1}, {"outer_loop": 1}, {"outer_loop": 2, "inner_loop": 3}):
        quick_method("dc", **options).condense(toy_dataset(), 1)
        assert "inner_loop" not in caplog.text
    quick_method("dc", inner_loop=3).condense(toy_dataset(), 1)
    assert "inner_loop=3 changes nothing: with one update per network (outer_loop=1) no network is" in caplog.text


def test_dropout_draws_anew_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, original = [], Run.logits
    monkeypatch.setattr(Run, "logits", lambda *args: seeds.append(torch.initial_seed()) or original(*args))
    quick_method("dc", steps=3, outer_loop=3, inner_loop=0, cache=False).condense(toy_dataset(), 1)
    assert len(set(seeds)) == 3


def test_real_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    run, method, _, _ = objective_of_step(GradientMatching, {}, 0)
    images = run.real_batch([0], 5, 0)[0]
    assert len(images) == 5
    gradients = []
    for most in (5, 2):
        run.plan = dataclasses.replace(run.plan, images_per_forward=most)
        gradients.append(method._real_gradient(run, images, 0))
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["dc", "idc"])
def test_chunks_drop_units_apart(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple] = []
    original = dc.seeded_globals

    def watched(*key: Any, **options: Any) -> Any:
        keys.append(key)
        return original(*key, **options)

    monkeypatch.setattr(dc, "seeded_globals", watched)
    monkeypatch.setattr(build, "memory_budget", lambda device: 1)  # one class per chunk
    quick_method(method, steps=2, outer_loop=2, inner_loop=0, cache=False).condense(toy_dataset(), 1)
    assert len(keys) == len(set(keys)) == 2 * 3
