"""Every method runs on a pretend GPU and gives what it gives on a CPU; so do resuming, evaluating and storage forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import hf_condense.condensed.decoders.dct
from hf_condense import CondensedDataset, evaluate
from hf_condense.condensed.decoders import DECODERS, siren
from hf_condense.engine.registry import get_method, list_methods
from hf_condense.engine.run import Run
from hf_condense.methods._siamese import SiameseMethod
from hf_condense.networks.architectures import HalvingPool
from hf_condense.source import class_source
from hf_condense.testing import _repeats as repeats
from hf_condense.testing import quick_method, toy_dataset
from tests.support.pretend_device import DeviceError, pretend_device

pytestmark = pytest.mark.usefixtures("one_thread")

TOY = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
GPU = torch.device("cuda", 0)
METHODS = [info.name for info in list_methods()]
SHORT = {"steps": 2, "outer_loop": 2, "inner_loop": 1, "teacher_updates": 2, "experts": 1}
# Operations of which the documentation of `torch.use_deterministic_algorithms` says that CUDA does not repeat their
# bits, and those among them that we use. They are why a run on a GPU repeats up to rounding only.
UNREPEATABLE = {
    "convolution_backward",  # cuDNN chooses an algorithm, which may add in any order
    "grid_sampler_2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "adaptive_max_pool2d_backward",
    "_adaptive_avg_pool2d_backward",
    "index_add",
    "index_add_",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "put_",
    "cumsum",
    "histc",
    "kthvalue",
    "median",
    "embedding_dense_backward",
    "nll_loss2d_backward",
}
KNOWN = {
    "convolution_backward",
    "grid_sampler_2d_backward",
    "upsample_bilinear2d_backward",
    "index_add",  # of rows that are selected once each, so that the order does not matter
}


@pytest.fixture(autouse=True)
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit the networks of the form "siren" in few steps."""
    monkeypatch.setattr(siren, "_FIT_STEPS", 3)


