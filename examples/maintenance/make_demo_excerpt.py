"""Make the MNIST excerpt that ships inside the package (hf_condense/data/mnist).

It shuffles the rows with a fixed seed and keeps the first ones of every class. They are written to Parquet as optimised
PNG, so that the excerpt is a plain Hugging Face dataset with the columns and features of its source.

    python examples/maintenance/make_demo_excerpt.py path/to/mnist --out hf_condense/data/mnist
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image

SEED = 0


def excerpt(ds: Dataset, per_class: int, seed: int = SEED) -> Dataset:
    """Return the first `per_class` rows of every class in the order of a seeded shuffle.

    Raises:
        ValueError: If a class has fewer rows than `per_class`.
    """
    labels = np.asarray(ds.with_format("numpy")["label"][:])
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels[order]
    places = np.concatenate([np.flatnonzero(shuffled == label)[:per_class] for label in np.unique(labels)])
    if short := [int(c) for c in np.unique(labels) if np.count_nonzero(labels == c) < per_class]:
        raise ValueError(f"classes {short} have fewer than {per_class} rows; pass a smaller number")
    return ds.select(order[np.sort(places)])


def optimised_png(encoded: bytes) -> bytes:
    """Encode the same pixels as a smaller PNG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_parquet(ds: Dataset, path: Path) -> None:
    """Write the rows with their Hugging Face features; equal rows give equal bytes."""
    table = ds.with_format("arrow")[:]
    pictures = [{"bytes": optimised_png(row["bytes"]), "path": None} for row in table["image"].to_pylist()]
    table = pa.table(
        {"image": pa.array(pictures, table.schema.field("image").type), "label": table["label"]},
        schema=ds.features.arrow_schema,
    )
    pq.write_table(table, path, compression="zstd", use_dictionary=["label"], write_statistics=False)


def make(source: str, out: Path, train: int, test: int) -> None:
    """Write `train.parquet` and `test.parquet` into the folder `out`, with `train` and `test` rows per class."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        ds = load_dataset(source, cache_dir=cache)
        if not isinstance(ds, DatasetDict) or not {"train", "test"} <= ds.keys():
            raise ValueError(f"the source should have the splits train and test; got {source}")
        for split, per_class in (("train", train), ("test", test)):
            path = out / f"{split}.parquet"
            write_parquet(excerpt(ds[split], per_class), path)
            print(f"{path}: {per_class} images per class, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Read the command line and make the excerpt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("HF_CONDENSE_DATA")
    parser.add_argument(
        "source",
        nargs="?" if data else None,
        default=data and str(Path(data, "mnist")),
        help="folder or Hub id of MNIST; may be left out if HF_CONDENSE_DATA names a folder that holds mnist/",
    )
    parser.add_argument("--out", type=Path, default=Path("condensed/mnist-excerpt"), help="folder to write to")
    parser.add_argument("--train", type=int, default=500, help="training images per class (default: %(default)s)")
    parser.add_argument("--test", type=int, default=100, help="test images per class (default: %(default)s)")
    args = parser.parse_args()
    make(args.source, args.out, args.train, args.test)


if __name__ == "__main__":
    main()
