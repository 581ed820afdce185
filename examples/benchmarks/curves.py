"""Draw accuracy against minutes of condensing, for several methods, beside random rows and herding.

Every method runs once; its images are put aside at every doubling of its steps, and evaluated when it has finished, so
that points before the last are of a run on its way. Experts are recorded once, as methods share them, and their minutes
are counted for each method that needs them; what is left of the time before the first update (compiling, features)
counts too. The option `average` takes effect at the end of a run, and shows there only. A set with a learning rate of
its own (`mtt`, `tesla`) is trained on at that rate, at the end at the recipe's rate as well. For example:

    python examples/benchmarks/curves.py ylecun/mnist --ipc 1 --methods dm dc mtt tesla esp --out mnist1
    python examples/benchmarks/curves.py --draw mnist1.json mnist10.json --out both
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets

from hf_condense import condense_dataset, evaluate
from hf_condense.base.cache import cache_folder
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.rows import decoded_rows
from hf_condense.condensed.tensors import CondensedTensors
from hf_condense.demo_data import load_demo
from hf_condense.engine.registry import get_method
from hf_condense.engine.run import Run

BASELINES = ("random", "herding")


def sets_on_the_way(
    ds: datasets.Dataset, number: int, **options: Any
) -> tuple[float, list[tuple[float, int, CondensedDataset]]]:
    """Return the minutes before the first update is made, and (minutes after it, steps, set) of the last marks."""
    kept: list[tuple] = []
    clock = [time.perf_counter()]

    def keep(run: Run, done: int, loss: float) -> None:
        clock.append(time.perf_counter())
        if done.bit_count() == 1:
            kept.append(((clock[-1] - clock[1]) / 60, done, run.synthetic.finished()))

    made = condense_dataset(ds, callbacks=[keep], **options)
    steps = made.recipe.steps
    sets = [
        (minutes, done, remade(made, tensors))
        for minutes, done, tensors in kept
        if done <= 0.75 * steps and steps < done * 2**number
    ]
    return (clock[1] - clock[0]) / 60, [*sets, ((clock[-1] - clock[1]) / 60, steps, made)]


def remade(like: CondensedDataset, tensors: CondensedTensors) -> CondensedDataset:
    """Return a set of other tensors that is otherwise like a given one."""
    rows = decoded_rows(tensors, like.recipe, like.features)
    return CondensedDataset.from_parts(rows, tensors, like.recipe, like.source)


def expert_options(method: str, options: dict) -> dict | None:
    """Return those options that say how experts are recorded, or None for a method without experts."""
    from hf_condense.methods._experts import ExpertConfig
    from hf_condense.methods._images import ImageConfig

    if not issubclass(get_method(method).Config, ExpertConfig):
        return None
    names = {field.name for field in fields(ExpertConfig)} - {field.name for field in fields(ImageConfig)}
    names |= {"preset", "network", "zca", "seed"}
    return {name: value for name, value in options.items() if name in names}


def minutes_of_experts(ds: datasets.Dataset, **options: Any) -> float:
    """Record experts, and return the minutes that they took: what a second call saves."""
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        condense_dataset(ds, **{**options, "steps": 1}, progress=False)
        taken.append((time.perf_counter() - started) / 60)
    return taken[0] - taken[1]


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


def measure(ds: datasets.DatasetDict, given: argparse.Namespace) -> list[dict]:
    """Run all methods and evaluate their sets."""
    points: list[dict] = []
    experts: dict[str, float] = {}
    for method in given.methods:
        options = {"method": method, "ipc": given.ipc, "preset": given.preset} | given.options.get(method, {})
        needed, recording = expert_options(method, options), 0.0
        if needed is not None:
            key = json.dumps(needed, sort_keys=True)
            if key not in experts:
                experts[key] = minutes_of_experts(ds["train"], **options)
            recording = experts[key]
        before, sets = sets_on_the_way(ds["train"], given.points, **options)
        made = sets[-1][2]
        print(f"{method}: {before:.2f} min before the first update, experts {recording:.2f} min", flush=True)
        for minutes, steps, small in sets:
            for row in scores(small, ds["test"], given, () if points else BASELINES):
                name = row["set"] if row["set"] in BASELINES else method
                points.append(
                    {**row, "method": name, "minutes": before + minutes, "experts": recording, "steps": steps}
                )
                print(f"{name}, {steps} steps, {before + minutes:.2f} min: {told(row)}", flush=True)
        if made.synthetic.student_lr is not None:
            plain = remade(made, replace(made.synthetic, student_lr=None))
            (points[-1]["at the rate of the recipe"],) = scores(plain, ds["test"], given)
            rate, found = float(made.synthetic.student_lr), told(points[-1]["at the rate of the recipe"])
            print(f"its learned rate is {rate:.4f}; trained at the recipe's own: {found}", flush=True)
    return points


def scores(
    small: CondensedDataset, test: datasets.Dataset, given: argparse.Namespace, baselines: Sequence[str] = ()
) -> list[dict]:
    """Evaluate a set, and the baselines beside it."""
    table = evaluate(
        small,
        test,
        networks=given.network,
        recipe=given.recipe,
        epochs=given.epochs,
        seeds=given.seeds,
        augment="none",
        baselines=baselines,
    )
    return table.to_records()


def told(row: dict) -> str:
    """Return a row's accuracy as text."""
    return f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f} (n = {row['n']})"


