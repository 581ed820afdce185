"""Condense any dataset with any methods and print the accuracy of each set, beside random rows, under each recipe.

The dataset is a folder or a Hub id that `load_dataset` reads. For example:

    python examples/benchmarks/accuracy.py uoft-cs/cifar10 --methods dm herding --ipc 10 --steps 500
    python examples/benchmarks/accuracy.py uoft-cs/cifar10 --methods auto --ipc 1 --budget 15 --recipes dc dsa
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import datasets
from common import DIGITS, peak_of_process

from hf_condense import RECIPES, condense_dataset, evaluate, get_method
from hf_condense.demo_data import load_demo
from hf_condense.engine.method import Selector


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return the rows of its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--methods", nargs="+", default=["dm"], help="names of methods, coresets included, or auto")
    parser.add_argument("--ipc", type=int, default=10, help="images per class")
    parser.add_argument("--network", default="convnet-w32", help="network for condensing and for evaluating")
    parser.add_argument("--steps", type=int, help="updates of the images; default: those of the method")
    parser.add_argument("--budget", type=float, help="minutes for which auto chooses; default: those of the library")
    parser.add_argument("--preset", help="preset of the methods that learn images")
    parser.add_argument("--recipes", nargs="+", default=["dc"], choices=RECIPES, help="recipes of the trained networks")
    parser.add_argument("--epochs", type=int, help="epochs of these networks; default: those of the recipe")
    parser.add_argument("--max-updates", nargs="+", type=int, help="caps on their updates, one per recipe; 0: no cap")
    parser.add_argument("--seeds", type=int, default=5, help="networks trained on each set")
    parser.add_argument("--full-updates", type=int, help="also train on the whole dataset, for this many updates")
    parser.add_argument("--options", type=json.loads, default={}, help="method options as JSON, e.g. '{\"lr_img\": 5}'")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args(argv)
    if args.fast:
        args.steps, args.epochs, args.seeds, args.network = 2, 2, 2, "convnet-w8"

    ds = datasets.load_dataset(args.dataset) if args.dataset else load_demo()
    caps = args.max_updates or [0] * len(args.recipes)
    if len(caps) != len(args.recipes):
        parser.error(f"--max-updates needs {len(args.recipes)} numbers, one per recipe; got {len(caps)}")
    common = {recipe: {"networks": [args.network], "recipe": recipe, "seeds": args.seeds} for recipe in args.recipes}
    if Path(args.dataset or "mnist").name not in DIGITS and "augment" not in args.options:
        for recipe, how in common.items():
            how["augment"] = RECIPES[recipe].augment  # with flips, also where a method augments without them
    records = []
    for i, method in enumerate(args.methods):
        options = options_of(method, args)
        started = time.perf_counter()
        small = condense_dataset(ds["train"], method, args.ipc, network=args.network, **options)
        seconds = time.perf_counter() - started
        peak = peak_of_process()
        print(f"{method}: {seconds:.0f} s, peak memory of the process so far {peak:.2f} GiB, plan {small.recipe.plan}")
        for how, cap in zip(common.values(), caps, strict=True):
            limits = {"epochs": args.epochs, "max_updates": cap or None}
            table = evaluate(small, ds["test"], baselines=() if i else ("random",), **limits, **how)
            print(table, flush=True)
            records += table.to_records()
    for how in common.values() if args.full_updates else ():
        table = evaluate(small, ds["test"], max_updates=args.full_updates, baselines=("full",), **{**how, "seeds": 1})
        print(table)
        records += [row for row in table.to_records() if row["set"] == "full"]
    return records


def options_of(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a method, of which coresets take none."""
    if method == "auto":
        return {"steps": args.steps, "budget": args.budget, **args.options}
    if issubclass(get_method(method), Selector):
        return {}
    return {"steps": args.steps, "preset": args.preset, **args.options}


if __name__ == "__main__":
    main()
