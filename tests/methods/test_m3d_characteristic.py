"""The characteristic kernel of M3D against a slow reference, the exact Gaussian kernel and closed forms."""

import pytest
import torch

from hf_condense.methods._embeddings import Chunk
from hf_condense.methods._kernels import characteristic_discrepancy, characteristic_function, normalised, parse_scales
from hf_condense.methods.dm import class_means, mean_discrepancy
from hf_condense.methods.m3d import KernelMoments
from hf_condense.testing import quick_method, toy_dataset
from tests.reference import characteristic as reference
from tests.support.draws import normal
from tests.support.observed_step import augmented_rows, objective_of_step

OPTIONS = {"kernel": "characteristic", "normalise": True, "lr_img": 1.0}


def discrepancy(synthetic: torch.Tensor, real: torch.Tensor, frequencies: torch.Tensor, *weights: float):
    functions = (characteristic_function(rows, frequencies) for rows in (synthetic, real))
    return characteristic_discrepancy(*functions, *weights)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_discrepancy_equals_the_textbook(weights: tuple[float, float]) -> None:
    synthetic, real, frequencies = normal(3, 4).requires_grad_(), normal(5, 4, seed=1), normal(6, 4, seed=2)
    fast = discrepancy(synthetic, real, frequencies, *weights)
    slow = reference.discrepancy(synthetic, real, frequencies, *weights)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(*(torch.autograd.grad(value, synthetic)[0] for value in (fast, slow)))


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (0.0, 1.0)])
def test_discrepancy_passes_gradcheck(weights: tuple[float, float]) -> None:
    real, frequencies = normal(5, 4, seed=1), normal(6, 4, seed=2)
    synthetic = normal(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: discrepancy(normalised(x), real, frequencies, *weights), synthetic)


def test_discrepancy_with_equal_weights_is_the_distance_times_their_root() -> None:
    synthetic, real, frequencies = normal(3, 4), normal(5, 4, seed=1), normal(6, 4, seed=2)
    difference = characteristic_function(synthetic, frequencies) - characteristic_function(real, frequencies)
    expected = 0.3**0.5 * torch.linalg.vector_norm(difference, dim=0).mean()
    torch.testing.assert_close(discrepancy(synthetic, real, frequencies, 0.3, 0.3), expected)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 2.0)])
def test_mean_squared_distance_at_normal_frequencies_is_the_exact_gaussian_mmd(scales: tuple[float, ...]) -> None:
    """Bochner's theorem: with many random frequencies, the Monte Carlo mean approaches the mixture of kernels."""
    synthetic, real = normalised(normal(4, 8)), normalised(normal(9, 8, seed=1))
    count = 200_000
    frequencies = torch.tensor(scales, dtype=torch.float64).repeat(count)[:, None] * normal(count * len(scales), 8)
    difference = characteristic_function(synthetic, frequencies) - characteristic_function(real, frequencies)
    exact = sum(reference.gaussian_mmd(synthetic, real, scale) for scale in scales) / len(scales)
    assert float(difference.square().sum(0).mean()) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (0.1, 0.9)])
def test_gradient_is_finite_where_the_functions_agree(weights: tuple[float, float]) -> None:
    rows, frequencies = normal(3, 4).float(), normal(6, 4, seed=2).float()
    synthetic = rows.clone().requires_grad_()
    discrepancy(synthetic, rows, frequencies, *weights).backward()
    assert bool(torch.isfinite(synthetic.grad).all())
    assert float(synthetic.grad.abs().max()) < 10


def test_gradient_is_finite_where_a_function_vanishes() -> None:
    """Rows at 0 and pi have the mean exp(i x) = 0, whose modulus has no derivative."""
    synthetic = torch.tensor([[0.0], [torch.pi]], dtype=torch.float64).requires_grad_()
    discrepancy(synthetic, torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1).double(), 0.9, 0.1).backward()
    assert bool(torch.isfinite(synthetic.grad).all())


def test_normalised_rows_have_length_one_and_rows_of_zeros_get_no_gradient() -> None:
    rows = torch.stack([normal(4).float(), torch.zeros(4), 1e30 * torch.ones(4) * 1e-15]).requires_grad_()
    unit = normalised(rows)
    torch.testing.assert_close(unit.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    (unit * normal(3, 4, seed=1).float()).sum().backward()
    assert bool(torch.isfinite(rows.grad).all())
    assert not rows.grad[1].any()
    assert rows.grad[0].any()


@pytest.mark.parametrize("options", [{}, {"scales": "0.5_2", "amplitude_weight": 0.9, "phase_weight": 0.1}])
@pytest.mark.parametrize(("factor", "ipc", "ipm"), [(1, 2, 1), (2, {0: 1, 1: 3, 2: 2}, 3)])
def test_step_equals_the_textbook(options: dict, factor: int, ipc: object, ipm: int) -> None:
    t, draw = 4, 4 - 4 % ipm
    run, method, value, gradient = objective_of_step(
        KernelMoments, {**OPTIONS, **options, "factor": factor, "ipm": ipm, "frequencies": 4}, t, ipc
    )
    real, synthetic = augmented_rows(run, method, draw)
    network = run.network("network", draw).double()
    expected = torch.zeros((), dtype=torch.float64)
    scales = torch.tensor([0.5, 2.0, 0.5, 2.0] if options else [1.0] * 4).double()
    for c in run.classes:
        rows = [network.embed(images[c].double()) for images in (synthetic, real)]
        s, r = (embeddings / embeddings.norm(dim=1, keepdim=True) for embeddings in rows)
        order = torch.randperm(s.shape[1], generator=run.rng("frequencies", run.source.class_names[c], draw))
        standard = torch.randn(4, s.shape[1], generator=run.rng("frequencies", draw))[:, order]
        weights = method.config.amplitude_weight, method.config.phase_weight
        expected = expected + reference.discrepancy(s, r.detach(), scales[:, None] * standard.double(), *weights)
    (expected_gradient,) = torch.autograd.grad(expected, run.synthetic.stored["images"])
    assert value == pytest.approx(expected.item(), rel=1e-4)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-3, atol=1e-3 * scale)


