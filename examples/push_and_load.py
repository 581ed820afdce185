"""Publish a set beside its test rows, and load it back exactly and as plain 8-bit rows.

Without arguments the set goes into a folder, which has the layout of a repository on the Hub. With the name of a
repository it is pushed there; log in first: `hf auth login`. For example:

    python examples/push_and_load.py me/digits-condensed
"""

import argparse
from pathlib import Path

import datasets
import torch

from hf_condense import CondensedDataset, condense_dataset, list_condensed, load_condensed
from hf_condense.demo_data import load_demo


def main(repo: str | None = None, out: Path = Path("condensed/push_and_load"), fast: bool = False) -> None:
    """Publish two sets and load them; `fast` takes rows instead of learning images."""
    ds = load_demo()
    no_flips = "color_crop_cutout_scale_rotate"  # mirroring changes a digit's meaning
    options = {"network": "convnet-w32", "steps": 100, "augment": no_flips}
    options |= {"network": "convnet-w8", "steps": 2, "compile": False} if fast else {}
    sets = [condense_dataset(ds["train"], "dm", ipc=1, **options), condense_dataset(ds["train"], "random", ipc=10)]
    for small in sets:
        if repo is None:
            small.save_condensed(out, overwrite=True)
        else:
            print(small.push_to_hub(repo, extra_splits={"test": ds["test"]}, private=True, overwrite=True).commit_url)
    place = repo or str(out)
    print(f"{place} holds {', '.join(list_condensed(place))}")
    for small in sets:
        check(small, place)


def check(small: CondensedDataset, place: str) -> None:
    """Load a set in both ways and compare it with the one in memory."""
    name = small.recipe.config_name
    loaded = load_condensed(place, name)  # exact floats, recipe
    rows = datasets.load_dataset(place, name, split="train")  # 8-bit images, without hf_condense
    same = torch.equal(loaded.synthetic.decoded()[0], small.synthetic.decoded()[0])
    print(f"{name}: equal to the bit: {same}; {len(rows)} rows of {rows.column_names} by load_dataset")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", nargs="?", help="repository on the Hub, such as me/digits-condensed")
    parser.add_argument(
        "--out", type=Path, default=Path("condensed/push_and_load"), help="folder, without a repository"
    )
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    arguments = parser.parse_args()
    main(arguments.repo, arguments.out, arguments.fast)
