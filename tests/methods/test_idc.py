"""Gradient matching with multi-formation (IDC) against a slow reference and a plain inner loop."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hf_condense.engine.registry import get_method
from hf_condense.engine.task import Task
from hf_condense.methods.dc import batched_gradients, looped_gradients, matched_parameters, squared_distance
from hf_condense.methods.idc import MultiFormationMatching
from hf_condense.networks.factory import network_factory
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet
from hf_condense.testing import law_resume, quick_method, toy_dataset
from tests.reference.gradient import convolution_matching
from tests.support.observed_step import augmented_rows, objective_of_step

PIXELS = {"factor": 1, "outer_loop": 3, "inner_loop": 2}


@pytest.mark.parametrize("distance", ["mse", "l1"])
@pytest.mark.parametrize("class_gradients", ["loop", "batched"])
@pytest.mark.parametrize(("factor", "network"), [(1, "convnet-w4-d2"), (2, "convnet-w8-d1")])
def test_step_equals_the_textbook(network: str, factor: int, class_gradients: str, distance: str) -> None:
    """Take a step in the middle of an outer loop, so that the network has been trained on real rows."""
    options = {**PIXELS, "distance": distance, "class_gradients": class_gradients, "factor": factor, "network": network}
    run, method, value, gradient = objective_of_step(MultiFormationMatching, options, t=1)
    assert method.augmentation.mode == "all", "every image should get all families of augmentation"
    real, synthetic = (
        {c: rows.double() for c, rows in by_class.items()} for by_class in augmented_rows(run, method, 1)
    )
    expected = convolution_matching(copy.deepcopy(method._net).double(), real, synthetic, distance)
    (expected_gradient,) = torch.autograd.grad(expected, run.synthetic.stored["images"])
    assert value == pytest.approx(expected.item(), rel=1e-4)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-3, atol=2e-3 * scale)


@pytest.mark.parametrize(
    ("cutmix", "augment", "always"),
    [(0.5, "color_crop", ("color",)), (0.0, "color_crop_cutout", ("color", "cutout"))],
)
def test_network_is_trained_on_real_rows_with_cutmix_in_the_place_of_cutout(
    cutmix: float, augment: str, always: tuple[str, ...]
) -> None:
    """Train the first network in plain steps, and compare its weights with those of the method in step 2."""
    options = {**PIXELS, "batch_net": 16, "lr_net": 0.05, "cutmix": cutmix}
    run, method, _, _ = objective_of_step(MultiFormationMatching, options, t=2)
    net = run.factory.build(run.seed, "network", 0)
    first = copy.deepcopy(net.state_dict())
    recipe = TrainingRecipe(
        "plain",
        epochs=1,
        batch_size=16,
        lr=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        milestones=(),
        augment=augment,
        always=always,
        cutmix_probability=cutmix,
    )
    data = TrainingSet(run.source.at(torch.arange(36)), run.source.labels, 3)
    for step in range(2):
        train_network(net, data, recipe, run.seed, "inner", step, max_updates=2)
    for name, tensor in method._net.state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(tensor, first[name]) or not tensor.abs().max(), name


def test_inner_loop_makes_so_many_updates_also_over_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six rows are two batches: five updates are three passes, of which the last one is cut short."""
    updates: list[int] = []

    def counted(*arguments: Any, **options: Any) -> int:
        updates.append(train_network(*arguments, **options))
        return updates[-1]

    monkeypatch.setattr("hf_condense.methods.dc.train_network", counted)
    learned = {}
    for count in (0, 2, 5):
        updates.clear()
        small = quick_method("idc", inner_loop=count, batch_net=4, steps=3, outer_loop=3).condense(
            toy_dataset(rows=2), 1
        )
        # After the first two steps; after the third one, the network makes way for a new one.
        assert updates == ([count] * 2 if count else [])
        learned[count] = small.synthetic.stored["images"]
    assert len({tuple(images.flatten().tolist()) for images in learned.values()}) == 3


def test_gradients_of_convolutions_agree_and_leave_out_everything_else() -> None:
    net = network_factory("convnet-w6-d2", channels=3, image_size=(8, 8), num_classes=4).build(0).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.tensor([[0, 0], [1, 1], [3, 3]])
    convolutions = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert list(matched_parameters(net, "convolutions").values()) == convolutions
    every = dict(zip((n for n, _ in net.named_parameters()), looped_gradients(net, images, targets), strict=True))
    looped, batched = (way(net, images, targets, 1.0, "convolutions") for way in (looped_gradients, batched_gradients))
    for name, first, second in zip(matched_parameters(net, "convolutions"), looped, batched, strict=True):
        torch.testing.assert_close(first, every[name])
        torch.testing.assert_close(first, second)
    assert len(matched_parameters(net, "all")) == len(list(net.parameters()))


