"""Compare storage forms: every method in every form, at equal stored numbers and equal CPU seconds.

The dataset is a folder or a Hub id that `load_dataset` reads. Each row of the table is one condensation, beside random
real rows through the same form and as many plain real rows. The number of steps follows from a short run that measures
how long a step takes. With `--out`, finished rows are kept and not run again; `tables.py` shows them. For example:

    python examples/benchmarks/forms.py uoft-cs/cifar10 --methods m3d esp --forms pixels patches:16 dct:32 --ipc 1
    python examples/benchmarks/forms.py uoft-cs/cifar10 --methods ncfm --recipes dc dsa --max-updates 0 300
    python examples/benchmarks/forms.py --costs
"""

import argparse
import json
import time
from pathlib import Path

import datasets
import torch
from common import DIGITS, peak_of_process

from hf_condense import RECIPES, CondensedDataset, condense_dataset, evaluate, get_method
from hf_condense.condensed.decoders import Origin, decoder_class
from hf_condense.demo_data import load_demo

SHAPES = {"32 px, 50 images per class": ((3, 32, 32), 50), "128 px, 10 images per class": ((3, 128, 128), 10)}


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return the rows of its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--methods", nargs="+", default=["m3d"], help="methods that learn images")
    parser.add_argument("--forms", nargs="+", default=["pixels", "patches:4", "dct", "siren"], help="FORM[:EXPAND] ...")
    parser.add_argument("--ipc", type=int, default=1, help="images per class")
    parser.add_argument("--cpu-seconds", type=float, default=60, help="CPU seconds of the steps of each condensation")
    parser.add_argument("--network", default="convnet-w32", help="network for condensing and for evaluating")
    parser.add_argument("--recipes", nargs="+", default=["dc"], choices=RECIPES, help="recipes of the trained networks")
    parser.add_argument("--max-updates", nargs="+", type=int, help="caps on their updates, one per recipe; 0: no cap")
    parser.add_argument("--augment", help="augmentation without flips, of methods and recipes that flip")
    parser.add_argument("--epochs", type=int, help="epochs of these networks; default: those of the recipe")
    parser.add_argument("--seeds", type=int, default=3, help="networks trained on each set")
    parser.add_argument("--held-out", type=int, help="test on this many rows of the training set, which are left out")
    parser.add_argument("--options", type=json.loads, default={}, help="method options as JSON, e.g. '{\"lr_img\": 5}'")
    parser.add_argument("--out", type=Path, help="file of finished rows, one JSON object in a line")
    parser.add_argument("--costs", action="store_true", help="only measure what decoding costs")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args(argv)
    if args.costs:
        return costs(args.fast)
    if args.fast:
        args.cpu_seconds, args.epochs, args.seeds, args.network = 0.0, 2, 2, "convnet-w8"
        args.forms = ["pixels", "dct"]

    caps = args.max_updates or [0] * len(args.recipes)
    if len(caps) != len(args.recipes):
        parser.error(f"--max-updates needs {len(args.recipes)} numbers, one per recipe; got {len(caps)}")
    ds = datasets.load_dataset(args.dataset) if args.dataset else load_demo()
    train, test = ds["train"], ds["test"]
    if args.held_out:
        parts = train.train_test_split(args.held_out, seed=1)
        train, test = parts["train"], parts["test"]
    lines = args.out.read_text().splitlines() if args.out and args.out.exists() else []
    records = [json.loads(line) for line in lines]
    done = {json.dumps(record["job"]) for record in records}
    for form in args.forms:
        for method in args.methods:
            job = job_of(method, form, caps, args)
            if json.dumps(job) in done:
                continue
            compared = [r["rows"] for r in records if shares_baselines(r["job"], job)]
            limits = dict(zip(args.recipes, caps, strict=True))
            record = {"job": job, **measured(train, test, method, form, limits, compared, args)}
            records.append(record)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            print(line_of(record), flush=True)
    return records


def job_of(method: str, form: str, caps: list[int], args: argparse.Namespace) -> dict:
    """Return what a row is of."""
    names = ("dataset", "held_out", "ipc", "cpu_seconds", "recipes", "options", "network", "augment", "epochs", "seeds")
    return {"method": method, "form": form, "max_updates": caps, **{name: getattr(args, name) for name in names}}


def shares_baselines(job: dict, other: dict) -> bool:
    """Return whether two rows differ by nothing but the method and its options, on which baselines do not depend."""
    return all(job[name] == other[name] for name in job if name not in ("method", "options"))