def draw(pictures: list[dict], file: Path) -> None:
    """Draw accuracy against minutes, without the experts above and with them below; baselines are lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        2, len(pictures), figsize=(4.6 * len(pictures), 7), layout="constrained", sharey="col", squeeze=False
    )
    for column, picture in zip(grid.T, pictures, strict=True):
        for axes, counted in zip(column, (0, 1), strict=True):
            draw_curves(axes, picture["points"], counted)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel(f"minutes, {'with' if counted else 'without'} the recording of experts")
        column[0].set_title(picture["title"])
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy, %")
    grid[0, 0].legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_curves(axes: Any, points: list[dict], counted: int) -> None:
    """Draw one plot."""
    for name in dict.fromkeys(point["method"] for point in points):
        own = [point for point in points if point["method"] == name]
        mean, std = ([100 * point[value] for point in own] for value in ("mean", "std"))
        if name in BASELINES:
            axes.axhline(mean[0], linestyle="--", color="grey", linewidth=1)
            axes.annotate(name, (1, mean[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="grey")
        else:
            minutes = [point["minutes"] + counted * point["experts"] for point in own]
            axes.errorbar(minutes, mean, yerr=std, marker="o", markersize=4, capsize=3, label=name)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, or draw what it measured before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--title", help="of the picture; default: the dataset's name")
    parser.add_argument("--methods", nargs="+", default=["dm", "esp"])
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--points", type=int, default=4, help="points of each curve, the end of the run included")
    parser.add_argument("--network", default="convnet-w32")
    parser.add_argument("--recipe", default="dc")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help='as JSON, by method: {"esp": {"steps": 9000}}')
    parser.add_argument("--out", type=Path, default=Path("curves"), help="name of the picture and the table")
    parser.add_argument("--draw", type=Path, nargs="+", help="draw these tables side by side, and measure nothing")
    parser.add_argument("--fast", action="store_true", help="seconds only, to see that it runs")
    given = parser.parse_args(argv)
    if given.draw:
        draw([json.loads(file.read_text()) for file in given.draw], given.out.with_suffix(".png"))
        return
    if given.fast:
        given.points, given.epochs, given.seeds, given.network = 2, 2, 2, "convnet-w8"
        quick = {"network": "convnet-w8", "steps": 3}
        given.options = {"dm": {**quick, "batch_real": 8}, "esp": {**quick, "experts": 1, "snapshot_every": 1}}
    ds = datasets.load_dataset(given.dataset) if given.dataset else load_demo()
    condense_dataset(ds["train"], "random", given.ipc, network=given.network)  # decodes, once for all
    with fresh_cache():
        points = measure(ds, given)
    title = f"{given.title or given.dataset or 'MNIST excerpt'}, {given.ipc} image{'s' * (given.ipc > 1)} a class"
    given.out.with_suffix(".json").write_text(json.dumps({"title": title, "points": points}, indent=1))
    draw([{"title": title, "points": points}], given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
