"""ESP (reconstruction): keep a student that is trained on the synthetic set in the subspace of an expert's steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hf_condense.engine.method import Loss, MethodInfo, Preset, option
from hf_condense.engine.task import Task
from hf_condense.methods._siamese import EmbeddingMatching
from hf_condense.methods._student import TrajectoryConfig, TrajectoryMethod, few_images, short_experts, usual_width
from hf_condense.methods.dm import DistributionMatching
from hf_condense.methods.m3d import KernelMoments

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

_SINGULAR_CUT = 1e-3  # of the largest singular value: smaller ones are noise, or double columns
_EPSILON = 1e-12


def orthonormal_basis(steps: Tensor) -> Tensor:
    """Return an orthonormal basis of what some vectors span, by their Gram matrix in float64.

    Directions whose singular value is below 1e-3 of the largest are left out, so that vectors that are nearly or wholly
    dependent do no harm.

    Shapes:
        (W, P) -> (r, P) with r <= W, in the vectors' own type

    Example:
        >>> orthonormal_basis(torch.tensor([[2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])).abs()
        tensor([[1., 0., 0.]])
    """
    rows = steps.double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)  # ascending; squares of the singular values
    kept = values > values[-1] * _SINGULAR_CUT**2
    basis: Tensor = (vectors[:, kept] * values[kept].rsqrt()).T @ rows
    return basis.to(steps.dtype)


@dataclass(frozen=True)
class Subspace:
    """What an expert's steps span, seen from where a window starts.

    Attributes:
        basis: Orthonormal rows. (r, P).
        displacement: The expert's way from the start of the window to its end, which the basis spans. (P,).
    """

    basis: Tensor
    displacement: Tensor

    @classmethod
    def of(cls, points: Tensor) -> Subspace:
        """Return the subspace of consecutive snapshots (W + 1, P)."""
        return cls(orthonormal_basis(points.diff(dim=0)), points[-1] - points[0])

    def residual(self, moved: Tensor) -> Tensor:
        """Return what of a vector (P,) is outside: (P,)."""
        return moved - (moved @ self.basis.T) @ self.basis

    def outside(self, moved: Tensor) -> Tensor:
        """Squared length outside, in units of the expert's way: (P,) -> ()."""
        return self.residual(moved).square().sum() / self.way

    def progress(self, moved: Tensor) -> Tensor:
        """How far along the expert's way a vector leads; 1 is its end: (P,) -> ()."""
        return (moved @ self.displacement) / self.way

    @property
    def way(self) -> Tensor:
        """Squared length of the expert's way: ()."""
        return self.displacement.square().sum() + _EPSILON


def step_objective(subspaces: Sequence[tuple[slice, Subspace]], moved: Tensor, aim: float, weight: float) -> Tensor:
    """Squared residual outside the subspace, and squared distance from the progress aimed at; mean over blocks.

    Args:
        subspaces: Blocks of the parameters with their subspaces; the whole vector is one block, or each tensor.
        moved: The student's displacement from the start of the window.
        aim: Progress that the student should have made, as a fraction of the expert's way.
        weight: Of progress, beside the residual.

    Shapes:
        moved (P,) -> ()

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> blocks = [(slice(0, 2), Subspace.of(points))]
        >>> float(step_objective(blocks, torch.tensor([1.0, 1.0]), 0.5, 1.0))
        0.25

    Reference:
        A reconstruction, see `SubspaceProjection`.
    """
    terms = [
        subspace.outside(moved[block]) + weight * (subspace.progress(moved[block]) - aim).square()
        for block, subspace in subspaces
    ]
    return torch.stack(terms).mean()


def direction_objective(subspaces: Sequence[tuple[slice, Subspace]], gradient: Tensor, weight: float) -> Tensor:
    """Share of a gradient's energy outside the subspace, and one minus the cosine of its descent with the expert's way.

    Unchanged if the gradient is multiplied by a positive number. Arguments, shapes and source as `step_objective`.
    """
    terms = []
    for block, subspace in subspaces:
        g = gradient[block]
        inside = g - subspace.residual(g)
        share = 1 - inside.square().sum() / (g.square().sum() + _EPSILON)
        lengths = torch.linalg.vector_norm(inside) * subspace.way.sqrt()
        terms.append(share + weight * (1 + (inside @ subspace.displacement) / (lengths + _EPSILON)))
    return torch.stack(terms).mean()


@dataclass(frozen=True)
class SubspaceProjectionConfig(TrajectoryConfig):
    """Options of ESP."""

    lr_img: float = option(
        300.0, "Learning rate of the images, in normalised units; the objective is a ratio.", gt=0, role="image_rate"
    )
    expert_span: int = option(4, "Snapshots from the start of a window to its end; as many steps span it.", ge=1)
    lr_student: float = option(0.05, "Learning rate of the student; 'point' has none.", gt=0)
    form: str = option(
        "free",
        "'free': the student moves as its gradients lead; each update of the images pulls its next step towards the "
        "subspace. 'projected': it is put back into the subspaces after each step. 'point': the gradient at a point "
        "of the window should lie in the subspace. 'rollout': an update pulls all the student's steps at once.",
        choices=("free", "projected", "point", "rollout"),
    )
    progress: float = option(
        1.0,
        "Weight of the progress term (how far along the expert's path); for form='point', of the direction term.",
        ge=0,
    )
    blocks: str = option(
        "flat",
        "'flat': one subspace of all parameters. 'layer': one of every weight tensor, without biases and norms.",
        choices=("flat", "layer"),
    )
    beside: str = option(
        "none",
        "'dm' or 'm3d': its objective is added, with its default options for this ipc but for augment and batch_real, "
        "which are those given here.",
        choices=("none", "dm", "m3d"),
    )
    beside_weight: float = option(
        1.0, "Weight of what is added; at 1 it moves the images as far as it would alone.", gt=0
    )
    batch_real: int = option(
        256, "Real images per class and step, for what is added; unused without.", ge=1, role="batch_real", tiny=6
    )


def _default(task: Task) -> dict[str, Any]:
    """`quick` on a larger scale."""
    return usual_width(_quick(task))


def _quick(task: Task) -> dict[str, Any]:
    """Minutes on two cores."""
    own = {"steps": 3000, "student_steps": 12} if few_images(task) else {"steps": 1000, "student_steps": 24}
    return {**short_experts(task), **own, "network": "convnet-w32"}


class SubspaceProjection(TrajectoryMethod[SubspaceProjectionConfig]):
    """Expert subspace projection (ESP), reconstructed.

    The paper asks that training on the synthetic set stay in the subspace that an expert's steps span, and that it need
    not be unrolled. The objectives here are a reading of that aim; the paper's own formulas may differ.

    Reference:
        After Ma et al., "Dataset Condensation via Expert Subspace Projection", Sensors 23(19), 2023, abstract.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="esp",
        title="Expert Subspace Projection, ESP (reconstruction)",
        kind="synthetic",
        summary="Keeps a student that is trained on the synthetic set in the subspace of an expert's steps.",
        paper="Dataset Condensation via Expert Subspace Projection",
        authors="Zhiheng Ma, Dezheng Gao, Shaolei Yang, Xing Wei and Yihong Gong",
        venue="Sensors",
        year=2023,
        link="https://doi.org/10.3390/s23198148",
        cost="experts once; one student step and a double backward of it, on the whole set",
    )
    Config = SubspaceProjectionConfig
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("`quick` at width 128, with 50 experts and twice the steps; not measured.", _default),
        "quick": Preset(
            "1,000 to 3,000 steps at width 32, some 20 short experts, falling rates: minutes on two cores.", _quick
        ),
    }

    @property
    def batch_real(self) -> int:
        """Real rows of a class in a step: those of what is added."""
        return 0 if self.config.beside == "none" else self.config.batch_real

    def prepare(self, run: Run) -> None:
        """Record the experts; make what is added, if anything is."""
        super().prepare(run)
        self._begun = -1  # the step in which the student last started
        self._moved = torch.zeros(self.net.size, device=run.device)  # since then
        self._beside = None if self.config.beside == "none" else self._partner(run)

    def _partner(self, run: Run) -> EmbeddingMatching[Any]:
        """Make the method whose objective is added."""
        cls: type[EmbeddingMatching[Any]] = DistributionMatching if self.config.beside == "dm" else KernelMoments
        shared = {"batch_real": self.config.batch_real, "augment": self.config.augment}
        values = cls.presets["default"].values(run.task)
        known = {name: value for name, value in values.items() if name in cls.Config.__dataclass_fields__}
        return cls(cls.Config.build({**known, **shared}))

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the objective of the student's next step, and what is added to it."""
        if self.config.form == "rollout":
            yield from self._rollout(run, t)
        elif self.config.form == "point":
            yield from self._point(run, t)
        else:
            yield from self._next_step(run, t)
        if self._beside is not None:
            scale = self.config.beside_weight * self._beside.config.lr_img / self.config.lr_img
            for loss, value in self._beside.losses(run, t):
                yield Loss(scale * loss, scale * value)

    def _next_step(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the objective of where the next step leads; the student starts anew when it has gone all its steps."""
        step = t % self.config.student_steps
        if t - step != self._begun:
            self._begin(run, t - step)
            self._moved.zero_()
        moved, aim = self._moved, (step + 1) / self.config.student_steps

        def objective(gradient: Tensor) -> Tensor:
            self._next = moved - self.config.lr_student * gradient
            return step_objective(self._subspaces, self._next, aim, self.config.progress)

        yield from self.two_passes(run, self._window.start + moved, self.batch(run, self._begun, step), objective)

    def _point(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the objective of the gradient at a random point of the window."""
        self._begin(run, t)
        place = torch.rand((), generator=run.rng("point", t)) * self.config.expert_span
        before = int(place)
        vector = torch.lerp(self._window.points[before], self._window.points[before + 1], float(place) - before)
        yield from self.two_passes(
            run,
            vector,
            self.batch(run, t, 0),
            lambda gradient: direction_objective(self._subspaces, gradient, self.config.progress),
        )

    def _rollout(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the objective of where all of the student's steps lead."""
        self._begin(run, t)
        rate = self._window.start.new_tensor(self.config.lr_student)
        yield from self.rollout(
            run,
            t,
            self._window,
            rate,
            lambda moved: step_objective(self._subspaces, moved, 1.0, self.config.progress),
        )

    def _begin(self, run: Run, draw: int) -> None:
        """Let the student start at a window, and find what the expert's steps in it span."""
        self._begun, self._window = draw, self.window(run, draw)
        blocks = self.net.blocks if self.config.blocks == "layer" else [slice(0, self.net.size)]
        self._subspaces = [(block, Subspace.of(self._window.points[:, block])) for block in blocks]

    def after_update(self, run: Run, t: int) -> None:
        """Let the student take the step, back into the subspace if the form asks for it."""
        super().after_update(run, t)
        if self.config.form not in ("free", "projected"):
            return
        self._moved = self._next.detach().clone()
        if self.config.form == "projected":
            for block, subspace in self._subspaces:
                self._moved[block] -= subspace.residual(self._moved[block])

    def state(self, run: Run) -> dict[str, Tensor]:
        """Return where the student is, and since when it is on its way."""
        return {**super().state(run), "moved": self._moved, "begun": torch.tensor(self._begun)}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        """Take the student back to where it was."""
        super().load_state(run, state)
        self._moved = state["moved"].to(run.device)
        if self.config.form in ("free", "projected"):
            self._begin(run, int(state["begun"]))
