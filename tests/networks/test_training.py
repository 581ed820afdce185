"""The training loop follows its recipe, whatever the chunks; every draw has an address."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_condense.base.devices import has_compiler
from hf_condense.base.rng import keyed_generator
from hf_condense.condensed.views import ViewLabels, random_crops
from hf_condense.networks import batches, training
from hf_condense.networks.accuracy import accuracy
from hf_condense.networks.batches import _augmented, _cropped, _mixed, rows_of_updates, training_batch
from hf_condense.networks.factory import network_factory
from hf_condense.networks.losses import tempered_cross_entropy
from hf_condense.networks.network_facts import activation_bytes
from hf_condense.networks.sharpness import sharpen
from hf_condense.networks.training import accumulate_gradient, chunk_size, train_network
from hf_condense.networks.training_recipe import RECIPES, TrainingRecipe, epochs_for
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.load import load_source

PLAIN = TrainingRecipe("plain", epochs=4, batch_size=8, lr=0.1)
pytestmark = pytest.mark.usefixtures("one_thread")


def build(name="convnet-w8-d1", *key, classes=3):
    return network_factory(name, channels=3, image_size=(8, 8), num_classes=classes).build(*(key or ("net",)))


def toy_set(rows=20, classes=3, *, soft=False, temperature=1.0) -> TrainingSet:
    generator = keyed_generator("toy", rows)
    labels = torch.arange(rows) % classes
    images = torch.randn(rows, 3, 8, 8, generator=generator) + labels.reshape(-1, 1, 1, 1)
    logits = torch.randn(rows, classes, generator=generator) * 3
    return TrainingSet(images, logits if soft else labels, classes, temperature)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained(data=None, recipe=PLAIN, key=("a",), name="convnet-w8-d1", **options) -> torch.Tensor:
    net = build(name)
    train_network(net, data or toy_set(), recipe, *key, **options)
    return weights(net)


@pytest.fixture
def steps(monkeypatch):
    """Learning rate and whether there was momentum at every update."""
    updates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            updates.append((self.param_groups[0]["lr"], bool(self.state)))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    return updates


def test_published_recipes_have_the_values_of_the_papers():
    dc, dsa, idc = RECIPES["dc"], RECIPES["dsa"], RECIPES["idc"]
    assert (dc.epochs, dc.batch_size, dc.augment, dc.cutmix_probability) == (300, 256, None, 0)
    assert (dsa.epochs, dsa.batch_size, dsa.augment) == (1000, 256, "color_crop_cutout_flip_scale_rotate")
    assert [(a.families, a.mode) for a in dsa.augmentations()] == [
        (("color", "crop", "cutout", "flip", "scale", "rotate"), "single")
    ]
    assert (idc.epochs, idc.batch_size, idc.gamma, idc.cutmix_probability) == (1000, 64, 0.2, 0.5)
    assert [(a.families, a.mode) for a in idc.augmentations()] == [
        (("flip", "color"), "all"),
        (("crop", "scale", "rotate"), "single"),
    ]
    soft = RECIPES["soft"]
    assert (soft.optimiser, soft.lr, soft.weight_decay, soft.epochs) == ("adamw", 0.001, 0.01, 300)
    assert (soft.cosine, soft.cutmix_probability, soft.cutmix_beta, soft.milestones) == (0.5, 1, 1, ())
    for recipe in (dc, dsa, idc):
        assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 5e-4)


def test_families_left_out_of_always_are_not_applied():
    augmentations = replace(RECIPES["idc"], augment="color_crop").augmentations()
    assert [(a.families, a.mode) for a in augmentations] == [(("color",), "all"), (("crop",), "single")]
    assert replace(RECIPES["idc"], augment="none").augmentations() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs should be at least 1; got 0"),
        ({"lr": math.inf}, "lr should be smaller than inf; got inf"),
        ({"gamma": math.inf}, "gamma should be smaller than inf; got inf"),
        ({"weight_decay": math.inf}, "weight_decay should be smaller than inf; got inf"),
        ({"momentum": 1}, "momentum should be smaller than 1; got 1"),
        ({"lr": math.nan}, "lr should be larger than 0; got nan"),
        ({"milestones": (0.5, 0.5)}, "milestones should increase within"),
        ({"milestones": (1.0,)}, "milestones should increase within"),
        ({"cutmix_probability": 1.5}, "cutmix_probability should be at most 1; got 1.5"),
        ({"augment": "colour"}, "did you mean 'color'"),
        ({"optimiser": "adam"}, "optimiser should be one of 'sgd', 'adamw'; got 'adam'"),
        ({"cosine": 1.5}, "cosine should be at most 1; got 1.5"),
        ({"view_area": 0.0}, "view_area should be larger than 0; got 0"),
    ],
)
def test_bad_recipes_raise_value_error(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["dc"], **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"milestones": 0.5}, TypeError, r"recipe 'dc': milestones should be a sequence of numbers.*got 0\.5"),
        ({"milestones": "0.5"}, TypeError, r"milestones should be a sequence of numbers.*got '0\.5'"),
        ({"always": 5}, TypeError, r"always should be names of families.*got 5"),
        ({"name": 5}, TypeError, r"name should be text; got 5 \(int\)"),
        ({"name": ""}, ValueError, "name: a recipe needs one"),
        ({"name": None}, ValueError, "name: a recipe needs one"),
    ],
)
def test_wrong_types_name_the_field(change, error, message):
    with pytest.raises(error, match=message):
        replace(RECIPES["dc"], **change)


def test_families_that_are_always_applied_may_be_joined():
    assert replace(RECIPES["dsa"], always="flip_color").always == ("flip", "color")


def test_training_takes_exactly_its_epochs(steps):
    updates = train_network(build(), toy_set(20), PLAIN, "a")
    assert updates == len(steps) == 4 * 3  # 8 + 8 + 4 rows an epoch


def test_learning_rate_drops_and_momentum_is_lost_half_way(steps):
    train_network(build(), toy_set(8), replace(PLAIN, epochs=10), "a")
    assert [lr for lr, _ in steps] == pytest.approx([0.1] * 5 + [0.01] * 5)
    assert [momentum for _, momentum in steps] == [False, *[True] * 4, False, *[True] * 4]


def test_schedule_of_idc_keeps_momentum(steps):
    recipe = replace(RECIPES["idc"], epochs=12, augment=None)
    train_network(build(), toy_set(8), recipe, "a")
    assert [lr for lr, _ in steps] == pytest.approx([0.01] * 8 + [0.002] * 2 + [0.0004] * 2)
    assert [momentum for _, momentum in steps] == [False] + [True] * 11


@pytest.mark.parametrize(
    ("milestones", "updates", "rates"),
    [
        ((0.5, 0.6), 3, [1, 0.25, 0.25]),  # both after one update
        ((0.1, 0.2, 0.9), 4, [1, 0.25, 0.25, 0.125]),  # none before the first update
        ((0.1, 0.5), 1, [1]),  # beyond the only one
    ],
)
def test_milestones_of_a_short_training_lower_the_rate_once_each_and_never_before_it(milestones, updates, rates, steps):
    recipe = replace(PLAIN, lr=1.0, epochs=100, milestones=milestones, gamma=0.5)
    train_network(build(), toy_set(20), recipe, "a", max_updates=updates)
    assert [lr for lr, _ in steps] == rates


def test_max_updates_caps_and_shrinks_the_schedule(steps):
    calls = []
    updates = train_network(
        build(), toy_set(20), replace(PLAIN, epochs=100), "a", max_updates=10, on_update=lambda: calls.append(1)
    )
    assert updates == len(steps) == len(calls) == 10
    assert [lr for lr, _ in steps] == pytest.approx([0.1] * 5 + [0.01] * 5)
    assert PLAIN.updates(20, 1000) == 12, "a cap above the recipe changes nothing"


@pytest.mark.parametrize(("updates", "rows", "epochs"), [(0, 20, 0), (3, 20, 1), (4, 20, 2), (9, 20, 3), (5, 1, 5)])
def test_epochs_are_enough_for_the_updates(updates: int, rows: int, epochs: int) -> None:
    assert epochs_for(updates, rows, batch_size=8) == epochs


def test_every_epoch_visits_every_row_once_in_another_order():
    order = list(rows_of_updates(20, 8, 7, "a"))
    assert [len(index) for index in order] == [8, 8, 4, 8, 8, 4, 8]
    first, second = torch.cat(order[:3]), torch.cat(order[3:6])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(20))
    assert first.tolist() != second.tolist()


def test_equals_a_textbook_loop():
    data = toy_set(6)
    net = build()
    params = list(net.parameters())
    velocity = [torch.zeros_like(p) for p in params]
    for epoch in range(4):
        if epoch == 2:
            velocity = [torch.zeros_like(p) for p in params]
        grads = torch.autograd.grad(F.cross_entropy(net(data.images), data.labels), params)
        with torch.no_grad():
            for p, v, g in zip(params, velocity, grads, strict=True):
                v.mul_(0.9).add_(g + 5e-4 * p)
                p.sub_((0.1 if epoch < 2 else 0.01) * v)
    torch.testing.assert_close(trained(data, PLAIN), weights(net), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 19])
@pytest.mark.parametrize("soft", [False, True])
def test_chunks_give_the_same_gradient(chunk, soft):
    images, targets = toy_set(20, soft=soft).batch(torch.arange(20))
    whole, cut = build(), build()
    accumulate_gradient(whole, images, targets, 20, 2.0)
    accumulate_gradient(cut, images, targets, chunk, 2.0)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_chunks_give_the_same_training():
    torch.testing.assert_close(trained(chunk=8), trained(chunk=3), rtol=1e-4, atol=1e-5)


def limit_chunks(monkeypatch, most):
    """Let chunks of more than some images run out of memory half-way through a batch."""
    whole, sizes = training.accumulate_gradient, []

    def limited(net, images, targets, chunk, *options):
        sizes.append(chunk)
        if chunk > most:
            whole(net, images[:chunk], targets[:chunk], chunk, *options)
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(net, images, targets, chunk, *options)

    monkeypatch.setattr(training, "accumulate_gradient", limited)
    return sizes


@pytest.mark.parametrize("flatness", [0.0, 0.05])
def test_update_that_does_not_fit_is_repeated_in_smaller_chunks(flatness, monkeypatch, caplog):
    recipe = replace(PLAIN, flatness=flatness)
    straight = trained(recipe=recipe, chunk=8)
    sizes = limit_chunks(monkeypatch, 3)
    with caplog.at_level(logging.WARNING, "hf_condense"):
        torch.testing.assert_close(trained(recipe=recipe, chunk=8), straight, rtol=1e-4, atol=1e-5)
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[3:]) == {2}
    assert caplog.text.count("is repeated, 2 images at a time") == 1


def test_update_that_can_not_be_cut_smaller_raises_the_error(monkeypatch):
    limit_chunks(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        trained(chunk=2)
    with pytest.raises(torch.OutOfMemoryError):
        trained(name="convnet-w8-d1-bn")


def test_chunks_are_filled_up_with_real_images():
    """A network that divides by the length of an image is not finite on a black one."""

    class Lengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 3)

        def forward(self, x):
            x = x.flatten(1)
            return self.head(x / x.norm(dim=1, keepdim=True))

    weights_of = []
    for chunk in (20, 8):
        torch.manual_seed(0)
        net = Lengths()
        train_network(net, toy_set(20), replace(PLAIN, batch_size=20), "a", chunk=chunk)
        weights_of.append(weights(net))
    assert weights_of[1].isfinite().all()
    torch.testing.assert_close(*weights_of, rtol=1e-4, atol=1e-5)


def test_networks_with_batch_statistics_see_whole_batches():
    net = build("convnet-w8-d1-bn")
    assert chunk_size(net, (3, 8, 8), 300) == 300
    assert chunk_size(build(), (3, 8, 8), 10**5) <= 26 * 2**20 // activation_bytes(build(), (3, 8, 8))
    with pytest.raises(ValueError, match="whole batch of 8; got chunk=4"):
        train_network(net, toy_set(20), PLAIN, "a", chunk=4)
    sizes = []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    train_network(net, toy_set(20), replace(PLAIN, epochs=1), "a")
    assert sizes[-3:] == [8, 8, 4]


def test_chunks_are_of_equal_size():
    fast = 26 * 2**20 // activation_bytes(build(), (3, 8, 8))
    assert [chunk_size(build(), (3, 8, 8), batch) for batch in (10, fast, 2 * fast)] == [10, fast, fast]
    assert chunk_size(build(), (3, 8, 8), fast + 1) == -(-(fast + 1) // 2)


def test_chunks_of_wide_networks_have_as_many_images_as_their_memory_allows():
    wide = network_factory("convnet", channels=3, image_size=(32, 32), num_classes=3).build()
    assert 26 * 2**20 // activation_bytes(wide, (3, 32, 32)) < 32
    assert chunk_size(wide, (3, 32, 32), 256) == 32
    assert chunk_size(wide, (3, 32, 32), 256, second_derivatives=True) == 10


@pytest.mark.parametrize("recipe", ["dsa", "idc"])
def test_the_same_key_gives_the_same_bits(recipe):
    scaled = replace(RECIPES[recipe], epochs=3, batch_size=8)
    before = torch.get_rng_state()
    first = trained(recipe=scaled)
    assert torch.equal(torch.get_rng_state(), before), "the global generator should be left alone"
    torch.rand(3)
    assert torch.equal(first, trained(recipe=scaled))
    assert not torch.equal(first, trained(recipe=scaled, key=("b",)))


def test_dropout_is_keyed():
    def run(key):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3))
        train_network(net, toy_set(), PLAIN, key, chunk=8)
        return weights(net)

    assert torch.equal(run("a"), run("a"))
    assert not torch.equal(run("a"), run("b"))


def test_augmentation_changes_what_is_seen():
    batches = []
    net = build()
    net.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].clone()))
    data = TrainingSet(torch.ones(4, 3, 8, 8), torch.arange(4) % 3, 3)
    train_network(net, data, replace(RECIPES["dsa"], epochs=2, augment="crop"), "a", chunk=4)
    for batch in batches:
        assert set(batch.unique().tolist()) == {0.0, 1.0}, "a crop fills with zeros"
        assert len({image.sum().item() for image in batch}) > 1, "every image draws its own parameters"
    assert not torch.equal(batches[0], batches[1]), "every update draws anew"


def test_crops_differ_from_update_to_update():
    images = toy_set(4).images
    first, second, again = (_cropped(images, 0.2, t, [("a",)]) for t in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_cutmix_mixes_targets_by_area():
    n = 16
    images = torch.arange(n).float().reshape(n, 1, 1, 1).expand(n, 1, 12, 10)
    targets = torch.eye(n)
    recipe = replace(RECIPES["idc"], cutmix_probability=1.0)
    shares = []
    for t in range(30):
        mixed, new_targets = _mixed(images, targets, recipe, t, [("a",)])
        areas = F.one_hot(mixed.long().flatten(1), n).float().mean(1)  # share of pixels that come from each image
        torch.testing.assert_close(areas, new_targets)
        shares.append(1 - new_targets.diagonal().min().item())
    assert min(shares) < 0.2
    assert max(shares) > 0.5
    used = [_mixed(images, targets, RECIPES["idc"], t, [("a",)])[0] is not images for t in range(400)]
    assert 0.4 < sum(used) / 400 < 0.6


def test_soft_targets_give_the_gradient_of_the_scaled_divergence():
    data = toy_set(10, soft=True, temperature=4.0)
    images, targets = data.batch(torch.tensor([3, 1]))
    torch.testing.assert_close(targets, (data.labels[[3, 1]] / 4).softmax(1))
    net = build()
    accumulate_gradient(net, images, targets, 2, 4.0)
    mine = [p.grad.clone() for p in net.parameters()]
    kl = F.kl_div((net(images) / 4).log_softmax(1), targets, reduction="batchmean") * 16
    theirs = torch.autograd.grad(kl, list(net.parameters()))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_certain_soft_labels_are_hard_labels():
    hard = toy_set()
    soft = replace(hard, labels=F.one_hot(hard.labels, 3).float() * 200)
    torch.testing.assert_close(trained(hard), trained(soft), rtol=1e-4, atol=1e-6)


def test_a_source_trains_like_its_images(toy):
    source = load_source(toy, cache=False, progress=False)
    in_memory = TrainingSet(source.at(torch.arange(len(source))), source.labels, 3)
    from_source = TrainingSet(source, source.labels, 3)
    assert from_source.image_shape == in_memory.image_shape == (3, 8, 8)
    assert torch.equal(trained(in_memory), trained(from_source))


def test_accuracy_maps_outputs_and_ignores_padding(toy):
    source = load_source(toy, cache=False, progress=False)
    many = replace(
        source, images=source.images.repeat(3, 1, 1, 1), labels=source.labels.repeat(3), rows=source.rows.repeat(3)
    )
    assert len(many) > 64

    class Oracle(nn.Module):
        """Knows every image by its sum; calls the third class output 0, and so on."""

        def __init__(self):
            super().__init__()
            self.images = nn.Parameter(source.at(torch.arange(len(source))).flatten(1))
            self.register_buffer("answers", F.one_hot(2 - source.labels, 3).float())

        def forward(self, x):
            return self.answers[torch.cdist(x.flatten(1), self.images).argmin(1)]

    assert accuracy(Oracle(), many, torch.tensor([2, 1, 0])) == 1.0
    assert accuracy(Oracle(), many, torch.tensor([0, 1, 2])) == pytest.approx(1 / 3)


def test_accuracy_runs_in_evaluation_mode(toy):
    source = load_source(toy, cache=False, progress=False)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(1.0), nn.Linear(192, 3))
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
        net[2].weight.zero_()
    accuracy(net, source, torch.arange(3))
    assert not net.training


@pytest.mark.skipif(not has_compiler(), reason="compiling needs g++ and Python.h; one of them was not found")
@pytest.mark.filterwarnings("default")  # those of the compiler are not ours
def test_compiled_training_agrees(toy):
    source = load_source(toy, cache=False, progress=False)
    data, recipe = TrainingSet(source, source.labels, 3), replace(PLAIN, epochs=2)
    plain, module = build(), build()
    compiled = torch.compile(module, dynamic=False)
    train_network(plain, data, recipe, "a", chunk=4)
    train_network(compiled, data, recipe, "a", chunk=4)
    torch.testing.assert_close(weights(plain), weights(module), rtol=1e-3, atol=1e-4)
    outputs = torch.arange(3)
    assert accuracy(plain, source, outputs) == pytest.approx(accuracy(compiled, source, outputs), abs=0.06)


@pytest.mark.parametrize("always", [("flipp",), "flipp"])
def test_unknown_family_in_always_raises_value_error(always):
    with pytest.raises(ValueError, match=r"always should be one of .*; got 'flipp'"):
        TrainingRecipe("mine", epochs=1, augment="color_flip", always=always)


def test_one_family_as_text_is_always_applied():
    recipe = TrainingRecipe("mine", epochs=1, augment="color_flip", always="flip")
    assert [stage.families for stage in recipe.augmentations()] == [("flip",), ("color",)]


@pytest.mark.parametrize(("batch_size", "seen"), [(4, [4, 2]), (1, [2] * 5)])
def test_update_of_one_row_gets_another_one_for_batch_statistics(batch_size, seen):
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TrainingSet(images, torch.tensor([0, 1, 0, 1, 0]), 2)
    recipe = TrainingRecipe("mine", epochs=1, batch_size=batch_size)

    class Flat(torch.nn.Sequential):
        def __init__(self):
            super().__init__(torch.nn.Flatten(), torch.nn.BatchNorm1d(192), torch.nn.Linear(192, 2))
            self.seen = []

        def forward(self, images):
            self.seen.append(len(images))
            assert len(images.unique(dim=0)) == len(images), "a row has no spread"
            return super().forward(images)

    net = Flat()
    assert train_network(net, data, recipe, "key") == len(seen)
    assert net.seen == seen


def test_recipe_for_soft_labels_flips_random_crops_in_small_batches():
    soft = RECIPES["soft"]
    assert (soft.batch_size, soft.view_area) == (50, 0.5)
    assert [(a.families, a.mode) for a in soft.augmentations()] == [(("flip",), "single")]


def test_temperature_of_soft_labels_changes_no_training_on_hard_ones():
    data = toy_set()
    assert torch.equal(trained(replace(data, temperature=4.0)), trained(data))


def test_loss_of_16_bit_logits_is_computed_in_float32():
    logits = 8 * torch.randn(6, 3, generator=keyed_generator("logits")).bfloat16()
    loss = tempered_cross_entropy(logits, torch.arange(6) % 3, 3.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, tempered_cross_entropy(logits.float(), torch.arange(6) % 3, 3.0))


def test_update_of_a_recipe_with_flatness_follows_the_sharpened_gradient():
    data = toy_set(8)
    recipe = replace(PLAIN, epochs=1, weight_decay=0.0, flatness=0.5, surrogate_gap=0.7)
    net = build()

    def accumulate():
        F.cross_entropy(net(data.images), data.labels).backward()

    accumulate()
    sharpen(net, accumulate, 0.5, 0.7)
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    torch.testing.assert_close(trained(data, recipe), weights(net) - 0.1 * gradient, rtol=1e-5, atol=1e-6)


def test_rate_falls_along_the_cosine_over_the_updates_that_are_done(steps):
    recipe = replace(PLAIN, lr=1.0, epochs=100, milestones=(), cosine=0.5)
    train_network(build(), toy_set(20), recipe, "a", max_updates=4)
    assert [lr for lr, _ in steps] == pytest.approx([(1 + math.cos(math.pi * t / 8)) / 2 for t in range(4)])


def test_views_of_a_part_are_those_of_its_rows():
    generator = keyed_generator("views")
    crops = torch.stack([random_crops(4, (8, 8), 0.3, generator) for _ in range(10)])
    views = ViewLabels.of_logits(torch.randn(10, 4, 3, generator=generator), crops, 2)
    data, rows = replace(toy_set(10, soft=True), views=views), torch.tensor([7, 2])
    expected = data.draw(rows, ("a",))
    for mine, theirs in zip(data.part(rows).draw(torch.arange(2), ("a",)), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_whole_images_are_seen_where_a_teacher_labels_every_update():
    generator = keyed_generator("views")
    crops = torch.stack([random_crops(4, (8, 8), 0.3, generator) for _ in range(10)])
    views = ViewLabels.of_logits(torch.randn(10, 4, 3, generator=generator), crops, 2)
    data, rows = replace(toy_set(10, soft=True), views=views), torch.arange(10)
    assert data.sees_views
    assert not torch.equal(data.draw(rows, ("a",))[0], data.images)
    relabelled = replace(data, relabel=lambda seen: seen.mean((2, 3)))
    assert not relabelled.sees_views
    assert torch.equal(relabelled.draw(rows, ("a",))[0], data.images)


def test_adamw_decays_weights_and_spares_biases():
    """The decay is large enough to be seen beside a first step of the length of the rate."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    weight, bias = (p.detach().clone() for p in net.parameters())
    train_network(net, toy_set(7), replace(RECIPES["soft"], weight_decay=100.0), "a", max_updates=1)
    step = torch.full_like(weight, 0.001)
    torch.testing.assert_close((net[1].weight.detach() - 0.9 * weight).abs(), step, rtol=0.02, atol=1e-6)
    torch.testing.assert_close((net[1].bias.detach() - bias).abs(), step[:, 0], rtol=0.02, atol=1e-6)


