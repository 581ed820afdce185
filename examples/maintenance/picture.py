"""Draw the picture of README.md: random rows beside condensed rows, and what networks learn from each.

    python examples/maintenance/picture.py

Condenses the MNIST excerpt inside the package, trains fresh networks on the condensed images and on random rows, and
draws both sets with the accuracies that were measured. It takes a few minutes on two cores.
"""

import argparse
from pathlib import Path

from hf_condense import condense_dataset, evaluate
from hf_condense.condensed.preview import Panel, comparison, grid
from hf_condense.demo_data import load_demo

NETWORK, RECIPE = "convnet-w32", "dc"


def main(out: Path, steps: int = 500, epochs: int | None = None, seeds: int = 5) -> None:
    """Condense to one image per class, measure the set beside random rows, and save the picture.

    Args:
        out: File of the picture.
        steps: Updates of the images.
        epochs: Epochs of every network that is trained; None means those of the recipe.
        seeds: Networks that are trained on each set.
    """
    ds = load_demo()
    settings = {"network": NETWORK, "augment": "color_crop_cutout_scale_rotate", "batch_real": 64}
    condensed = condense_dataset(ds["train"], "dm", ipc=1, steps=steps, **settings)
    random = condense_dataset(ds["train"], "random", ipc=1)
    table = evaluate(condensed, ds["test"], networks=NETWORK, recipe=RECIPE, epochs=epochs, seeds=seeds)
    print(table)
    scores = {}
    for score in table.to_records():
        spread = "" if score["std"] is None else f" ± {100 * score['std']:.1f}"
        scores[score["set"]] = f"{100 * score['mean']:.1f}{spread} %"
    panels = [
        Panel(title, f"test accuracy {scores[name]}", grid(images, per_class=5))
        for title, name, images in (
            ("Ten random rows of MNIST", "random", random.synthetic.images),
            ("Ten condensed rows", condensed.recipe.config_name, condensed.synthetic.images),
        )
    ]
    note = (
        f"Fresh networks ({NETWORK}), each trained on only ten images with the recipe {RECIPE}: mean ± standard "
        f"deviation, n = {seeds}.\nCondensed by dm in {steps} steps from {len(ds['train']):,} images; tested on "
        f"{len(ds['test']):,} others. Random rows are drawn again for each network."
    )
    comparison(panels, note).save(out, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "condensed_vs_random.png")
    parser.add_argument("--steps", type=int, default=500, help="updates of the images (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="networks trained on each set (default: %(default)s)")
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    arguments = parser.parse_args()
    if arguments.fast:
        main(arguments.out, steps=2, epochs=2, seeds=2)
    else:
        main(arguments.out, arguments.steps, seeds=arguments.seeds)
