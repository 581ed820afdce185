"""Draw random rows beside a condensed set: the picture in README.md."""

import argparse
from pathlib import Path

from hf_condense import condense_dataset
from hf_condense.condensed.preview import comparison, grid
from hf_condense.demo_data import load_demo


def main(out: Path, steps: int) -> None:
    """Condense the MNIST excerpt to one image a class and save the picture."""
    train = load_demo()["train"]
    settings = {"network": "convnet-w32", "augment": "color_crop_cutout_scale_rotate", "batch_real": 64}
    small = condense_dataset(train, "dm", ipc=1, steps=steps, **settings)
    rows = condense_dataset(train, "random", ipc=1)
    pictures = [grid(made.synthetic.images, per_class=5) for made in (rows, small)]
    comparison(list(zip(["random rows", f"condensed by dm, {steps} steps"], pictures, strict=True))).save(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("condensed_vs_random.png"))
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    main(arguments.out, arguments.steps)
