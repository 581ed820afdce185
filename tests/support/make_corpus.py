"""Writes the seeds of the fuzzing anew: `python -m tests.support.make_corpus`.

Only for a new format version: the files that are there also show that what an earlier version wrote is still read.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets

from hf_condense.condensed.card.render import render
from hf_condense.condensed.facts import FACTS, README, TENSORS
from hf_condense.condensed.packing import PARQUET, pack
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
    packed = {name: pack(made.parts) for name, made in sets.items()}
    facts = {name: json.loads(packed[name][FACTS]) for name in ("coreset", "synthetic")}
    cards = {"card": render(facts), "owned": OWNERS}
    seeds = {name: {file: files[file] for file in (PARQUET, TENSORS, FACTS)} for name, files in packed.items()}
    seeds |= {name: {README: text.encode()} for name, text in cards.items()}
    for name, files in seeds.items():
        folder = CORPUS / "seeds" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (folder / file).write_bytes(data)


if __name__ == "__main__":
    main()
