"""On a GPU no step makes the host wait for the device, except where a value is asked for. A pretend GPU counts it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_condense import Teacher, condense_dataset
from hf_condense.base.devices import to_device
from hf_condense.base.errors import NonFiniteLossError
from hf_condense.base.rng import keyed_generator
from hf_condense.condensed.views import ViewLabels, random_crops
from hf_condense.engine import loop
from hf_condense.engine.loop import _Optimisation
from hf_condense.engine.registry import get_method, list_methods
from hf_condense.evaluation.reader import Reader
from hf_condense.evaluation.subject import read_subject
from hf_condense.methods import rded
from hf_condense.methods.dm import DistributionMatching
from hf_condense.networks.accuracy import accuracy
from hf_condense.networks.factory import network_factory
from hf_condense.networks.flat import copy_state
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source import class_source
from hf_condense.source.load import load_source
from hf_condense.testing import quick_method, toy_dataset
from tests.support.pretend_device import Counts, pretend_device

TOY = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
GPU = torch.device("cuda", 0)
EXPERTS = {"experts": 2, "snapshots": 4, "snapshot_every": 1, "student_steps": 2, "expert_span": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dm": ("dm", {}),
    "dm in mini-batches of dct rows": ("dm", {"storage": "dct", "expand": 4, "batch_syn": 3}),
    "m3d": ("m3d", {}),
    "m3d of uneven classes": ("m3d", {"ipc": {"cat": 1, "dog": 3, "eel": 2}}),
    "ncfm": ("ncfm", {"pool_size": 2, "pool_updates": 2, "frequencies": 16, "calibration": 0.1}),
    "dc": ("dc", {"outer_loop": 2, "inner_loop": 1}),
    "dc with batch norm": ("dc", {"outer_loop": 2, "inner_loop": 0, "network": "convnet-w8-d1-bn"}),
    "dsa": ("dsa", {"outer_loop": 2, "inner_loop": 1}),
    "idc": ("idc", {"outer_loop": 2, "inner_loop": 1, "batch_net": 6}),
    "mtt": ("mtt", {**EXPERTS, "batch_syn": 4}),
    "tesla": ("tesla", EXPERTS),
    "esp": ("esp", EXPERTS),
    "esp by layer, projected": ("esp", {**EXPERTS, "form": "projected", "blocks": "layer"}),
    "esp at a point": ("esp", {**EXPERTS, "form": "point", "student_steps": 10}),
    "esp, a rollout of networks": ("esp", {**EXPERTS, "form": "rollout", "storage": "siren"}),
    "dance": ("dance", {"pool_size": 2, "pool_updates": 2}),
    "dc of patches with learned labels": ("dc", {"factor": 2, "soft_labels": "learned", "teacher_updates": 2}),
    "dm of networks": ("dm", {"storage": "siren"}),
}
ON_THE_CPU = ("dm", "m3d", "dc", "idc")  # cases that run once more with the source left on the CPU


def condense(method: str, ipc: Any = 2, **options: Any) -> Any:
    base = {"network": "convnet-w8-d1", "compile": False, "progress": False, "cache": False, "steps": 3}
    config = get_method(method).Config
    if "batch_real" in config.__dataclass_fields__ and config.unmet_need("batch_real", options) is None:
        base["batch_real"] = 6
    return condense_dataset(TOY, method, ipc, **{**base, **options})


def waits_after_the_first_step(monkeypatch: pytest.MonkeyPatch, counts: Counts, method: str, **options: Any) -> Counter:
    """Return the waits in the steps between the first, whose value is read at once, and the check at the end."""
    before, after = Counter[str](), Counter[str]()
    step, check = _Optimisation.step, _Optimisation.check

    def watched_step(self: _Optimisation, t: int) -> float:
        if t == 1:
            before.update(counts.waits)
        return step(self, t)

    def watched_check(self: _Optimisation) -> None:
        after.clear()
        after.update(counts.waits)
        check(self)

    monkeypatch.setattr(_Optimisation, "step", watched_step)
    monkeypatch.setattr(_Optimisation, "check", watched_check)
    condense(method, **options)
    return after - before


@pytest.mark.parametrize("case", CASES)
def test_steps_do_not_wait(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, options = CASES[case]
    with pretend_device() as counts:
        waits = waits_after_the_first_step(monkeypatch, counts, method, **options)
    # With the output_size that it is given, a real GPU does not wait for repeat_interleave.
    assert [place for place in waits if not place.startswith("repeat_interleave")] == []


@pytest.mark.parametrize("case", ON_THE_CPU)
def test_rows_of_a_source_that_does_not_fit_are_copied_without_a_wait(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, options = CASES[case]
    monkeypatch.setattr(class_source, "free_memory", lambda device: 100)
    with pretend_device() as counts:
        waits = waits_after_the_first_step(monkeypatch, counts, method, **options)
    assert [place for place in waits if not place.startswith("repeat_interleave")] == []


# Methods whose presets skip updates, which depends on the value of the step.
READING = {"mtt": {**EXPERTS, "most_ratio": 1e9}, "datm": {**EXPERTS, "first_max_start": 1, "max_start": 2}}


def test_the_cases_have_every_method() -> None:
    methods = {info.name for info in list_methods() if info.kind == "synthetic"}
    assert {method for method, _ in CASES.values()} | set(READING) == methods


@pytest.mark.parametrize("method", READING)
def test_a_rule_that_reads_the_value_waits_for_it_once_per_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_device() as counts:
        waits = waits_after_the_first_step(monkeypatch, counts, method, **READING[method])
    assert sum(waits.values()) == 2
    assert all("engine/loop.py" in place for place in waits)


def test_a_callback_gets_the_value_of_its_step() -> None:
    def values(**options: Any) -> list[float]:
        seen: list[float] = []
        condense("dm", callbacks=[lambda run, done, value: seen.append(value)], **options)
        return seen

    with pretend_device():
        on_device = values()
    assert on_device == pytest.approx(values(), rel=1e-4)
    assert len(set(on_device)) == 3


def make_step_two_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    discrepancy = DistributionMatching.discrepancy

    def infinite(self: Any, chunk: Any, *arguments: Any) -> Tensor:
        return discrepancy(self, chunk, *arguments) * (torch.inf if chunk.draw == 2 else 1)

    monkeypatch.setattr(DistributionMatching, "discrepancy", infinite)


@pytest.mark.parametrize("every", [2, 100])
def test_a_loss_that_is_not_finite_is_reported_with_its_step(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CHECK_EVERY", every)
    make_step_two_infinite(monkeypatch)
    with pretend_device(), pytest.raises(NonFiniteLossError, match=r"not finite at step 2 \(loss inf\)"):
        condense("dm", steps=6)


def test_a_set_that_is_not_finite_is_never_in_a_checkpoint(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_step_two_infinite(monkeypatch)
    with pretend_device(), pytest.raises(NonFiniteLossError, match=r"the checkpoint of step 2 in .* is kept"):
        condense("dm", steps=6, checkpoint_dir=tmp_path, checkpoint_every=2)


def test_training_a_network_does_not_wait_and_testing_it_waits_once() -> None:
    recipe = dataclasses.replace(RECIPES["idc"], epochs=1, batch_size=8, cutmix_probability=1.0)
    factory = network_factory("convnet-w8-d1", channels=3, image_size=(8, 8), num_classes=3)
    with pretend_device() as counts:
        source = load_source(TOY, cache=False, progress=False).to(GPU)
        net = factory.build(0).to(GPU)
        whole, few = TrainingSet(source, source.labels, 3), torch.arange(0, 36, 3)
        some = TrainingSet(source.at(few), source.labels[few].to(GPU), 3)
        for data in (whole, some):
            counts.clear()
            train_network(net, data, recipe, 0, max_updates=3)
            assert not counts.waits
        accuracy(net, source, torch.arange(3))
        assert sum(counts.waits.values()) == 1


def network_on_the_device() -> nn.Module:
    return network_factory("convnet-w8-d1", channels=3, image_size=(8, 8), num_classes=3).build(0).to(GPU)


def test_training_on_labels_of_views_does_not_wait() -> None:
    crops = random_crops(12 * 3, (8, 8), 0.3, keyed_generator("crops")).reshape(12, 3, 5)
    views = ViewLabels.of_logits(torch.randn(12, 3, 3), crops, 2)
    with pretend_device() as counts:
        net = network_on_the_device()
        data = TrainingSet(torch.rand(12, 3, 8, 8).to(GPU), torch.arange(12) % 3, 3, 4.0, views=views)
        counts.clear()
        train_network(net, data, RECIPES["soft"], 0, max_updates=3)
        assert not counts.waits


def test_relabelling_by_a_teacher_does_not_wait() -> None:
    score = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    teacher = Teacher(score, ["dog", "bee", "cat", "eel"], mean=(0.5, 0.4, 0.3), std=0.2)
    with pretend_device() as counts:
        net = network_on_the_device()
        score.to(GPU)
        reader = Reader(None, None, cache=False, progress=False, device=GPU)
        subject = read_subject(condense("dm"), TOY, None, reader, teacher=teacher, relabel=True)
        counts.clear()
        train_network(net, subject.data, RECIPES["soft"], 0, max_updates=3)
        assert not counts.waits


def copies_to_the_device(data: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Return the types of what the second batch of a set copies to the device."""
    data.batch(torch.arange(3))
    copied = []
    pin = Tensor.pin_memory
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "pin_memory", lambda tensor: copied.append(tensor.dtype) or pin(tensor))
        data.batch(torch.tensor([5, 1]))
    return copied


