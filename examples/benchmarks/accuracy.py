"""Condense any dataset with any methods and print the accuracy of each set, beside random rows, under one recipe.

The dataset is a folder or a Hub id that `load_dataset` reads. For example:

    python examples/benchmarks/accuracy.py uoft-cs/cifar10 --methods dm herding --ipc 10 --steps 500
"""

import argparse
import json
import time
from pathlib import Path

import datasets
from common import DIGITS, peak_of_process

from hf_condense import condense_dataset, evaluate
from hf_condense.demo_data import load_demo
from hf_condense.engine.method import Selector
from hf_condense.engine.registry import get_method
from hf_condense.networks.training_recipe import RECIPES


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return the rows of its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--methods", nargs="+", default=["dm"], help="names of methods, coresets included")
    parser.add_argument("--ipc", type=int, default=10, help="images per class")
    parser.add_argument("--network", default="convnet-w32", help="network for condensing and for evaluating")
    parser.add_argument("--steps", type=int, help="updates of the images; default: those of the method")
    parser.add_argument("--preset", help="preset of the methods that learn images")
    parser.add_argument("--recipe", default="dc", choices=RECIPES, help="recipe of the networks trained on a set")
    parser.add_argument("--epochs", type=int, help="epochs of these networks; default: those of the recipe")
    parser.add_argument("--seeds", type=int, default=5, help="networks trained on each set")
    parser.add_argument("--full-updates", type=int, help="also train on the whole dataset, for this many updates")
    parser.add_argument("--options", type=json.loads, default={}, help="method options as JSON, e.g. '{\"lr_img\": 5}'")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args(argv)
    if args.fast:
        args.steps, args.epochs, args.seeds, args.network = 2, 2, 2, "convnet-w8"

    ds = datasets.load_dataset(args.dataset) if args.dataset else load_demo()
    common = {"networks": [args.network], "recipe": args.recipe, "seeds": args.seeds}
    if Path(args.dataset or "mnist").name not in DIGITS and "augment" not in args.options:
        common["augment"] = RECIPES[args.recipe].augment  # with flips, also where a method augments without them
    records = []
    for i, method in enumerate(args.methods):
        learns_images = not issubclass(get_method(method), Selector)
        options = {"steps": args.steps, "preset": args.preset, **args.options} if learns_images else {}
        started = time.perf_counter()
        small = condense_dataset(ds["train"], method, args.ipc, network=args.network, **options)
        seconds = time.perf_counter() - started
        peak = peak_of_process()
        print(f"{method}: {seconds:.0f} s, peak memory of the process so far {peak:.2f} GiB, plan {small.recipe.plan}")
        table = evaluate(small, ds["test"], epochs=args.epochs, baselines=() if i else ("random",), **common)
        print(table, flush=True)
        records += table.to_records()
    if args.full_updates:
        table = evaluate(
            small, ds["test"], max_updates=args.full_updates, baselines=("full",), **{**common, "seeds": 1}
        )
        print(table)
        records += [row for row in table.to_records() if row["set"] == "full"]
    return records


if __name__ == "__main__":
    main()
