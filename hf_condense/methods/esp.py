"""ESP (reconstruction): keep a student that is trained on the synthetic set in the subspace of an expert's steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hf_condense.base.devices import in_float64, to_device
from hf_condense.engine.forms import few_images
from hf_condense.engine.method import Loss, MethodInfo, Preset
from hf_condense.engine.options import option, redefined
from hf_condense.engine.plan import CUTS
from hf_condense.engine.task import Task
from hf_condense.methods._embeddings import EmbeddingMatching
from hf_condense.methods._student import TrajectoryMethod
from hf_condense.methods._student_options import TrajectoryConfig
from hf_condense.methods._student_presets import default_values, long_windows, shared_quick_values, student_form
from hf_condense.methods.dm import DistributionMatching
from hf_condense.methods.m3d import KernelMoments

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

_SINGULAR_CUT = 1e-3  # of the largest singular value; smaller ones come from rounding or from dependent vectors
_EPSILON = 1e-12
_BESIDE = {"beside": ("dm", "m3d")}  # what gives options of an added objective an effect
_HAS_STUDENT = {"form": ("free", "projected", "rollout")}


def orthonormal_basis(steps: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of some vectors, computed in float64 from their Gram matrix.

    Directions whose singular value is below 1e-3 of the largest are left out, so that vectors that are dependent, or
    nearly so, do no harm.

    Args:
        steps: The vectors. (W, P).

    Returns:
        (r, P) with r <= W, in the dtype of the vectors.

    Example:
        >>> orthonormal_basis(torch.tensor([[2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])).abs()
        tensor([[1., 0., 0.]])
    """
    rows = in_float64(steps)
    values, vectors = torch.linalg.eigh(rows @ rows.T)  # ascending; squares of the singular values
    mask = values > values[-1] * _SINGULAR_CUT**2
    basis: Tensor = (vectors[:, mask] * values[mask].rsqrt()).T @ rows
    return basis.to(steps)


@dataclass(frozen=True)
class Subspace:
    """The subspace that an expert's steps span, with the start of a window as its origin.

    Attributes:
        basis: Orthonormal rows. (r, P).
        displacement: The expert's displacement from the start of the window to its end; it lies in the subspace. (P,).
    """

    basis: Tensor
    displacement: Tensor

    @classmethod
    def of(cls, points: Tensor) -> Subspace:
        """Return the subspace of consecutive snapshots (W + 1, P)."""
        return cls(orthonormal_basis(points.diff(dim=0)), points[-1] - points[0])

    def to(self, device: torch.device) -> Subspace:
        """Return the same subspace on a device."""
        return Subspace(to_device(self.basis, device), to_device(self.displacement, device))

    def residual(self, vector: Tensor) -> Tensor:
        """Return the component of a vector outside the subspace: (P,) -> (P,)."""
        return vector - (vector @ self.basis.T) @ self.basis

    def outside(self, vector: Tensor) -> Tensor:
        """Return the squared length of the residual over that of the expert's displacement: (P,) -> ()."""
        return self.residual(vector).square().sum() / self.squared_length

    def progress(self, vector: Tensor) -> Tensor:
        """Return how far a vector leads along the expert's displacement, whose end is 1: (P,) -> ()."""
        return (vector @ self.displacement) / self.squared_length

    @cached_property
    def squared_length(self) -> Tensor:
        """Squared length of the expert's displacement, never zero: ()."""
        return self.displacement.square().sum() + _EPSILON


def step_objective(
    subspaces: Sequence[tuple[slice, Subspace]], displacement: Tensor, aim: float, weight: float
) -> Tensor:
    """Return the squared residual plus the squared error of the progress, averaged over blocks of the parameters.

    Args:
        subspaces: Blocks of the parameters with their subspaces: one block for the whole vector, or one per tensor.
        displacement: The student's displacement from the start of the window. (P,).
        aim: Progress that the student should have made, as a fraction of the expert's displacement.
        weight: Weight of the progress term beside the residual.

    Returns:
        A scalar, ().

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> blocks = [(slice(0, 2), Subspace.of(points))]
        >>> float(step_objective(blocks, torch.tensor([1.0, 1.0]), 0.5, 1.0))
        0.25

    References:
        A reconstruction; see `SubspaceProjection`.
    """
    terms = [
        subspace.outside(displacement[block]) + weight * (subspace.progress(displacement[block]) - aim).square()
        for block, subspace in subspaces
    ]
    return torch.stack(terms).mean()


