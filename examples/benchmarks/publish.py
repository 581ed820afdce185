"""Condense datasets by several methods, measure every set, and render the cards in `model_cards/`.

A dataset is NAME=PLACE, a folder or a Hub id. Sets, checkpoints and accuracies are kept in the folder `--work`, so that
the same command goes on after it was killed; a set whose number of steps was changed is made again. Cards and their
index are written after every measurement; they show what was measured and nothing else. For example:

    python examples/benchmarks/publish.py mnist=ylecun/mnist cifar10=uoft-cs/cifar10 --steps m3d=5000 dm=5000
    python examples/benchmarks/publish.py --only-cards --ship mnist
"""

import argparse
import dataclasses
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from PIL import Image

from hf_condense import CondensedDataset, condense_dataset, evaluate, load_condensed
from hf_condense.base.tables import markdown_table
from hf_condense.condensed.card.accuracy import FLOATS, RANDOM, SAME_FORM, VIEW, WHOLE, groups_of, per_cent
from hf_condense.condensed.card.render import default_config, render
from hf_condense.condensed.facts import PREVIEW, Facts, read_facts
from hf_condense.condensed.folder import list_sets, read_card
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores import EIGHT_BIT, HARD_LABELS
from hf_condense.condensed.sizes import Sizes
from hf_condense.demo_data import load_demo
from hf_condense.engine.method import Selector
from hf_condense.engine.registry import get_method

METHODS = ("herding", "dm", "m3d", "dc", "esp", "ncfm")
WITHOUT_FLIPS = "color_crop_cutout_scale_rotate"
MIRRORED = ("mnist", "demo")  # datasets whose classes change their meaning when images are mirrored
INDEX = """\
# Condensed sets

Sets that this project has condensed itself, with the test accuracies in per cent of fresh networks trained on them:
mean ± standard deviation over n networks. Each set was condensed once. A dash stands for what was not measured. The
cards say how the sets were made, how networks were trained and tested, and what other networks reach.

{table}

"Real rows in the form" are random rows that are stored as the set stores its images, but not learned. A set may store
as many numbers as its images per class have, in whatever form. Networks on the whole set take as many updates as those
on the condensed one. Other networks are trained on the exact floats.
{notes}
`examples/benchmarks/publish.py` makes the sets, the cards and this page.
"""


class Job(NamedTuple):
    """One set that is to be made.

    Attributes:
        dataset: Name of the dataset.
        method: Name of the method.
        ipc: Images per class.
    """

    dataset: str
    method: str
    ipc: int

    @property
    def learns(self) -> bool:
        """Whether the method learns images."""
        return not issubclass(get_method(self.method), Selector)


