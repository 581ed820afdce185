"""The metadata of a card, and what an owner's own card keeps; its text is in test_card_text.py."""

from __future__ import annotations

import pytest
from datasets import Features
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.card.render import check_card, config_names, default_config, render, stated_licence
from hf_condense.condensed.card.template import END, START
from hf_condense.condensed.files.facts import Facts
from tests.support.card_sets import card_sets, facts_of
from tests.support.condensed_sets import make_coreset, make_set


@pytest.fixture(scope="module")
def sets() -> dict:
    return card_sets()


def body(card: str) -> str:
    return DatasetCard(card).text


def metadata(card: str) -> dict:
    return DatasetCard(card).data.to_dict()


def test_dataset_info_describes_the_rows(sets):
    infos = DatasetInfosDict.from_dataset_card_data(DatasetCard(render(sets)).data)
    assert set(infos) == set(sets)
    for name, facts in sets.items():
        assert infos[name].features == Features.from_dict(facts.features)
        assert infos[name].splits["train"].num_examples == facts.num_rows
    assert infos["herding_ipc2"].download_size == sets["herding_ipc2"].parquet_bytes
    learned = infos["dm_ipc1-3_f2"]
    assert {split: info.num_examples for split, info in learned.splits.items()} == {"train": 16, "test": 4000}
    assert learned.download_size == sets["dm_ipc1-3_f2"].parquet_bytes + 123_456


def test_rendering_again_changes_nothing(sets):
    card = render(sets)
    assert render(sets, card) == card
    one = render({"herding_ipc2": sets["herding_ipc2"]})
    both = render(sets, one)
    assert render(dict(reversed(sets.items())), both) == both


def test_first_default_stays_until_another_is_given(sets):
    card = render(sets, render({"herding_ipc2": sets["herding_ipc2"]}))
    assert default_config(card) == "herding_ipc2"
    moved = render(sets, card, default="dm_ipc1-3_f2")
    assert default_config(moved) == "dm_ipc1-3_f2"
    assert sum(bool(entry.get("default")) for entry in metadata(moved)["configs"]) == 1


def test_removed_set_disappears_from_the_card(sets):
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


def test_text_and_metadata_of_the_owner_are_kept(sets):
    card = render(sets, OWN)
    data = metadata(card)
    assert (data["license"], data["language"], data["my_field"]) == ("cc-by-4.0", ["fr"], {"a": 1})
    assert data["tags"][:2] == ["pets", "image"]
    assert len(data["tags"]) == len(set(data["tags"]))
    assert [entry["config_name"] for entry in data["configs"]] == ["raw", *sets]
    assert data["configs"][0]["data_files"] == "raw/*.parquet"
    assert [entry["config_name"] for entry in data["dataset_info"]] == ["raw", *sets]
    assert body(card).startswith(body(OWN).rstrip() + f"\n\n{START}\n")
    edited = card.replace("# Mes images", "# Images").replace(END, f"{END}\n\nAprès.") + "\nFin.\n"
    again = render({"herding_ipc2": sets["herding_ipc2"]}, edited)
    assert body(again).startswith("# Images\n\nUn texte, avec --- et ## des titres.\n\n" + START)
    assert body(again).endswith(f"{END}\n\nAprès.\n\nFin.\n")


def test_config_of_the_owner_called_config_is_kept(sets):
    """A table of ours begins with that word, but it is no set of ours."""
    own = "---\nconfigs:\n- config_name: config\n  data_files: data/*.parquet\n---\nMine.\n"
    once = render(sets, own)
    assert config_names(render(sets, once)) == config_names(once)
    assert "config" in config_names(once)


def test_text_that_only_looks_like_a_merge_is_read(sets):
    own = "---\nlicense: mit\n---\nWe merged two sources (`a << 2`). Run `cd x && make`.\n"
    assert "Run `cd x && make`." in render(sets, render(sets, own))


def test_default_of_the_owner_is_kept(sets):
    card = render(sets, OWN.replace("data_files: raw/*.parquet", "data_files: raw/*.parquet\n  default: true"))
    assert default_config(card) == "raw"


