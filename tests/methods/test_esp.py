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
from hf_condense.testing import quick_method, toy_dataset
from tests.reference import subspace as reference
from tests.reference import trajectory
from tests.support.draws import normal
from tests.support.observed_step import objective_of_step
from tests.support.trajectory_step import ObservedMethod, observe

SPAN = {"student_steps": 3, "expert_span": 3}
CASES = {
    "flat": {},
    "layers": {"blocks": "layer"},
    "patches": {"factor": 2},
    "batches": {"batch_syn": 3},
    # Rates that float32 holds exactly: the method's rollout multiplies by a tensor of that type.
    "no progress term": {"progress_weight": 0.0, "lr_student": 0.0625},
    "dct": {"storage": "dct", "expand": 3, "lr_img": 1.0, "lr_student": 0.0625},
    "siren": {"storage": "siren", "lr_student": 0.0625},
    "learned labels": {"soft_labels": "learned", "teacher_updates": 2, "temperature": 2.0},
}


def points(steps: int = 4, size: int = 50, seed: int = 0) -> torch.Tensor:
    return normal(steps + 1, size, seed=seed).cumsum(0)


def blocks_of(esp: ObservedMethod) -> list[slice]:
    size = esp.method.net.size
    return esp.method.net.blocks if esp.method.config.blocks == "layer" else [slice(0, size)]


def gradient_at(esp: ObservedMethod, vector: torch.Tensor, draw: int, n: int) -> torch.Tensor:
    """Return the student's gradient by the textbook, as one vector with a graph."""
    net = esp.method.net.net
    weights = [w.detach().requires_grad_() for w in trajectory.unflattened(net, vector)]
    loss = trajectory.mean_loss(net, weights, esp.step(draw, n), esp.method.loss_temperature)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])


def assert_objective(esp: ObservedMethod, expected: torch.Tensor) -> None:
    """Compare the method's objective and its gradients with a value that has a graph."""
    learned = esp.run.synthetic.parameters()
    expected_gradients = dict(zip(learned, torch.autograd.grad(expected, list(learned.values())), strict=True))
    value, gradients = esp.objective()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-8, atol=1e-10)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-8 * float(gradient.abs().max()))


def prepared(monkeypatch: pytest.MonkeyPatch, memory: int, t: int, **options: object) -> ObservedMethod:
    """Return ESP at a step, in one chunk or in several; its student is where the run has left it."""
    monkeypatch.setattr(build, "memory_budget", lambda device: memory)
    options = {**SPAN, **options}
    if options.get("form") == "point":  # which has no student
        options = {name: value for name, value in options.items() if name not in ("student_steps", "lr_student")}
    esp = observe(SubspaceProjection, t=t, **options)
    esp.method._start(esp.run, esp.method._start_step)  # a second time, in float64
    esp.method._displacement = esp.method._displacement.double()
    return esp