@pytest.fixture(autouse=True)
def one_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pool alike on both devices: a CPU adds in another order, and these tests are about where tensors are."""
    monkeypatch.setattr(HalvingPool, "forward", lambda _, images: torch.nn.functional.avg_pool2d(images, 2))


def condense(method: str, ipc: Any = 2, **options: Any) -> CondensedDataset:
    """Condense the toy dataset in very few steps."""
    config = get_method(method).Config
    short = {
        name: value
        for name, value in SHORT.items()
        if name in config.__dataclass_fields__ and config.unmet_need(name, options) is None
    }
    usual = {"cache": False, "network": "convnet-w4-d1"}
    return quick_method(method, **{**usual, **short, **options}).condense(TOY, ipc)


def tensors(small: CondensedDataset) -> dict[str, torch.Tensor]:
    return small.synthetic.all()


def assert_close(first: CondensedDataset, second: CondensedDataset, tolerance: float = 1e-5) -> None:
    assert tensors(first).keys() == tensors(second).keys()
    for name, tensor in tensors(first).items():
        other = tensors(second)[name]
        assert tensor.dtype == other.dtype
        assert float((tensor - other).abs().max()) <= tolerance, name


@pytest.mark.parametrize("method", METHODS)
def test_method_gives_on_a_gpu_what_it_gives_on_a_cpu(method: str) -> None:
    on_cpu = condense(method)
    with pretend_device() as counts:
        on_gpu = condense(method)
    assert on_gpu.recipe.runtime["device"] == "cuda"
    assert on_cpu.recipe.runtime["device"] == "cpu"
    assert_close(on_cpu, on_gpu)
    assert counts.launches.keys() & UNREPEATABLE <= KNOWN


UNEVEN = {"cat": 1, "dog": 3, "eel": 2}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "soft labels of teachers": ("dm", {"soft_labels": "teacher", "ipm": 2}),
    "learned soft labels, one class after the other": ("dsa", {"soft_labels": "learned", "class_gradients": "loop"}),
    "batch norm": ("dc", {"network": "convnet-w4-d1-bn"}),
    "start from noise": ("dm", {"init": "noise", "factor": 2}),
    "mini-batches of rows, classes of different sizes": ("m3d", {"batch_syn": 1, "ipc": UNEVEN}),
    "characteristic functions, kept draws": ("m3d", {"kernel": "characteristic", "draws": 2}),
    "whitening": ("mtt", {"zca": True, "pixel_range": "free"}),
    "mini-batches of a student": ("mtt", {"batch_syn": 3, "flatness": 0.01, "surrogate_gap": 0.1}),
    "subspaces by layer beside dm": ("esp", {"form": "projected", "blocks": "layer", "beside": "dm"}),
    "points of a window": ("esp", {"form": "point"}),
    "rollouts": ("esp", {"form": "rollout"}),
    "pixels as features": ("kcenter", {"features": "pixels"}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_with_paths_of_their_own_run_on_a_gpu(name: str) -> None:
    method, options = OPTIONS[name]
    on_cpu = condense(method, **options)
    with pretend_device():
        on_gpu = condense(method, **options)
    assert_close(on_cpu, on_gpu)


@pytest.mark.parametrize("method", ["dm", "dc", "mtt"])  # the last two differentiate twice
@pytest.mark.parametrize("storage", [name for name in DECODERS if name != "pixels"])
def test_storage_form_is_learned_on_a_gpu(storage: str, method: str) -> None:
    on_cpu = condense(method, storage=storage)
    with pretend_device():
        on_gpu = condense(method, storage=storage)
    assert_close(on_cpu, on_gpu)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("esp", {}),
        ("mtt", {"zca": True, "pixel_range": "free"}),
        ("dm", {"storage": "dct"}),
        ("dm", {"storage": "siren"}),
        ("herding", {}),
        ("kcenter", {"features": "pixels"}),
    ],
)
def test_method_runs_on_a_mac_which_has_no_float64(method: str, options: dict[str, Any]) -> None:
    on_cpu = condense(method, **options)
    with pretend_device("mps"):
        on_mac = condense(method, **options)
    assert on_mac.recipe.runtime["device"] == "mps"
    assert_close(on_cpu, on_mac)


def test_float64_in_a_method_is_noticed_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_condense.condensed.decoders.dct, "in_float64", torch.Tensor.double)
    with pretend_device("mps"), pytest.raises(DeviceError, match="float64"):
        condense("dm", storage="dct", expand=4)


def test_wait_in_a_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    augmented = SiameseMethod.augmented

    def planted(self: Any, run: Run, rows: torch.Tensor, *args: Any) -> torch.Tensor:
        assert float(rows.detach().sum()) != 0
        return augmented(self, run, rows, *args)

    with pretend_device() as counts:
        condense("dm", steps=1)
        assert not any("test_devices.py" in place for place in counts.waits)
        monkeypatch.setattr(SiameseMethod, "augmented", planted)
        condense("dm", steps=1)
    assert {n for place, n in counts.waits.items() if "test_devices.py" in place} == {2}  # real and synthetic rows


# Stands for methods whose forward passes are computed with autocast, and for the one that needs float32 for a part.
@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("dm", "convnet-w4-d1"),
        ("m3d", "convnet-w4-d1-bn"),
        ("mtt", "convnet-w4-d1"),
        ("esp", "convnet-w4-d1"),
        *(("dc", f"convnet-w4-d1-{norm}") for norm in ("in", "bn", "ln", "gn")),
    ],
)
def test_method_runs_in_bfloat16_on_a_gpu_and_stays_near_float32(method: str, network: str) -> None:
    def first_gradient(run: Run, done: int, loss: float) -> None:
        gradients.append(run.synthetic.stored["images"].grad.detach().cpu().flatten())

    gradients: list[torch.Tensor] = []
    options = {"callbacks": [first_gradient], "steps": 1, "pixel_range": "free"}
    small = quick_method(method).condense(TOY, cache=False, network=network, **options)
    with pretend_device(mixed_precision="bf16"):
        half = quick_method(method).condense(TOY, cache=False, network=network, **options)
    assert half.recipe.runtime["mixed_precision"] == "bf16"
    assert tensors(half)["images"].dtype == torch.float32
    exact, rounded = gradients
    assert not torch.equal(exact, rounded)
    assert float(torch.cosine_similarity(exact, rounded, dim=0)) > 0.99
    assert not torch.equal(tensors(small)["images"], tensors(half)["images"])


@pytest.mark.parametrize("method", ["dm", "dc", "esp", "ncfm"])
def test_run_is_resumed_on_a_gpu(method: str, tmp_path: Path) -> None:
    def stop(run: Run, done: int, loss: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    options = {"steps": 3, "checkpoint_dir": tmp_path, "checkpoint_every": 1}
    with pretend_device():
        straight = condense(method, steps=3)
        with pytest.raises(KeyboardInterrupt):
            condense(method, **options, callbacks=[stop])
        resumed = condense(method, **options)
    assert_close(straight, resumed, tolerance=0)


@pytest.mark.parametrize(("difference", "passes"), [(1e-5, True), (1e-2, False)])
def test_laws_allow_for_rounding_on_a_gpu_and_for_nothing_on_a_cpu(difference: float, passes: bool) -> None:
    sets = [condense("random") for _ in range(2)]
    with pretend_device():
        sets += [condense("random") for _ in range(2)]
    on_cpu, other_on_cpu, on_gpu, other_on_gpu = sets
    assert repeats(on_cpu, other_on_cpu)
    assert repeats(on_gpu, other_on_gpu)
    for other in (other_on_cpu, other_on_gpu):
        other.synthetic.stored["images"] += difference
    assert not repeats(on_cpu, other_on_cpu)
    assert repeats(on_gpu, other_on_gpu) is passes


def test_source_that_does_not_fit_a_gpu_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_source, "free_memory", lambda device: 100)
    on_cpu = condense("dm")
    where: list[torch.device] = []
    with pretend_device():
        on_gpu = condense("dm", callbacks=[lambda run, done, loss: where.append(run.source.images.device)])
    assert {device.type for device in where} == {"cpu"}
    assert_close(on_cpu, on_gpu)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("recipe", ["dsa", "idc"])
def test_evaluation_gives_on_a_gpu_what_it_gives_on_a_cpu(recipe: str, kind: str) -> None:
    small = condense("dm", storage="patches")

    def table() -> list[tuple[str, tuple[float, ...], int]]:
        result = evaluate(
            small,
            TOY,
            networks="convnet-w4-d1",
            recipe=recipe,
            epochs=2,
            seeds=2,
            baselines=("random", "full"),
            eight_bit=True,
            cache=False,
            compile=False,
            progress=False,
        )
        return [(score.set, score.accuracies, score.updates) for score in result.scores]

    on_cpu = table()
    with pretend_device(kind) as counts:
        on_gpu = table()
    assert on_gpu == on_cpu
    assert counts.launches["convolution"] > 0


@pytest.fixture
def half_accelerator():
    """An accelerator of the CPU with bfloat16."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("gradients", ["batched", "loop"])
@pytest.mark.parametrize("norm", ["in", "bn", "ln", "gn"])
def test_gradient_matching_in_bfloat16_keeps_the_direction_of_float32(
    norm: str, gradients: str, half_accelerator: Accelerator
) -> None:
    directions: list[torch.Tensor] = []

    def observe(run: Run, done: int, loss: float) -> None:
        directions.append(run.synthetic.stored["images"].grad.detach().flatten())

    options = {"steps": 1, "inner_loop": 0, "class_gradients": gradients, "callbacks": [observe]}
    dsa: Callable[..., CondensedDataset] = quick_method("dsa", **options).condense
    network = f"convnet-w8-d1-{norm}"
    dsa(TOY, network=network, accelerator=half_accelerator)
    AcceleratorState._reset_state(reset_partial_state=True)
    dsa(TOY, network=network, accelerator=Accelerator(cpu=True))
    half, exact = directions
    assert not torch.equal(half, exact)
    assert float(torch.cosine_similarity(half, exact, dim=0)) > 0.9993
