"""Compare `evaluate` with a plain PyTorch loop, which imports nothing of hf_condense (plain_loop.py), on one set."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import hf_condense
from hf_condense import condense_dataset, evaluate
from hf_condense.demo_data import load_demo

LOOP = Path(__file__).with_name("plain_loop.py")
DEMO = Path(hf_condense.__file__).parent / "data" / "mnist"


def main(fast: bool = False, seeds: int = 5, width: int = 32) -> float:
    """Return the difference of both mean accuracies in points; `fast` takes so few steps that it means nothing."""
    ds = load_demo()
    width, epochs = (4, 2) if fast else (width, 300)
    small = condense_dataset(
        ds["train"],
        "dm",
        ipc=10,
        network=f"convnet-w{width}",
        steps=2 if fast else 100,
        augment="color_crop_cutout_scale_rotate",  # no flips of digits
        progress=False,
    )
    options = {"networks": f"convnet-w{width}", "recipe": "dc", "epochs": epochs, "seeds": seeds, "baselines": ()}
    table = evaluate(small, ds["test"], eight_bit=True, progress=False, **options)
    ours = table.score(f"{small.recipe.config_name} (8-bit)").accuracies
    with tempfile.TemporaryDirectory() as folder:
        small.save_condensed(folder)
        sizes = ["--seeds", str(seeds), "--width", str(width), "--epochs", str(epochs)]
        command = [sys.executable, str(LOOP), folder, str(DEMO), *sizes]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    theirs = json.loads(printed.splitlines()[-1])
    for name, accuracies in (("evaluate", ours), ("plain loop", theirs)):
        spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        print(f"{name:10}  {100 * statistics.fmean(accuracies):.2f}{spread} (n = {len(accuracies)})")
    difference = 100 * (statistics.fmean(ours) - statistics.fmean(theirs))
    print(f"difference  {difference:+.2f} points, on the 8-bit rows of {small.recipe.config_name}, MNIST excerpt")
    return difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--seeds", type=int, default=5, help="networks trained by each program")
    parser.add_argument("--width", type=int, default=32, help="filters of a layer of the networks")
    arguments = parser.parse_args()
    main(arguments.fast, arguments.seeds, arguments.width)