def test_chunks_that_processes_share_out_add_up_to_the_gradient_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = toy_set(10, soft=True, temperature=2.0).batch(torch.arange(10))
    whole = build()
    accumulate_gradient(whole, images, targets, 10, 2.0)
    shares: list[torch.Tensor] = []
    monkeypatch.setattr(training, "reduce", lambda accelerator, share: shares.append(share) or share)
    for rank in (0, 1):
        accelerator = SimpleNamespace(process_index=rank, num_processes=2)
        training._GradientByChunks(build(), 4, accelerator)(images, targets, 2.0)  # chunks of 4, 4 and 2 images
    expected = torch.cat([p.grad.flatten() for p in whole.parameters()])
    torch.testing.assert_close(torch.stack(shares).sum(0), expected, rtol=1e-5, atol=1e-6)
    assert all(bool(share.any()) for share in shares)


def test_chunks_of_networks_with_very_many_activations_have_fewer_images() -> None:
    wide = network_factory("convnet", channels=3, image_size=(64, 64), num_classes=3).build()
    most = 64 * 2**20 // activation_bytes(wide, (3, 64, 64))
    assert most < 32
    assert chunk_size(wide, (3, 64, 64), most) == most
    assert chunk_size(wide, (3, 64, 64), most + 1) < most


