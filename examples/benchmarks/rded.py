"""What RDED gives: the accuracy of its sets beside random rows with the same labels, and the cost of large pictures.

The first form composes sets of any dataset and trains networks on them with the stored soft labels and with hard
labels. The second form composes a set of generated pictures, and prints minutes, memory and bytes; nothing is learned
from these. For example:

    python examples/benchmarks/rded.py uoft-cs/cifar10 --ipc 1 10 --mosaic 1 2 --teacher convnet --teacher-updates 5000
    python examples/benchmarks/rded.py --large 224 --classes 100 --rows 500
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
from common import peak_of_process
from PIL import Image

from hf_condense import condense_dataset, evaluate
from hf_condense.condensed.files.facts import read_facts
from hf_condense.condensed.files.names import PARQUET, TENSORS
from hf_condense.condensed.files.sizes import Sizes
from hf_condense.demo_data import load_demo


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return the rows of its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--ipc", type=int, nargs="+", default=[10], help="images per class")
    parser.add_argument("--mosaic", type=int, nargs="+", default=[1], help="crops along each side of an image")
    parser.add_argument("--teacher", default="convnet-w32", help="network of the teacher")
    parser.add_argument("--teacher-updates", type=int, default=2000, help="updates of its training")
    parser.add_argument("--teacher-size", type=int, help="side of the pictures that it sees; default: their own")
    parser.add_argument("--augment", default="crop_flip", help="augmentation of the teacher; crop for digits")
    parser.add_argument("--temperature", type=float, default=20.0, help="temperature of the soft labels")
    parser.add_argument("--crop-area", type=float, default=0.08, help="smallest share of a picture that a crop has")
    parser.add_argument("--views", type=int, default=10, help="labelled views of each image")
    parser.add_argument("--pictures", type=int, default=300, help="pictures of a class that are looked at")
    parser.add_argument("--network", default="convnet-w32", help="network that is trained on the sets")
    parser.add_argument("--epochs", type=int, help="epochs of these networks; default: those of the recipe soft")
    parser.add_argument("--max-updates", type=int, help="largest number of their updates")
    parser.add_argument("--seeds", type=int, default=3, help="networks trained on each set")
    parser.add_argument(
        "--large", type=int, metavar="SIDE", help="measure the cost with generated pictures of this side"
    )
    parser.add_argument("--classes", type=int, default=10, help="classes of the generated pictures")
    parser.add_argument("--rows", type=int, default=500, help="generated pictures of each class")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args(argv)
    if args.fast:
        args.ipc, args.teacher, args.network, args.augment = [1], "convnet-w8", "convnet-w8", "crop"
        args.teacher_updates, args.pictures, args.views, args.seeds, args.max_updates = 10, 2, 2, 2, 2
    return cost(args) if args.large else accuracy(args)


def accuracy(args: argparse.Namespace) -> list[dict]:
    """Print the accuracy of sets with hard and soft labels, beside that of random rows."""
    ds = datasets.load_dataset(args.dataset) if args.dataset else load_demo()
    if args.fast:
        ds = datasets.DatasetDict({name: rows.shuffle(seed=0).select(range(200)) for name, rows in ds.items()})
    options = {
        "network": args.teacher,
        "teacher_updates": args.teacher_updates,
        "teacher_size": args.teacher_size,
        "augment": args.augment,
        "temperature": args.temperature,
        "crop_area": args.crop_area,
        "views": args.views,
        "pictures": args.pictures,
    }
    common = {"networks": args.network, "recipe": "soft", "seeds": args.seeds, "epochs": args.epochs}
    common |= {"max_updates": args.max_updates}
    records = []
    for ipc in args.ipc:
        for mosaic in args.mosaic:
            started = time.perf_counter()
            small = condense_dataset(ds["train"], "rded", ipc, mosaic=mosaic, **options)
            print(f"\nipc {ipc}, mosaic {mosaic}: {time.perf_counter() - started:.0f} s; {small.recipe.teacher_text}")
            # Random rows with the teacher's labels are the same for every mosaic.
            baselines = ("random",) if mosaic == args.mosaic[0] else ()
            table = evaluate(small, ds["test"], source=ds["train"], baselines=baselines, **common)
            print(table, flush=True)
            records += [{**row, "mosaic": mosaic, "ipc": ipc} for row in table.to_records()]
    return records


def cost(args: argparse.Namespace) -> list[dict]:
    """Print how long a set of generated pictures takes, and how much memory and how many bytes."""
    with tempfile.TemporaryDirectory() as folder:
        ds = generated(Path(folder), args.classes, args.rows, args.large)
        before = peak_of_process()
        started = time.perf_counter()
        small = condense_dataset(
            ds,
            "rded",
            args.ipc[0],
            network=args.teacher,
            teacher_updates=args.teacher_updates,
            teacher_size=args.teacher_size,
            views=args.views,
            pictures=args.pictures,
            cache=False,
        )
        minutes = (time.perf_counter() - started) / 60
        peak = peak_of_process()
        target = small.save_condensed(Path(folder) / "set")
        sizes = Sizes.of(read_facts(target))
        record = {
            "pictures": len(ds),
            "rows": len(small),
            "minutes": minutes,
            "peak GiB": peak,
            "GiB before": before,
            "bytes of soft labels": sizes.soft_label_bytes,
            "bytes of the tensors": (target / TENSORS).stat().st_size,
            "bytes of the 8-bit rows": (target / PARQUET).stat().st_size,
            "bytes of the source's pixels": sizes.source_bytes,
        }
    print(small)
    print("\n".join(f"{name}: {value:,.2f}" for name, value in record.items()))
    return [record]


def generated(folder: Path, classes: int, rows: int, side: int) -> datasets.Dataset:
    """Return JPEG pictures in files: blurred noise, tinted by class, so that nothing but their reading costs memory."""

    def table() -> object:
        for c in range(classes):
            for row in range(rows):
                noise = np.random.default_rng([c, row])
                small = noise.integers(0, 256, (16, 16, 3)) // 2 + np.random.default_rng(c).integers(
                    0, 128, (16, 16, 3)
                )
                buffer = io.BytesIO()
                Image.fromarray(small.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC).save(
                    buffer, "JPEG"
                )
                yield {"image": {"bytes": buffer.getvalue(), "path": None}, "label": c}

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"class {c}" for c in range(classes)])}
    )
    return datasets.Dataset.from_generator(table, features=features, cache_dir=str(folder / "generated"))


if __name__ == "__main__":
    main()
