"""Shared parts of methods that compare embeddings under random networks or a pool of trained ones."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hf_condense.base.checks import byte_text
from hf_condense.base.memory import memory_budget
from hf_condense.base.rng import seeded_globals
from hf_condense.engine.method import Loss
from hf_condense.engine.options import option, redefined
from hf_condense.engine.plan import Plan
from hf_condense.methods._images import scale_by_budgets
from hf_condense.methods._pool import Pool, PoolConfig, calibration_loss, check_pool, recorded_pool
from hf_condense.methods._siamese import SiameseConfig, SiameseMethod

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

logger = logging.getLogger("hf_condense")

_LARGE_ADAMW_RATE = 0.5  # in standard deviations of pixels per step


class KeptTensors:
    """Tensors by key, kept up to a number of bytes. What does not fit is made again whenever it is asked for.

    Args:
        limit: Largest sum of the tensors' sizes, in bytes, >= 0.
        on_full: Called once, with the number of tensors that are kept, when a tensor does not fit.
    """

    def __init__(self, limit: int, on_full: Callable[[int], object] = lambda count: None) -> None:
        self._limit, self._on_full = limit, on_full
        self._tensors: dict[Hashable, Tensor] = {}
        self._size, self._full = 0, False

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of a key; make it if it is not kept."""
        if key in self._tensors:
            return self._tensors[key]
        tensor = make()
        if self._size + tensor.nbytes <= self._limit:
            self._tensors[key] = tensor
            self._size += tensor.nbytes
        elif not self._full:
            self._full = True
            self._on_full(len(self._tensors))
        return tensor

    def clear(self) -> None:
        """Forget all tensors."""
        self._tensors, self._size = {}, 0


@dataclass(frozen=True)
class EmbeddingConfig(SiameseConfig, PoolConfig):
    """Options of methods that compare embeddings under random networks."""

    ipm: int = option(
        1,
        "Steps per drawn network or pair of a pool (iterations per model). With reuse_real, a larger number saves "
        "forward passes of the real images.",
        ge=1,
    )
    reuse_real: bool = option(True, "Use the same real batch and the same augmentation in all steps of a network.")
    draws: int | None = option(
        None,
        "Number of different draws of a network, a real batch and an augmentation, which take turns in random order. "
        "What the comparison needs of the real images is kept in memory (in at most a quarter of what is free; the "
        "rest is computed again), so that a step costs the synthetic images alone. None: every draw is a new one.",
        ge=1,
        needs={"reuse_real": (True,)},
    )
    lr_stored: float | None = redefined(
        SiameseConfig,
        "lr_stored",
        None,
        "Learning rate of the stored numbers themselves. None: derived from lr_img by the storage form (for 'pixels' "
        "and 'patches' the same, for 'dct' lr_img times expand, for 'siren' 0.001 by Adam; under optimiser='adamw' "
        "lr_img itself, but for 'siren' 0.001 too).",
    )
    momentum: float = redefined(SiameseConfig, "momentum", 0.5, needs={"optimiser": ("form",)})
    optimiser: str = option(
        "form",
        "'form': the optimiser that suits the storage form (SGD for pixels). 'adamw': AdamW at the rate lr_stored, "
        "else 0.001 for 'siren', and lr_img as it is for other forms; each number then moves by about that rate per "
        "step, however small its gradient. Presets choose lr_img for the method's own optimiser: give lr_img with "
        "another one.",
        choices=("form", "adamw"),
    )
    weight_decay: float = option(
        0.0,
        "Weight decay of optimiser='adamw': the share of every stored number that a step at rate 1 would remove.",
        ge=0,
        needs={"optimiser": ("adamw",)},
    )


EmbeddingT = TypeVar("EmbeddingT", bound=EmbeddingConfig)


@dataclass(frozen=True)
class Chunk:
    """A chunk of classes in one draw.

    Attributes:
        run: The run.
        classes: The classes of the chunk.
        draw: Number of the draw of the real batch, the key of whatever the comparison draws.
    """

    run: Run
    classes: tuple[int, ...]
    draw: int


