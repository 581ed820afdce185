"""Expert subspace projection (ESP, reconstruction) against slow references and closed forms."""

import pytest
import torch

from hf_condense.engine import build
from hf_condense.methods.esp import (
    Subspace,
    SubspaceProjection,
    direction_objective,
    orthonormal_basis,
    step_objective,
)
from hf_condense.methods.tesla import ConstantMemoryMatching
from hf_condense.testing import quick_bench, toy_dataset
from tests.reference import subspace as reference
from tests.reference import trajectory
from tests.support.trajectory_step import Student, student

SPAN = {"student_steps": 3, "expert_span": 3}
CASES = {
    "flat": {},
    "layers": {"blocks": "layer"},
    "patches": {"factor": 2},
    "batches": {"batch_syn": 3},
    "no progress term's weight": {"progress": 0.0},
    "learned labels": {"soft_labels": "learned", "teacher_updates": 2, "temperature": 2.0},
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(steps: int = 4, size: int = 50, seed: int = 0) -> torch.Tensor:
    return normal(steps + 1, size, seed=seed).cumsum(0)


def blocks_of(seen: Student) -> list[slice]:
    size = seen.method.net.size
    return seen.method.net.blocks if seen.method.config.blocks == "layer" else [slice(0, size)]


def gradient_at(seen: Student, vector: torch.Tensor, draw: int, n: int) -> torch.Tensor:
    """The student's gradient by the textbook, as one vector with a graph."""
    net = seen.method.net.net
    weights = [w.detach().requires_grad_() for w in trajectory.unflattened(net, vector)]
    loss = trajectory.mean_loss(net, weights, seen.step(draw, n), seen.method.loss_temperature)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])


def compare(seen: Student, wanted: torch.Tensor) -> None:
    learned = seen.run.synthetic.parameters()
    slow = dict(zip(learned, torch.autograd.grad(wanted, list(learned.values())), strict=True))
    value, gradients = seen.objective()
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-8, atol=1e-10)
    for name, gradient in slow.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-8 * float(gradient.abs().max()))


def prepared(monkeypatch: pytest.MonkeyPatch, memory: int, t: int, **options: object) -> Student:
    """A method at a step, in one chunk or in several, with its student where the run had left it."""
    monkeypatch.setattr(build, "memory_budget", lambda device: memory)
    seen = student(SubspaceProjection, t=t, **{**SPAN, **options})
    seen.method._begin(seen.run, seen.method._begun)  # again, in float64
    seen.method._moved = seen.method._moved.double()
    return seen


