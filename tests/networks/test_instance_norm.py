"""Tests of instance norm: PyTorch's own layer is the reference of the closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad

from hf_condense.engine.run import Run
from hf_condense.networks.architectures import ConvNet
from hf_condense.networks.instance_norm import InstanceNorm, use_closed_forms
from tests.support.engine_methods import condense
from tests.support.pretend_device import pretend_device

GPU = torch.device("cuda", 0)
EXPERTS = {"experts": 1, "snapshots": 2, "snapshot_every": 1, "student_steps": 1, "expert_span": 1}
SHAPES = [(3, 4, 6, 5), (1, 1, 2, 2), (2, 3, 1, 7)]


def norm_layer(channels: int, dtype: torch.dtype = torch.float64, closed_form: bool = True) -> InstanceNorm:
    layer = InstanceNorm(channels).to(dtype)
    layer.closed_form = closed_form
    with torch.no_grad():
        layer.weight.uniform_(-2, 2)
        layer.bias.normal_()
    return layer


def kernels(result: Tensor) -> set[str]:
    """Return the names of the nodes in the graph of a tensor."""
    seen, queue = set(), [result.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [parent for parent, _ in node.next_functions]
    return {node.name() for node in seen}


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_both_derivatives_are_those_of_pytorch(shape: tuple[int, ...]) -> None:
    layer = norm_layer(shape[1])
    x = (3 * torch.randn(shape, dtype=torch.float64) + 5).requires_grad_()
    inputs = (x, layer.weight, layer.bias)
    seen = []
    for is_closed in (False, True):
        layer.closed_form = is_closed
        normalised = layer(x)
        factors = torch.randn(normalised.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
        first = torch.autograd.grad((factors * normalised.square()).sum(), inputs, create_graph=True)
        loss = sum((part.square().sum() * (i + 1) for i, part in enumerate(first)), torch.zeros((), dtype=x.dtype))
        seen.append((normalised, *first, *torch.autograd.grad(loss, inputs)))
    for ours, theirs in zip(*reversed(seen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_second_derivatives_are_the_slopes_of_the_first() -> None:
    layer, x = norm_layer(3), torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (x, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_float32_is_as_exact_as_pytorch() -> None:
    errors = {}
    x = torch.randn(4, 8, 32, 32) + 2
    factors, direction = torch.randn_like(x), torch.randn_like(x)
    for name, dtype, is_closed in (("exact", torch.float64, False), ("own", None, True), ("pytorch", None, False)):
        torch.manual_seed(0)
        layer = norm_layer(8, torch.float32, is_closed).to(dtype or torch.float32)
        rows = x.to(dtype or torch.float32).requires_grad_()
        (first,) = torch.autograd.grad((factors * layer(rows).square()).sum(), rows, create_graph=True)
        errors[name] = torch.autograd.grad((direction * first).sum(), rows)[0]
    worst = {name: float((second - errors["exact"]).abs().max()) for name, second in errors.items()}
    assert worst["own"] < 4 * worst["pytorch"]


def test_the_closed_form_takes_fewer_launches_of_a_gpu() -> None:
    x, factors = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    seen = []
    for is_closed in (False, True):
        torch.manual_seed(0)
        layer = norm_layer(3, torch.float32, is_closed)
        with pretend_device() as counts:
            layer.to(GPU)
            rows = x.to(GPU).requires_grad_()
            counts.clear()
            (first,) = torch.autograd.grad((factors.to(GPU) * layer(rows).square()).sum(), rows, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), rows)
            seen.append((sum(counts.launches.values()), second.cpu()))
    (plain, expected), (closed, ours) = seen
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert closed < 0.85 * plain


def test_a_third_derivative_is_refused() -> None:
    layer, x = norm_layer(2), torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_the_closed_form_is_used_where_it_was_asked_for() -> None:
    net = ConvNet(1, 2, (8, 8), width=4, depth=1)
    images = torch.randn(3, 1, 8, 8)
    assert "_NormBackward" not in kernels(net(images).sum())
    assert use_closed_forms(net) is net
    assert "_NormBackward" in kernels(net(images).sum())


def test_pytorch_takes_over_where_the_closed_form_cannot_be_used() -> None:
    layer = norm_layer(2, torch.float32)
    x = torch.randn(2, 2, 4, 4)
    expected = F.group_norm(x, 2, layer.weight, layer.bias)
    assert "_NormBackward" not in kernels(layer(x.bfloat16()).sum())  # under autocast, weights stay float32
    compiled = torch.compile(layer, backend="eager", fullgraph=True)(x)
    assert "_NormBackward" not in kernels(compiled.sum())
    torch.testing.assert_close(compiled, expected)
    layer.closed_form = False
    torch.testing.assert_close(grad(lambda x: layer(x).square().sum())(x), grad_of(layer, x))


def grad_of(layer: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(layer(leaf).square().sum(), leaf)[0]


METHODS = [
    ("dc", {"class_gradients": "loop", "outer_loop": 1}, True),
    ("dc", {"class_gradients": "batched", "outer_loop": 1}, False),  # under torch.func
    ("mtt", EXPERTS, True),
    ("esp", EXPERTS, True),
    ("dm", {}, False),
]


@pytest.mark.parametrize(("method", "options", "expected"), METHODS)
def test_methods_that_differentiate_gradients_use_closed_forms(
    method: str, options: dict[str, Any], expected: bool
) -> None:
    seen: list[bool] = []

    def look(run: Run, done: int, loss: float) -> None:
        modules = run.network("any").modules()
        seen.extend(module.closed_form for module in modules if isinstance(module, InstanceNorm))

    condense(method, steps=1, callbacks=[look], **options)
    assert seen == [expected]