def direction_objective(subspaces: Sequence[tuple[slice, Subspace]], gradient: Tensor, weight: float) -> Tensor:
    """Return how far a gradient's descent deviates from the subspace and from the expert, averaged over blocks.

    The first term is the share of the gradient's energy outside the subspace. The second one is one minus the cosine
    between the descent direction inside the subspace and the expert's displacement. A positive factor of the gradient
    changes neither.

    Args:
        subspaces: Blocks of the parameters with their subspaces, as in `step_objective`.
        gradient: The student's gradient. (P,).
        weight: Weight of the second term.

    Returns:
        A scalar, ().

    References:
        A reconstruction; see `SubspaceProjection`.
    """
    terms = []
    for block, subspace in subspaces:
        g = gradient[block]
        inside = g - subspace.residual(g)
        share = 1 - inside.square().sum() / (g.square().sum() + _EPSILON)
        lengths = torch.linalg.vector_norm(inside) * subspace.squared_length.sqrt()
        terms.append(share + weight * (1 + (inside @ subspace.displacement) / (lengths + _EPSILON)))
    return torch.stack(terms).mean()


@dataclass(frozen=True)
class SubspaceProjectionConfig(TrajectoryConfig):
    """Options of ESP."""

    lr_img: float = redefined(
        TrajectoryConfig,
        "lr_img",
        300.0,
        "Learning rate of the images, in normalised units. It is large because the objective is a ratio.",
    )
    expert_span: int = redefined(
        TrajectoryConfig,
        "expert_span",
        4,
        "Length of a window in snapshots after its start; as many steps span the subspace.",
    )
    student_steps: int = redefined(TrajectoryConfig, "student_steps", 10, needs=_HAS_STUDENT)
    lr_student: float = option(0.05, "Learning rate of the student.", gt=0, needs=_HAS_STUDENT)
    form: str = option(
        "free",
        "'free': each update of the images draws the student's next step towards the subspace. 'projected': the same, "
        "but the student is projected onto the subspace after each step. 'point': the gradient at a random point of "
        "the window should lie in the subspace. 'rollout': each update considers all steps of the student at once.",
        choices=("free", "projected", "point", "rollout"),
    )
    progress_weight: float = option(
        1.0,
        "Weight of the progress term (how far along the expert's path); for form='point', of the direction term.",
        ge=0,
    )
    blocks: str = option(
        "flat",
        "'flat': one subspace of all parameters. 'layer': one per weight tensor. Vectors are left out: biases, and the "
        "parameters of norm layers other than layer norm.",
        choices=("flat", "layer"),
    )
    beside: str = option(
        "none",
        "Method whose objective is added: 'dm', 'm3d' or 'none'. It has its default options for this ipc, but augment "
        "and batch_real as given here.",
        choices=("none", "dm", "m3d"),
    )
    beside_weight: float = option(
        1.0,
        "Weight of the added objective. At 1 it moves the images as far as it would alone at the same momentum and "
        "decay, if all classes have the same ipc, storage is not 'siren' and lr_stored is not given.",
        gt=0,
        needs=_BESIDE,
    )
    batch_real: int = option(
        256,
        "Real images per class and step for the added objective.",
        ge=1,
        role="batch_real",
        tiny=6,
        needs=_BESIDE,
    )


def _default(task: Task) -> dict[str, Any]:
    return default_values(_short(task), task)


def _quick(task: Task) -> dict[str, Any]:
    return {**_short(task), **student_form(task), **long_windows(task, steps=1600)}


def _short(task: Task) -> dict[str, Any]:
    lengths = {"steps": 3000, "student_steps": 12} if few_images(task) else {"steps": 1000, "student_steps": 24}
    return {**shared_quick_values(task), **lengths, "network": "convnet-w32"}


