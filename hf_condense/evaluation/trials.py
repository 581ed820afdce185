"""Running an evaluation: networks for every contender and seed, shared out over the processes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_condense.base.cache import atomic_file, cache_enabled, cache_folder, content_key
from hf_condense.base.devices import CompileOption, compiling_pays
from hf_condense.base.processes import shared_out
from hf_condense.base.progress import progress_bar
from hf_condense.base.rng import Key
from hf_condense.condensed.scores import Evaluation, Score, gathered
from hf_condense.evaluation.contenders import Contender
from hf_condense.evaluation.subject import RealImages
from hf_condense.networks.factory import NetworkFactory, activation_bytes
from hf_condense.networks.training import TrainingSet, chunk_size, predictions, share_correct, train_network
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.source.class_source import ClassSource

if TYPE_CHECKING:
    from accelerate import Accelerator

SEARCH = "search"  # stands for the seed of networks that try a learning rate
VERSION = 2  # increment when the same evaluation starts to give other numbers


@dataclass
class Trials:
    """One kind of network, trained on every contender once for every seed.

    Attributes:
        factory: Makes the networks.
        test: What they are tested on.
        contenders: What they are trained on; the evaluated set comes first.
        network_seeds: Seed of every network.
        seed: Seed of the evaluation.
        compile: Whether to compile the network; `"auto"` decides by the amount of work.
        cache: Whether scores may be cached.
    """

    factory: NetworkFactory
    test: RealImages
    contenders: list[Contender]
    network_seeds: list[int]
    seed: int
    compile: CompileOption
    cache: bool

    def __post_init__(self) -> None:
        self.network = self.factory.build(self.seed, "template").to(self.test.images.device)
        first = self.contenders[0]
        batch = min(first.rows, first.training.batch_size)
        self.chunk = chunk_size(self.network, self.test.images.image_shape, batch)
        if self.chunk == batch:  # The set is trained on in whole batches, so larger contenders should be, too.
            self.chunk = chunk_size(self.network, self.test.images.image_shape, first.training.batch_size)
        # One module is compiled and its weights are overwritten, so that code is generated once, not for every network.
        compiled: Any = torch.compile(self.network, dynamic=False) if self._should_compile() else self.network
        self.compiled_network: nn.Module = compiled

    def score(self, contender: Contender, network_seed: int, on_update: Callable[[], object]) -> Score:
        """Train one network and test it."""
        data = contender.images.for_seed(network_seed)  # not timed: rows may be fitted first
        started = time.perf_counter()
        training = contender.training
        updates = self._train(data, contender, training, network_seed, on_update)
        predicted = predictions(self.compiled_network, self.test.images)  # (N,), by class
        return Score(
            set=contender.name,
            rows=contender.rows,
            network=self.factory.name,
            recipe=training.name,
            augment=training.augment,
            updates=updates,
            epochs=round(updates * training.epochs / training.updates(contender.rows), 2),
            accuracies=(share_correct(predicted, self.test.images, self.test.outputs),),
            seeds=(network_seed,),
            seconds=time.perf_counter() - started,
            lr=training.lr,
            ipc=contender.ipc,
            predictions=_by_row(predicted, self.test.images)[None],
        )

    def held_out_accuracy(
        self, contender: Contender, lr: float, held_out: RealImages, on_update: Callable[[], object]
    ) -> float:
        """Train a network at some learning rate, from weights and draws that no score uses, and try it on rows."""
        training = dataclasses.replace(contender.training, lr=lr)
        self._train(contender.images.for_seed(SEARCH), contender, training, SEARCH, on_update)
        predicted = predictions(self.compiled_network, held_out.images)
        return share_correct(predicted, held_out.images, held_out.outputs)

    def _train(
        self,
        data: TrainingSet,
        contender: Contender,
        training: TrainingRecipe,
        network_seed: Key,
        on_update: Callable[[], object],
    ) -> int:
        """Train the network from the weights of a seed, and return the number of updates."""
        key: tuple[Key, ...] = (self.seed, "evaluate", network_seed)
        self.network.load_state_dict(self.factory.build(*key).state_dict())
        return train_network(
            self.compiled_network,
            data,
            training,
            *key,
            max_updates=contender.max_updates,
            chunk=self.chunk,
            on_update=on_update,
        )

    def _should_compile(self) -> bool:
        """Decide whether to compile, from shapes and counts alone."""
        if self.compile != "auto":
            return self.compile
        trained_images = sum(c.updates * min(c.rows, c.training.batch_size) for c in self.contenders)
        tested_images = len(self.test.images) * len(self.contenders)
        images = len(self.network_seeds) * (trained_images + tested_images / 2)
        bytes_per_image = activation_bytes(self.network, self.test.images.image_shape)
        # Every shape of batch is compiled for; the one of tests is left out.
        shapes = {min(c.rows, c.training.batch_size) for c in self.contenders}
        return compiling_pays(images * bytes_per_image, self.test.images.device, shapes=len(shapes))

    def cache_file(self, contender: Contender, network_seed: int) -> Path | None:
        """Return where a score is cached, or None if it is not."""
        if contender.images.content is None or not cache_enabled(self.cache):
            return None
        test = self.test.images
        key = content_key(
            version=VERSION,
            train=contender.images.content,
            test=test.content_hash,
            outputs=self.test.outputs.tolist(),
            mean=test.mean.tolist(),
            std=test.std.tolist(),
            shape=test.image_shape,
            network=self.factory.name,
            num_classes=self.factory.num_classes,
            recipe=dataclasses.asdict(contender.training),
            updates=contender.updates,
            seeds=[self.seed, network_seed],
            torch=torch.__version__.split("+")[0],
            device=test.device.type,
            whitening=test.whitening and test.whitening.digest,
        )
        return cache_folder("evaluations") / f"{key}.json"


def run_trials(
    trials: list[Trials], class_names: tuple[str, ...], accelerator: Accelerator, show_progress: bool
) -> Evaluation:
    """Train and test all networks; every process returns the scores of all.

    Args:
        trials: One for every kind of network, with the same contenders and seeds.
        class_names: Names of the outputs of a network.
        accelerator: Its processes share the work.
        show_progress: Whether this process shows a progress bar.
    """
    jobs = [(kind, contender, s) for kind in trials for contender in kind.contenders for s in kind.network_seeds]

    def run_share(share: range) -> dict[int, Score]:
        scores, total = {}, sum(jobs[i][1].updates for i in share)
        with progress_bar(total, "Evaluating", "update", shown=show_progress) as bar:
            for i in share:
                kind, contender, network_seed = jobs[i]
                bar.set_postfix_str(f"{contender.name}, {kind.factory.name}, seed {network_seed}", refresh=False)
                scores[i] = _cached_score(kind, contender, network_seed, bar.update)
        return scores

    scores = shared_out(accelerator, len(jobs), run_share)
    networks, test = len(trials[0].network_seeds), trials[0].test
    return Evaluation(
        tuple(gathered([scores[i] for i in range(first, first + networks)]) for first in range(0, len(jobs), networks)),
        class_names,
        _by_row(test.outputs[test.images.labels], test.images),
    )


def _cached_score(trials: Trials, contender: Contender, network_seed: int, advance: Callable[[int], object]) -> Score:
    """Return the score of one network, from the cache if it is there."""
    file = trials.cache_file(contender, network_seed)
    if file is not None and file.is_file():
        advance(contender.updates)
        return _score_from_json(file.read_text())
    score = trials.score(contender, network_seed, lambda: advance(1))
    if file is not None:
        values = dataclasses.asdict(score)
        if score.predictions is not None:
            values["predictions"] = score.predictions.tolist()
        with atomic_file(file) as work:
            work.write_text(json.dumps(values))
    return score


def _score_from_json(text: str) -> Score:
    values = json.loads(text)
    lists = {name: tuple(values[name]) for name in ("accuracies", "seeds")}
    return Score(**{**values, **lists, "predictions": np.array(values["predictions"], np.int32)})


def _by_row(values: Tensor, source: ClassSource) -> NDArray[np.int32]:
    """Return a value for every image of a source, (N,), in the order of the dataset's rows."""
    return values[source.rows.argsort()].numpy().astype(np.int32)
