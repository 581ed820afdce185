"""Condense your own images: a dataset with unusual columns, and a folder of pictures with a folder for each class.

The dataset has two image columns, text labels, and images of different sizes and modes. The folder has the layout
`root/dog/1.png`, `root/cat/2.png`, which `load_dataset` reads without a script; pass your own as the first argument.
"""

import argparse
import tempfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from hf_condense import condense_dataset


def my_dataset(rows: int = 30) -> datasets.Dataset:
    """Make a small dataset with all of these difficulties."""
    noise = np.random.default_rng(0)
    table = []
    for row in range(rows):
        kind = ("stripes", "dots")[row % 2]
        height, width = noise.integers(20, 40, 2)
        pixels = noise.integers(0, 90, (height, width, 3))
        pixels[:: 4 if kind == "stripes" else 8, :: 1 if kind == "stripes" else 8] = 255
        photo = Image.fromarray(pixels.astype(np.uint8)).convert(("RGB", "L", "RGBA")[row % 3])
        table.append({"photo": photo, "mask": photo.convert("1"), "kind": kind, "taken_by": f"camera {row % 4}"})
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "mask": datasets.Image(),
            "kind": datasets.Value("string"),
            "taken_by": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_list(table, features=features)


def make_image_folder(root: Path) -> None:
    """Write the pictures of `my_dataset` as PNG files, in a folder for each class."""
    for i, row in enumerate(my_dataset()):
        (root / row["kind"]).mkdir(exist_ok=True)
        row["photo"].save(root / row["kind"] / f"{i}.png")


def condense_folder(root: Path, fast: bool) -> None:
    """Condense a folder of pictures; the names of its folders are the names of the classes."""
    ds = datasets.load_dataset("imagefolder", data_dir=str(root), split="train")
    small = condense_dataset(ds, "dm", ipc=2, image_size=16, network="convnet-w16", steps=3 if fast else 100)
    print(f"folder of {len(ds)} pictures: {len(small)} rows of the classes {small.features['label'].names}")


def main(fast: bool = False, folder: Path | None = None) -> None:
    """Condense the dataset with a method that learns images, then with one that keeps real rows."""
    ds = my_dataset()
    small = condense_dataset(
        ds,
        "dm",
        ipc={"stripes": 2, "dots": 3},
        image_column="photo",  # needed because there are two image columns
        label_column="kind",  # text labels stay text
        image_size=16,  # images differ in size: resize the shorter side to 16 and crop the centre
        network="convnet-w16",
        steps=3 if fast else 100,
    )
    print(small)
    print("labels:", small["kind"][:])

    rows = condense_dataset(ds, "random", ipc=2, image_column="photo", label_column="kind", image_size=16)
    print("a coreset keeps every column:", rows.column_names, "of rows", rows.recipe.rows)

    if folder is not None:
        condense_folder(folder, fast)
    else:
        with tempfile.TemporaryDirectory() as root:
            make_image_folder(Path(root))
            condense_folder(Path(root), fast)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="folder with a folder of pictures for each class")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    arguments = parser.parse_args()
    main(arguments.fast, arguments.folder)