@pytest.mark.parametrize("memory", [1, 2**40])
@pytest.mark.parametrize("form", ["free", "projected"])
@pytest.mark.parametrize("case", CASES)
def test_next_step_equals_the_textbook(case: str, form: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step of the second student, so that it has moved."""
    seen = prepared(monkeypatch, memory, 4, form=form, **CASES[case])
    config, moved = seen.method.config, seen.method._moved
    assert seen.method._begun == 3
    assert float(moved.norm()) > 0
    gradient = gradient_at(seen, seen.window.start + moved, 3, 1)
    wanted = reference.step_objective(
        moved - config.lr_student * gradient, seen.window.points, blocks_of(seen), 2 / 3, config.progress
    )
    compare(seen, wanted)


@pytest.mark.parametrize("memory", [1, 2**40])
@pytest.mark.parametrize("case", CASES)
def test_point_equals_the_textbook(case: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = prepared(monkeypatch, memory, 2, form="point", **CASES[case])
    place = float(torch.rand((), generator=seen.run.rng("point", 2)) * 3)
    before = int(place)
    at = seen.window.points[before] + (place - before) * seen.window.points.diff(dim=0)[before]
    gradient = gradient_at(seen, at, 2, 0)
    compare(
        seen,
        reference.direction_objective(gradient, seen.window.points, blocks_of(seen), seen.method.config.progress),
    )


@pytest.mark.parametrize("memory", [1, 2**40])
@pytest.mark.parametrize("case", CASES)
def test_rollout_equals_the_textbook(case: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = prepared(monkeypatch, memory, 2, form="rollout", **CASES[case])
    config, moved = seen.method.config, torch.zeros(seen.method.net.size, dtype=torch.float64)
    for n in range(3):
        gradient = gradient_at(seen, (seen.window.start + moved).detach(), 2, n)
        moved = moved - config.lr_student * gradient
    compare(seen, reference.step_objective(moved, seen.window.points, blocks_of(seen), 1.0, config.progress))


def test_rollout_on_a_line_is_tesla() -> None:
    """|u - D|^2 = |residual|^2 + |D|^2 (progress - 1)^2 when the subspace is the line along D."""
    options = {"t": 0, "expert_span": 1, "student_steps": 3, "lr_student": 0.05, "augment": "color_scale"}
    first = student(SubspaceProjection, form="rollout", **options)
    second = student(ConstantMemoryMatching, lr_lr=0.0, **options)
    second.run.synthetic.stored["images"].data = first.run.synthetic.stored["images"].detach().clone()
    (value, gradients), (known, expected) = first.objective(), second.objective()
    torch.testing.assert_close(value, known, rtol=1e-8, atol=0)
    scale = float(expected["images"].abs().max())
    torch.testing.assert_close(gradients["images"], expected["images"], rtol=1e-5, atol=1e-6 * scale)


def test_finite_differences_of_the_next_step_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = prepared(monkeypatch, 1, 1, ipc=1, network="convnet-w2-d1-sigmoid", augment="color_scale")
    gradient = seen.objective()[1]["images"].flatten()
    pixels = seen.run.synthetic.stored["images"].data.view(-1)
    for i in (0, 70, 191, 400):
        values = []
        for change in (1e-5, -2e-5):
            pixels[i] += change
            values.append(float(seen.objective()[0]))
        pixels[i] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient[i]), rel=1e-4, abs=1e-9)


def test_basis_is_orthonormal_and_holds_what_it_was_made_of() -> None:
    window = points()
    basis = orthonormal_basis(window.diff(dim=0))
    torch.testing.assert_close(basis @ basis.T, torch.eye(4, dtype=torch.float64))
    projector = basis.T @ basis
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(projector, projector.T)
    subspace = Subspace.of(window)
    for point in window:
        moved = point - window[0]
        assert float(subspace.residual(moved).norm()) <= 1e-10 * float(window[-1].norm())
    assert subspace.outside(subspace.displacement).item() < 1e-20
    assert subspace.progress(subspace.displacement).item() == pytest.approx(1)


def test_random_vectors_are_mostly_outside() -> None:
    subspace = Subspace.of(points(size=200))
    others = normal(500, 200, seed=1)
    shares = torch.stack([subspace.residual(v).square().sum() / v.square().sum() for v in others])
    assert float(shares.mean()) == pytest.approx(1 - 4 / 200, abs=2e-3)


def test_a_subspace_of_everything_leaves_no_residual() -> None:
    subspace = Subspace.of(points(steps=6, size=6))
    assert subspace.outside(normal(6, seed=1)).item() < 1e-16


@pytest.mark.parametrize("copies", [1e-9, 0.0])
def test_dependent_steps_do_no_harm(copies: float) -> None:
    """Double columns, up to rounding, leave the rank at what it is."""
    steps = normal(3, 40)
    doubled = torch.cat([steps, steps * (1 + copies), steps.sum(0, keepdim=True)])
    basis = orthonormal_basis(doubled)
    assert basis.shape == (3, 40)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    single = orthonormal_basis(doubled.float())
    assert bool(torch.isfinite(single).all())


def test_direction_ignores_the_length_of_a_gradient_but_not_its_sign() -> None:
    window, gradient = points(), normal(50, seed=3)
    blocks = [(slice(0, 20), Subspace.of(window[:, :20])), (slice(20, 50), Subspace.of(window[:, 20:]))]
    value, scaled = (direction_objective(blocks, g, 1.0).item() for g in (gradient, 1e3 * gradient))
    assert value == pytest.approx(scaled)
    flipped = direction_objective(blocks, -gradient, 1.0).item()
    share = direction_objective(blocks, gradient, 0.0).item()
    assert (value - share) + (flipped - share) == pytest.approx(2)
    down = torch.cat([-subspace.displacement for _, subspace in blocks])
    assert direction_objective(blocks, down, 1.0).item() == pytest.approx(0, abs=1e-9)


def test_objectives_pass_gradcheck() -> None:
    window, moved = points(), normal(50, seed=3).requires_grad_()
    blocks = [(slice(0, 20), Subspace.of(window[:, :20])), (slice(20, 50), Subspace.of(window[:, 20:]))]
    assert torch.autograd.gradcheck(lambda u: step_objective(blocks, u, 0.3, 0.7), moved)
    assert torch.autograd.gradcheck(lambda g: direction_objective(blocks, g, 0.7), moved)


def test_progress_breaks_the_symmetry() -> None:
    """Without it, going backwards costs nothing."""
    blocks = [(slice(0, 50), subspace := Subspace.of(points()))]
    forwards, backwards = subspace.displacement, -subspace.displacement
    assert step_objective(blocks, backwards, 1.0, 0.0).item() < 1e-20
    assert step_objective(blocks, forwards, 1.0, 1.0).item() < 1e-20
    assert step_objective(blocks, backwards, 1.0, 1.0).item() == pytest.approx(4)


def test_projected_student_stays_in_the_subspace_and_a_free_one_does_not() -> None:
    for form, least, most in (("projected", 0.0, 1e-9), ("free", 1e-4, 10.0)):
        seen = student(SubspaceProjection, t=2, form=form, **SPAN)
        subspace, moved = Subspace.of(seen.window.points), seen.method._moved.double()
        assert float(moved.norm()) > 0
        assert least <= subspace.outside(moved).item() <= most


@pytest.mark.parametrize("beside", ["dm", "m3d"])
def test_what_is_added_moves_the_images_as_it_would_alone(beside: str) -> None:
    """A weight so large that ESP's own part vanishes gives the other method's own step, times the weight."""
    options = {"steps": 1, "pixel_range": "free", "augment": "color_crop", "momentum": 0.0}
    ds, bench = toy_dataset(), quick_bench("esp", beside=beside, beside_weight=1e6, **options)
    alone = quick_bench(beside, **options).condense(ds)
    start = quick_bench(beside, **{**options, "lr_img": 1e-12}).condense(ds).synthetic.images
    both = bench.condense(ds).synthetic.images
    torch.testing.assert_close((both - start) / 1e6, alone.synthetic.images - start, rtol=2e-2, atol=2e-4)
