"""Condense datasets by several methods, measure every set, and render the cards in `model_cards/`.

A dataset is NAME=PLACE, a folder or a Hub id. Sets, checkpoints and accuracies are kept in the folder `--work`, so that
the same command goes on after it was killed; a set whose steps or network were changed is made again, and an accuracy
whose recipe, epochs or number of networks were changed is measured again. Cards and their index are written after every
measurement; they show what was measured and nothing else. For example:

    python examples/benchmarks/publish.py mnist=ylecun/mnist cifar10=uoft-cs/cifar10 --steps m3d=5000 dm=5000
    python examples/benchmarks/publish.py --only-cards --ship mnist
"""

import argparse
import dataclasses
import io
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from common import DIGITS, WITHOUT_FLIPS
from PIL import Image

from hf_condense import RECIPES, CondensedDataset, condense_dataset, evaluate, get_method, load_condensed
from hf_condense.base.tables import markdown_table
from hf_condense.condensed.card.render import render
from hf_condense.condensed.files.facts import Facts, read_facts
from hf_condense.condensed.files.names import PREVIEW, README
from hf_condense.condensed.files.sizes import Sizes
from hf_condense.condensed.folder import list_sets, read_card
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores import EIGHT_BIT, HARD_LABELS
from hf_condense.condensed.scores.class_scores import per_cent
from hf_condense.condensed.scores.records import (
    AS_MANY,
    EIGHT_BIT_ROWS,
    FLOATS,
    HARD,
    RANDOM,
    SAME_FORM,
    WHOLE,
    groups_of,
)
from hf_condense.condensed.wording import accuracy_text, training_text
from hf_condense.demo_data import load_demo
from hf_condense.engine.method import Selector
from hf_condense.networks.factory import network_factory

METHODS = ("herding", "dm", "m3d", "dc", "esp", "ncfm")
PREFERRED = ("m3d", "dm")  # methods whose sets are the first that a reader should load
INDEX = """\
# Condensed sets

Sets that this project has condensed itself, with the test accuracies in per cent of fresh networks trained on them:
mean ± standard deviation over n networks. Each set was condensed once. A dash stands for what was not measured. The
cards say how the sets were made, how networks were trained and tested, and what other networks reach.

{table}

"Real rows in the form" are as many random rows as the set decodes into, stored as the set stores its images, but not
learned. A set may store as many floats as its images per class have, in whatever form; the positions that `dct` stores
come on top of them, as the last column shows. Options on the cards are named as by the version that made a set:
`progress` of `esp` is `progress_weight` now, and `expansion_steps` is given with `first_max_start` only. Networks on
the whole set take as many updates as those on the condensed one. Other networks are trained on the exact floats.

{places}
{notes}
These commands make the sets, the cards and this page, where PLACE is the folder or the Hub id of the dataset:

```bash
{commands}
```
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
                    write_cards(args)
            except (ValueError, TypeError, ArithmeticError, MemoryError, RuntimeError) as error:
                failures.append(f"{job}: {type(error).__name__}: {error}")  # the others may still succeed
                print(failures[-1], flush=True)
    for name in args.ship:
        ship(args.work / "sets" / name, args.ship_to / name)
    write_cards(args)
    return failures


def ship(folder: Path, target: Path) -> None:
    """Copy the sets of a dataset, and write a card that names the set to load first; the old copy stays until then."""
    if not list_sets(folder):
        raise SystemExit(f"{folder} holds no condensed sets that could be shipped")
    fresh, old = target.with_name(f"{target.name}.new"), target.with_name(f"{target.name}.old")
    for leftover in (fresh, old):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(folder, fresh)
    sets = sets_of(fresh)
    card = render(sets, read_card(fresh), default=first_to_load(sets), place=target.as_posix())
    (fresh / README).write_text(card, encoding="utf-8")
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


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
        wanted = (job.method, job.ipc, args.steps.get(job.method, recipe.steps), canonical(args.network, recipe))
        if (recipe.method, recipe.ipc, recipe.steps, recipe.network) == wanted:
            return load_condensed(folder, name)
    options: dict[str, Any] = {"network": args.network}
    steps = args.steps.get(job.method)
    checkpoints = args.work / "checkpoints" / "_".join(map(str, [*job, steps or "preset", args.network]))
    if job.learns:
        options |= {"preset": "quick", "steps": steps, "checkpoint_dir": checkpoints, "checkpoint_every": 100}
        families = getattr(get_method(job.method).Config, "augment", "none")
        if job.dataset in DIGITS and "flip" in families.split("_"):
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

    Baselines that are known from another set are not measured again. What was measured in another way is replaced.
    """
    baselines = ("random", "full") if args.fast or not job.learns else ("random", "herding", "full")
    for name in [args.network, *args.cross]:
        network = canonical(name, small.recipe)
        if own_records(small.recipe, network, args):
            continue
        main_network = name == args.network
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
        new = [*table.to_records(), *known]
        others = [record for record in small.recipe.evaluation if conditions(record) != (network, args.recipe)]
        evaluation = [*new, *others] if main_network else [*others, *new]  # the index shows the first network
        recipe = dataclasses.replace(small.recipe, evaluation=evaluation)
        small = CondensedDataset.from_parts(*small.parts[:2], recipe)
        small.save_condensed(args.work / "sets" / job.dataset, overwrite=True)
        yield small


