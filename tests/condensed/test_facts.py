"""The facts of a set: parsed once wherever they are needed, and equal to what is stored."""

from __future__ import annotations

import json
import re

import pytest

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.card.render import render
from hf_condense.condensed.combine import combine_condensed
from hf_condense.condensed.files.facts import Facts, read_facts
from hf_condense.condensed.files.names import FACTS, PARQUET, shard_file, shard_split
from hf_condense.condensed.files.packing import pack
from hf_condense.condensed.folder import list_sets
from hf_condense.condensed.loading import load_condensed
from hf_condense.condensed.recipe import Recipe
from tests.support.card_sets import facts_of
from tests.support.condensed_sets import make_coreset, make_set


class Calls(list):
    """The recipes that were parsed."""

    def during(self, action, *args, **options) -> int:
        """Return how many recipes an action parses."""
        self.clear()
        action(*args, **options)
        return len(self)


@pytest.fixture
def parsed(monkeypatch) -> Calls:
    calls, parse = Calls(), Recipe.from_dict.__func__

    def counted(cls, values):
        calls.append(values)
        return parse(cls, values)

    monkeypatch.setattr(Recipe, "from_dict", classmethod(counted))
    return calls


def test_saving_into_a_folder_parses_every_recipe_once(parsed, tmp_path):
    for others in range(3):
        small = make_set(ipc=others + 1)
        assert parsed.during(small.save_condensed, tmp_path) == others + 1
    assert len(list_sets(tmp_path)) == 3


def test_rendering_a_card_parses_every_recipe_once(parsed, tmp_path):
    for small in (make_set(), make_set(ipc=1), make_coreset()):
        small.save_condensed(tmp_path)
    sets = {}
    assert parsed.during(lambda: sets.update({name: read_facts(tmp_path / name) for name in list_sets(tmp_path)})) == 3
    assert parsed.during(render, sets) == 0


@pytest.mark.parametrize("make", [make_set, make_coreset], ids=["synthetic", "coreset"])
def test_loading_from_a_folder_parses_the_recipe_once(parsed, tmp_path, make):
    make().save_condensed(tmp_path)
    assert parsed.during(load_condensed, tmp_path) == 1


@pytest.mark.parametrize("make", [make_set, make_coreset], ids=["synthetic", "coreset"])
def test_loading_from_the_hub_parses_the_recipe_once(parsed, hub, make):
    repo = hub.repo()
    make().push_to_hub(repo)
    assert parsed.during(load_condensed, repo) == 1


def test_pushing_parses_every_recipe_once(parsed, hub):
    repo = hub.repo()
    assert parsed.during(make_set().push_to_hub, repo) == 1
    assert parsed.during(make_set(ipc=1).push_to_hub, repo) == 2


@pytest.mark.parametrize("make", [make_set, make_coreset], ids=["synthetic", "coreset"])
def test_facts_of_a_packed_set_equal_those_that_are_read(tmp_path, make):
    small = make()
    files, facts = pack(small.parts)
    assert facts == Facts.from_values(json.loads(files[FACTS]))
    assert facts == read_facts(small.save_condensed(tmp_path))
    assert facts.to_bytes() == files[FACTS]


def test_difference_names_the_fields_that_differ_but_no_measurements():
    facts = facts_of(make_set())
    measured = make_set(evaluation=[{"mean": 0.5}], runtime={}, created_at="2027-01-01T00:00:00Z")
    licensed = make_set(source={"name": "someone/pets", "num_examples": 100, "content_hash": "00ff"})
    assert facts.difference(facts_of(measured)) is None
    assert facts.difference(facts_of(licensed)) is None
    assert facts.difference(facts_of(make_set(network="convnet"))) == "another recipe (network differs)"
    other = make_set()
    other.synthetic.images.mul_(0.5)
    assert facts.difference(facts_of(other)) == "other tensors of the same recipe"


PLACE = {"name": "someone/pets", "revision": "0" * 40, "config": "default", "split": "train"}


@pytest.mark.parametrize("changes", [{"revision": "1" * 40}, {"name": "another/pets"}, {"config": "x", "split": "all"}])
def test_same_images_found_in_another_place_make_the_same_set(changes):
    def facts(content_hash: str | None, **found: str) -> tuple[Facts, Facts]:
        source = {**PLACE, "num_examples": 100, "content_hash": content_hash, **found}
        both = combine_condensed([make_set(source=source), make_set(seed=1, source=source)])
        return facts_of(make_set(source=source)), facts_of(both)

    for first, second in zip(facts("00ff"), facts("00ff", **changes), strict=True):
        assert first.difference(second) is None
    for known, hashes in ((facts("00ff"), ("00fe", None)), (facts(None), (None,))):
        for content_hash in hashes:
            for first, second in zip(known, facts(content_hash, **changes), strict=True):
                assert re.search(r"another recipe \(.*source", first.difference(second))


AGAIN = {"created_at": "2027-01-01T00:00:00Z", "runtime": {"device": "cpu", "seconds": 9.0}}


def records(*, seconds: float, mean: float = 0.5) -> list[dict]:
    return [{"set": "dm_ipc2", "mean": mean, "seconds": seconds}]


@pytest.mark.parametrize(
    "changes", [{}, {"seed": 0}, {"evaluation": records(seconds=2.0)}], ids=["made", "seed", "measured"]
)
def test_set_that_is_made_again_repeats_the_first(changes):
    first = make_set(**{**changes, **({"evaluation": records(seconds=1.0)} if "evaluation" in changes else {})})
    assert facts_of(make_set(**changes, **AGAIN)).repeats(facts_of(first))


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": records(seconds=1.0)},
        {"seed": 1},
        {"runtime": {"device": "cuda", "seconds": 1.5}},
        {"source": {"name": "someone/pets", "license": None, "num_examples": 100, "content_hash": "00ff"}},
        {"nearest": {"rows": 1, **{k: dict.fromkeys(("min", "median", "max"), 0.1) for k in ("synthetic", "real")}}},
    ],
    ids=["measurements", "seed", "device", "licence", "distances"],
)
def test_set_with_anything_else_new_does_not_repeat_the_first(changes):
    assert not facts_of(make_set(**{**AGAIN, **changes})).repeats(facts_of(make_set()))
    measured = facts_of(make_set(evaluation=records(seconds=1.0)))
    assert not facts_of(make_set(evaluation=records(seconds=1.0, mean=0.6))).repeats(measured)


def test_extra_splits_are_replaced_and_removed():
    facts = facts_of(make_set())
    assert facts.extra_splits == {}
    more = facts.with_extra_splits({"test": {"num_rows": 3, "num_bytes": 5}})
    assert more.extra_splits == {"test": (3, 5)}
    assert more.with_extra_splits({}) == facts


@pytest.mark.parametrize("name", ["num_rows", "parquet_bytes", "tensor_bytes"])
@pytest.mark.parametrize("value", [None, -1, True, "4", 4.0])
def test_sizes_that_are_no_counts_raise_format_error(name, value):
    facts = facts_of(make_set(), **{name: value})
    with pytest.raises(CondensedFormatError, match=f"{name} should be an integer of at least 0; got {value!r}"):
        getattr(facts, name)


@pytest.mark.parametrize("file", [shard_file("test", 2, 10), PARQUET])
def test_shard_names_lead_back_to_their_split(file):
    assert shard_split(file) == file.partition("-")[0]


@pytest.mark.parametrize("file", [FACTS, "train.parquet", "train-0-of-1.parquet", "train-00000-of-00001.csv"])
def test_other_files_are_of_no_split(file):
    assert shard_split(file) is None
