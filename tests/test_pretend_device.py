"""The pretend GPU of `tests/support`: it computes what a CPU computes, refuses what a GPU refuses, and counts waits."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.func import grad, vmap

from hf_condense.base.devices import convolution_precision
from hf_condense.engine.trained_networks import network_key
from hf_condense.evaluation.subject import RealImages
from hf_condense.evaluation.trials import Trials
from hf_condense.methods._recordings import Training, _cache_folder
from hf_condense.methods._siamese import SiameseMethod
from hf_condense.methods._student import TrajectoryMethod
from hf_condense.methods.dc import GradientMatching
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.source.load import load_source
from hf_condense.testing import quick_method, toy_dataset
from tests.support.pretend_device import DeviceError, pretend_device

TOY = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
GPU = torch.device("cuda", 0)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def second_derivative(device: torch.device | str) -> torch.Tensor:
    """Return a gradient through a gradient, as methods compute it."""
    net, images = small_network().to(device), torch.linspace(0, 1, 32).reshape(2, 1, 4, 4).to(device).requires_grad_()
    loss = F.cross_entropy(net(images), torch.tensor([0, 2], device=device))
    gradients = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
    return images.grad


def test_values_are_those_of_a_cpu_through_second_derivatives() -> None:
    with pretend_device() as counts:
        gradient = second_derivative(GPU)
        assert gradient.device == GPU
        assert gradient.is_cuda
        values = gradient.cpu()
    assert torch.equal(values, second_derivative("cpu"))
    assert counts.launches["convolution_backward"] >= 1


def test_vmap_of_grad_runs_on_the_device() -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    with pretend_device():
        slopes = vmap(grad(lambda x: x.square().sum()))(rows.to(GPU))
        assert slopes.device == GPU
        assert torch.equal(slopes.cpu(), 2 * rows)


def test_accelerators_of_the_block_run_on_it_and_later_ones_do_not() -> None:
    with pretend_device():
        assert Accelerator().device == GPU
    with pretend_device("mps"):
        assert Accelerator().device == torch.device("mps", 0)
    assert Accelerator(cpu=True).device.type == "cpu"


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: here @ there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: there[here.long()],
        lambda here, there: F.mse_loss(there, here),
    ],
)
def test_tensors_of_two_devices_in_one_operation_are_refused(mix) -> None:
    with pretend_device():
        here, there = torch.eye(2, device=GPU), torch.eye(2)
        with pytest.raises(DeviceError, match=r"on the (same )?device"):
            mix(here, there)


def test_numbers_and_indices_from_the_cpu_are_allowed_as_on_a_gpu() -> None:
    with pretend_device():
        here = torch.arange(3.0, device=GPU)
        assert (here * torch.tensor(2.0)).tolist() == [0, 2, 4]
        assert here[torch.tensor([2, 0])].tolist() == [2, 0]


def test_generator_of_the_cpu_is_refused() -> None:
    with pretend_device(), pytest.raises(DeviceError, match="generator"):
        torch.rand(2, device=GPU, generator=torch.Generator())


def test_mps_refuses_float64_and_cuda_takes_it() -> None:
    with pretend_device("mps"), pytest.raises(DeviceError, match="float64"):
        torch.ones(2, device="mps").double()
    with pretend_device():
        assert torch.ones(2, device=GPU).double().dtype == torch.float64


def test_dc_rounds_to_tf32_on_its_real_side_only(monkeypatch: pytest.MonkeyPatch) -> None:
    precisions: dict[str, set[str]] = {"real": set(), "synthetic": set(), "backward": set()}
    real, synthetic = GradientMatching._real_gradient, GradientMatching._synthetic_gradients

    def real_gradient(*args: Any) -> list[torch.Tensor]:
        precisions["real"].add(convolution_precision(GPU))
        return real(*args)

    def synthetic_gradients(*args: Any) -> list[torch.Tensor]:
        precisions["synthetic"].add(convolution_precision(GPU))
        gradients = synthetic(*args)
        gradients[0].register_hook(lambda _: precisions["backward"].add(convolution_precision(GPU)))
        return gradients

    monkeypatch.setattr(GradientMatching, "_real_gradient", real_gradient)
    monkeypatch.setattr(GradientMatching, "_synthetic_gradients", synthetic_gradients)
    with pretend_device():
        quick_method("dc", steps=1, inner_loop=0).condense(TOY)
    assert precisions == {"real": {"tf32"}, "synthetic": {"float32"}, "backward": {"float32"}}
    assert convolution_precision(GPU) == "tf32"  # as before


@pytest.mark.parametrize(
    ("method", "options"),
    [("mtt", {}), ("tesla", {}), ("esp", {}), ("esp", {"form": "point"}), ("esp", {"form": "rollout"}), ("datm", {})],
)
def test_gradients_of_students_are_not_rounded_to_tf32(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions: dict[str, set[str]] = {"forward": set(), "backward": set()}
    gradient = TrajectoryMethod.chunk_gradient

    def chunk_gradient(*args: Any, **kwargs: Any) -> torch.Tensor:
        precisions["forward"].add(convolution_precision(GPU))
        result = gradient(*args, **kwargs)
        if result.requires_grad:
            result.register_hook(lambda _: precisions["backward"].add(convolution_precision(GPU)))
        return result

    monkeypatch.setattr(TrajectoryMethod, "chunk_gradient", chunk_gradient)
    with pretend_device():
        quick_method(method, steps=1, **options).condense(TOY)
    assert precisions == {"forward": {"float32"}, "backward": {"float32"}}
    assert convolution_precision(GPU) == "tf32"  # as before


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.isfinite().all()), "_local_scalar_dense"),
        (lambda x: x.tolist(), "_to_copy"),
        (lambda x: x.cpu(), "_to_copy"),
        (lambda x: torch.tensor([1.0], device=GPU), "_to_copy"),
        (lambda x: x.copy_(torch.zeros(3)), "copy_"),
        (lambda x: torch.zeros(3).copy_(x), "copy_"),
        (lambda x: x[x > 1], "index"),
        (lambda x: x[torch.tensor([0])], "index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.unique_consecutive(), "unique_consecutive"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_waits_are_counted_once_with_their_place(wait, name) -> None:
    with pretend_device() as counts:
        x = torch.zeros(3, device=GPU)
        counts.clear()
        wait(x)
    assert sum(counts.waits.values()) == 1
    (place,) = counts.waits
    assert place.startswith(f"{name} at tests/test_pretend_device.py:")


def test_work_that_stays_on_the_device_waits_for_nothing() -> None:
    with pretend_device() as counts:
        x = torch.zeros(2, 3, device=GPU)
        index = torch.zeros(2, dtype=torch.int64, device=GPU)
        counts.clear()
        x[index] = 1.0
        x[x > 0] = 2.0
        x.view(3, 2).t().exp().sum().to(torch.float64)
        F.one_hot(index, 4)
    assert not counts.waits
    assert counts.launches["exp"] == 1
    assert not counts.launches.keys() & {"view", "t"}, "views launch nothing"


def test_copies_of_pinned_memory_wait_only_if_they_are_asked_to() -> None:
    with pretend_device() as counts:
        pinned, ordinary = torch.ones(3).pin_memory(), torch.ones(3)
        assert pinned.is_pinned()
        assert not ordinary.is_pinned()
        here = pinned.to(GPU, non_blocking=True)
        here.copy_(pinned[:1], non_blocking=True)
        here.to("cpu", non_blocking=True)
        torch.empty(3, pin_memory=True).copy_(here, non_blocking=True)
        assert not counts.waits
        pinned.to(GPU)
        ordinary.to(GPU, non_blocking=True)
        assert sum(counts.waits.values()) == 2


def test_autocast_halves_products_and_keeps_norms_in_float32() -> None:
    with pretend_device(mixed_precision="bf16"):
        accelerator = Accelerator()
        x = torch.randn(2, 2, device=accelerator.device)
        with accelerator.autocast():
            assert (x @ x).dtype == torch.bfloat16
            assert F.layer_norm(x @ x, (2,)).dtype == torch.float32
        assert (x @ x).dtype == torch.float32


def test_labels_left_on_the_cpu_by_a_method_end_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SiameseMethod.synthetic_rows

    def planted(self, run, classes, draw):
        images, labels = rows(self, run, classes, draw)
        return images + torch.zeros(images.shape[1:]), labels

    monkeypatch.setattr(SiameseMethod, "synthetic_rows", planted)
    quick_method("dc", steps=1, inner_loop=0).condense(TOY)
    with pretend_device(), pytest.raises(DeviceError, match="same device"):
        quick_method("dc", steps=1, inner_loop=0).condense(TOY)


def cache_keys(device: torch.device) -> tuple[str, str, str]:
    """Return the keys of a network of the source, of recorded networks and of a score, all trained on a device."""
    source = dataclasses.replace(load_source(TOY, cache=False, progress=False), device=device)
    factory = SimpleNamespace(name="convnet-w4", num_classes=3)
    run = SimpleNamespace(source=source, factory=factory, seed=0, device=device)
    training = Training("expert", "lr", RECIPES["dc"], count=1, snapshots=2, every=1, every_key=None)
    trials = SimpleNamespace(test=RealImages(source, torch.arange(3), source), factory=factory, seed=0, cache=True)
    contender = SimpleNamespace(images=SimpleNamespace(content="rows"), training=RECIPES["dc"], updates=1)
    recorded, score = _cache_folder(run, training, False), Trials.cache_file(trials, contender, 0)
    assert score is not None
    return network_key(run, 1), recorded.name, score.stem


def test_networks_of_a_gpu_that_rounds_in_another_way_have_other_cache_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded, on_cpu = cache_keys(GPU), cache_keys(torch.device("cpu"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    exact = cache_keys(GPU)
    assert all(len({*keys}) == 3 for keys in zip(rounded, exact, on_cpu, strict=True))
    assert cache_keys(torch.device("cpu")) == on_cpu
