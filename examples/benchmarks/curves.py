"""Draw accuracy against minutes of condensing, for several methods, beside random rows and herding.

Every method runs once. Its images are copied at every doubling of the steps and evaluated when the run has finished, so
all points but the last belong to an unfinished run. Experts and pools are recorded once, because methods share them,
and their minutes are counted for each method that needs them. The time before the first update (compiling, features)
counts as well. The option `average` takes effect at the end of a run, and shows in the last point only. A set with a
learned learning rate (`mtt`, `tesla`) is trained on at that rate; the finished set also at the recipe's rate.

With `--plain-steps`, the images of a plain loop of `dm` come first: class by class, a fresh network in every step, and
the settings of the paper. The table then says how soon each method reaches what the plain loop reached. For example:

    python examples/benchmarks/curves.py ylecun/mnist --ipc 1 --methods dm dc mtt tesla esp --out mnist1
    python examples/benchmarks/curves.py uoft-cs/cifar10 --methods m3d ncfm --plain-steps 500 --points 8 --out cifar1
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

from hf_condense import Evaluation, condense_dataset, evaluate, get_method
from hf_condense.base.paths import cache_folder
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.rows import decoded_rows
from hf_condense.condensed.tensors import CondensedTensors
from hf_condense.demo_data import load_demo
from hf_condense.engine.run import Run

BASELINES = ("random", "herding")
PLAIN = "dm, plain loop"


def snapshots_of_run(
    ds: datasets.Dataset, number: int, **options: Any
) -> tuple[float, list[tuple[float, int, CondensedDataset]]]:
    """Condense, and return the set at several moments of the run.

    Args:
        ds: The dataset.
        number: Moments, at most: the end of the run and the doublings of the steps before it.
        **options: Arguments of `condense_dataset`.

    Returns:
        The minutes until the first update was done, and for each moment the minutes after that, the steps and the set.
    """
    copies: list[tuple] = []
    clock = [time.perf_counter()]

    def copy_images(run: Run, done: int, loss: float) -> None:
        clock.append(time.perf_counter())
        if done.bit_count() == 1:
            copies.append(((clock[-1] - clock[1]) / 60, done, run.synthetic.finished()))

    small = condense_dataset(ds, callbacks=[copy_images], **options)
    steps = small.recipe.steps
    sets = [
        (minutes, done, with_tensors(small, tensors))
        for minutes, done, tensors in copies
        if done <= 0.75 * steps and steps < done * 2**number
    ]
    sets = sets[max(0, len(sets) - (number - 1)) :]
    return (clock[1] - clock[0]) / 60, [*sets, ((clock[-1] - clock[1]) / 60, steps, small)]


def with_tensors(like: CondensedDataset, tensors: CondensedTensors) -> CondensedDataset:
    """Return a set that is like another one but holds other tensors."""
    rows = decoded_rows(tensors, like.recipe, like.features)
    return CondensedDataset.from_parts(rows, tensors, like.recipe, like.source)


def recorded_options(method: str, options: dict) -> dict | None:
    """Return the options that decide how experts or a pool are recorded, or None for a method that needs neither."""
    from hf_condense.methods._experts import ExpertConfig
    from hf_condense.methods._images import ImageConfig
    from hf_condense.methods._pool import PoolConfig

    config = get_method(method).Config
    names = {"preset", "network", "zca", "seed"}
    if issubclass(config, ExpertConfig):
        names |= names_of(ExpertConfig) - names_of(ImageConfig)
        return {name: value for name, value in options.items() if name in names}
    if not issubclass(config, PoolConfig) or options.get("networks", config.networks) != "pool":
        return None
    # Methods that share a pool differ in their defaults, so that these are written out.
    own = {name: options.get(name, getattr(config, name)) for name in names_of(PoolConfig) - names_of(ImageConfig)}
    own.pop("calibration")  # uses the pool only
    return {**{name: value for name, value in options.items() if name in names}, **own}


def names_of(config: type) -> set[str]:
    """Return the names of the options of a config."""
    return {field.name for field in fields(config)}


def minutes_of_recording(ds: datasets.Dataset, **options: Any) -> float:
    """Record experts or a pool and return the minutes this took: the time that a second call saves."""
    minutes = []
    for _ in range(2):
        started = time.perf_counter()
        condense_dataset(ds, **{**options, "steps": 1}, progress=False)
        minutes.append((time.perf_counter() - started) / 60)
    return minutes[0] - minutes[1]


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
    """Use an empty cache that holds the decoded images only."""
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


def plain_loop(ds: datasets.Dataset, args: argparse.Namespace) -> tuple[float, CondensedDataset]:
    """Learn images by the plain loop of `dm` that `speed.py` has; return the minutes that took, and the set."""
    from speed import PlainEmbedding  # a file beside this one

    runs: list[Run] = []
    like = condense_dataset(
        ds,
        "dm",
        args.ipc,
        preset="paper",
        steps=1,
        network=args.condensing_network,
        storage="pixels",
        compile=False,
        callbacks=[lambda run, done, loss: runs.append(run)],
    )
    (run,) = runs
    loop = PlainEmbedding(run, {"batch_real": min(256, run.most_real(256))})
    loop.optimiser.param_groups[0]["lr"] = 1.0  # as in the paper, at every number of images per class
    started = time.perf_counter()
    for t in range(args.plain_steps):
        loop(t)
    minutes = (time.perf_counter() - started) / 60
    run.synthetic.load_state({**run.synthetic.state(), "images": loop.images.detach()})
    return minutes, with_tensors(like, run.synthetic.finished())


def plain_points(ds: datasets.DatasetDict, args: argparse.Namespace) -> list[dict]:
    """Return the points of the plain loop and of the baselines."""
    minutes, small = plain_loop(ds["train"], args)
    points = []
    for row in scores(small, ds["test"], args, BASELINES):
        name = row["set"] if row["set"] in BASELINES else PLAIN
        points.append({**row, "set": name, "method": name, "minutes": minutes, "experts": 0.0})
        print(f"{name}, {args.plain_steps} steps, {minutes:.2f} min: {as_text(row)}", flush=True)
    return points


def ratios(points: list[dict]) -> dict[str, float | None]:
    """Return how soon each method reached what the plain loop reached in the end, as a share of its minutes.

    The recording of experts and pools counts. None: the method never got there.
    """
    (plain,) = (point for point in points if point["method"] == PLAIN)
    soonest: dict[str, float | None] = {}
    for point in points:
        if point["method"] in (PLAIN, *BASELINES):
            continue
        soonest.setdefault(point["method"], None)
        share = (point["minutes"] + point["experts"]) / plain["minutes"]
        if point["mean"] >= plain["mean"] and soonest[point["method"]] is None:
            soonest[point["method"]] = share
    return soonest


def measure(ds: datasets.DatasetDict, args: argparse.Namespace) -> list[dict]:
    """Run all methods, evaluate their sets and return the points of the curves."""
    points = plain_points(ds, args) if args.plain_steps else []
    experts: dict[str, float] = {}
    for method in args.methods:
        options = {"method": method, "ipc": args.ipc, "preset": args.preset} | args.options.get(method, {})
        recorded, recording = recorded_options(method, options), 0.0
        if recorded is not None:
            key = json.dumps(recorded, sort_keys=True)
            if key not in experts:
                experts[key] = minutes_of_recording(ds["train"], **options)
            recording = experts[key]
        before, sets = snapshots_of_run(ds["train"], args.points, **options)
        finished = sets[-1][2]
        print(f"{method}: {before:.2f} min before the first update, experts or pool {recording:.2f} min", flush=True)
        for minutes, steps, small in sets:
            for row in scores(small, ds["test"], args, () if points else BASELINES):
                name = row["set"] if row["set"] in BASELINES else method
                points.append(
                    {**row, "method": name, "minutes": before + minutes, "experts": recording, "steps": steps}
                )
                print(f"{name}, {steps} steps, {before + minutes:.2f} min: {as_text(row)}", flush=True)
        if finished.synthetic.student_lr is not None:
            plain = with_tensors(finished, replace(finished.synthetic, student_lr=None))
            (points[-1]["at the rate of the recipe"],) = scores(plain, ds["test"], args)
            rate, accuracy = float(finished.synthetic.student_lr), as_text(points[-1]["at the rate of the recipe"])
            print(f"its learned rate is {rate:.4f}; trained at the recipe's rate: {accuracy}", flush=True)
    return points


def scores(
    small: CondensedDataset, test: datasets.Dataset, args: argparse.Namespace, baselines: Sequence[str] = ()
) -> list[dict]:
    """Evaluate a set and the baselines, and return the rows of the table."""
    table = evaluate(
        small,
        test,
        networks=args.network,
        recipe=args.recipe,
        epochs=args.epochs,
        seeds=args.seeds,
        augment="none",
        baselines=baselines,
    )
    return table.to_records()


def as_text(row: dict) -> str:
    """Return the accuracy of a row as text."""
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
    return f"{100 * row['mean']:.1f}{spread} (n = {row['n']})"


def draw(pictures: list[dict], file: Path) -> None:
    """Draw accuracy against minutes: without the experts above, with them below; baselines are dashed lines."""
    from matplotlib.figure import Figure

    from hf_condense.pictures import accuracy_against_time

    figure = Figure(figsize=(4.6 * len(pictures), 7), layout="constrained")
    grid = figure.subplots(2, len(pictures), sharey="col", squeeze=False)
    for column, picture in zip(grid.T, pictures, strict=True):
        for axes, experts in zip(column, (False, True), strict=True):
            tables = [
                (point["minutes"] + experts * point["experts"], Evaluation.from_records([point]))
                for point in picture["points"]
            ]
            accuracy_against_time(tables, axes=axes)
            axes.set_xlabel(f"minutes, {'with' if experts else 'without'} the recording of experts and pools")
        column[0].set_title(picture["title"], loc="left")
        column[1].set_title("", loc="left")
    figure.savefig(file, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, or draw the tables of earlier runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--title", help="title of the picture; default: the name of the dataset")
    parser.add_argument("--methods", nargs="+", default=["dm", "esp"], help="names of methods that learn images")
    parser.add_argument("--ipc", type=int, default=1, help="images per class")
    parser.add_argument("--preset", default="quick", help="preset of all methods")
    parser.add_argument("--points", type=int, default=4, help="points of each curve, including the end of the run")
    parser.add_argument("--network", default="convnet-w32", help="network that is trained on the sets")
    parser.add_argument("--recipe", default="dc", help="recipe of its training")
    parser.add_argument("--epochs", type=int, default=300, help="epochs of its training")
    parser.add_argument("--seeds", type=int, default=3, help="networks trained on each set")
    parser.add_argument("--plain-steps", type=int, default=0, help="steps of a plain loop of dm, to compare with")
    parser.add_argument(
        "--condensing-network", default="convnet-w32", help="network that the plain loop condenses with"
    )
    parser.add_argument("--options", type=json.loads, default={}, help='JSON, by method: {"esp": {"steps": 9000}}')
    parser.add_argument("--out", type=Path, default=Path("curves"), help="picture and table, without their suffixes")
    parser.add_argument("--draw", type=Path, nargs="+", help="draw these tables side by side and measure nothing")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args(argv)
    if args.draw:
        draw([json.loads(file.read_text()) for file in args.draw], args.out.with_suffix(".png"))
        return
    if args.fast:
        args.points, args.epochs, args.seeds, args.network = 2, 2, 2, "convnet-w8"
        args.plain_steps, args.condensing_network = 2, "convnet-w8"
        quick = {"network": "convnet-w8", "steps": 3}
        args.options = {"dm": {**quick, "batch_real": 8}, "esp": {**quick, "experts": 1, "snapshot_every": 1}}
    ds = datasets.load_dataset(args.dataset) if args.dataset else load_demo()
    condense_dataset(ds["train"], "random", args.ipc, network=args.network)  # decodes the images before any clock runs
    with fresh_cache():
        points = measure(ds, args)
    for method, share in (ratios(points) if args.plain_steps else {}).items():
        answer = "did not reach the plain loop" if share is None else f"{share:.3f} of the plain loop's minutes"
        print(f"{method}: {answer}", flush=True)
    title = f"{args.title or args.dataset or 'MNIST excerpt'}, {args.ipc} image{'s' * (args.ipc > 1)} per class"
    args.out.with_suffix(".json").write_text(json.dumps({"title": title, "points": points}, indent=1))
    draw([{"title": title, "points": points}], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
