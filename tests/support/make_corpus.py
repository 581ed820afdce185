"""Writes seeds of the fuzzing: `python -m tests.support.make_corpus NAME ...`.

Name new seeds only: the present files also show that sets of an earlier version are still read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import datasets

from hf_condense.condensed.card.render import render
from hf_condense.condensed.files.names import FACTS, PARQUET, README, TENSORS
from hf_condense.condensed.files.packing import pack
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


def main(names: list[str]) -> None:
    """Write the sets and cards of these names."""
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
        "frequencies": make_set(
            soft=True, storage="dct", expand=7, ipc={"cat": 1, "dog": 2}, image_shape=[3, 4, 5], std=[0.25, 0.5, 1.0]
        ),
        "networks": make_set(
            storage="siren", expand=2, ipc=1, image_shape=[1, 7, 6], pixel_range="free", store_dtype="float16"
        ),
        "halves": make_set(factor=2, ipc=1, image_shape=[1, 4, 4], store_dtype="float16"),
        "views": make_set(
            ipc=1, image_shape=[1, 4, 4], store_dtype="uint8", temperature=20.0, label_views=2, label_top=1
        ),
        "coreset": make_coreset(),
        "narrow": make_coreset(real_rows().select_columns(["label", "image"]), ipc=1),
    }
    packed = {name: pack(small.parts) for name, small in sets.items()}
    cards = {"card": render({name: packed[name].facts for name in ("coreset", "synthetic")}), "owned": OWNERS}
    seeds = {name: {file: files[file] for file in (PARQUET, TENSORS, FACTS)} for name, (files, _) in packed.items()}
    seeds |= {name: {README: text.encode()} for name, text in cards.items()}
    for name in names:
        files = seeds[name]
        folder = CORPUS / "seeds" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (folder / file).write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1:])
