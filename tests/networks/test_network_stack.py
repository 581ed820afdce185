"""Networks that are trained together end where each of them ends alone, whatever the recipe; others stay alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hf_condense.base.memory import limited_memory
from hf_condense.base.rng import keyed_generator
from hf_condense.condensed.views import ViewLabels, random_crops
from hf_condense.networks import network_stack
from hf_condense.networks.accuracy import predictions
from hf_condense.networks.factory import network_factory
from hf_condense.networks.network_facts import activation_bytes
from hf_condense.networks.network_stack import NetworkStack, networks_together
from hf_condense.networks.training import train_network, train_stack
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.load import load_source
from tests.support.pretend_device import pretend_device

pytestmark = pytest.mark.usefixtures("one_thread")

GPU = torch.device("cuda", 0)
KEYS = [("evaluate", seed) for seed in range(3)]
ROWS, UPDATES = 10, 6


def factory(name="convnet-w8", side=8):
    return network_factory(name, channels=3, image_size=(side, side), num_classes=3)


def toy_set(number: int = 0, *, labels: str = "hard", side: int = 8) -> TrainingSet:
    """Return random images in float64, in which rounding does not grow to anything that could be seen."""
    generator = keyed_generator("toy", number)
    images = torch.randn(ROWS, 3, side, side, generator=generator, dtype=torch.float64)
    logits = 3 * torch.randn(ROWS, 4, 3, generator=generator)
    if labels == "hard":
        return TrainingSet(images, torch.randperm(ROWS, generator=generator) % 3, 3)
    soft = TrainingSet(images, logits[:, 0].double(), 3, temperature=2.0)
    if labels == "views":
        crops = torch.stack([random_crops(4, (side, side), 0.3, generator) for _ in range(ROWS)])
        return replace(soft, views=ViewLabels.of_logits(logits, crops, 2))
    return replace(soft, relabel=lambda seen: seen.mean((2, 3))) if labels == "relabelled" else soft


def assert_trained_alike(
    sets: list[TrainingSet], recipe: str, build: Callable[..., nn.Module], updates: int = UPDATES, tolerance=1e-9
) -> None:
    training = replace(RECIPES[recipe], batch_size=4)  # the last batch of an epoch has two rows
    alone = [build(*key).double() for key in KEYS]
    for net, data, key in zip(alone, sets, KEYS, strict=True):
        train_network(net, data, training, *key, max_updates=updates)
    stack = NetworkStack([build(*key).double() for key in KEYS])
    assert train_stack(stack, sets, training, KEYS, max_updates=updates) == updates
    for name, stacked in stack.net.state_dict().items():
        for net, weights in zip(alone, stacked, strict=True):
            torch.testing.assert_close(weights, net.state_dict()[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("labels", ["hard", "soft", "views", "relabelled"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_ends_where_each_network_ends_alone(recipe, labels):
    sets = [toy_set(number, labels=labels) for number in range(3)]
    assert_trained_alike(sets, recipe, factory().build)


@pytest.mark.parametrize(
    "name",
    ["mlp", "lenet", "alexnet", "vgg11", "resnet18", *(f"convnet-w8-{norm}" for norm in ("bn", "ln", "gn", "nonorm"))],
)
def test_every_network_ends_where_it_ends_alone_on_a_set_that_all_share(name):
    build = factory(name, side=16).build
    assert_trained_alike([toy_set(side=16)] * 3, "dsa", build, updates=2, tolerance=1e-7)


def test_some_networks_may_share_a_set_and_others_not():
    first, second = toy_set(0), toy_set(1)
    assert_trained_alike([first, second, first], "idc", factory().build)


def test_training_in_float32_agrees_up_to_rounding(toy):
    source = load_source(toy, cache=False, progress=False)
    data, recipe = TrainingSet(source, source.labels, 3), RECIPES["dsa"]
    alone = [factory().build(*key) for key in KEYS]
    for net, key in zip(alone, KEYS, strict=True):
        train_network(net, data, recipe, *key, max_updates=4)
    stack = NetworkStack([factory().build(*key) for key in KEYS])
    train_stack(stack, [data] * 3, recipe, KEYS, max_updates=4)
    for name, stacked in stack.net.state_dict().items():
        expected = torch.stack([net.state_dict()[name] for net in alone])
        torch.testing.assert_close(stacked, expected, rtol=0, atol=1e-5)
    predicted = predictions(stack, source)
    assert predicted.tolist() == torch.stack([predictions(net, source) for net in alone], 1).tolist()
    assert len({tuple(of_one) for of_one in predicted.T.tolist()}) > 1, "the networks should differ"


def test_sharpness_aware_training_of_a_stack_raises_value_error():
    stack = NetworkStack([factory().build(*key).double() for key in KEYS])
    with pytest.raises(ValueError, match=r"flatness=0; got 0\.1"):
        train_stack(stack, [toy_set()] * 3, replace(RECIPES["dc"], flatness=0.1), KEYS)


def test_layers_that_share_a_weight_still_do():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x.flatten(1)).relu()).relu())

    def build(*key: object) -> nn.Module:
        torch.manual_seed(KEYS.index(key))
        return Tied()

    stack = NetworkStack([build(*key) for key in KEYS])
    assert stack.net.first.weight is stack.net.second.weight
    assert_trained_alike([toy_set()] * 3, "dc", build)


def how_many(make: Callable[[], nn.Module], batch: int = 4, rows: int = ROWS) -> int:
    with pretend_device():
        return networks_together(make, GPU, (3, 8, 8), batch, rows)


def test_small_batches_on_a_gpu_are_trained_together_and_large_ones_alone():
    make = partial(factory().build, 0)
    assert how_many(make) > 100
    per_image = activation_bytes(NetworkStack([make(), make()]), (2, 3, 8, 8)) / 2
    limit = int(network_stack._SMALL_BATCH_BYTES / per_image)
    assert how_many(make, batch=limit) > 1
    assert how_many(make, batch=limit + 1) == 1


def test_on_a_cpu_networks_are_trained_alone():
    assert networks_together(partial(factory().build, 0), torch.device("cpu"), (3, 8, 8), 4, ROWS) == 1


def test_memory_limits_how_many_are_trained_together():
    make = partial(factory().build, 0)
    bytes_of_sets = 2 * 4 * 1000 * 3 * 8 * 8
    with limited_memory(10 * bytes_of_sets):
        assert how_many(make) > 10
        assert 5 <= how_many(make, rows=1000) < 10
        assert how_many(make, rows=1_000_000) == 1


class Drawing(nn.Module):
    """Drops some of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Branching(Drawing):
    """Does something else with dark images."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](x.flatten(1) if float(x.mean()) >= 0 else -x.flatten(1))


class Unknown(Drawing):
    """Uses an operation that vmap computes for one network after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](torch.renorm(x.flatten(1), 2, 0, 1.0))


