"""Running an evaluation: networks for every contender and seed, shared out over the processes."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_condense.base.cache import cache_enabled, content_key
from hf_condense.base.compiled_code import compiled_if
from hf_condense.base.devices import CompileOption, compiling_pays, device_facts
from hf_condense.base.errors import plain_text
from hf_condense.base.files import atomic_file
from hf_condense.base.memory import is_out_of_memory
from hf_condense.base.paths import cache_folder
from hf_condense.base.processes import shared_out
from hf_condense.base.progress import progress_bar
from hf_condense.base.rng import Key
from hf_condense.condensed.scores import Evaluation, Score, gathered
from hf_condense.evaluation.contenders import Contender
from hf_condense.evaluation.subject import RealImages
from hf_condense.networks.accuracy import predictions, share_correct
from hf_condense.networks.factory import NetworkFactory
from hf_condense.networks.flat import copy_state
from hf_condense.networks.network_facts import activation_bytes
from hf_condense.networks.network_stack import NetworkStack, networks_together
from hf_condense.networks.training import chunk_size, train_network, train_stack
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.class_source import ClassSource

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("hf_condense")

DIVERGED = -1.0  # stands for the held-out accuracy of a network whose weights are not finite
SEARCH = "search"  # stands for the seed of networks that try a learning rate
CACHE_VERSION = 4  # increment when the same evaluation starts to give other numbers


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
        self.diverged: Counter[str] = Counter()  # networks by the name of their contender
        self.network = self.factory.build(self.seed, "template").to(self.test.images.device)
        first = self.contenders[0]
        batch = min(first.rows, first.training.batch_size)
        self.chunk = chunk_size(self.network, self.test.images.image_shape, batch)
        if self.chunk >= batch:  # The set is trained on in whole batches, so larger contenders should be, too.
            self.chunk = chunk_size(self.network, self.test.images.image_shape, first.training.batch_size)
        # One module is compiled and its weights are overwritten, so that code is generated once, not for every network.
        self.compiled_network = compiled_if(self._should_compile(), self.network)

    def together(self, contender: Contender) -> int:
        """Return how many networks are trained on a contender at a time."""
        training = contender.training
        # Compiled code is that of one network, and sharpness-aware training needs the length of each one's gradient.
        if self.compiled_network is not self.network or training.flatness:
            return 1
        return networks_together(
            partial(self.factory.build, self.seed, "template"),
            self.test.images.device,
            self.test.images.image_shape,
            min(contender.rows, training.batch_size),
            contender.rows,
        )

    def scores(
        self, contender: Contender, network_seeds: Sequence[int], advance: Callable[[int], object]
    ) -> list[Score]:
        """Train the networks of some seeds together, and test them.

        Args:
            contender: What they are trained on.
            network_seeds: Their seeds.
            advance: Called with the number of networks after each update of all of them.
        """
        sets = [contender.images.for_seed(seed) for seed in network_seeds]  # not timed: rows may be fitted first
        started = time.perf_counter()
        training, networks = contender.training, len(network_seeds)
        if networks == 1:
            updates = self._train(sets[0], contender, training, network_seeds[0], lambda: advance(1))
            predicted = predictions(self.compiled_network, self.test.images)[:, None]  # (N, 1), by class
            trained = self.network
        else:
            keys = [self._key(seed) for seed in network_seeds]
            stack = NetworkStack([self.factory.build(*key) for key in keys]).to(self.test.images.device)
            updates = train_stack(stack, sets, training, keys, contender.max_updates, lambda: advance(networks))
            predicted = predictions(stack, self.test.images)  # (N, networks)
            trained = stack
        self.diverged[contender.name] += _count_diverged(trained, networks)
        score = Score(
            set=contender.name,
            rows=contender.rows,
            network=self.factory.name,
            recipe=training.name,
            augment=training.augment,
            updates=updates,
            epochs=round(updates * training.epochs / training.updates(contender.rows), 2),
            accuracies=(),
            seeds=(),
            seconds=(time.perf_counter() - started) / networks,
            lr=training.lr,
            ipc=contender.ipc,
        )
        return [
            dataclasses.replace(
                score,
                accuracies=(share_correct(of_one, self.test.images, self.test.outputs),),
                seeds=(seed,),
                predictions=_by_row(of_one, self.test.images)[None],
            )
            for seed, of_one in zip(network_seeds, predicted.unbind(1), strict=True)
        ]

    def held_out_accuracy(
        self, contender: Contender, lr: float, held_out: RealImages, on_update: Callable[[], object]
    ) -> float:
        """Train a network at some learning rate, from weights and draws that no score uses, and try it on rows.

        The result is `DIVERGED` if the weights are not finite: such a network is right on all rows of one class, which
        may be most of them.
        """
        training = dataclasses.replace(contender.training, lr=lr)
        with self.explained_memory(contender):
            self._train(contender.images.for_seed(SEARCH), contender, training, SEARCH, on_update)
            predicted = predictions(self.compiled_network, held_out.images)
        if _count_diverged(self.network, 1):
            return DIVERGED
        return share_correct(predicted, held_out.images, held_out.outputs)

    @contextmanager
    def explained_memory(self, contender: Contender) -> Iterator[None]:
        """Say what to do if memory is not enough for the single network that a block trains."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            rows = min(contender.rows, contender.training.batch_size)
            shape = "x".join(map(str, self.test.images.image_shape))
            raise MemoryError(
                f"a single network {self.factory.name}, trained on {contender.name!r} with {rows} rows of {shape} in "
                "an update, does not fit into memory; a smaller network, smaller images, or fewer rows in an update "
                f"(recipe=TrainingRecipe(..., batch_size={max(1, rows // 2)})) need less"
            ) from error

    def _train(
        self,
        data: TrainingSet,
        contender: Contender,
        training: TrainingRecipe,
        network_seed: Key,
        on_update: Callable[[], object],
    ) -> int:
        """Train the network from the weights of a seed, and return the number of updates."""
        key = self._key(network_seed)
        copy_state(self.network, self.factory.fresh(*key))
        return train_network(
            self.compiled_network,
            data,
            training,
            *key,
            max_updates=contender.max_updates,
            chunk=self.chunk,
            on_update=on_update,
        )

    def _key(self, network_seed: Key) -> tuple[Key, ...]:
        """Return the address of the weights and draws of a network."""
        return self.seed, "evaluate", network_seed

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
            version=CACHE_VERSION,
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
            whitening=test.whitening and test.whitening.digest,
            **device_facts(test.device),
        )
        return cache_folder("evaluations") / f"{key}.json"