def summed_loss(rows: Tensor, *objectives: Callable[[Tensor], Tensor]) -> Loss:
    """Return the sum of objectives of the same rows, whose graphs are not in memory together.

    The gradient by the rows is computed at once, one objective after the other.

    Args:
        rows: Decoded rows with their graph. (n, C, H, W).
        *objectives: Functions of the rows that return (). They have no other leaves.
    """
    value, gradient = rows.new_zeros(()), torch.zeros_like(rows)
    for objective in objectives:
        leaf = rows.detach().requires_grad_()
        loss = objective(leaf)
        gradient += torch.autograd.grad(loss, leaf)[0]
        value = value + loss.detach()
    return Loss((rows * gradient).sum(), value)


class EmbeddingMatching(SiameseMethod[EmbeddingT]):
    """Base class of methods that compare embeddings of real and synthetic rows under random networks or a pool."""

    def __init__(self, config: EmbeddingT) -> None:
        super().__init__(config)
        self._network_draw = -1  # the draw of the current network
        self._summaries: KeptTensors | None = None  # of the real rows, by draw and chunk
        self._plan: Plan | None = None  # the one whose chunks they are of
        self._pool: Pool | None = None

    def also_cites(self) -> tuple[str, ...]:
        """Return `dance` if there is a pool, whose blends and calibration are those of its paper."""
        return () if self.config.networks == "fresh" else ("dance",)

    def identity(self, run: Run) -> dict[str, Any]:
        """Return also the caller's choice about compiling if it decides how the networks of a pool are trained."""
        pool = {} if self.config.networks == "fresh" else {"compile": run.compile}
        return {**super().identity(run), **pool}

    def prepare(self, run: Run) -> None:
        """Check options that depend on each other, and record the pool if the options ask for one."""
        check_pool(run, self.config, self.info.name)
        if self.config.networks == "pool":
            self._pool = recorded_pool(run, self.config)

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        """Return the optimiser of the images that the options name."""
        if self.config.optimiser == "form":
            return super().optimiser(run)
        rate = self.config.lr_stored or run.decoder.own_rate or self.config.lr_img
        if rate > _LARGE_ADAMW_RATE:
            logger.warning(
                "optimiser='adamw' moves every stored number by about its rate in a step, and %.3g looks like a rate "
                "for SGD; pass lr_img, such as lr_img=0.03",
                rate,
            )
        return torch.optim.AdamW(run.synthetic.learned().values(), lr=rate, weight_decay=self.config.weight_decay)

    def adjust_gradients(self, run: Run) -> None:
        """Scale gradients by the budgets of classes."""
        scale_by_budgets(run)

    @property
    def keeps_real(self) -> bool:
        """Whether later steps compare with the same real rows, so that their summary is kept."""
        return self.config.reuse_real and (self.config.draws is not None or self.config.ipm > 1)

    def summary(self, chunk: Chunk, real: Tensor) -> Tensor:
        """Return what the comparison needs of the real embeddings (k, B, D), first dimension k; default: all."""
        return real

    @abstractmethod
    def discrepancy(self, chunk: Chunk, real: Tensor, synthetic: Tensor, labels: Tensor) -> Tensor:
        """Return the discrepancy of each class, summed over classes.

        Args:
            chunk: The chunk of k classes, in the order in which rows are grouped.
            real: What `summary` returned for the real embeddings. (k, ...).
            synthetic: Embeddings of the synthetic rows. (n, D).
            labels: Classes of the synthetic rows. (n,).

        Returns:
            A scalar, ().
        """

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the discrepancy, with the calibration if it has a weight, one chunk of classes at a time."""
        if self._plan != run.plan:  # a step that was cut smaller has other chunks, and needs the memory
            self._summaries = None
        network_draw = self._draw_number(run, t)
        if network_draw != self._network_draw:
            self._load_networks(run, network_draw)
        draw = network_draw if self.config.reuse_real else t
        for classes in run.chunks():
            chunk = Chunk(run, classes, draw)
            rows, labels = self.synthetic_rows(run, classes, draw, rows_of=t)
            if self.config.calibration:
                yield summed_loss(rows, partial(self._matching, chunk, labels, t), partial(self._calibration, chunk, t))
            else:
                loss = self._matching(chunk, labels, t, rows)
                yield Loss(loss, loss.detach())

    def _matching(self, chunk: Chunk, labels: Tensor, t: int, rows: Tensor) -> Tensor:
        """Return the discrepancy of the synthetic rows of a chunk: ()."""
        run, real = chunk.run, self._real_summary(chunk)
        # Dropout draws by the key of the chunk: the same in whichever process, but anew if the plan changes.
        with seeded_globals(run.seed, "embeddings", t, chunk.classes[0], devices=[run.device]):
            embeddings = run.embed(rows)
        return self.discrepancy(chunk, real, embeddings, labels)

    def _draw_number(self, run: Run, t: int) -> int:
        """Return the number of the draw that step `t` uses: its key."""
        if self.config.draws is None:
            return t - t % self.config.ipm
        turn, place = divmod(t // self.config.ipm, self.config.draws)
        return int(torch.randperm(self.config.draws, generator=run.rng("draws", turn))[place])

    def _load_networks(self, run: Run, draw: int) -> None:
        """Load the network of a draw, and the trained one if the calibration needs it."""
        if self.config.draws is None and self._summaries is not None:
            self._summaries.clear()  # this draw never comes up again
        blend = None if self._pool is None else self._pool.blend(run, draw)
        run.network("network", draw, weights=blend)
        if self._pool is not None and self.config.calibration:
            weights = self._pool.trained(run, draw)
            self._trained = run.network("network", draw, weights=weights, slot="trained")
        self._network_draw = draw  # only now: a step that runs out of memory before is repeated

    @torch.no_grad()
    def _real_summary(self, chunk: Chunk) -> Tensor:
        """Return the summary of the real rows of a chunk, and keep it if later steps use the same rows again."""
        if not self.keeps_real:
            return self._keyed_summary(chunk)
        key, make = (chunk.draw, chunk.classes), partial(self._keyed_summary, chunk)
        if self._summaries is not None:
            return self._summaries.get(key, make)
        self._summaries, self._plan = self._kept_tensors(chunk.run), chunk.run.plan
        summary = self._summaries.get(key, make)
        if self.config.draws is not None:
            size = self.config.draws * summary.nbytes * sum(1 for _ in chunk.run.chunks())
            logger.info(
                "what is kept of the real images of %d draws takes about %.1f MB", self.config.draws, size / 1e6
            )
        return summary

    def _keyed_summary(self, chunk: Chunk) -> Tensor:
        """Return the summary; dropout draws by the key of the chunk, not by that of the step, which may be any."""
        run, classes = chunk.run, chunk.classes
        with seeded_globals(run.seed, "real embeddings", chunk.draw, classes[0], devices=[run.device]):
            embeddings = run.embed(self.real_rows(run, classes, chunk.draw))
            return self.summary(chunk, embeddings.unflatten(0, (len(classes), -1)))  # from (k, B, D)

    def _kept_tensors(self, run: Run) -> KeptTensors:
        """Return a place for summaries, with a limit of bytes, which says so when they are not enough."""
        limit = memory_budget(run.device) // 2
        if run.device.type == "cpu":
            limit //= run.accelerator.num_processes
        if self.config.draws is None:  # one draw, so nothing needs to be said
            return KeptTensors(limit)
        chunks = max(1, sum(1 for _ in run.chunks()))

        def warn(count: int) -> None:
            logger.warning(
                "what the comparison needs of the real images fits into memory for %d of %d draws (%s); for the "
                "others it is computed again each time. Fewer draws or a smaller batch_real would fit",
                count // chunks,
                self.config.draws,
                byte_text(limit),
            )

        return KeptTensors(limit, warn)

    def _calibration(self, chunk: Chunk, t: int, rows: Tensor) -> Tensor:
        """Return the weighted cross-entropy of the trained network on the synthetic rows of a chunk: ()."""
        run = chunk.run
        numbers = self.row_numbers(run, chunk.classes, t)
        labels = run.synthetic.classes_of(numbers)  # on the CPU, so that nothing waits for a GPU
        with seeded_globals(run.seed, "calibration", t, chunk.classes[0], devices=[run.device]):
            logits = torch.cat([run.logits(part, self._trained) for part in run.split_for_forward(rows)])
        targets = run.synthetic.targets_at(numbers, self.loss_temperature)
        return self.config.calibration * calibration_loss(logits, targets, labels, self.loss_temperature)