class Known(Drawing):
    """Is like the others, but can be computed together."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](x.flatten(1))


@pytest.mark.parametrize(("make", "together"), [(Drawing, False), (Branching, False), (Unknown, False), (Known, True)])
def test_networks_that_cannot_be_computed_together_are_trained_alone(make, together):
    assert (how_many(make) > 1) is together


@pytest.mark.parametrize("recipe", RECIPES)
def test_stack_takes_hardly_more_launches_than_one_network_and_never_waits(recipe):
    build, launches = factory("convnet-w8-d1").build, []
    with pretend_device() as counts:
        images, labels = toy_set().images.float().to(GPU), toy_set().labels.to(GPU)
        for networks in (1, 5):
            stack = NetworkStack([build(seed) for seed in range(networks)]).to(GPU)
            keys, data = [(seed,) for seed in range(networks)], TrainingSet(images, labels, 3)
            counts.clear()
            train_stack(stack, [data] * networks, RECIPES[recipe], keys, 20)
            launches.append(sum(counts.launches.values()))
            assert not counts.waits
    assert launches[1] < 1.5 * launches[0]


def test_networks_that_share_a_set_may_come_first() -> None:
    first, second = toy_set(0), toy_set(1)
    assert_trained_alike([first, first, second], "dc", factory().build, updates=3)