def run_trials(
    trials: list[Trials], class_names: tuple[str, ...], accelerator: Accelerator, shows_progress: bool
) -> Evaluation:
    """Train and test all networks; every process returns the scores of all.

    Args:
        trials: One for every kind of network, with the same contenders and seeds.
        class_names: Names of the outputs of a network.
        accelerator: Its processes share the work.
        shows_progress: Whether this process shows a progress bar.
    """
    jobs = [(kind, contender, s) for kind in trials for contender in kind.contenders for s in kind.network_seeds]
    networks = len(trials[0].network_seeds)

    def run_share(share: range) -> dict[int, Score]:
        scores: dict[int, Score] = {}
        total = sum(jobs[i][1].updates for i in share)
        with progress_bar(total, "Evaluating", "update", shown=shows_progress) as bar:
            # Jobs that differ in their seeds only lie side by side.
            for _, numbers in groupby(share, lambda i: i // networks):
                group = list(numbers)
                kind, contender, _ = jobs[group[0]]
                seeds = [jobs[i][2] for i in group]
                scores.update(zip(group, _cached_scores(kind, contender, seeds, bar), strict=True))
        return scores

    scores = shared_out(accelerator, len(jobs), run_share)
    test = trials[0].test
    return Evaluation(
        tuple(gathered([scores[i] for i in range(first, first + networks)]) for first in range(0, len(jobs), networks)),
        class_names,
        _by_row(test.outputs[test.images.labels], test.images),
    )


def _cached_scores(trials: Trials, contender: Contender, network_seeds: list[int], bar: Any) -> list[Score]:
    """Return the scores of the networks of some seeds: from the cache those that are there, and train the others."""
    scores, missing = {}, []
    for seed in network_seeds:
        score = _read_score(trials.cache_file(contender, seed))
        if score is None:
            missing.append(seed)
        else:
            bar.update(contender.updates)
            scores[seed] = score
    most = trials.together(contender) if len(missing) > 1 else 1
    for start in range(0, len(missing), most):
        seeds = missing[start : start + most]
        for seed, score in zip(seeds, _trained_scores(trials, contender, seeds, bar), strict=True):
            scores[seed] = score
            _write_score(score, trials.cache_file(contender, seed))
    _warn_of_divergence(trials.diverged.pop(contender.name, 0), len(missing), contender.name)
    return [scores[seed] for seed in network_seeds]


def _trained_scores(trials: Trials, contender: Contender, network_seeds: list[int], bar: Any) -> list[Score]:
    """Train networks together, or half of them at a time if memory is not enough for all, and return their scores."""
    done, half = bar.n, len(network_seeds) // 2
    name = f"seed {network_seeds[0]}" if not half else f"seeds {', '.join(map(str, network_seeds))}"
    bar.set_postfix_str(f"{contender.name}, {trials.factory.name}, {name}", refresh=False)
    if not half:
        with trials.explained_memory(contender):
            return trials.scores(contender, network_seeds, bar.update)
    try:
        return trials.scores(contender, network_seeds, bar.update)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    logger.warning(
        "%d networks together do not fit into memory; half of them are trained at a time", len(network_seeds)
    )
    bar.update(done - bar.n)
    parts = network_seeds[:half], network_seeds[half:]
    return [score for part in parts for score in _trained_scores(trials, contender, part, bar)]


def _count_diverged(trained: nn.Module, networks: int) -> int:
    """Return how many networks have weights that are not finite: they give one answer to every image.

    Args:
        trained: A network, or a stack of some, whose parameters have a first dimension more.
        networks: How many they are.
    """
    finite = [p.detach().reshape(networks, -1).isfinite().all(1) for p in trained.parameters()]
    return networks - int(torch.stack(finite).all(0).sum())


def _warn_of_divergence(lost: int, networks: int, name: str) -> None:
    """Log how many of the networks that were trained on a set have diverged."""
    if lost:
        logger.warning(
            "%d of %d networks trained on %r diverged: their weights are not finite, and their accuracy is that of one "
            "answer to all images. A smaller learning rate, lr=, usually helps",
            lost,
            networks,
            name,
        )


def _write_score(score: Score, file: Path | None) -> None:
    """Write the score of a network to its file in the cache, if it has one; it is no loss if that fails."""
    if file is None:
        return
    values = dataclasses.asdict(score)
    if score.predictions is not None:
        values["predictions"] = score.predictions.tolist()
    try:
        with atomic_file(file) as work:
            work.write_text(json.dumps(values))
    except OSError as error:
        logger.warning("%s. The score is used, but not cached", plain_text(error))


def _read_score(file: Path | None) -> Score | None:
    """Return the score in a file of the cache, or None if there is none that can be read."""
    if file is None:
        return None
    try:
        if not file.is_file():
            return None
        values = json.loads(file.read_text())
        lists = {name: tuple(values[name]) for name in ("accuracies", "seeds")}
        return Score(**{**values, **lists, "predictions": np.array(values["predictions"], np.int32)})
    except (OSError, ValueError, KeyError, TypeError) as error:  # it is not ours to read, or damaged
        logger.warning("%s in the cache cannot be read (%s), so its network is trained again", file, error)
        return None


def _by_row(values: Tensor, source: ClassSource) -> NDArray[np.int32]:
    """Return a value for every image of a source, (N,), in the order of the dataset's rows."""
    return values[source.rows.argsort()].numpy().astype(np.int32)
