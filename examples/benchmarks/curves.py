"""Draw accuracy against minutes of condensing, for several methods, beside random rows and herding.

Every method runs once, with a cache of its own; its images are put aside at each mark, and evaluated when it has
stopped. What comes before the first update (experts, above all) counts, and is printed apart. Images are those of the
moment: the option `average`, which takes effect at the end of a run, does not show. For example:

    python examples/benchmarks/curves.py ylecun/mnist --methods dm dc mtt tesla esp --ipc 1 --marks 0.5 1 2 4
"""

import argparse
import contextlib
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from hf_condense import condense_dataset, evaluate
from hf_condense.cache import cache_folder
from hf_condense.condensed import CondensedDataset, decoded_rows
from hf_condense.demo_data import load_demo
from hf_condense.run import Run


class Stop(Exception):
    """Raised at the last mark."""


def images_at_marks(
    ds: datasets.Dataset, marks: list[float], **options: Any
) -> tuple[float, list[tuple], CondensedDataset]:
    """Return the minutes before the first update, (minutes after it, steps, tensors) at each mark, and a set's frame.

    The minutes before are those of experts, compiling and the first step; decoded images are in the cache already.
    """
    kept: list[tuple] = []
    clock = [time.perf_counter()]

    def keep(run: Run, done: int, loss: float) -> None:
        clock.append(time.perf_counter())
        minutes = (clock[-1] - clock[1]) / 60
        if minutes >= marks[len(kept)]:
            kept.append((minutes, done, run.synthetic.finished()))
        if len(kept) == len(marks):
            raise Stop

    with contextlib.suppress(Stop):
        condense_dataset(ds, steps=10**7, callbacks=[keep], **options)
    return (clock[1] - clock[0]) / 60, kept, condense_dataset(ds, steps=1, progress=False, **options)


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
    """Let nothing be found in the cache but the decoded images."""
    before = datasets.config.HF_CACHE_HOME
    with tempfile.TemporaryDirectory() as folder:
        if (sources := cache_folder("sources")).is_dir():
            (Path(folder) / "condense").mkdir()
            (Path(folder) / "condense" / "sources").symlink_to(sources.resolve())
        datasets.config.HF_CACHE_HOME = folder
        try:
            yield
        finally:
            datasets.config.HF_CACHE_HOME = before


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return the points of the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--methods", nargs="+", default=["dm", "esp"])
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--marks", nargs="+", type=float, default=[0.5, 1, 2, 4], help="minutes, rising")
    parser.add_argument("--network", default="convnet-w32")
    parser.add_argument("--recipe", default="dc")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help='options as JSON by method: {"esp": {...}}')
    parser.add_argument("--common", type=json.loads, default={}, help="options of all methods as JSON")
    parser.add_argument("--out", type=Path, default=Path("curves"), help="name of the picture and the table")
    parser.add_argument("--fast", action="store_true", help="seconds only, to see that it runs")
    given = parser.parse_args(argv)
    if given.fast:
        given.marks, given.epochs, given.seeds, given.network = [0.005, 0.01], 2, 2, "convnet-w8"
        given.common = {"batch_real": 8, "experts": 1, "snapshots": 5, "snapshot_every": 1}

    ds = datasets.load_dataset(given.dataset) if given.dataset else load_demo()
    condense_dataset(ds["train"], "random", given.ipc, network=given.network)  # decodes, once for all
    points: list[dict] = []
    for i, method in enumerate(given.methods):
        options = known_options(method, given.common) | given.options.get(method, {})
        with fresh_cache():
            before, kept, first = images_at_marks(
                ds["train"], given.marks, method=method, ipc=given.ipc, network=given.network, **options
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{method}: {before:.2f} min before the first update; peak memory of the process so far {peak:.2f} GiB")
        for minutes, steps, tensors in kept:
            rows = decoded_rows(tensors, first.recipe, first.features)
            table = evaluate(
                CondensedDataset.from_parts(rows, tensors, first.recipe, ds["train"]), ds["test"],
                networks=given.network, recipe=given.recipe, epochs=given.epochs, seeds=given.seeds, augment="none",
                baselines=("random", "herding") if i == 0 and minutes == kept[0][0] else (),
            )  # fmt: skip
            for row in table.to_records():
                name = row["set"] if row["set"] in ("random", "herding") else method
                points.append({**row, "method": name, "minutes": minutes, "before": before, "steps": steps})
                print(f"{name}, {steps} steps, {before + minutes:.2f} min: {100 * row['mean']:.1f} ± "
                      f"{100 * row['std']:.1f} (n = {row['n']})", flush=True)  # fmt: skip
    given.out.with_suffix(".json").write_text(json.dumps(points, indent=1))
    draw(points, given.out.with_suffix(".png"), f"{given.dataset or 'MNIST excerpt'}, {given.ipc} images a class")
    return points


def known_options(method: str, options: dict) -> dict:
    """Return those options that a method has."""
    from hf_condense.registry import get_method

    return {name: value for name, value in options.items() if name in get_method(method).Config.__dataclass_fields__}


def draw(points: list[dict], file: Path, title: str) -> None:
    """Draw accuracy against minutes; baselines are lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(point["method"] for point in points):
        own = [point for point in points if point["method"] == name]
        mean, std = ([100 * point[value] for point in own] for value in ("mean", "std"))
        if name in ("random", "herding"):
            axes.axhline(mean[0], linestyle="--", color="grey", linewidth=1)
            axes.annotate(name, (1, mean[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="grey")
        else:
            minutes = [point["before"] + point["minutes"] for point in own]
            axes.errorbar(minutes, mean, yerr=std, marker="o", capsize=3, label=name)
    axes.set(xlabel="minutes of condensing, experts included", ylabel="test accuracy, %", title=title, xscale="log")
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
