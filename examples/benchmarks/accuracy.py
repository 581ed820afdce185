"""Condense any dataset with any method and print what it is worth, beside coresets and random rows under one recipe.

For example, with a folder or a Hub id that `load_dataset` reads:

    python examples/benchmarks/accuracy.py uoft-cs/cifar10 --methods dm herding --ipc 10 --steps 500
"""

import argparse
import json
import resource
import time

import datasets

from hf_condense import condense_dataset, evaluate
from hf_condense.demo_data import load_demo
from hf_condense.engine.method import Selector
from hf_condense.engine.registry import get_method


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return the rows of its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--methods", nargs="+", default=["dm"])
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--network", default="convnet-w32")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--preset")
    parser.add_argument("--recipe", default="dc")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--full-updates", type=int, help="also train on the whole set, for so many updates")
    parser.add_argument("--options", type=json.loads, default={}, help="method options as JSON, e.g. '{\"lr_img\": 5}'")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    given = parser.parse_args(argv)
    if given.fast:
        given.steps, given.epochs, given.seeds, given.network = 2, 2, 2, "convnet-w8"

    ds = datasets.load_dataset(given.dataset) if given.dataset else load_demo()
    common = {"networks": [given.network], "recipe": given.recipe, "seeds": given.seeds}
    records = []
    for i, method in enumerate(given.methods):
        learned = not issubclass(get_method(method), Selector)
        options = {"steps": given.steps, "preset": given.preset, **given.options} if learned else {}
        started = time.perf_counter()
        small = condense_dataset(ds["train"], method, given.ipc, network=given.network, **options)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{method}: {seconds:.0f} s, peak memory of the process so far {peak:.2f} GiB, plan {small.recipe.plan}")
        table = evaluate(small, ds["test"], epochs=given.epochs, baselines=() if i else ("random",), **common)
        print(table, flush=True)
        records += table.to_records()
    if given.full_updates:
        table = evaluate(
            small, ds["test"], max_updates=given.full_updates, baselines=("full",), **{**common, "seeds": 1}
        )
        print(table)
        records += [row for row in table.to_records() if row["set"] == "full"]
    return records


if __name__ == "__main__":
    main()