def known_baselines(small: CondensedDataset, network: str, args: argparse.Namespace, folder: Path) -> list[dict]:
    """Return the baselines that were measured with another set of the same size and form, as they would be again.

    They depend on the real rows, the networks, the recipe and the seeds, which both sets share.
    """
    for name in list_sets(folder):
        other = read_facts(folder / name).recipe
        if likeness(other, args) != likeness(small.recipe, args) or not own_records(other, network, args):
            continue
        group = [record for record in other.evaluation if conditions(record) == (network, args.recipe)]
        if baselines := [record for record in group if record["set"] not in own_names(other)]:
            return baselines
    return []


def own_records(recipe: Recipe, network: str, args: argparse.Namespace) -> list[dict]:
    """Return what networks of one kind reached on the set itself, trained as the arguments say."""
    wanted = (network, args.recipe, args.epochs or RECIPES[args.recipe].epochs, args.seeds)
    return [
        record
        for record in recipe.evaluation
        if record["set"] in own_names(recipe) and (*conditions(record), record["epochs"], record["n"]) == wanted
    ]


def own_names(recipe: Recipe) -> set[str]:
    """Return the names under which the accuracies of a set stand beside those of its baselines."""
    return {recipe.config_name + suffix for suffix in ("", EIGHT_BIT, HARD_LABELS)}


def conditions(record: dict[str, Any]) -> tuple[str, str]:
    """Return the network and the recipe of a measured accuracy."""
    return record["network"], record["recipe"]


def canonical(network: str, recipe: Recipe) -> str:
    """Return the name under which recipes and accuracies know a network, without what is its default."""
    channels, *size = recipe.image_shape
    classes = len(recipe.class_names)
    return network_factory(network, channels=channels, image_size=tuple(size), num_classes=classes).name


def likeness(recipe: Recipe, args: argparse.Namespace) -> tuple[Any, ...]:
    """Return what the baselines of a set depend on, besides how networks are trained."""
    # Networks see no flips if the set was made without them; a recipe without augmentation never has any.
    flips = RECIPES[args.recipe].augment is not None and "flip" in (recipe.augment or "flip").split("_")
    form = (recipe.kind, recipe.ipc, recipe.storage, recipe.expand, recipe.pixel_range, recipe.teacher)
    return recipe.source["content_hash"], form, recipe.mean, recipe.std, flips


def write_cards(args: argparse.Namespace) -> None:
    """Write a card for each dataset, and the index of all of them."""
    folders = [folder for folder in sorted((args.work / "sets").glob("*")) if list_sets(folder)]
    if not folders:
        raise SystemExit(f"{args.work / 'sets'} holds no folder of condensed sets; condense some first")
    args.out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        make_card(folder, args.out, args.ship_to / folder.name)
    rows = [row_of(folder.name, name, facts) for folder in folders for name, facts in by_size(sets_of(folder))]
    head = ("dataset", "set", "images per class", "steps", "8-bit images", "exact floats", "random rows", AS_MANY)
    head += ("herding", "real rows in the form", "whole set", "n", "network", "training", "other networks")
    places = [f"- {folder.name}: {place_text(args.ship_to / folder.name, args.out)}" for folder in folders]
    page = INDEX.format(
        table=markdown_table((*head, "tensor file"), rows),
        places="\n".join(places),
        notes="".join(f"\n{note(folder)}\n" for folder in folders),
        commands="\n".join(command for folder in folders for command in commands_of(folder)),
    )
    (args.out / "README.md").write_text(re.sub(r"\n{3,}", "\n\n", page), encoding="utf-8")
    print(f"wrote {len(folders)} cards to {args.out}", flush=True)


def sets_of(folder: Path) -> dict[str, Facts]:
    """Return the facts of the sets in a folder, by name."""
    return {name: read_facts(folder / name) for name in list_sets(folder)}


def by_size(sets: dict[str, Facts]) -> list[tuple[str, Facts]]:
    """Return sets with their names, those with fewer images per class first."""
    return sorted(sets.items(), key=lambda item: (item[1].recipe.largest_ipc, item[0]))


def first_to_load(sets: dict[str, Facts]) -> str:
    """Return the set that is loaded without a name: a learned one if there is one, not simply the first one made."""

    def rank(name: str) -> tuple[int, str]:
        recipe = sets[name].recipe
        preference = PREFERRED.index(recipe.method) if recipe.method in PREFERRED else len(PREFERRED)
        return preference + (recipe.kind == "coreset"), name

    return min(sets, key=rank)