def test_one_copy_of_an_index_serves_images_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_device():
        source = load_source(TOY, cache=False, progress=False).to(GPU)
        whole = TrainingSet(source, source.labels, 3)
        hard = dataclasses.replace(whole, images=source.at(torch.arange(36)))
        for data in (whole, hard, dataclasses.replace(hard, labels=torch.rand(36, 3))):
            assert copies_to_the_device(data, monkeypatch) == [torch.int64]


def test_an_index_stays_where_the_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_source, "free_memory", lambda device: 100)
    with pretend_device() as counts:
        source = load_source(TOY, cache=False, progress=False).to(GPU)
        assert source.images.device.type == "cpu"
        counts.clear()
        copied = copies_to_the_device(TrainingSet(source, source.labels, 3), monkeypatch)
        assert not counts.waits
    assert copied == [torch.uint8, torch.int64], "the images, then their labels"


def test_choosing_crops_waits_as_rarely_for_many_pictures_as_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(lambda images: images.mean((2, 3)).cumsum(1), ["eel", "cat", "dog"])
    waits = []
    for pictures in (3, 12):
        monkeypatch.setattr(rded, "_PICTURES", pictures)
        with pretend_device() as counts:
            quick_method("rded", teacher=teacher, pictures=12, soft_labels="none", cache=False).condense(TOY)
            waits.append(counts.waits)
    assert waits[0] == waits[1]


def test_a_copy_to_the_device_does_not_wait_and_has_the_values() -> None:
    values = torch.arange(6.0).reshape(2, 3).T
    with pretend_device() as counts:
        sent = to_device(values, GPU)
        assert not counts.waits
        assert sent.device == GPU
        assert torch.equal(sent.cpu(), values)
        values.to(GPU)
        assert sum(counts.waits.values()) == 2  # this copy, and that back to the CPU


def test_a_network_goes_to_the_device_in_one_copy_per_type() -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))

    fresh = network(1)
    with torch.no_grad():
        fresh[1].running_mean.add_(3)
        fresh[1].num_batches_tracked.add_(5)
    with pretend_device() as counts:
        net = network(0).to(GPU)
        counts.clear()
        copy_state(net, fresh)
        assert not counts.waits
        assert counts.launches["_to_copy"] == 2
        state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
    assert state.keys() == fresh.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in fresh.state_dict().items())