@pytest.mark.parametrize("memory", [1, 2**40])
@pytest.mark.parametrize("form", ["free", "projected"])
@pytest.mark.parametrize("case", CASES)
def test_next_step_equals_the_textbook(case: str, form: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the second step of the second student, so that it has moved."""
    esp = prepared(monkeypatch, memory, 4, form=form, **CASES[case])
    config, displacement = esp.method.config, esp.method._displacement
    assert esp.method._start_step == 3
    assert float(displacement.norm()) > 0
    gradient = gradient_at(esp, esp.window.start + displacement, 3, 1)
    expected = reference.step_objective(
        displacement - config.lr_student * gradient, esp.window.points, blocks_of(esp), 2 / 3, config.progress_weight
    )
    assert_objective(esp, expected)


@pytest.mark.parametrize("memory", [1, 2**40])
@pytest.mark.parametrize("case", CASES)
def test_point_equals_the_textbook(case: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    esp = prepared(monkeypatch, memory, 2, form="point", **CASES[case])
    position = float(torch.rand((), generator=esp.run.rng("point", 2)) * 3)
    snapshot = int(position)
    weights = esp.window.points[snapshot] + (position - snapshot) * esp.window.points.diff(dim=0)[snapshot]
    gradient = gradient_at(esp, weights, 2, 0)
    weight = esp.method.config.progress_weight
    expected = reference.direction_objective(gradient, esp.window.points, blocks_of(esp), weight)
    assert_objective(esp, expected)


@pytest.mark.parametrize("memory", [1, 2**40])
@pytest.mark.parametrize("case", CASES)
def test_rollout_equals_the_textbook(case: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    esp = prepared(monkeypatch, memory, 2, form="rollout", **CASES[case])
    config, displacement = esp.method.config, torch.zeros(esp.method.net.size, dtype=torch.float64)
    for n in range(3):
        gradient = gradient_at(esp, (esp.window.start + displacement).detach(), 2, n)
        displacement = displacement - config.lr_student * gradient
    expected = reference.step_objective(displacement, esp.window.points, blocks_of(esp), 1.0, config.progress_weight)
    assert_objective(esp, expected)


def test_rollout_on_a_line_equals_tesla() -> None:
    """|u - D|^2 = |residual|^2 + |D|^2 (progress - 1)^2 when the subspace is the line along D."""
    options = {"t": 0, "expert_span": 1, "student_steps": 3, "lr_student": 0.05, "augment": "color_scale"}
    first = observe(SubspaceProjection, form="rollout", **options)
    second = observe(ConstantMemoryMatching, lr_lr=0.0, **options)
    second.run.synthetic.stored["images"].data = first.run.synthetic.stored["images"].detach().clone()
    (value, gradients), (tesla_value, tesla_gradients) = first.objective(), second.objective()
    torch.testing.assert_close(value, tesla_value, rtol=1e-8, atol=0)
    scale = float(tesla_gradients["images"].abs().max())
    torch.testing.assert_close(gradients["images"], tesla_gradients["images"], rtol=1e-5, atol=1e-6 * scale)


def test_finite_differences_of_the_next_step_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    esp = prepared(monkeypatch, 1, 1, ipc=1, network="convnet-w2-d1-sigmoid", augment="color_scale")
    gradient = esp.objective()[1]["images"].flatten()
    pixels = esp.run.synthetic.stored["images"].data.view(-1)
    for i in (0, 70, 191, 400):
        values = []
        for change in (1e-5, -2e-5):
            pixels[i] += change
            values.append(float(esp.objective()[0]))
        pixels[i] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient[i]), rel=1e-4, abs=1e-9)


def test_basis_is_orthonormal_and_spans_its_vectors() -> None:
    window = points()
    basis = orthonormal_basis(window.diff(dim=0))
    torch.testing.assert_close(basis @ basis.T, torch.eye(4, dtype=torch.float64))
    projector = basis.T @ basis
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(projector, projector.T)
    subspace = Subspace.of(window)
    for point in window:
        displacement = point - window[0]
        assert float(subspace.residual(displacement).norm()) <= 1e-10 * float(window[-1].norm())
    assert subspace.outside(subspace.displacement).item() < 1e-20
    assert subspace.progress(subspace.displacement).item() == pytest.approx(1)


def test_random_vectors_are_mostly_outside() -> None:
    subspace = Subspace.of(points(size=200))
    vectors = normal(500, 200, seed=1)
    shares = torch.stack([subspace.residual(v).square().sum() / v.square().sum() for v in vectors])
    assert float(shares.mean()) == pytest.approx(1 - 4 / 200, abs=2e-3)


def test_subspace_of_all_dimensions_leaves_no_residual() -> None:
    subspace = Subspace.of(points(steps=6, size=6))
    assert subspace.outside(normal(6, seed=1)).item() < 1e-16


@pytest.mark.parametrize("difference", [1e-9, 0.0])
def test_dependent_steps_do_not_change_the_rank(difference: float) -> None:
    steps = normal(3, 40)
    doubled = torch.cat([steps, steps * (1 + difference), steps.sum(0, keepdim=True)])
    basis = orthonormal_basis(doubled)
    assert basis.shape == (3, 40)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    assert bool(torch.isfinite(orthonormal_basis(doubled.float())).all())


def test_direction_depends_on_the_sign_of_a_gradient_but_not_on_its_length() -> None:
    window, gradient = points(), normal(50, seed=3)
    blocks = [(slice(0, 20), Subspace.of(window[:, :20])), (slice(20, 50), Subspace.of(window[:, 20:]))]
    value, scaled = (direction_objective(blocks, g, 1.0).item() for g in (gradient, 1e3 * gradient))
    assert value == pytest.approx(scaled)
    flipped = direction_objective(blocks, -gradient, 1.0).item()
    share = direction_objective(blocks, gradient, 0.0).item()
    assert (value - share) + (flipped - share) == pytest.approx(2)
    uphill = torch.cat([-subspace.displacement for _, subspace in blocks])
    assert direction_objective(blocks, uphill, 1.0).item() == pytest.approx(0, abs=1e-9)


def test_objectives_pass_gradcheck() -> None:
    window, vector = points(), normal(50, seed=3).requires_grad_()
    blocks = [(slice(0, 20), Subspace.of(window[:, :20])), (slice(20, 50), Subspace.of(window[:, 20:]))]
    assert torch.autograd.gradcheck(lambda u: step_objective(blocks, u, 0.3, 0.7), vector)
    assert torch.autograd.gradcheck(lambda g: direction_objective(blocks, g, 0.7), vector)


def test_progress_term_penalises_going_backwards() -> None:
    blocks = [(slice(0, 50), subspace := Subspace.of(points()))]
    forwards, backwards = subspace.displacement, -subspace.displacement
    assert step_objective(blocks, backwards, 1.0, 0.0).item() < 1e-20
    assert step_objective(blocks, forwards, 1.0, 1.0).item() < 1e-20
    assert step_objective(blocks, backwards, 1.0, 1.0).item() == pytest.approx(4)


def test_projected_student_stays_in_the_subspace_and_a_free_one_does_not() -> None:
    for form, low, high in (("projected", 0.0, 1e-9), ("free", 1e-4, 10.0)):
        esp = observe(SubspaceProjection, t=2, form=form, **SPAN)
        subspace, displacement = Subspace.of(esp.window.points), esp.method._displacement.double()
        assert float(displacement.norm()) > 0
        assert low <= subspace.outside(displacement).item() <= high


@pytest.mark.parametrize("beside", ["dm", "m3d"])
def test_added_objective_moves_the_images_as_it_would_alone(beside: str) -> None:
    """With a weight so large that ESP's own part vanishes, the update is the other method's times the weight."""
    options = {"steps": 1, "pixel_range": "free", "augment": "color_crop", "momentum": 0.0}
    ds, bench = toy_dataset(), quick_method("esp", beside=beside, beside_weight=1e6, **options)
    alone = quick_method(beside, **options).condense(ds)
    start = quick_method(beside, **{**options, "lr_img": 1e-12}).condense(ds).synthetic.images
    both = bench.condense(ds).synthetic.images
    torch.testing.assert_close((both - start) / 1e6, alone.synthetic.images - start, rtol=2e-2, atol=2e-4)


def test_plan_counts_all_rows_if_an_objective_is_added() -> None:
    run = observe(SubspaceProjection, ipc=2).run
    alone, both = (
        SubspaceProjection(SubspaceProjection.Config(batch_syn=2, beside=beside)) for beside in ("none", "dm")
    )
    assert (max(alone.rows_per_step(run).values()), alone.most_rows(run)) == (2, 2)
    assert (both.rows_per_step(run), both.most_rows(run)) == (run.counts, 6)


@pytest.mark.parametrize("beside", ["none", "m3d"])
def test_added_objective_tells_of_classes_with_very_few_rows(beside: str, caplog: pytest.LogCaptureFixture) -> None:
    quick_method("esp", beside=beside).condense(toy_dataset(rows=2))
    assert ("m3d compares distributions, and some classes have fewer than 3 rows" in caplog.text) == (beside == "m3d")


def test_guard_on_a_sum_of_two_objectives_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"most_ratio judges the objective of esp, to which beside='dm' adds"):
        quick_method("esp", beside="dm", most_ratio=1.0).condense(toy_dataset())


def test_basis_of_nearly_parallel_steps_in_float32_is_orthonormal() -> None:
    """The squares of small singular values would drown in the rounding errors of a Gram matrix in float32."""
    steps = (normal(1, 5000) + 0.01 * normal(4, 5000, seed=1)).float()
    basis = orthonormal_basis(steps)
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis @ basis.T, torch.eye(4), rtol=0, atol=1e-5)


def test_set_of_two_objectives_cites_both_papers() -> None:
    alone, both = (SubspaceProjection(SubspaceProjection.Config(beside=beside)) for beside in ("none", "m3d"))
    assert "m3d" not in alone.also_cites()
    assert "m3d" in both.also_cites()


def test_reported_objective_has_the_weight_of_the_added_one() -> None:
    options = {**SPAN, "experts": 1, "snapshots": 4, "snapshot_every": 1}
    alone, one, three = (
        objective_of_step(SubspaceProjection, {**options, **added}, 0).value
        for added in ({}, {"beside": "dm"}, {"beside": "dm", "beside_weight": 3.0})
    )
    assert one != pytest.approx(alone, rel=1e-4)
    assert three - alone == pytest.approx(3 * (one - alone), rel=1e-3)


def test_student_takes_the_steps_of_the_textbook_and_a_new_one_starts_at_its_window() -> None:
    """At a rate of next to nothing the images stay, so that all gradients of the run can be taken at once."""
    options = {**SPAN, "lr_img": 1e-12, "augment": "none"}
    for t in (2, 3, 4):
        esp = observe(SubspaceProjection, t=t, **options)
        first, displacement = t - t % 3, torch.zeros(esp.method.net.size, dtype=torch.float64)
        for n in range(t % 3):
            gradient = gradient_at(esp, (esp.window.start + displacement).detach(), first, n)
            displacement = (displacement - esp.method.config.lr_student * gradient).detach()
        torch.testing.assert_close(esp.method._displacement.double(), displacement, rtol=1e-3, atol=1e-6)