def test_labels_of_views_and_of_a_teacher_are_soft_whatever_stands_beside_them() -> None:
    """Networks are then trained at the temperature of these labels."""
    generator = keyed_generator("views")
    crops = torch.stack([random_crops(4, (8, 8), 0.3, generator) for _ in range(6)])
    views = ViewLabels.of_logits(torch.randn(6, 4, 3, generator=generator), crops, 2)
    hard = toy_set(6)
    assert not hard.soft
    assert replace(hard, views=views).soft
    assert replace(hard, relabel=lambda seen: seen.mean((2, 3))).soft


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.0}, "gamma should be larger than 0; got 0"),
        ({"view_area": 1.5}, "view_area should be at most 1; got 1.5"),
    ],
)
def test_zero_factor_and_crops_larger_than_the_image_raise_value_error(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["dc"], **change)


def test_stages_of_augmentation_have_draws_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[str | int, ...]] = []
    generator = batches.keyed_generator
    monkeypatch.setattr(batches, "keyed_generator", lambda *key: keys.append(key) or generator(*key))
    for t in (0, 1):
        batches._augmented(toy_set(4).images, RECIPES["idc"], t, [("a",)])
    assert len(set(keys)) == len(keys) == 4


def test_new_labels_of_every_update_are_taken_at_their_temperature() -> None:
    data = replace(toy_set(6), temperature=4.0, relabel=lambda seen: 5 * seen.mean((2, 3)))
    images, targets = training_batch(data, torch.arange(6), PLAIN, 0, [("a",)])
    torch.testing.assert_close(targets, (5 * images.mean((2, 3)) / 4).softmax(1))


