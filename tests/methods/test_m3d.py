"""M3D against a double loop, closed forms and DM."""

import pytest
import torch

from hf_condense.methods.dm import DistributionMatching
from hf_condense.methods.m3d import (
    KernelMoments,
    gaussian_mixture,
    linear,
    polynomial,
    squared_distances,
    squared_mmd,
)
from tests.reference import mmd as reference
from tests.support.observed_step import augmented_rows, objective_of_step


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(synthetic: torch.Tensor, real: torch.Tensor, kernel: str) -> torch.Tensor:
    """The reference for one class."""
    kernels = {"linear": torch.dot, "polynomial": reference.polynomial}
    chosen = kernels.get(kernel) or reference.gaussian_mixture(synthetic, real)
    return reference.squared_mmd(synthetic, real, chosen)


KERNELS = {"gaussian": gaussian_mixture, "linear": linear, "polynomial": polynomial}


@pytest.mark.parametrize("kernel", KERNELS)
def test_squared_mmd_equals_the_double_loop(kernel: str) -> None:
    synthetic, real = normal(3, 2, 5).requires_grad_(), normal(3, 4, 5, seed=1)
    fast = squared_mmd(synthetic, real, KERNELS[kernel])
    expected = sum(slow(s, r, kernel) for s, r in zip(synthetic, real, strict=True))
    torch.testing.assert_close(fast, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, synthetic)[0] for value in (fast, expected)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("factor", "ipc", "ipm"), [(1, 2, 1), (2, {0: 1, 1: 3, 2: 2}, 1), (2, 1, 3)])
def test_run_equals_the_textbook(kernel: str, factor: int, ipc: object, ipm: int) -> None:
    t, born = 2, 2 - 2 % ipm
    run, made, value, gradient = objective_of_step(
        KernelMoments, {"kernel": kernel, "factor": factor, "ipm": ipm}, t, ipc
    )
    real, synthetic = augmented_rows(run, made, born)
    network = run.network("network", born).double()
    expected = sum(
        slow(network.embed(synthetic[c].double()), network.embed(real[c].double()).detach(), kernel)
        for c in run.classes
    )
    (wanted,) = torch.autograd.grad(expected, run.synthetic.stored["images"])
    assert value == pytest.approx(expected.item(), rel=1e-3)
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_linear_kernel_is_the_squared_distance_of_the_means() -> None:
    synthetic, real = normal(3, 2, 5), normal(3, 4, 5, seed=1)
    expected = (synthetic.mean(1) - real.mean(1)).square().sum()
    torch.testing.assert_close(squared_mmd(synthetic, real, linear), expected)


@pytest.mark.parametrize("ipm", [1, 2])
def test_m3d_with_a_linear_kernel_is_dm(ipm: int) -> None:
    options = {"augment": "color_crop", "ipm": ipm}
    one = objective_of_step(KernelMoments, {**options, "kernel": "linear", "lr_img": 1.0}, 2)
    other = objective_of_step(DistributionMatching, {**options, "lr_img": 1.0}, 2)
    assert one.value == pytest.approx(other.value, rel=1e-3)
    torch.testing.assert_close(one.gradient, other.gradient, rtol=1e-3, atol=1e-4 * float(other.gradient.abs().max()))


@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_sets_have_no_discrepancy(kernel: str) -> None:
    rows = normal(2, 4, 3)
    assert squared_mmd(rows, rows.flip(1), KERNELS[kernel]).item() == pytest.approx(0, abs=1e-9)


def test_higher_moments_are_seen_by_the_gaussian_and_not_by_the_linear_kernel() -> None:
    near, far = torch.tensor([[[-1.0], [1.0]]]), torch.tensor([[[-3.0], [3.0]]])
    assert squared_mmd(near, far, linear).item() == 0
    assert squared_mmd(near, far, gaussian_mixture).item() > 0.1
    assert squared_mmd(near, far, polynomial).item() > 0.1


@pytest.mark.parametrize("kernel", [linear, polynomial])
def test_kernels_without_a_bandwidth_pass_gradcheck(kernel) -> None:
    synthetic, real = normal(2, 2, 3).requires_grad_(), normal(2, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: squared_mmd(x, real, kernel), synthetic)


def test_bandwidth_carries_no_gradient_but_all_else_does() -> None:
    """The Gaussian's gradient is that of a mixture whose widths are constants."""
    synthetic, real = normal(1, 2, 3).requires_grad_(), normal(1, 3, 3, seed=1)
    fixed = reference.gaussian_mixture(synthetic[0], real[0])
    (fast,) = torch.autograd.grad(squared_mmd(synthetic, real, gaussian_mixture), synthetic)
    step = 1e-6
    for place in ((0, 0), (1, 2)):
        moved = []
        for sign in (1, -1):
            other = synthetic[0].detach().clone()
            other[place] += sign * step
            moved.append(reference.squared_mmd(other, real[0], fixed).item())
        assert fast[0][place].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-5)


def test_equal_embeddings_stay_finite() -> None:
    rows = torch.ones(2, 3, 4, requires_grad=True)
    loss = squared_mmd(rows, torch.ones(2, 5, 4), gaussian_mixture)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert bool(torch.isfinite(rows.grad).all())


def test_distances_are_never_negative() -> None:
    rows = normal(1, 6, 4).float() * 1000
    found = squared_distances(rows, rows)
    assert float(found.min()) >= 0
    torch.testing.assert_close(
        found[0], torch.cdist(rows[0].double(), rows[0].double()).square().float(), rtol=1e-3, atol=2
    )
