"""Writes the seeds of the fuzzing again: `python -m tests.support.make_corpus`.

Run it for a new format version only: the present files also show that sets of an earlier version are still read.
"""

from __future__ import annotations

from pathlib import Path

import datasets

from hf_condense.condensed.card.render import render
from hf_condense.condensed.facts import FACTS, PARQUET, README, TENSORS
from hf_condense.condensed.packing import pack
from tests.support.condensed_sets import make_coreset, make_set, real_rows

CORPUS = Path(__file__).parents[1] / "corpus"
OWNERS = """---
license: [mit, other]
language:
- en
configs:
- config_name: theirs
  default: true
  data_files: theirs/*.csv
- config_name: synthetic
  data_files: x
dataset_info:
- config_name: theirs
  features: [{name: x, dtype: int64}]
tags: [a, 'b: c', 2024-01-01]
extra_gated_prompt: |
  Read this
    first.
---
# Theirs

Text, --- and ```code```.
"""


def main() -> None:
    """Write sets and cards."""
    words = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    sets = {
        "synthetic": make_set(soft=True, student=True, pixel_range="free"),
        "formed": make_set(
            features=words,
            factor=2,
            ipc={"cat": 1, "dog": 2},
            label_values=["c", "d"],
            image_shape=[1, 4, 4],
            pixel_range="free",
            zca=True,
        ),
        "coreset": make_coreset(),
        "narrow": make_coreset(real_rows().select_columns(["label", "image"]), ipc=1),
    }
    packed = {name: pack(small.parts) for name, small in sets.items()}
    cards = {"card": render({name: packed[name].facts for name in ("coreset", "synthetic")}), "owned": OWNERS}
    seeds = {name: {file: files[file] for file in (PARQUET, TENSORS, FACTS)} for name, (files, _) in packed.items()}
    seeds |= {name: {README: text.encode()} for name, text in cards.items()}
    for name, files in seeds.items():
        folder = CORPUS / "seeds" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (folder / file).write_bytes(data)


if __name__ == "__main__":
    main()