def test_objective_passes_gradcheck() -> None:
    net = network_factory("convnet-w3-d1-sigmoid", channels=1, image_size=(4, 4), num_classes=2).build(0).double()
    images = torch.randn(1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([[1, 1]])
    real = [gradient.detach() + 0.1 for gradient in looped_gradients(net, images.flip(1) * 2, targets, 1.0)][:1]

    def objective(rows: torch.Tensor) -> torch.Tensor:
        return squared_distance(looped_gradients(net, rows, targets, 1.0, "convolutions"), real)

    assert torch.autograd.gradcheck(objective, (images.requires_grad_(),))


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 2, "batch_syn": 3},
        {"soft_labels": "learned", "teacher_updates": 2, "temperature": 2.0},
        {"network": "convnet-w4-d1-bn", "distance": "l1"},
    ],
)
def test_resumed_runs_are_equal_bit_for_bit(options: dict) -> None:
    law_resume(quick_method("idc", steps=4, outer_loop=3, inner_loop=2, **options))


@pytest.mark.parametrize("storage", ["patches", "dct", "siren"])
def test_set_is_learned_in_other_storage_forms(storage: str) -> None:
    expand = {} if storage == "patches" else {"expand": 4}
    sets = [
        quick_method("idc", storage=storage, steps=steps, outer_loop=2, inner_loop=1, **expand).condense(
            toy_dataset(size=16), 1
        )
        for steps in (1, 3)
    ]
    assert all(len(small) == 12 for small in sets)
    assert not torch.equal(sets[0].synthetic.decoded()[0], sets[1].synthetic.decoded()[0])


def test_network_without_convolutions_raises_value_error() -> None:
    def linear(channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, num_classes))

    with pytest.raises(ValueError, match="the network has none; pass matched='all'"):
        quick_method("idc", network=linear).condense(toy_dataset(), 1)
    assert len(quick_method("idc", network=linear, matched="all").condense(toy_dataset(), 1)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutmix": 1.5}, r"cutmix should be at most 1; got 1.5"),
        ({"cutmix": -0.5}, r"cutmix should be at least 0"),
        ({"distance": "l2"}, r"distance should be one of 'layerwise', 'cosine', 'mse', 'l1'; got 'l2'"),
        ({"matched": "convolution"}, r"matched should be one of 'all', 'convolutions'; got 'convolution'"),
        ({"batch_net": 0}, r"batch_net should be at least 1; got 0"),
    ],
)
def test_options_that_make_no_sense_raise_value_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick_method("idc", **options).condense(toy_dataset(), 1)


@pytest.mark.parametrize("preset", ["default", "quick", "paper"])
def test_presets_store_patches_or_frequencies_and_follow_the_authors_rates(preset: str) -> None:
    cls = get_method("idc")
    colour, grey = (Task(10, 10, shape, std=0.25) for shape in ((3, 32, 32), (1, 28, 28)))
    values, grey_values = (cls.presets[preset].values(task) for task in (colour, grey))
    assert (values["distance"], grey_values["distance"]) == ("mse", "l1")
    if preset == "quick":
        assert (values["storage"], values["expand"], "factor" in values) == ("dct", 8, False)
        assert cls.presets[preset].values(Task(51, 10, (3, 32, 32)))["factor"] == 2
    else:
        assert values["factor"] == 2
    faster, grey_faster = (80, 2000) if preset == "quick" else (1, 1)
    assert values["lr_img"] == pytest.approx(faster * 0.005 / 0.25**2)
    assert grey_values["lr_img"] == pytest.approx(grey_faster * 0.0001 / 0.25**2)
    larger = Task(10, 10, (3, 64, 64), std=0.25)
    assert cls.presets[preset].values(larger)["lr_img"] == pytest.approx(4 * values["lr_img"])
    of_one = cls.presets[preset].values(Task(1, 10, (3, 32, 32)))["lr_img"]
    assert of_one == pytest.approx(values["lr_img"] / (1 if preset == "quick" else 10))
    cls.Config.build(
        {name: value for name, value in values.items() if name not in ("factor", "storage", "expand", "network")}
    )


def test_paper_preset_follows_the_authors_code() -> None:
    values = get_method("idc").presets["paper"].values(Task(10, 10, (3, 32, 32)))
    config = MultiFormationMatching.Config.build({k: v for k, v in values.items() if k != "factor"})
    assert (config.steps, config.outer_loop, config.batch_real, config.batch_syn) == (200_000, 100, 64, 128)
    assert (config.inner_loop, config.batch_net) == (32, 64)  # the first number of batches with 2,000 rows
    assert (config.matched, config.augment, config.lr_net, config.momentum) == (
        "convolutions",
        "color_crop_cutout",
        0.01,
        0.5,
    )


def test_default_preset_decodes_four_rows_per_image() -> None:
    small = quick_method("idc", preset="default").condense(toy_dataset(), 1)
    assert (small.recipe.storage, small.recipe.expand, len(small)) == ("patches", 4, 12)


def test_squared_distance_under_one_convolution_equals_its_closed_form() -> None:
    """A convolution as large as the image is linear softmax regression."""
    net = nn.Sequential(nn.Conv2d(2, 3, 4, bias=False), nn.Flatten()).double()
    images = torch.randn(2, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = [(net(rows).softmax(1) - torch.eye(3)[2]).T @ rows.flatten(1) for rows in images]
    got = [looped_gradients(net, [rows], [torch.tensor([2])], 1.0, "convolutions") for rows in images]
    torch.testing.assert_close(squared_distance(*got), (by_hand[0] - by_hand[1]).square().sum())
