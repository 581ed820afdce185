"""`hf-condense demo`: see it at work on an excerpt of MNIST, offline."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hf_condense.base.errors import CondensedFormatError
from hf_condense.cli.options import FilePath, Integer, quiet_option
from hf_condense.cli.output import by_main, echo, save_set
from hf_condense.cli.text import seconds

if TYPE_CHECKING:
    from PIL.Image import Image

    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.condensed.scores import Evaluation

# What fits into about a minute on two cores.
METHOD = "dm"
NETWORK = "convnet-w32"
STEPS = 80
BATCH_REAL = 64
AUGMENT = "color_crop_cutout_scale_rotate"  # no flips: mirroring changes a digit's meaning
EPOCHS = 300
MAX_UPDATES = 60  # of every network


@click.command(short_help="See it at work on an excerpt of MNIST, offline.")
@click.option("--out", type=FilePath(file_okay=False), default=Path("condensed/demo"), help="Folder to save to.")
@click.option("--overwrite", is_flag=True, help="Replace a set of the same name that is there already.")
@click.option("--ipc", type=Integer(1, 500), default=1, help="Images per class.")
@click.option("--seeds", type=Integer(1), default=3, help="Networks trained on each set.")
@click.option("--steps", type=Integer(1), default=STEPS, help="Updates of the images.")
@click.option("--max-updates", type=Integer(1), default=MAX_UPDATES, help="Updates of every trained network.")
@quiet_option
def demo(out: Path, overwrite: bool, ipc: int, seeds: int, steps: int, max_updates: int, quiet: bool) -> None:
    """Condense an excerpt of MNIST that ships with the package, and measure what the result is worth.

    The demo trains networks on the condensed images and on as many random real images, and one network on the whole
    excerpt. It saves the set and a picture of both kinds of images with their accuracies, and loads the set back. It
    needs no internet connection and takes less than a minute on two cores.

    Exit codes: 0 if all went well, 1 for an error, also if another set was in the way and this one was saved beside it.
    """
    from hf_condense import Evaluation, condense_dataset, evaluate
    from hf_condense.demo_data import load_demo

    started = time.perf_counter()
    ds = load_demo()
    small = condense_dataset(
        ds["train"],
        METHOD,
        ipc,
        network=NETWORK,
        steps=steps,
        batch_real=BATCH_REAL,
        augment=AUGMENT,
        cache=False,
        progress=not quiet,
    )
    echo(f"Condensed {len(ds['train'])} images of MNIST into {len(small)} in {seconds(started)}.")
    echo(f"Training {seeds} networks ({NETWORK}) on these and on random rows, and one on the whole excerpt ...")
    settings: dict[str, Any] = {
        "networks": (NETWORK,),
        "epochs": EPOCHS,
        "max_updates": max_updates,
        "progress": not quiet,
    }
    compared = evaluate(small, ds["test"], seeds=seeds, cache=False, **settings)
    # The whole excerpt costs most and varies least, so one network is enough.
    whole = evaluate(small, ds["test"], seeds=1, baselines="full", cache=False, **settings).scores[-1]
    echo(f"\n{Evaluation((*compared.scores, whole))}\n")
    folder, elsewhere = by_main(lambda: save_set(small, out, overwrite))
    random = condense_dataset(ds["train"], "random", ipc, cache=False, progress=False)
    picture = folder.parent / f"{folder.name}_vs_random.png"  # its folder holds the set alone
    by_main(lambda: _picture(small, random, compared).save(picture))
    by_main(lambda: _check_equal(small, folder))
    echo(f"Saved {folder} and loaded it back: equal to the last bit.")
    echo(f"Look at {picture}: random rows beside condensed ones. All of this took {seconds(started)}.")
    if elsewhere:
        click.get_current_context().exit(1)


def _picture(small: CondensedDataset, random: CondensedDataset, table: Evaluation) -> Image:
    """Return random rows beside condensed ones, with the accuracies that networks reached on each."""
    from hf_condense.condensed.preview import Panel, comparison, grid_of
    from hf_condense.condensed.scores.class_scores import per_cent

    own, other = table.scores
    rows = f"{len(small)} {{}} rows of MNIST"
    panels = [
        Panel(
            rows.format(kind),
            f"test accuracy {per_cent(score.mean, score.std, digits=1)} %",
            grid_of(*shown.synthetic.decoded()),
        )
        for kind, score, shown in (("random", other, random), ("condensed", own, small))
    ]
    spread = " ± standard deviation" if own.n > 1 else ""
    note = (
        f"Networks ({own.network}), trained on only {own.rows} images for {own.updates} updates and tested on real "
        f"images: mean{spread}, n = {own.n}. Random rows are drawn again for each network."
    )
    return comparison(panels, note)


def _check_equal(small: CondensedDataset, folder: Path) -> None:
    """Load a set that was just saved and compare it, bit by bit."""
    from hf_condense import load_condensed

    loaded = load_condensed(folder)
    same = loaded.synthetic.equals(small.synthetic)
    # An equal set that was there before keeps its accuracies.
    recipe = replace(loaded.recipe, evaluation=small.recipe.evaluation)
    if not same or recipe.without_times() != small.recipe.without_times():
        raise CondensedFormatError(f"{folder} does not hold what was saved; please report this")
