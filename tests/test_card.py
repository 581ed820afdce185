"""The card: what a reader of the folder or repository is told, and what an owner's own card keeps."""

from __future__ import annotations

import json
import re

import pytest
from datasets import Features
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard

from hf_condense.card import END, START, default_config, escape, render
from hf_condense.errors import CondensedFormatError
from hf_condense.packing import FACTS, pack
from tests.condensed_sets import make_coreset, make_set


def facts_of(made) -> dict:
    """Return the facts of a set as they are stored."""
    return json.loads(pack(made)[FACTS])


@pytest.fixture(scope="module")
def sets() -> dict:
    learned = make_set(soft=True, factor=2, ipc={"cat": 1, "dog": 3}, pixel_range="free", options={"lr": 0.1, "a": [1]})
    return {"dm_ipc1-3_f2": facts_of(learned), "herding_ipc2": facts_of(make_coreset())}


def body(card: str) -> str:
    return DatasetCard(card).text


def metadata(card: str) -> dict:
    return DatasetCard(card).data.to_dict()


def test_a_new_card(sets):
    card = render(sets, citations={"dm": "Zhao and Bilen, WACV 2023", "m3d": "not used"})
    known = metadata(card)
    assert known["configs"] == [
        {
            "config_name": "dm_ipc1-3_f2",
            "data_files": [{"split": "train", "path": "dm_ipc1-3_f2/train-*"}],
            "default": True,
        },
        {"config_name": "herding_ipc2", "data_files": [{"split": "train", "path": "herding_ipc2/train-*"}]},
    ]
    assert known["license"] == "mit"
    assert known["source_datasets"] == ["someone/pets"]
    assert known["size_categories"] == ["n<1K"]
    assert known["task_categories"] == ["image-classification"]
    assert {"hf_condense", "dataset-condensation"} <= set(known["tags"])
    expected = rf"""
# someone/pets, condensed

{START}

Small sets of images .*

## Load

```python
from datasets import load_dataset

ds = load_dataset\("path/to/this", "dm_ipc1-3_f2", split="train"\)  # .*
```

```python
from hf_condense import load_condensed

ds = load_condensed\("path/to/this", "dm_ipc1-3_f2"\)  # .*
ds.synthetic.images, ds.recipe  # .*
```

## Sets

\| config \| method \| kind \| ipc \| classes \| images \| size \| from \| Parquet \| float tensors \|
\| --- (\| --- )+\|
\| dm_ipc1-3_f2 \| dm \| synthetic \| 1-3, each decoded into 4 \| 2 \| 16 \| 8x8 RGB \| someone/pets \| [\d,]+ B \| [\d,]+ B \|
\| herding_ipc2 \| herding \| coreset \| 2 \| 2 \| 4 \| 8x8 RGB \| someone/pets \| [\d,]+ B \| [\d,]+ B \|

## How they were made

\| config \| seed \| updates \| preset \| network \| pixel range \| options \|
\| --- (\| --- )+\|
\| dm_ipc1-3_f2 \| 0 \| 10 \| none \| convnet-w32 \| free \| lr=0.1, a=&#91;1&#93; \|
\| herding_ipc2 \| 0 \| none \| none \| convnet-w32 \| valid \| lr_img=1.0 \|

## 8-bit images

`load_dataset` gives 8-bit images\. .*

- dm_ipc1-3_f2: \d+\.\d{{3}}% of the values were clipped to &?.*; the largest difference is 0\.\d{{4}}\.

## Licence

A condensed set inherits the terms of its source\.

- dm_ipc1-3_f2: mit
- herding_ipc2: mit

## Limits

(- .*\n)+
## Citation

- Zhao and Bilen, WACV 2023

{END}
"""  # noqa: E501
    assert re.fullmatch(expected, body(card))


def test_dataset_info_is_that_of_the_rows(sets):
    infos = DatasetInfosDict.from_dataset_card_data(DatasetCard(render(sets)).data)
    assert set(infos) == set(sets)
    for name, facts in sets.items():
        assert infos[name].features == Features.from_dict(facts["features"])
        assert infos[name].splits["train"].num_examples == facts["num_rows"]
        assert infos[name].download_size == facts["parquet_bytes"]


def test_writing_it_again_changes_nothing(sets):
    card = render(sets)
    assert render(sets, card) == card
    one = render({"herding_ipc2": sets["herding_ipc2"]})
    both = render(sets, one)
    assert render(dict(reversed(sets.items())), both) == both


def test_the_first_default_stays_and_can_be_moved(sets):
    card = render(sets, render({"herding_ipc2": sets["herding_ipc2"]}))
    assert default_config(card) == "herding_ipc2"
    moved = render(sets, card, default="dm_ipc1-3_f2")
    assert default_config(moved) == "dm_ipc1-3_f2"
    assert sum(bool(entry.get("default")) for entry in metadata(moved)["configs"]) == 1


