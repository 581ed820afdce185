"""M3D against a double loop, closed forms and DM."""

import pytest
import torch

from hf_condense.methods import _kernels, m3d
from hf_condense.methods._kernels import WIDTHS, gaussian_mixture, linear, polynomial, squared_distances, squared_mmd
from hf_condense.methods.dm import DistributionMatching
from hf_condense.methods.m3d import KernelMoments
from hf_condense.testing import quick_method, toy_dataset
from tests.reference import mmd as reference
from tests.support.draws import normal
from tests.support.observed_step import augmented_rows, objective_of_step


def textbook(synthetic: torch.Tensor, real: torch.Tensor, kernel: str) -> torch.Tensor:
    """Return the squared MMD of one class by the double loop."""
    kernels = {"linear": torch.dot, "polynomial": reference.polynomial}
    function = kernels.get(kernel) or reference.gaussian_mixture(synthetic, real)
    return reference.squared_mmd(synthetic, real, function)


KERNELS = {"gaussian": gaussian_mixture, "linear": linear, "polynomial": polynomial}


@pytest.mark.parametrize("kernel", KERNELS)
def test_squared_mmd_equals_the_double_loop(kernel: str) -> None:
    synthetic, real = normal(3, 2, 5).requires_grad_(), normal(3, 4, 5, seed=1)
    fast = squared_mmd(synthetic, real, KERNELS[kernel])
    expected = sum(textbook(s, r, kernel) for s, r in zip(synthetic, real, strict=True))
    torch.testing.assert_close(fast, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, synthetic)[0] for value in (fast, expected)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("factor", "ipc", "ipm"), [(1, 2, 1), (2, {0: 1, 1: 3, 2: 2}, 1), (2, 1, 3)])
def test_step_equals_the_textbook(kernel: str, factor: int, ipc: object, ipm: int) -> None:
    t, network_step = 2, 2 - 2 % ipm
    run, instance, value, gradient = objective_of_step(
        KernelMoments, {"kernel": kernel, "factor": factor, "ipm": ipm}, t, ipc
    )
    real, synthetic = augmented_rows(run, instance, network_step)
    network = run.network("network", network_step).double()
    expected = sum(
        textbook(network.embed(synthetic[c].double()), network.embed(real[c].double()).detach(), kernel)
        for c in run.classes
    )
    (expected_gradient,) = torch.autograd.grad(expected, run.synthetic.stored["images"])
    assert value == pytest.approx(expected.item(), rel=1e-3)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("ipc", [2, {0: 1, 1: 3, 2: 2}])
