"""Running an evaluation: every network on every contender and seed, shared out over the processes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_condense.base.cache import atomic_file, cache_enabled, cache_folder, content_key
from hf_condense.base.devices import CompileOption, compiling_pays
from hf_condense.base.progress import progress_bar
from hf_condense.base.rng import Key
from hf_condense.condensed.scores import Evaluation, Score, gathered
from hf_condense.evaluation.contenders import Contender, Real
from hf_condense.networks.factory import NetworkFactory, activation_bytes
from hf_condense.networks.training import accuracy, chunk_size, train_network

if TYPE_CHECKING:
    from accelerate import Accelerator

VERSION = 1  # raised when the same evaluation gives other numbers


@dataclass
class Bench:
    """One kind of network, trained on every contender.

    Attributes:
        factory: Makes the networks.
        test: What they are tested on.
        contenders: What they are trained on; the evaluated set comes first.
        seeds: Seed of every network.
        seed: Seed of the evaluation.
        compile: What the caller said.
        cache: Whether scores may be cached.
    """

    factory: NetworkFactory
    test: Real
    contenders: list[Contender]
    seeds: list[int]
    seed: int
    compile: CompileOption
    cache: bool

    def __post_init__(self) -> None:
        self.module = self.factory.build(self.seed, "template").to(self.test.images.device)
        first = self.contenders[0]
        batch = min(first.rows, first.recipe.batch_size)
        self.chunk = chunk_size(self.module, self.test.images.image_shape, batch)
        if self.chunk == batch:  # whole batches, then, for the other contenders too
            self.chunk = chunk_size(self.module, self.test.images.image_shape, first.recipe.batch_size)
        # One module is compiled and its weights overwritten: code is generated once, not once a network.
        compiled: Any = torch.compile(self.module, dynamic=False) if self._compiles() else self.module
        self.net: nn.Module = compiled

    def score(self, contender: Contender, s: int, on_update: Callable[[], object]) -> Score:
        """Train one network and test it."""
        started = time.perf_counter()
        key: tuple[Key, ...] = (self.seed, "evaluate", s)
        self.module.load_state_dict(self.factory.build(*key).state_dict())
        data = contender.make(s)
        updates = train_network(
            self.net,
            data,
            contender.recipe,
            *key,
            max_updates=contender.max_updates,
            chunk=self.chunk,
            on_update=on_update,
        )
        reached = accuracy(self.net, self.test.images, self.test.outputs)
        return Score(
            set=contender.name,
            rows=contender.rows,
            network=self.factory.name,
            recipe=contender.recipe.name,
            augment=contender.recipe.augment,
            updates=updates,
            epochs=round(updates * contender.recipe.epochs / contender.recipe.updates(contender.rows), 2),
            accuracies=(reached,),
            seeds=(s,),
            seconds=time.perf_counter() - started,
        )

    def _compiles(self) -> bool:
        """Decide whether to compile, from shapes and counts alone."""
        if self.compile != "auto":
            return self.compile
        trained = sum(c.updates * min(c.rows, c.recipe.batch_size) for c in self.contenders)
        tested = len(self.test.images) * len(self.contenders)
        images = len(self.seeds) * (trained + tested / 2)
        each = activation_bytes(self.module, self.test.images.image_shape)
        shapes = {min(c.rows, c.recipe.batch_size) for c in self.contenders}  # forwards of tests are left out
        return compiling_pays(images * each, self.test.images.device, shapes=len(shapes))

    def cache_file(self, contender: Contender, s: int) -> Path | None:
        """Return where a score is cached, or None if it is not."""
        if contender.content is None or not cache_enabled(self.cache):
            return None
        images = self.test.images
        key = content_key(
            version=VERSION,
            train=contender.content,
            test=images.content_hash,
            outputs=self.test.outputs.tolist(),
            mean=images.mean.tolist(),
            std=images.std.tolist(),
            shape=images.image_shape,
            network=self.factory.name,
            num_classes=self.factory.num_classes,
            recipe=dataclasses.asdict(contender.recipe),
            updates=contender.updates,
            seeds=[self.seed, s],
            torch=torch.__version__.split("+")[0],
            device=images.device.type,
            whitening=images.whitening and images.whitening.digest,
        )
        return cache_folder("evaluations") / f"{key}.json"


def run_benches(benches: list[Bench], accelerator: Accelerator, shown: bool) -> Evaluation:
    """Train and test all networks; every process returns the scores of all.

    Args:
        benches: The networks.
        accelerator: Its processes share the work.
        shown: Whether this process shows a progress bar.
    """
    jobs = [(bench, contender, s) for bench in benches for contender in bench.contenders for s in bench.seeds]
    own = range(accelerator.process_index, len(jobs), accelerator.num_processes)
    scores: dict[int, Score] = {}
    total = sum(jobs[i][1].updates for i in own)
    with progress_bar(total, "Evaluating", "update", shown=shown) as bar:
        for i in own:
            bar.set_postfix_str(f"{jobs[i][1].name}, {jobs[i][0].factory.name}, seed {jobs[i][2]}", refresh=False)
            scores[i] = _cached_score(*jobs[i], bar.update)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        scores = dict(gather_object(list(scores.items())))
    each = len(benches[0].seeds)
    return Evaluation(
        tuple(gathered([scores[i] for i in range(first, first + each)]) for first in range(0, len(jobs), each))
    )


def _cached_score(bench: Bench, contender: Contender, s: int, advance: Callable[[int], object]) -> Score:
    """Return the score of one network, from the cache if it is there."""
    file = bench.cache_file(contender, s)
    if file is not None and file.is_file():
        advance(contender.updates)
        return _score(json.loads(file.read_text()))
    score = bench.score(contender, s, lambda: advance(1))
    if file is not None:
        with atomic_file(file) as work:
            work.write_text(json.dumps(dataclasses.asdict(score)))
    return score


def _score(values: dict[str, Any]) -> Score:
    """Rebuild a score from JSON."""
    return Score(**{**values, "accuracies": tuple(values["accuracies"]), "seeds": tuple(values["seeds"])})
