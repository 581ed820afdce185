"""What a real CUDA device must show: every method, resuming, evaluating and bfloat16 give what a CPU gives, nearly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_condense import CondensedDataset, evaluate
from hf_condense.condensed.decoders import DECODERS, Origin
from hf_condense.condensed.decoders.siren import Siren
from hf_condense.engine.registry import get_method, list_methods
from hf_condense.engine.run import Run
from hf_condense.networks.factory import network_factory
from hf_condense.networks.network_stack import NetworkStack
from hf_condense.networks.training import TrainingSet, train_network, train_stack
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.testing import law_resume, law_seeds, quick_method, toy_dataset

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu", "float32_convolutions")]

TOY = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
METHODS = [info.name for info in list_methods()]
TOLERANCE = 0.01  # of pixels, after steps in which a GPU adds up in another order than a CPU
Result = TypeVar("Result")


@pytest.fixture
def float32_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute convolutions in float32, so that only the order of sums differs from a CPU's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextmanager
def accelerator(**options: Any) -> Iterator[Accelerator]:
    """Give a block an accelerator of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(**options)
    AcceleratorState._reset_state(reset_partial_state=True)


def on_both(work: Callable[..., Result]) -> tuple[Result, Result]:
    """Return what a function of an accelerator gives on the CPU and on the GPU."""
    with accelerator(cpu=True) as cpu:
        on_cpu = work(cpu)
    with accelerator() as gpu:
        assert gpu.device.type == "cuda"
        return on_cpu, work(gpu)


def condense(method: str, accelerator: Accelerator, **options: Any) -> CondensedDataset:
    """Condense the toy dataset in very few steps."""
    fields = get_method(method).Config.__dataclass_fields__
    short = {name: value for name, value in {"steps": 2, "inner_loop": 1}.items() if name in fields}
    return quick_method(method, **{**short, **options}).condense(TOY, cache=False, accelerator=accelerator)


def assert_near(first: CondensedDataset, second: CondensedDataset) -> None:
    tensors, others = first.synthetic.all(), second.synthetic.all()
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert float((tensor - others[name]).abs().max()) <= TOLERANCE, name


@pytest.mark.parametrize("method", METHODS)
def test_method_gives_nearly_what_a_cpu_gives(method: str) -> None:
    on_cpu, on_gpu = on_both(lambda accelerator: condense(method, accelerator))
    assert on_gpu.recipe.runtime["device"] == "cuda"
    assert_near(on_cpu, on_gpu)


@pytest.mark.parametrize("storage", DECODERS)
@pytest.mark.parametrize("method", [info.name for info in list_methods() if info.kind == "synthetic"])
def test_first_gradient_is_that_of_a_cpu(method: str, storage: str) -> None:
    def gradient(accelerator: Accelerator) -> torch.Tensor:
        def observe(run: Run, done: int, loss: float) -> None:
            learned = run.synthetic.learned().values()
            seen.append(torch.cat([tensor.grad.detach().cpu().flatten() for tensor in learned]))

        seen: list[torch.Tensor] = []
        start = {"init": "noise"} if storage == "siren" else {}
        condense(method, accelerator, storage=storage, steps=1, callbacks=[observe], **start)
        return seen[0]

    on_cpu, on_gpu = on_both(gradient)
    assert float(on_cpu.norm()) > 0
    assert float(torch.cosine_similarity(on_cpu, on_gpu, dim=0)) > 0.999
    assert float(on_gpu.norm()) == pytest.approx(float(on_cpu.norm()), rel=0.01)


@pytest.mark.parametrize("storage", [name for name in DECODERS if name != "pixels"])
def test_storage_form_gives_nearly_what_a_cpu_gives(storage: str) -> None:
    # Fits of coordinate networks take so many steps that rounding grows, and each device ends at other networks.
    start = {"init": "noise"} if storage == "siren" else {}
    on_cpu, on_gpu = on_both(lambda accelerator: condense("dm", accelerator, storage=storage, **start))
    difference = on_cpu.synthetic.decoded()[0] - on_gpu.synthetic.decoded()[0]
    assert float(difference.abs().max()) <= TOLERANCE
    if storage != "siren":  # whose weights differ more than the images that they stand for
        assert_near(on_cpu, on_gpu)