def test_real_rows_are_compared_with_each_other_once_for_all_steps_of_a_network(ipc, monkeypatch) -> None:
    compared: list[int] = []  # numbers of rows that are compared with each other

    def watched(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        compared.extend([x.shape[1]] if x is y else [])
        return squared_distances(x, y)

    for module in (m3d, _kernels):
        monkeypatch.setattr(module, "squared_distances", watched)
    rows = objective_of_step(KernelMoments, {"ipm": 3}, 3, ipc).method.config.batch_real
    assert rows > 3  # no class has as many synthetic ones
    assert compared.count(rows) == 2, "four steps on two networks"
    assert len(compared) > 4, "synthetic rows are compared in each step"


def test_linear_kernel_is_the_squared_distance_of_the_means() -> None:
    synthetic, real = normal(3, 2, 5), normal(3, 4, 5, seed=1)
    expected = (synthetic.mean(1) - real.mean(1)).square().sum()
    torch.testing.assert_close(squared_mmd(synthetic, real, linear), expected)


@pytest.mark.parametrize("ipm", [1, 2])
def test_m3d_with_a_linear_kernel_equals_dm(ipm: int) -> None:
    options = {"augment": "color_crop", "ipm": ipm}
    m3d = objective_of_step(KernelMoments, {**options, "kernel": "linear", "lr_img": 1.0}, 2)
    dm = objective_of_step(DistributionMatching, {**options, "lr_img": 1.0}, 2)
    assert m3d.value == pytest.approx(dm.value, rel=1e-3)
    torch.testing.assert_close(m3d.gradient, dm.gradient, rtol=1e-3, atol=1e-4 * float(dm.gradient.abs().max()))


@pytest.mark.parametrize("kernel", KERNELS)
def test_equal_sets_have_discrepancy_zero(kernel: str) -> None:
    rows = normal(2, 4, 3)
    assert squared_mmd(rows, rows.flip(1), KERNELS[kernel]).item() == pytest.approx(0, abs=1e-9)


def test_nonlinear_kernels_compare_second_moments_and_the_linear_one_does_not() -> None:
    narrow, wide = torch.tensor([[[-1.0], [1.0]]]), torch.tensor([[[-3.0], [3.0]]])
    assert squared_mmd(narrow, wide, linear).item() == 0
    assert squared_mmd(narrow, wide, gaussian_mixture).item() > 0.1
    assert squared_mmd(narrow, wide, polynomial).item() > 0.1


@pytest.mark.parametrize("kernel", [linear, polynomial])
def test_kernels_without_a_bandwidth_pass_gradcheck(kernel) -> None:
    synthetic, real = normal(2, 2, 3).requires_grad_(), normal(2, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: squared_mmd(x, real, kernel), synthetic)


def test_bandwidth_carries_no_gradient() -> None:
    """The gradient equals that of a mixture whose bandwidth is a constant."""
    synthetic, real = normal(1, 2, 3).requires_grad_(), normal(1, 3, 3, seed=1)
    fixed_kernel = reference.gaussian_mixture(synthetic[0], real[0])
    (gradient,) = torch.autograd.grad(squared_mmd(synthetic, real, gaussian_mixture), synthetic)
    step = 1e-6
    for entry in ((0, 0), (1, 2)):
        values = []
        for sign in (1, -1):
            rows = synthetic[0].detach().clone()
            rows[entry] += sign * step
            values.append(reference.squared_mmd(rows, real[0], fixed_kernel).item())
        assert gradient[0][entry].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_gradient_of_equal_embeddings_is_finite() -> None:
    rows = torch.ones(2, 3, 4, requires_grad=True)
    loss = squared_mmd(rows, torch.ones(2, 5, 4), gaussian_mixture)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert bool(torch.isfinite(rows.grad).all())


def test_squared_distances_are_accurate_and_never_negative() -> None:
    rows = normal(1, 6, 4).float() * 1000
    distances = squared_distances(rows, rows)
    assert float(distances.min()) >= 0
    expected = torch.cdist(rows[0].double(), rows[0].double()).square().float()
    torch.testing.assert_close(distances[0], expected, rtol=1e-3, atol=2)


def test_gaussian_mixture_of_two_points_equals_its_closed_form() -> None:
    """The bandwidth is their own squared distance: 2 sum(1 - exp(-1/w)), wherever the points are."""
    x, y = normal(1, 1, 5).requires_grad_(), normal(1, 1, 5, seed=1)
    value, widths = squared_mmd(x, y, gaussian_mixture), torch.tensor(WIDTHS).double()
    assert value.item() == pytest.approx(float(2 * (1 - (-1 / widths).exp()).sum()))
    (gradient,) = torch.autograd.grad(value, x)
    gap = (x - y).detach()
    expected = 4 * gap / gap.square().sum() * ((-1 / widths).exp() / widths).sum()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kernel", ["gaussian", "polynomial"])
def test_classes_with_very_few_rows_are_told(kernel: str, caplog) -> None:
    ds = toy_dataset()
    labels = ds["label"]
    ds = ds.select([row for row, label in enumerate(labels) if label != 1 or row == labels.index(1)])
    quick_method("m3d", kernel=kernel).condense(ds)
    told = "m3d compares distributions, and some classes have fewer than 3 rows: '1'; their images may drift away"
    assert (told in caplog.text) == (kernel == "gaussian")


def test_class_of_three_rows_is_not_told_as_one_of_few(caplog: pytest.LogCaptureFixture) -> None:
    quick_method("m3d").condense(toy_dataset(rows=3))
    assert "compares distributions" not in caplog.text