def test_a_set_that_is_gone_leaves_the_card(sets):
    one = render({"herding_ipc2": sets["herding_ipc2"]}, render(sets))
    assert [entry["config_name"] for entry in metadata(one)["configs"]] == ["herding_ipc2"]
    assert [entry["config_name"] for entry in metadata(one)["dataset_info"]] == ["herding_ipc2"]
    assert default_config(one) == "herding_ipc2"
    assert "dm_ipc1-3_f2" not in one


OWN = """---
license: cc-by-4.0
language:
- fr
tags:
- pets
- image
my_field:
  a: 1
configs:
- config_name: raw
  data_files: raw/*.parquet
dataset_info:
  config_name: raw
  features:
  - name: x
    dtype: int64
---
# Mes images

Un texte, avec --- et ## des titres.
"""


def test_an_owner_keeps_text_and_metadata(sets):
    card = render(sets, OWN)
    known = metadata(card)
    assert (known["license"], known["language"], known["my_field"]) == ("cc-by-4.0", ["fr"], {"a": 1})
    assert known["tags"][:2] == ["pets", "image"]
    assert len(known["tags"]) == len(set(known["tags"]))
    assert [entry["config_name"] for entry in known["configs"]] == ["raw", *sets]
    assert known["configs"][0]["data_files"] == "raw/*.parquet"
    assert [entry["config_name"] for entry in known["dataset_info"]] == ["raw", *sets]
    assert body(card).startswith(body(OWN).rstrip() + f"\n\n{START}\n")
    edited = card.replace("# Mes images", "# Images").replace(END, f"{END}\n\nAprès.") + "\nFin.\n"
    again = render({"herding_ipc2": sets["herding_ipc2"]}, edited)
    assert body(again).startswith("# Images\n\nUn texte, avec --- et ## des titres.\n\n" + START)
    assert body(again).endswith(f"{END}\n\nAprès.\n\nFin.\n")


def test_an_owner_keeps_a_default_of_their_own(sets):
    card = render(sets, OWN.replace("data_files: raw/*.parquet", "data_files: raw/*.parquet\n  default: true"))
    assert default_config(card) == "raw"


@pytest.mark.parametrize("text", ["# Only text\n", "\n\n", f"# Broken\n{START}\nno end\n", f"{END}\n"])
def test_texts_without_metadata_or_with_one_marker_are_kept(sets, text):
    card = render(sets, text)
    assert body(card).startswith(text.rstrip())
    assert body(card).count("## Sets") == 1
    assert render(sets, card) == card


MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize("metadata", ["a: [", "- a", "[" * 2000, MERGES], ids=["open", "list", "deep", "merges"])
def test_metadata_that_cannot_be_read_is_an_error(sets, metadata):
    with pytest.raises(CondensedFormatError, match=r"README\.md: "):
        render(sets, f"---\n{metadata}\n---\n")


def test_licences_are_inherited_and_never_guessed():
    unknown = facts_of(make_set(source={"name": None}))
    card = render({"dm_ipc2": unknown})
    assert "license" not in metadata(card)
    assert "source_datasets" not in metadata(card)
    assert "states none" in card
    mixed = render({"dm_ipc2": unknown, "herding_ipc2": facts_of(make_coreset())})
    assert "license" not in metadata(mixed)
    other = facts_of(make_set(ipc=1, source={"name": "x/y", "license": ["cc-by-4.0"]}))
    first = render({"dm_ipc1": other})
    assert metadata(first)["license"] == ["cc-by-4.0"]
    assert "license" not in metadata(render({"dm_ipc1": other, "dm_ipc2": unknown}, first))


def test_text_of_others_stays_text():
    nasty = 'a|b\n## c <script>x</script> ![x](http://t) `y` {{ 7*7 }} & --- "q"'
    made = make_set(source={"name": nasty, "license": nasty}, network=nasty, options={"x": nasty})
    card = render({"dm_ipc2": facts_of(made)}, citations={"dm": "plain"})
    text = body(card)
    assert "<script>" not in card.split("---\n", 2)[2]
    assert "![x]" not in text
    assert "\n## c" not in text
    for line in text.splitlines():
        if line.startswith("| dm_ipc2 | dm"):
            assert line.count("|") == 11
    assert metadata(card)["pretty_name"] == f"{nasty}, condensed"
    assert escape("a|b\r\nc") == "a&#124;b c"
    end = render({"dm_ipc2": facts_of(make_set(network=END))})
    assert end.count(END) == 1


def test_facts_of_another_writer_are_an_error():
    facts = facts_of(make_set())
    with pytest.raises(CondensedFormatError, match="features or sizes"):
        render({"dm_ipc2": {**facts, "features": {"image": {"_type": "nothing"}}}})
