"""Rank small networks by training them on a condensed set, and compare with their rank on the whole dataset.

Architecture search trains many networks. If a tiny set ranks them as the whole dataset does, it can stand in for it
until a few candidates are left. As many random rows, and rows chosen by herding, stand beside the condensed set. For
example:

    python examples/architecture_search.py ylecun/mnist --ipc 1 --seeds 3
"""

import argparse
import itertools
import statistics

import datasets
import pandas as pd

from hf_condense import Evaluation, condense_dataset, evaluate
from hf_condense.demo_data import load_demo

WITHOUT_FLIPS = "color_crop_cutout_scale_rotate"


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Run the benchmark; return for each set the rank correlation of every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--method", default="m3d", help="method that condenses the dataset")
    parser.add_argument("--ipc", type=int, default=1, help="images per class")
    parser.add_argument("--steps", type=int, default=300, help="updates of the images")
    parser.add_argument("--network", default="convnet-w32", help="network for condensing")
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16, 32], help="widths of the candidates")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3], help="depths of the candidates")
    parser.add_argument("--seeds", type=int, default=3, help="networks of every kind, trained on each set")
    parser.add_argument("--max-updates", type=int, default=300, help="updates of every network, whatever the set is")
    parser.add_argument("--augment", default=WITHOUT_FLIPS, help="augmentation of condensing; the default has no flips")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args(argv)
    if args.fast:
        args.steps, args.seeds, args.network, args.max_updates = 2, 2, "convnet-w8", 2
        args.widths, args.depths = [4], [1, 2, 3]

    ds = datasets.load_dataset(args.dataset) if args.dataset else load_demo()
    if args.fast:
        ds = datasets.DatasetDict({name: rows.select(range(200)) for name, rows in ds.items()})
    small = condense_dataset(
        ds["train"],
        args.method,
        args.ipc,
        preset="quick",
        steps=args.steps,
        network=args.network,
        augment=args.augment,
        compile=not args.fast and "auto",
    )
    candidates = [f"convnet-w{width}-d{depth}" for width, depth in itertools.product(args.widths, args.depths)]
    table = evaluate(
        small,
        ds["test"],
        networks=candidates,
        recipe="dc",
        max_updates=args.max_updates,
        seeds=args.seeds,
        baselines=("random", "herding", "full"),
        compile=not args.fast and "auto",
    )
    print(table)
    correlations = rank_correlations(table)
    print(
        "\n| networks trained on | rank correlation with the whole dataset, by seed | of their means |\n|---|---|---|"
    )
    for name, (by_seed, of_means) in correlations.items():
        spread = f" ± {statistics.stdev(by_seed):.2f}" if len(by_seed) > 1 else ""
        print(f"| {name} | {statistics.fmean(by_seed):.2f}{spread} | {of_means:.2f} |")
    print(f"{len(candidates)} candidates, n = {args.seeds} networks each")
    return {name: by_seed for name, (by_seed, _) in correlations.items()}


def rank_correlations(table: Evaluation) -> dict[str, tuple[list[float], float]]:
    """Return for each set Spearman's correlation with the mean accuracy on the whole dataset: by seed, and of means."""
    rows = [
        (score.set, score.network, seed, accuracy)
        for score in table.scores
        for seed, accuracy in zip(score.seeds, score.accuracies, strict=True)
    ]
    data = pd.DataFrame(rows, columns=["set", "network", "seed", "accuracy"])
    means = data.pivot_table(index="network", columns="set", values="accuracy")  # (networks, sets)
    correlations = {}
    for name in means.columns.drop("full"):
        seeds = data[data["set"] == name].pivot_table(index="network", columns="seed", values="accuracy")
        by_seed = seeds.assign(full=means["full"]).corr(method="spearman")["full"].drop("full")
        correlations[name] = (by_seed.tolist(), float(means.corr(method="spearman").loc[name, "full"]))
    return correlations


if __name__ == "__main__":
    main()