class SubspaceProjection(TrajectoryMethod[SubspaceProjectionConfig]):
    """Expert subspace projection (ESP), reconstructed.

    The paper's aim is that training on the synthetic set stays in the subspace of an expert's steps, without unrolling
    that training. The objectives here are one reading of that aim; the paper's own formulas may differ.

    References:
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
        cost="experts once; one student step and a double backward of it",
    )
    version: ClassVar[int] = 2
    Config = SubspaceProjectionConfig
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset(
            "`quick` at width 128, with pixels, at most 500 in a step, 50 experts and twice the steps; not measured.",
            _default,
        ),
        "quick": Preset(
            "1,000 to 3,000 steps at width 32, some 20 short experts, falling rates; up to 50 images per class in "
            "frequencies: minutes on two cores.",
            _quick,
        ),
    }

    def also_cites(self) -> tuple[str, ...]:
        """Return also the method whose objective is added, if one is."""
        added = () if self.config.beside == "none" else (self.config.beside,)
        return (*super().also_cites(), *added)

    @property
    def batch_real(self) -> int:
        """Real images per class that a step embeds: those of the added objective, if there is one."""
        return 0 if self.config.beside == "none" else self.config.batch_real

    @property
    def cuts(self) -> tuple[str, ...]:
        """Those of a student, and forward passes of the added objective, if there is one."""
        return super().cuts if self.config.beside == "none" else CUTS

    def rows_per_step(self, run: Run) -> dict[int, int]:
        """Return how many rows of every class a step differentiates: all in the added objective, if there is one."""
        return super().rows_per_step(run) if self.config.beside == "none" else run.counts

    def most_rows(self, run: Run) -> int:
        """Return how many rows a step differentiates at a time."""
        return super().most_rows(run) if self.config.beside == "none" else sum(run.counts.values())

    @property
    def passes(self) -> int:
        """With form='rollout', a step may keep the graphs of all steps of the student."""
        return self.config.student_steps if self.config.form == "rollout" else 1

    def prepare(self, run: Run) -> None:
        """Record the experts, and make the method whose objective is added, if there is one."""
        if self.config.most_ratio is not None and self.config.beside != "none":
            raise ValueError(
                f"most_ratio judges the objective of esp, to which beside={self.config.beside!r} adds another one; "
                "leave one of them out"
            )
        super().prepare(run)
        self._start_step = -1  # the step of the run in which the student last started
        self._displacement = torch.zeros(self.net.size, device=run.device)  # of the student, since its start
        self._beside = None if self.config.beside == "none" else self._added_method(run)

    def _added_method(self, run: Run) -> EmbeddingMatching[Any]:
        """Return the method whose objective is added, with the values of its own default preset."""
        cls: type[EmbeddingMatching[Any]] = DistributionMatching if self.config.beside == "dm" else KernelMoments
        shared = {"batch_real": self.config.batch_real, "augment": self.config.augment}
        values = cls.presets["default"].values(run.task)
        options = {name: value for name, value in values.items() if name in cls.Config.__dataclass_fields__}
        method = cls(cls.Config.build({**options, **shared}))
        method.prepare(run)
        return method

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the losses of the form, and of the objective that is added."""
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
        """Yield the losses of the student's displacement after its next step; a new student starts when it is due.

        The student takes that step in `after_update`, with the gradient that is kept here.
        """
        step = t % self.config.student_steps
        if t - step != self._start_step:
            self._displacement.zero_()
            self._start(run, t - step)
        aim = (step + 1) / self.config.student_steps

        def objective(gradient: Tensor) -> Tensor:
            return step_objective(self._subspaces, self._after_step(gradient), aim, self.config.progress_weight)

        weights = self._window.start + self._displacement
        batch = self.batch(run, self._start_step, step)
        self._gradient = yield from self.two_passes(run, weights, batch, objective)

    def _after_step(self, gradient: Tensor) -> Tensor:
        """Return the student's displacement after a step along a gradient: (P,) -> (P,)."""
        return self._displacement - self.config.lr_student * gradient

    def _point(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the losses of the gradient at a random point of the window."""
        self._start(run, t)
        position = torch.rand((), generator=run.rng("point", t)) * self.config.expert_span
        snapshot = int(position)
        ends = self._window.points[snapshot], self._window.points[snapshot + 1]
        weights = to_device(torch.lerp(*ends, float(position) - snapshot), run.device)

        def objective(gradient: Tensor) -> Tensor:
            return direction_objective(self._subspaces, gradient, self.config.progress_weight)

        yield from self.two_passes(run, weights, self.batch(run, t, 0), objective)

    def _rollout(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the losses of the student's displacement after all its steps."""
        self._start(run, t)
        rate = torch.full((), self.config.lr_student, device=run.device)

        def objective(displacement: Tensor) -> Tensor:
            return step_objective(self._subspaces, displacement, 1.0, self.config.progress_weight)

        yield from self.rollout(run, t, self._window, rate, objective)

    def _start(self, run: Run, draw: int) -> None:
        """Draw a window at whose start the student starts, and compute the subspaces of the expert's steps in it."""
        self._window = self.window(run, draw)
        blocks = self.net.blocks if self.config.blocks == "layer" else [slice(0, self.net.size)]
        # The points are on the CPU, where a decomposition makes no GPU wait.
        subspaces = [(block, Subspace.of(self._window.points[:, block])) for block in blocks]
        self._subspaces = [(block, subspace.to(run.device)) for block, subspace in subspaces]
        self._start_step = draw  # only now: a step that runs out of memory before is repeated

    def after_update(self, run: Run, t: int) -> None:
        """Let the student take its step, and project it onto the subspace if the form says so."""
        super().after_update(run, t)
        if self.config.form not in ("free", "projected"):
            return
        self._displacement = self._after_step(self._gradient)
        if self.config.form == "projected":
            for block, subspace in self._subspaces:
                self._displacement[block] -= subspace.residual(self._displacement[block])

    def state(self, run: Run) -> dict[str, Tensor]:
        """Return the student's displacement and the step in which it started."""
        return {**super().state(run), "moved": self._displacement, "begun": torch.tensor(self._start_step)}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        """Restore the student."""
        super().load_state(run, state)
        self._displacement = state["moved"].to(run.device)
        if self.config.form in ("free", "projected"):
            self._start(run, int(state["begun"]))