def main(argv: list[str] | None = None) -> list[str]:
    """Make what is missing and return the jobs that failed."""
    args = parsed(argv)
    failures = []
    for name, place in args.datasets.items():
        ds = load_demo() if place is None else datasets.load_dataset(place)
        if args.fast:
            ds = datasets.DatasetDict({split: rows.select(range(200)) for split, rows in ds.items()})
        for job in [Job(name, method, ipc) for ipc in args.ipc for method in args.methods]:
            try:
                small = made(job, ds["train"], args)
                for _ in measured(job, small, ds, args):
                    write_cards(args.work, args.out)
            except (ValueError, TypeError, ArithmeticError, MemoryError, RuntimeError) as error:
                failures.append(f"{job}: {type(error).__name__}: {error}")  # the others may still succeed
                print(failures[-1], flush=True)
    write_cards(args.work, args.out)
    for name in args.ship:
        if not list_sets(args.work / "sets" / name):
            raise SystemExit(f"{args.work / 'sets' / name} holds no condensed sets that could be shipped")
        shutil.rmtree(args.ship_to / name, ignore_errors=True)
        shutil.copytree(args.work / "sets" / name, args.ship_to / name)
    return failures


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help="NAME=PLACE ...: the name of the card, and a folder or a Hub id")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="names of methods")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10], help="images per class")
    parser.add_argument("--steps", nargs="+", default=[], help="METHOD=N ...; default: those of the preset quick")
    parser.add_argument("--network", default="convnet-w32", help="network for condensing and for evaluating")
    parser.add_argument("--cross", nargs="*", default=["convnet-w32-bn", "resnet18"], help="other networks to train")
    parser.add_argument("--recipe", default="dc", help="recipe of the networks that are trained on a set")
    parser.add_argument("--epochs", type=int, help="epochs of these networks; default: those of the recipe")
    parser.add_argument("--seeds", type=int, default=5, help="networks trained on each set")
    parser.add_argument("--work", type=Path, default=Path("published"), help="folder for sets and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("model_cards"), help="folder for the cards")
    parser.add_argument("--licences", nargs="+", default=[], help="NAME=IDENTIFIER ...; default: what the dataset says")
    parser.add_argument("--ship", nargs="*", default=[], help="names of datasets whose sets themselves are copied")
    parser.add_argument("--ship-to", type=Path, default=Path("examples/sets"), help="folder for these copies")
    parser.add_argument("--only-cards", action="store_true", help="only render the cards of what is in --work")
    parser.add_argument("--fast", action="store_true", help="a demo set with a few steps only, to see that it runs")
    args = parser.parse_args(argv)
    args.steps = {method: int(steps) for method, _, steps in (text.partition("=") for text in args.steps)}
    args.licences = dict(text.split("=") for text in args.licences)
    args.datasets = {name: place for name, _, place in (text.partition("=") for text in args.datasets)}
    if args.fast:
        args.datasets, args.methods, args.ipc, args.steps = {"demo": None}, ["herding", "dm"], [1], {"dm": 2}
        args.network, args.cross, args.epochs, args.seeds = "convnet-w8", ["convnet-w4-d1"], 2, 2
    if args.only_cards:
        args.datasets = {}
    elif not args.fast and not (args.datasets and all(args.datasets.values())):
        parser.error("datasets should be NAME=PLACE, as in mnist=ylecun/mnist; or pass --only-cards or --fast")
    return args


def made(job: Job, train: datasets.Dataset, args: argparse.Namespace) -> CondensedDataset:
    """Return the set of a job: the one that was saved, else a new one; a killed run goes on from its checkpoint."""
    folder = args.work / "sets" / job.dataset
    for name in list_sets(folder):
        recipe = read_facts(folder / name).recipe
        if (recipe.method, recipe.ipc) == (job.method, job.ipc) and recipe.steps == args.steps.get(
            job.method, recipe.steps
        ):
            return load_condensed(folder, name)
    options: dict[str, Any] = {"network": args.network}
    steps = args.steps.get(job.method)
    checkpoints = args.work / "checkpoints" / "_".join(map(str, [*job, steps or "preset"]))
    if job.learns:
        options |= {"preset": "quick", "steps": steps, "checkpoint_dir": checkpoints, "checkpoint_every": 100}
        families = getattr(get_method(job.method).Config, "augment", "none")
        if job.dataset in MIRRORED and "flip" in families.split("_"):
            options["augment"] = WITHOUT_FLIPS
    if args.fast:
        options |= {"compile": False} if job.learns else {"feature_updates": 2}
    small = condense_dataset(train, job.method, job.ipc, **options)
    facts = {**small.recipe.source, "image_format": image_format(train, small.recipe.image_column)}
    facts |= {"license": args.licences[job.dataset]} if job.dataset in args.licences else {}
    small.recipe = dataclasses.replace(small.recipe, source=facts)
    small.save_condensed(folder, overwrite=True)
    shutil.rmtree(checkpoints, ignore_errors=True)
    print(f"{job.dataset}: made {small.recipe.config_name} in {small.recipe.runtime['seconds']:.0f} s", flush=True)
    return small


def image_format(ds: datasets.Dataset, column: str) -> str | None:
    """Return the format of the first image, such as PNG: pixels of JPEG files are not those of the original."""
    picture = ds.select([0]).cast_column(column, datasets.Image(decode=False))[0][column]
    with Image.open(io.BytesIO(picture["bytes"]) if picture["bytes"] else picture["path"]) as image:
        return image.format


def measured(
    job: Job, small: CondensedDataset, ds: datasets.DatasetDict, args: argparse.Namespace
) -> Iterator[CondensedDataset]:
    """Measure what is missing of a set, one network after the other, and yield the set whenever it was saved.

    Baselines that are known from another set are not measured again.
    """
    baselines = ("random", "full") if args.fast or not job.learns else ("random", "herding", "full")
    for network in [args.network, *args.cross]:
        done = {(record["network"], record["recipe"]) for record in small.recipe.evaluation}
        if (network, args.recipe) in done:
            continue
        main_network = network == args.network
        known = known_baselines(small, network, args, args.work / "sets" / job.dataset)
        table = evaluate(
            small,
            ds["test"],
            source=ds["train"],
            networks=network,
            recipe=args.recipe,
            epochs=args.epochs,
            seeds=args.seeds,
            baselines=() if known else baselines if main_network else ("random",),
            eight_bit=main_network,
            compile=False if args.fast else "auto",
        )
        print(f"{job.dataset}\n{table}", flush=True)
        small = CondensedDataset.from_parts(
            *small.parts[:2],
            dataclasses.replace(small.recipe, evaluation=[*small.recipe.evaluation, *table.to_records(), *known]),
        )
        small.save_condensed(args.work / "sets" / job.dataset, overwrite=True)
        yield small


def known_baselines(small: CondensedDataset, network: str, args: argparse.Namespace, folder: Path) -> list[dict]:
    """Return the baselines that were measured with another set of the same size and form, as they would be again.

    They depend on the real rows, the networks, the recipe and the seeds, which both sets share.
    """
    recipe = small.recipe
    for name in list_sets(folder):
        other = read_facts(folder / name).recipe
        group = [
            record for record in other.evaluation if (record["network"], record["recipe"]) == (network, args.recipe)
        ]
        own = {other.config_name, other.config_name + EIGHT_BIT, other.config_name + HARD_LABELS}
        baselines = [record for record in group if record["set"] not in own]
        if likeness(other) == likeness(recipe) and baselines and baselines[0]["n"] == args.seeds:
            return baselines
    return []


def likeness(recipe: Recipe) -> tuple[Any, ...]:
    """Return what the baselines of a set depend on, besides how networks are trained."""
    flips = "flip" in (recipe.augment or "flip").split("_")
    form = (recipe.kind, recipe.ipc, recipe.storage, recipe.expand, recipe.pixel_range, recipe.teacher)
    return recipe.source["content_hash"], form, recipe.mean, recipe.std, flips


def write_cards(work: Path, out: Path) -> None:
    """Write a card for each dataset, and the index of all of them."""
    folders = [folder for folder in sorted((work / "sets").glob("*")) if list_sets(folder)]
    if not folders:
        raise SystemExit(f"{work / 'sets'} holds no folder of condensed sets; condense some first")
    out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        make_card(folder, out)
    rows = [row_of(folder.name, name, read_facts(folder / name)) for folder in folders for name in list_sets(folder)]
    head = ("dataset", "set", "images per class", "steps", "8-bit images", "exact floats", "random rows")
    head += ("herding", "real rows in the form", "whole set", "n", "network", "other networks", "tensor file")
    page = INDEX.format(table=markdown_table(head, rows), notes="".join(f"\n{note(folder)}\n" for folder in folders))
    (out / "README.md").write_text(re.sub(r"\n{3,}", "\n\n", page), encoding="utf-8")
    print(f"wrote {len(folders)} cards to {out}", flush=True)


def make_card(folder: Path, out: Path) -> None:
    """Write the card `out/<folder>.md` and its pictures `out/<folder>/<config>/preview.png`."""
    sets = {name: read_facts(folder / name) for name in list_sets(folder)}
    shutil.rmtree(out / folder.name, ignore_errors=True)  # pictures of sets that are no longer there
    for name in sets:
        if (folder / name / PREVIEW).is_file():
            (out / folder.name / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name / PREVIEW, out / folder.name / name / PREVIEW)
    default = default_config(read_card(folder) or "")
    own_text = f"# {folder.name}, condensed\n\n{note(folder)}\n" if note(folder) else None
    text = render(sets, own_text, default=default, place=f"path/to/{folder.name}", pictures=f"{folder.name}/")
    (out / f"{folder.name}.md").write_text(text, encoding="utf-8")


def row_of(dataset: str, name: str, facts: Facts) -> list[str]:
    """Return the row of a set in the index: the first network that was measured, and in one cell all others."""
    recipe = facts.recipe
    groups = groups_of(recipe)
    main_group = groups[0] if groups else {}
    cells = [
        per_cent(main_group[role]["mean"], main_group[role].get("std")) if role in main_group else "-"
        for role in (VIEW, FLOATS, RANDOM, "herding", SAME_FORM, WHOLE)
    ]
    first = next(iter(main_group.values()), {})
    others = []
    for group in groups[1:]:
        record = group.get(FLOATS) or group.get(VIEW)
        if record:
            others.append(f"{record['network']} {per_cent(record['mean'], record.get('std'))}")
    steps = "-" if recipe.steps is None else f"{recipe.steps:,}"
    row = [f"[{dataset}]({dataset}.md)", f"`{name}`", str(recipe.ipc), steps, *cells, str(first.get("n", "-"))]
    return [*row, first.get("network", "-"), "; ".join(others) or "-", f"{Sizes.of(facts).tensor_bytes:,} B"]


def note(folder: Path) -> str:
    """Say so if a dataset was read from JPEG files, whose pixels differ from those of the original; else nothing."""
    formats = {read_facts(folder / name).recipe.source.get("image_format") for name in list_sets(folder)}
    is_jpeg = "JPEG" in formats
    return f"The images of {folder.name} were read from a copy in JPEG files, also for testing." if is_jpeg else ""


if __name__ == "__main__":
    raise SystemExit(1 if main() else 0)