def place_text(shipped: Path, out: Path) -> str:
    """Return where the tensors of a dataset's sets are, for a page in the folder `out`."""
    if not list_sets(shipped):
        return "the tensors of these sets are not in this repository; their cards and pictures are."
    return (
        f"the sets with their tensors are in [{shipped.as_posix()}]({Path(os.path.relpath(shipped, out)).as_posix()})."
    )


def commands_of(folder: Path) -> list[str]:
    """Return the commands that make and measure the sets of a dataset, one for all sets that were measured alike."""
    groups: dict[tuple[str, str, str], list[Recipe]] = {}
    for facts in sets_of(folder).values():
        recipe, measured_groups = facts.recipe, alike(facts.recipe)
        licence = recipe.source.get("license")
        training = f" --licences {shlex.quote(f'{folder.name}={licence}')}" if isinstance(licence, str) else ""
        if measured_groups:
            first = next(iter(measured_groups[0].values()))
            scaled = f" --epochs {first['epochs']:g}" if first["epochs"] != RECIPES[first["recipe"]].epochs else ""
            cross = [next(iter(group.values()))["network"] for group in measured_groups[1:]]
            training += f" --recipe {first['recipe']}{scaled} --seeds {first['n']} --cross {' '.join(cross)}".rstrip()
        groups.setdefault((str(recipe.ipc), recipe.network, training), []).append(recipe)
    commands = []
    for (ipc, network, training), recipes in groups.items():
        methods = " ".join(recipe.method for recipe in recipes)
        lengths = " ".join(f"{recipe.method}={recipe.steps}" for recipe in recipes if recipe.steps)
        steps = f" --steps {lengths}" if lengths else ""
        made_by = f"python examples/benchmarks/publish.py {folder.name}=PLACE --methods {methods} --ipc {ipc}{steps}"
        commands.append(f"{made_by} --network {network}{training}")
    return commands


def alike(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the accuracies of a set by network: those of the training recipe that was measured first."""
    groups = groups_of(recipe)
    first = [next(iter(group.values()))["recipe"] for group in groups[:1]]
    return [group for group in groups if next(iter(group.values()))["recipe"] in first]


def make_card(folder: Path, out: Path, shipped: Path) -> None:
    """Write the card `out/<folder>.md` and its pictures `out/<folder>/<config>/preview.png`."""
    sets = sets_of(folder)
    shutil.rmtree(out / folder.name, ignore_errors=True)  # pictures of sets that are no longer there
    for name in sets:
        if (folder / name / PREVIEW).is_file():
            (out / folder.name / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name / PREVIEW, out / folder.name / name / PREVIEW)
    place = shipped.as_posix() if list_sets(shipped) else f"path/to/{folder.name}"
    where = place_text(shipped, out)
    own_text = "\n\n".join(filter(None, (f"# {folder.name}, condensed", where[0].upper() + where[1:], note(folder))))
    text = render(sets, f"{own_text}\n", default=first_to_load(sets), place=place, pictures=f"{folder.name}/")
    (out / f"{folder.name}.md").write_text(text, encoding="utf-8")


def row_of(dataset: str, name: str, facts: Facts) -> list[str]:
    """Return the row of a set in the index: the first network that was measured, and in one cell all others."""
    recipe = facts.recipe
    groups = alike(recipe)
    main_group = groups[0] if groups else {}
    first = next(iter(main_group.values()), {})
    cells = [
        accuracy_text(main_group[role], first) if role in main_group else "-"
        for role in (EIGHT_BIT_ROWS, FLOATS, RANDOM, AS_MANY, "herding", SAME_FORM, WHOLE)
    ]
    if HARD in main_group:
        cells[0] += f" (hard labels {accuracy_text(main_group[HARD], first)})"
    others = []
    for group in groups[1:]:
        record = group.get(FLOATS) or group.get(EIGHT_BIT_ROWS)
        if record:
            others.append(f"{record['network']} {per_cent(record['mean'], record.get('std'))}")
    steps = "-" if recipe.steps is None else f"{recipe.steps:,}"
    row = [f"[{dataset}]({dataset}.md)", f"`{name}`", str(recipe.ipc), steps, *cells, str(first.get("n", "-"))]
    training = training_text(first) if first else "-"
    size = f"{Sizes.of(facts).tensor_bytes:,} B"
    return [*row, first.get("network", "-"), training, "; ".join(others) or "-", size]


def note(folder: Path) -> str:
    """Say so if a dataset was read from JPEG files, whose pixels differ from those of the original; else nothing."""
    formats = {read_facts(folder / name).recipe.source.get("image_format") for name in list_sets(folder)}
    is_jpeg = "JPEG" in formats
    return f"The images of {folder.name} were read from a copy in JPEG files, also for testing." if is_jpeg else ""


if __name__ == "__main__":
    raise SystemExit(1 if main() else 0)