@pytest.mark.parametrize("text", ["# Only text\n", "\n\n", f"# Broken\n{START}\nno end\n", f"{END}\n"])
def test_texts_without_metadata_or_with_one_marker_are_kept(sets, text):
    card = render(sets, text)
    assert body(card).startswith(text.rstrip())
    assert body(card).count("## Sets") == 1
    assert render(sets, card) == card


MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
BASE_60 = f"a: 1{':59' * 1000}"


@pytest.mark.parametrize(
    "metadata",
    ["a: [", "- a", "[" * 2000, MERGES, f"{ALIASES}configs: [{{config_name: *a8}}]", BASE_60],
    ids=["open", "list", "deep", "merges", "aliases", "base 60"],
)
def test_unreadable_metadata_raises_format_error(sets, metadata):
    with pytest.raises(CondensedFormatError, match=r"README\.md: "):
        render(sets, f"---\n{metadata}\n---\n")


def test_licences_are_inherited_and_never_guessed():
    unknown = facts_of(make_set(source={"name": None}))
    card = render({"dm_ipc2": unknown})
    assert "license" not in metadata(card)
    assert "source_datasets" not in metadata(card)
    assert "states no licence" in card
    mixed = render({"dm_ipc2": unknown, "herding_ipc2": facts_of(make_coreset())})
    assert "license" not in metadata(mixed)
    other = facts_of(make_set(ipc=1, source={"name": "x/y", "license": ["cc-by-4.0"]}))
    first = render({"dm_ipc1": other})
    assert metadata(first)["license"] == ["cc-by-4.0"]
    assert "license" not in metadata(render({"dm_ipc1": other, "dm_ipc2": unknown}, first))


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ("cc-by-4.0", "cc-by-4.0"),
        (" MIT ", "mit"),
        ("Free for research", "other"),
        (["MIT", "Free for research"], ["mit", "other"]),
        ("", None),
    ],
)
def test_licences_get_the_names_of_the_hub(stated, named):
    card = render({"dm_ipc2": facts_of(make_set(source={"name": "x/y", "license": stated}))})
    assert metadata(card).get("license") == named
    if named == "other":
        assert "its source states the licence Free for research." in card


def test_license_argument_wins(sets):
    card = render(sets, license="cc0-1.0")
    assert metadata(card)["license"] == "cc0-1.0"
    assert "This card states the licence cc0-1.0." in card
    assert metadata(render(sets, card))["license"] == "cc0-1.0"


def test_unreadable_features_raise_format_error():
    facts = facts_of(make_set(), features={"image": {"_type": "nothing"}})
    with pytest.raises(CondensedFormatError, match="dm_ipc2: features or sizes"):
        render({"dm_ipc2": facts})


def test_missing_card_says_nothing() -> None:
    assert default_config(None) is None
    assert config_names(None) == []
    assert stated_licence(None) is None


@pytest.mark.parametrize(
    "names",
    [("rock &roll", "5 *star"), ("a, &b", "c, *d"), ("f" * 1200, "1" * 1200), ("- &a", "[*a]"), ("a\x85b", "c\u2028d")],
)
def test_card_of_classes_with_odd_names_is_read_again(names):
    small = make_set(source={"name": None})
    facts = facts_of(small)
    features = {"label": {"names": [*names], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    named = Facts(facts.recipe, {**facts.values, "features": features})
    card = render({"dm_ipc2": named})
    assert render({"dm_ipc2": named}, card) == card
    check_card(card, "README.md")
    info = metadata(card)["dataset_info"]
    assert "features" not in info or info["features"][0]["dtype"]["class_label"]["names"] == dict(
        zip("01", names, strict=True)
    )


def test_card_that_could_not_be_read_again_is_not_written(sets):
    with pytest.raises(CondensedFormatError, match=r"README.md would have metadata with YAML aliases"):
        render(sets, license="[&a x, *a]")


def test_tags_of_an_owner_stay_whether_they_are_a_list_or_a_text(sets):
    tags = metadata(render(sets, "---\ntags: birds\n---\n# Mine\n"))["tags"]
    assert tags[0] == "birds"
    assert metadata(render(sets, "---\ntags:\n- birds\n---\n# Mine\n"))["tags"] == tags