def test_fit_of_coordinate_networks_comes_as_near_to_the_rows_as_on_a_cpu() -> None:
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    real, labels = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear"), torch.arange(4)
    decoder = Siren((3, 16, 16), Siren.settle_expand(None, (3, 16, 16), 1))

    def error(device: str) -> float:
        origin = Origin(lambda c: [real], torch.Generator().manual_seed(1))
        stored = decoder.start(real.to(device), labels, origin)
        return float((decoder.decode(stored).cpu() - real).square().mean())

    assert error("cuda") < 1.5 * error("cpu") < 0.5 * float(real.var())


@pytest.mark.parametrize("law", [law_seeds, law_resume])
@pytest.mark.parametrize("method", METHODS)
def test_runs_and_resumed_runs_repeat_up_to_rounding(method: str, law: Callable[..., None]) -> None:
    law(quick_method(method))


@pytest.mark.parametrize("recipe", ["dc", "dsa", "idc"])
def test_evaluation_gives_nearly_the_accuracy_of_a_cpu(recipe: str) -> None:
    def mean_accuracies(accelerator: Accelerator) -> dict[str, float]:
        scores = evaluate(
            TOY.select(range(12)),
            TOY,
            source=TOY,
            networks="convnet-w8-d1",
            recipe=recipe,
            epochs=30,
            seeds=3,
            baselines=("random", "full"),
            cache=False,
            progress=False,
            accelerator=accelerator,
        ).scores
        return {score.set: sum(score.accuracies) / len(score.accuracies) for score in scores}

    on_cpu, on_gpu = on_both(mean_accuracies)
    assert on_gpu == pytest.approx(on_cpu, abs=0.1)


@pytest.mark.parametrize("name", ["convnet-w8", "convnet-w8-bn", "mlp", "lenet", "alexnet", "resnet18-bn"])
@pytest.mark.parametrize("recipe", ["dsa", "soft"])
def test_networks_trained_together_nearly_end_where_each_ends_alone(recipe: str, name: str) -> None:
    factory = network_factory(name, channels=3, image_size=(16, 16), num_classes=3)
    generator = torch.Generator().manual_seed(0)
    images, device = torch.randn(12, 3, 16, 16, generator=generator), torch.device("cuda", 0)
    data = TrainingSet(images.to(device), (torch.arange(12) % 3).to(device), 3)
    stack = NetworkStack([factory.build(seed) for seed in range(3)]).to(device)
    train_stack(stack, [data] * 3, RECIPES[recipe], [(seed,) for seed in range(3)], 2)
    for seed in range(3):
        net = factory.build(seed).to(device)
        start = {name: weights.clone() for name, weights in net.named_parameters()}
        train_network(net, data, RECIPES[recipe], seed, max_updates=2)
        together = {name: weights[seed] for name, weights in stack.net.named_parameters()}
        alone = torch.cat([(weights - start[name]).detach().flatten() for name, weights in net.named_parameters()])
        others = torch.cat([(together[name] - start[name]).detach().flatten() for name in start])
        assert float(alone.norm()) > 0
        # AdamW moves numbers whose gradient is next to zero by as much as any other, to either side.
        assert float((alone - others).norm()) <= 0.1 * float(alone.norm())


@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("dm", "convnet-w8-d1"),
        ("m3d", "convnet-w8-d1-bn"),
        ("mtt", "convnet-w8-d1"),
        ("esp", "convnet-w8-d1"),
        *(("dc", f"convnet-w8-d1-{norm}") for norm in ("in", "bn", "ln", "gn")),
    ],
)
def test_gradient_in_bfloat16_keeps_the_direction_of_float32(method: str, network: str) -> None:
    def observe(run: Run, done: int, loss: float) -> None:
        directions.append(run.synthetic.stored["images"].grad.detach().cpu().flatten())

    directions: list[torch.Tensor] = []
    for precision in ("no", "bf16"):
        with accelerator(mixed_precision=precision) as gpu:
            small = condense(method, gpu, network=network, steps=1, callbacks=[observe])
            assert small.recipe.runtime["mixed_precision"] == precision
    exact, half = directions
    assert not torch.equal(exact, half)
    assert float(torch.cosine_similarity(exact, half, dim=0)) > 0.98