def test_frequencies_are_the_same_for_a_class_in_a_draw_and_differ_between_classes_and_draws() -> None:
    run, method, _, _ = objective_of_step(KernelMoments, OPTIONS, 0)
    dimension = run.network("network", 0).embed(run.synthetic.of([0])[0]).shape[1]
    units = 1e-3 * torch.eye(dimension)  # short, so that the sine is the frequency

    def drawn(draw: int, c: int) -> torch.Tensor:
        chunk = Chunk(run, run.classes, draw)
        functions = [method.characteristic_function_of(chunk, c, row[None]) for row in units]
        return torch.stack([1e3 * function[1] for function in functions], 1)  # (F, D)

    first, other_class, other_draw = drawn(0, 0), drawn(0, 1), drawn(1, 0)
    assert first.shape == (16, dimension)
    assert torch.equal(first, drawn(0, 0))
    assert not torch.allclose(first, other_class)
    # The same numbers in another order.
    torch.testing.assert_close(first.sort(1).values, other_class.sort(1).values, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, other_draw)


def test_equal_sets_have_next_to_no_discrepancy() -> None:
    rows, frequencies = normal(4, 3), normal(6, 3, seed=2)
    assert discrepancy(rows, rows.flip(0), frequencies).item() == pytest.approx(0, abs=2e-6)


def test_normalise_changes_every_kernel() -> None:
    for kernel in ("gaussian", "linear", "polynomial", "characteristic"):
        values = [
            objective_of_step(KernelMoments, {"kernel": kernel, "normalise": normalise, "lr_img": 1.0}, 0).value
            for normalise in (False, True)
        ]
        assert values[0] != pytest.approx(values[1], rel=1e-3), kernel


def test_normalised_linear_kernel_equals_the_distance_of_the_means_of_directions() -> None:
    options = {"kernel": "linear", "normalise": True, "lr_img": 1.0}
    run, method, value, _ = objective_of_step(KernelMoments, options, 0)
    real, synthetic = augmented_rows(run, method, 0)
    network = run.network("network", 0)
    expected = 0.0
    for c in run.classes:
        label = torch.zeros(1, dtype=torch.long)
        means = [
            class_means(normalised(network.embed(rows[c])), label.expand(len(rows[c])), label)
            for rows in (real, synthetic)
        ]
        expected += mean_discrepancy(*means).item()
    assert value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scales", ["", "0", "-1", "1_", "1_two", "inf", "nan"])
def test_scales_that_are_not_positive_numbers_raise_value_error(scales: str) -> None:
    with pytest.raises(ValueError, match=r"scales: expected positive numbers joined by _, such as '0\.5_1_2'; got"):
        quick_method("m3d", kernel="characteristic", scales=scales).condense(toy_dataset())


def test_scales_are_parsed() -> None:
    assert parse_scales("0.5_1_2e1") == (0.5, 1.0, 20.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequencies": 2, "scales": "1_2_3"}, "frequencies=2 is fewer than the 3 scales in '1_2_3'"),
        ({"amplitude_weight": 0.0, "phase_weight": 0.0}, "amplitude_weight and phase_weight are both 0"),
        ({"kernel": "characteristics"}, "kernel"),
    ],
)
def test_options_that_contradict_each_other_raise_value_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick_method("m3d", **{"kernel": "characteristic", **options}).condense(toy_dataset())


@pytest.mark.parametrize("weights", [(0.9, 0.1), (0.2, 0.7)])
def test_phases_and_moduli_have_closed_forms(weights: tuple[float, float]) -> None:
    frequencies, zero = torch.tensor([[0.5], [1.3]]).double(), torch.zeros(1, 1).double()
    points = discrepancy(zero + 0.7, zero - 0.4, frequencies, *weights)  # moduli of 1, and phases 1.1 t apart
    expected = weights[1] ** 0.5 * (2 * (frequencies * 1.1 / 2).sin().abs()).mean()
    torch.testing.assert_close(points, expected)
    pair = torch.tensor([[0.6], [-0.6]]).double()  # phases of 0, and moduli of cos(0.6 t) and 1
    expected = weights[0] ** 0.5 * (1 - (0.6 * frequencies).cos()).mean()
    torch.testing.assert_close(discrepancy(pair, zero, frequencies, *weights), expected, rtol=1e-5, atol=1e-6)


def test_short_rows_are_normalised_too() -> None:
    rows = 1e-8 * normal(3, 4)
    torch.testing.assert_close(normalised(rows).norm(dim=-1), torch.ones(3, dtype=torch.float64))
