"""Condense a dataset, save it, load it back and measure what it is worth. Uses data that ships with the package."""

import argparse
from pathlib import Path

import torch

from hf_condense import condense_dataset, evaluate, load_condensed
from hf_condense.demo_data import load_demo


def main(fast: bool = False, out: Path = Path("condensed/quickstart")) -> None:
    """Run the example; `fast` takes so few steps that the numbers mean nothing."""
    ds = load_demo()  # a DatasetDict with the columns image and label; your own dataset works in the same way

    small = condense_dataset(
        ds["train"],
        "dm",
        ipc=1,
        network="convnet-w32",
        steps=3 if fast else 100,
        augment="color_crop_cutout_scale_rotate",  # no flips, as mirroring changes a digit's meaning
    )
    print(small)
    print(f"{len(ds['train'])} images became {len(small)}, by {small.recipe.method} in {small.recipe.steps} steps")

    folder = small.save_condensed(out, overwrite=True)
    small.preview().save(out / "preview.png")
    print(f"saved to {folder}, a picture of it to {out / 'preview.png'}")

    again = load_condensed(out)
    print("loaded back, equal to the bit:", torch.equal(again.synthetic.images, small.synthetic.images))

    epochs, seeds = (2, 2) if fast else (300, 3)
    print(evaluate(small, ds["test"], networks=["convnet-w32"], recipe="dc", epochs=epochs, seeds=seeds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("condensed/quickstart"), help="folder for the result")
    arguments = parser.parse_args()
    main(arguments.fast, arguments.out)