def measured(
    train: datasets.Dataset,
    test: datasets.Dataset,
    method: str,
    form: str,
    caps: dict[str, int],
    compared: list[int],
    args: argparse.Namespace,
) -> dict:
    """Return one row of the table: a condensation, its accuracies, and those of its baselines.

    `caps` has the most updates of a network for each recipe, or 0. `compared` has the numbers of rows of those sets of
    the same form whose baselines were measured before, and are not measured again.
    """
    storage, _, expand = form.partition(":")
    common = {"preset": "quick", "network": args.network, "storage": storage, "expand": int(expand) if expand else None}
    common |= {"augment": args.augment} if args.augment and "flip" in families_of(method) else {}
    stamps: list[float] = []

    def condense(steps: int) -> tuple:
        stamps.clear()
        small = condense_dataset(
            train,
            method,
            args.ipc,
            steps=steps,
            compile=not args.fast,
            callbacks=[lambda run, done, loss: stamps.append(time.process_time())],
            **{**common, **args.options},
        )
        return small, stamps[-1] - stamps[0]

    trial = 3 if args.fast else 21  # the first steps compile; the others are four cycles of five steps per network
    started = time.process_time()
    condense(trial)
    before = stamps[0] - started
    per_step = (stamps[-1] - stamps[-trial + (trial > 3)]) / (trial - 1 - (trial > 3))
    steps = max(trial, int(args.cpu_seconds / per_step))
    small, seconds = condense(steps)
    record = {
        "method": method,
        "set": small.recipe.config_name,
        "stored floats": sum(t.numel() for t in small.synthetic.stored.values() if t.is_floating_point()),
        "rows": len(small),
        "steps": steps,
        "CPU seconds": round(seconds, 1),
        "CPU seconds before the first update": round(before, 1),  # with experts or a pool, unless they were cached
        "seconds per step": round(seconds / (steps - 1), 4),
        "peak GiB of the process so far": round(peak_of_process(), 2),
    }
    baselines = () if len(small) in compared else ("random",)
    return record | {recipe: scores(small, train, test, recipe, cap, baselines, args) for recipe, cap in caps.items()}


def scores(
    small: CondensedDataset,
    train: datasets.Dataset,
    test: datasets.Dataset,
    recipe: str,
    cap: int,
    baselines: tuple[str, ...],
    args: argparse.Namespace,
) -> list[dict]:
    """Return the accuracies of a set and its baselines; `cap` is the largest number of updates of a network, or 0."""
    table = evaluate(
        small,
        test,
        source=train,
        networks=args.network,
        recipe=recipe,
        epochs=args.epochs,
        max_updates=cap or None,
        baselines=baselines,
        seeds=args.seeds,
        augment=augment_argument(recipe, args),
    )
    return [{key: row[key] for key in ("set", "rows", "mean", "std", "n")} for row in table.to_records()]


def families_of(method: str) -> list[str]:
    """Return the families of augmentation that a method uses unless an option says otherwise."""
    augment: str = getattr(get_method(method).Config, "augment", "none")
    return augment.split("_")


def augment_argument(recipe: str, args: argparse.Namespace) -> str | None:
    """Return what `evaluate` is told: what the recipe says, with flips also where a method augments without them.

    None stands for what `evaluate` decides, which leaves out flips if the set was made without them.
    """
    own = RECIPES[recipe].augment
    is_of_digits = Path(args.dataset or "mnist").name in DIGITS
    return own and (args.augment or (None if is_of_digits else own))


def line_of(record: dict) -> str:
    """Return a row of the Markdown table."""
    cells = [record["set"], f"{record['stored floats']:,}", str(record["rows"]), f"{record['steps']:,}"]
    cells += [f"{record['CPU seconds']:.0f}", f"{1000 * record['seconds per step']:.0f} ms"]
    for recipe in (key for key, value in record.items() if isinstance(value, list) and key != "job"):
        for row in record[recipe]:
            spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
            cells.append(f"{row['set']}: {100 * row['mean']:.1f}{spread}")
    return "| " + " | ".join(cells) + " |"


def costs(fast: bool) -> list[dict]:
    """Print and return what decoding all rows of ten classes costs, forward and backward."""
    records = []
    for name, (shape, ipc) in SHAPES.items():
        for storage, expand in (("pixels", 1), ("patches", 4), ("patches", 16), ("dct", 16), ("siren", None)):
            cls = decoder_class(storage)
            decoder = cls(shape, cls.settle_expand(expand, shape, ipc))
            stored, seconds = decoding_seconds(decoder, ipc if not fast else 1, repeats=1 if fast else 2)
            floats = sum(t.numel() for t in stored.values() if t.is_floating_point())
            row = {"case": name, "form": storage + str(decoder.expand), "floats": floats, "seconds": seconds}
            print(f"{name}: {row['form']}, {floats:,} floats, {1000 * seconds:.0f} ms forward and backward", flush=True)
            records.append(row)
    return records


def decoding_seconds(decoder: object, ipc: int, repeats: int) -> tuple[dict, float]:
    """Return stored tensors of ten classes and the least seconds of decoding them, 256 rows at a time."""
    labels = torch.arange(10).repeat_interleave(decoder.rows(ipc))
    if decoder.name == "siren":  # a fit takes long and does not matter here
        (shape,) = (shape for _, shape in decoder.layout(len(labels), 10).values())
        stored = {"weights": torch.rand(shape)}
    else:
        real = torch.rand(len(labels), *decoder.image_shape)
        origin = Origin(lambda c: [real[labels == c][:64]], torch.Generator())
        stored = decoder.start(real, labels, origin)
    for tensor in stored.values():
        tensor.requires_grad_(tensor.is_floating_point())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for rows in torch.arange(len(labels)).split(256):  # all at once, large networks would not fit into memory
            decoder.decode(stored, rows).sum().backward()
        seconds.append(time.perf_counter() - started)
    return stored, min(seconds)


if __name__ == "__main__":
    main()
