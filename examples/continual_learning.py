"""Class-incremental learning with a condensed memory, beside random and herding memories of equal bytes.

Classes arrive two at a time, and the real rows of earlier classes are gone. What remains of them is a memory: a
condensed set for each task, joined by `combine_condensed`, or real rows that take about as many bytes. After every task
a new network is trained on the memory alone and tested on all classes so far, as in GDumb (Prabhu et al., ECCV 2020).
Every seed has its own order of classes, its own sets and its own networks. For example:

    python examples/continual_learning.py ylecun/mnist --ipc 1 --seeds 3
"""

import argparse
import logging
import statistics
from pathlib import Path

import datasets
import numpy as np
import torch

from hf_condense import CondensedDataset, combine_condensed, condense_dataset, evaluate
from hf_condense.demo_data import load_demo

WITHOUT_FLIPS = "color_crop_cutout_scale_rotate"
LABEL_BYTES = 8


def main(argv: list[str] | None = None) -> dict[str, list[list[float]]]:
    """Run the benchmark; return for each memory and seed the accuracy after every task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--method", default="m3d", help="method that condenses the rows of a task")
    parser.add_argument("--ipc", type=int, default=1, help="images per class of the budget of a condensed memory")
    parser.add_argument("--steps", type=int, default=300, help="updates of the images of a task")
    parser.add_argument("--classes", type=int, default=2, help="classes of a task")
    parser.add_argument("--seeds", type=int, default=3, help="orders of classes, each with its own sets and networks")
    parser.add_argument("--network", default="convnet-w32", help="network for condensing and for evaluating")
    parser.add_argument("--max-updates", type=int, default=300, help="updates of every network that is trained")
    parser.add_argument("--augment", default=WITHOUT_FLIPS, help="augmentation of condensing; the default has no flips")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args(argv)
    if args.fast:
        args.steps, args.seeds, args.network, args.max_updates, args.classes = 2, 2, "convnet-w8", 2, 5

    logging.getLogger("hf_condense").setLevel(logging.ERROR)  # every task lacks the classes of the others
    ds = datasets.load_dataset(args.dataset) if args.dataset else load_demo()
    accuracies: dict[str, list[list[float]]] = {}
    sizes: dict[str, list[int]] = {}
    for seed in range(args.seeds):
        for name, (scores, size) in run_seed(ds, seed, args).items():
            accuracies.setdefault(name, []).append(scores)
            sizes.setdefault(name, []).append(size)
            print(f"seed {seed}, {name}: {', '.join(f'{100 * score:.1f}' for score in scores)}", flush=True)
    column = label_column(ds["train"])
    print(table(accuracies, sizes, args.classes, len(np.unique(ds["train"][column]))))
    return accuracies


def label_column(ds: datasets.Dataset) -> str:
    """Return the name of the column that holds the classes."""
    return next(name for name, feature in ds.features.items() if isinstance(feature, datasets.ClassLabel))


def run_seed(ds: datasets.DatasetDict, seed: int, args: argparse.Namespace) -> dict[str, tuple[list[float], int]]:
    """Go through all tasks; return for each memory the accuracy after every task, and its bytes in the end."""
    column = label_column(ds["train"])
    labels = {split: np.array(ds[split][column]) for split in ("train", "test")}
    order = np.random.default_rng(seed).permutation(len(np.unique(labels["train"])))
    parts: dict[str, list[CondensedDataset]] = {"condensed": [], "herding": [], "random": []}
    accuracies: dict[str, list[float]] = {name: [] for name in parts}
    for start in range(0, len(order), args.classes):
        task = ds["train"].select(np.flatnonzero(np.isin(labels["train"], order[start : start + args.classes])))
        test = ds["test"].select(np.flatnonzero(np.isin(labels["test"], order[: start + args.classes])))
        for name, small in memories(task, seed, args).items():
            parts[name].append(small)
            memory = combine_condensed(parts[name]) if len(parts[name]) > 1 else small
            options = {"networks": args.network, "recipe": "dc", "seeds": [seed], "baselines": (), "progress": False}
            score = evaluate(memory, test, max_updates=args.max_updates, **options).scores[0]
            accuracies[name].append(score.mean)
    return {name: (accuracies[name], sum(map(stored_bytes, parts[name]))) for name in parts}


def memories(task: datasets.Dataset, seed: int, args: argparse.Namespace) -> dict[str, CondensedDataset]:
    """Return what each memory keeps of a task: a condensed set, and coresets that take about as many bytes."""
    common = {"network": args.network, "seed": seed, "progress": False}
    small = condense_dataset(
        task,
        args.method,
        args.ipc,
        preset="quick",
        steps=args.steps,
        augment=args.augment,
        store_dtype="float16",
        compile=not args.fast and "auto",
        **common,
    )
    pictures = task.cast_column(small.recipe.image_column, datasets.Image(decode=False))[small.recipe.image_column]
    mean_bytes = statistics.fmean(map(encoded_bytes, pictures)) + LABEL_BYTES
    classes = len(small.synthetic.labels.unique())  # the last task may have fewer than the others
    rows = max(1, int(stored_bytes(small) / classes / mean_bytes))
    updates = {"feature_updates": args.max_updates}
    return {
        "condensed": small,
        "herding": condense_dataset(task, "herding", rows, **updates, **common),
        "random": condense_dataset(task, "random", rows, **common),
    }


def stored_bytes(small: CondensedDataset) -> int:
    """Return the bytes of what a set stores: all tensors, or the encoded images of a coreset and their labels."""
    if small.recipe.kind != "coreset":
        return sum(tensor.nbytes for tensor in small.synthetic.all().values())
    pictures = small.cast_column(small.recipe.image_column, datasets.Image(decode=False))[small.recipe.image_column]
    return sum(encoded_bytes(picture) + LABEL_BYTES for picture in pictures)


def encoded_bytes(picture: dict) -> int:
    """Return the bytes of an encoded picture, which may be in a file of its own."""
    return len(picture["bytes"]) if picture["bytes"] is not None else Path(picture["path"]).stat().st_size


def table(accuracies: dict[str, list[list[float]]], sizes: dict[str, list[int]], classes: int, total: int) -> str:
    """Return a Markdown table: mean ± standard deviation over seeds after every task, and of the mean of all tasks."""
    tasks = len(accuracies["condensed"][0])
    heads = [f"after {min(classes * (task + 1), total)} classes" for task in range(tasks)]
    lines = ["| memory | bytes | " + " | ".join([*heads, "mean of the tasks"]) + " |", "|---" * (tasks + 3) + "|"]
    for name, scores in accuracies.items():
        values = 100 * torch.tensor(scores, dtype=torch.float64)  # (seeds, tasks)
        values = torch.cat([values, values.mean(1, keepdim=True)], 1)
        cells = [f"{mean:.1f}" for mean in values.mean(0).tolist()]
        if len(values) > 1:  # one seed says nothing of the spread
            cells = [f"{mean} ± {std:.1f}" for mean, std in zip(cells, values.std(0).tolist(), strict=True)]
        lines.append(f"| {name} | {round(statistics.fmean(sizes[name])):,} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, f"n = {len(accuracies['condensed'])} seeds"])


if __name__ == "__main__":
    main()
