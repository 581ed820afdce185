"""What a run returns: a coreset's real rows, or the rows of a set that was learned or composed."""

from __future__ import annotations

import dataclasses
import logging
import time
from functools import partial
from typing import Any

import datasets
import torch
from datasets.table import InMemoryTable

from hf_condense.base.memory import is_out_of_memory
from hf_condense.base.processes import from_main, share_tensors
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import decoded_rows
from hf_condense.condensed.tensors import CondensedTensors, round_robin
from hf_condense.engine.method import Selector
from hf_condense.engine.nearest import nearest_of_set
from hf_condense.engine.provenance import completed
from hf_condense.engine.run import Run
from hf_condense.engine.selecting import select_rows

logger = logging.getLogger("hf_condense")

_ROWS_LOOKED_AT = 100  # to see whether the pixels of a set are those of pictures
_TOO_FEW_GREYS = 0.25  # of the share of the source's pixels that are neither black nor white
_TOO_FAR = 1.0  # mean distance of pixels from [0, 1]


def select_coreset(run: Run, selector: Selector[Any], recipe: Recipe, started: float) -> CondensedDataset:
    """Choose real rows and return them unchanged, with every column and the original bytes.

    Args:
        run: The run.
        selector: The coreset method.
        recipe: How the set is made.
        started: When the call began, by `time.perf_counter`.
    """
    positions = torch.cat(list(select_rows(run, selector, run.ipc).values()))
    rows = run.source.rows[positions].tolist()
    labels = run.source.labels[positions]
    images = run.source.images[positions.to(run.source.images.device)].cpu().float().div_(255)
    table = run.dataset.with_format("arrow")[[rows[i] for i in round_robin(labels.tolist())]]
    selected = datasets.Dataset(InMemoryTable(table), info=run.dataset.info.copy(), split=run.dataset.split)
    # Times differ from process to process.
    complete = partial(completed, recipe, run, seconds=time.perf_counter() - started, rows=rows)
    recipe = from_main(run.accelerator, complete)
    return CondensedDataset.from_parts(selected, CondensedTensors.of_images(images, labels), recipe, run.dataset)


def finish_synthetic(run: Run, recipe: Recipe, started: float) -> CondensedDataset:
    """Return the run's set as a dataset with the source's image and label columns. Every process returns the same.

    Args:
        run: The run, whose last step is done.
        recipe: How the set was made.
        started: When the call began, by `time.perf_counter`.
    """
    share_tensors(run.accelerator, run.synthetic.state().values())
    try:
        tensors = run.synthetic.finished(getattr(torch, recipe.store_dtype))
    except OverflowError as error:
        if recipe.store_dtype == "float32":
            raise
        # The set itself should not be lost.
        logger.warning("the set is stored as 'float32', because %s; a smaller learning rate may help", error)
        recipe = dataclasses.replace(recipe, store_dtype="float32")
        tensors = run.synthetic.finished()
    _warn_of_extreme_pixels(run, tensors)
    columns = (recipe.image_column, recipe.label_column)
    if dropped := [name for name in run.dataset.column_names if name not in columns]:
        logger.warning("columns without a synthetic counterpart are dropped: %s", ", ".join(map(repr, dropped)))
    seconds = time.perf_counter() - started

    def complete() -> Recipe:
        try:
            nearest = nearest_of_set(tensors, run.source, run.seed)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("images were not compared with the nearest source images: %s", error)
            nearest = None  # the set itself should not be lost
        return dataclasses.replace(completed(recipe, run, seconds=seconds), nearest=nearest)

    finished = from_main(run.accelerator, complete)  # times differ from process to process
    features = datasets.Features({name: kind for name, kind in run.dataset.features.items() if name in columns})
    small = CondensedDataset.from_parts(decoded_rows(tensors, finished, features), tensors, finished, run.dataset)
    small.labeller = run.synthetic.labeller
    return small


def _warn_of_extreme_pixels(run: Run, tensors: CondensedTensors) -> None:
    """Warn if hardly a pixel of a set is between black and white, where the source's are, or many are far outside.

    Too large a learning rate ends so; clipped images never make the loss infinite. Pictures that are decoded on demand
    are not looked at: no images are learned from these.
    """
    if run.source.streams:
        return
    generator = run.rng("pixels")
    rows = torch.randperm(len(tensors.row_labels), generator=generator)[:_ROWS_LOOKED_AT]
    positions = torch.randperm(len(run.source.labels), generator=generator)[:_ROWS_LOOKED_AT]
    learned = tensors.decoded(rows)[0]
    real = run.source.images[positions.to(run.source.images.device)]
    greys = float(((learned > 0) & (learned < 1)).float().mean())
    real_greys = float(((real > 0) & (real < 255)).float().mean())
    outside = float((learned - learned.clamp(0, 1)).abs().mean())
    remedy = "a smaller learning rate, such as lr_img, usually helps"
    if outside > _TOO_FAR:
        logger.warning("the pixels of the set are %.3g outside [0, 1] on average; %s", outside, remedy)
    elif greys < _TOO_FEW_GREYS * real_greys and outside == 0:
        logger.warning(
            "%.1f %% of the pixels of the set are black or white (0 or 1), where %.1f %% of the source's are; %s",
            100 * (1 - greys),
            100 * (1 - real_greys),
            remedy,
        )