def test_views_with_labels_are_not_cropped_again() -> None:
    generator = keyed_generator("views")
    crops = torch.stack([random_crops(4, (8, 8), 0.3, generator) for _ in range(6)])
    views = ViewLabels.of_logits(torch.randn(6, 4, 3, generator=generator), crops, 2)
    data, recipe = replace(toy_set(6, soft=True), views=views), replace(PLAIN, view_area=0.2)
    images, _ = training_batch(data, torch.arange(6), recipe, 0, [("a",)])
    assert torch.equal(images, data.draw(torch.arange(6), ("a", 0))[0])
    whole, _ = training_batch(toy_set(6), torch.arange(6), recipe, 0, [("a",)])
    assert not torch.equal(whole, toy_set(6).images)


def test_images_are_augmented_before_they_are_mixed() -> None:
    """Else the rectangle of CutMix would be moved, and its share of the area would not be that of the targets."""
    data, recipe, keys = toy_set(6), replace(RECIPES["idc"], cutmix_probability=1.0), [("a",)]
    for t in range(3):
        augmented = _augmented(data.images, recipe, t, keys)
        expected = _mixed(augmented, F.one_hot(data.labels, 3).float(), recipe, t, keys)
        for mine, theirs in zip(training_batch(data, torch.arange(6), recipe, t, keys), expected, strict=True):
            assert torch.equal(mine, theirs)
