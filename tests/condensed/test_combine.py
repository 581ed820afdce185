"""Several sets in one: what was learned stays as it is, and what does not go together is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch

from hf_condense import CondensedFormatError, combine_condensed, condense_dataset, evaluate, load_condensed
from hf_condense.condensed.card.render import render
from hf_condense.condensed.card.template import END
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.names import FACTS
from hf_condense.condensed.recipe import common
from hf_condense.testing import toy_dataset
from tests.condensed.test_views import viewed_set
from tests.support.condensed_sets import assert_same, files_below, formed_set, make_coreset, make_set, raw, real_rows

FISH = {
    "class_names": ["eel", "cod"],
    "seed": 1,
    "source": {"name": "sea/fish", "license": "cc0-1.0", "num_examples": 50},
}
OTHER_UNITS = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.1, 0.2]}
FORMS = [("patches", 4), ("dct", 4), ("siren", 1)]


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 3)


def images_by_class(small: CondensedDataset) -> dict[str, torch.Tensor]:
    images, labels = small.synthetic.decoded()
    return {small.recipe.class_names[c]: images[labels == c] for c in labels.unique().tolist()}


def test_classes_of_all_sets_are_kept_to_the_bit() -> None:
    pets, fish = make_set(), make_set(ipc=1, **FISH)
    both = combine_condensed([pets, fish])
    assert both.features["label"].names == ["cat", "dog", "eel", "cod"]
    assert both.recipe.ipc == {"cat": 2, "dog": 2, "eel": 1, "cod": 1}
    assert both.recipe.config_name == "combined_ipc1-2"
    images = images_by_class(both)
    for name, own in {**images_by_class(pets), **images_by_class(fish)}.items():
        assert torch.equal(images[name], own), name
    assert both["label"] == [0, 1, 2, 3, 0, 1]
    assert both.recipe.part_recipes == [pets.recipe, fish.recipe]


def test_class_of_several_sets_has_the_rows_of_all_without_a_warning(caplog) -> None:
    first, second = make_set(), make_set(ipc=1, seed=1)
    both = combine_condensed([first, second])
    assert not caplog.records
    assert both.recipe.ipc == {"cat": 3, "dog": 3}
    for name, images in images_by_class(both).items():
        assert torch.equal(images, torch.cat([images_by_class(s)[name] for s in (first, second)]))


@pytest.mark.parametrize(("storage", "expand"), FORMS)
def test_parts_in_every_form_keep_their_images_and_load(storage: str, expand: int, tmp_path: Path) -> None:
    pets = formed_set(storage, expand, store_dtype="float16")
    fish = formed_set(storage, expand, store_dtype="float16", **FISH, **OTHER_UNITS)
    both = combine_condensed([pets, fish])
    images = images_by_class(both)
    for name, own in {**images_by_class(pets), **images_by_class(fish)}.items():
        torch.testing.assert_close(images[name], own, rtol=0, atol=1e-6)
    some = torch.tensor([len(both) - 1, 0])
    torch.testing.assert_close(both.synthetic.decoded(some)[0], both.synthetic.decoded()[0][some], rtol=0, atol=1e-6)
    both.save_condensed(tmp_path)
    assert_same(both, load_condensed(tmp_path))


def test_only_parts_with_units_of_their_own_need_a_newer_format() -> None:
    alike = combine_condensed([formed_set("dct", 4), formed_set("dct", 4, **FISH)])
    other = combine_condensed([formed_set("dct", 4), formed_set("dct", 4, **FISH, **OTHER_UNITS)])
    pixels = combine_condensed([make_set(), make_set(**FISH, **OTHER_UNITS)])
    assert [s.recipe.format_version for s in (alike, other, pixels)] == ["2", "3", "1"]


def test_networks_get_the_normalisation_of_all_sources_together() -> None:
    grey = {"image_shape": [1, 8, 8]}
    dark = make_set(**grey, mean=[0.2], std=[0.1], source={"num_examples": 30, "content_hash": "a"})
    light = make_set(**grey, mean=[0.6], std=[0.2], source={"num_examples": 10, "content_hash": "b"})
    pixels = torch.cat([torch.tensor([0.1, 0.3]).repeat(15), torch.tensor([0.4, 0.8]).repeat(5)]).double()
    recipe = combine_condensed([dark, light]).recipe
    assert recipe.mean == pytest.approx([float(pixels.mean())])
    assert recipe.std == pytest.approx([float(pixels.std(correction=0))])
    assert recipe.source["num_examples"] == 40
    assert combine_condensed([dark, dark]).recipe.source == dark.recipe.source


def test_sources_of_unknown_size_count_alike_in_the_normalisation() -> None:
    grey = {"image_shape": [1, 8, 8], "std": [0.1]}
    known = make_set(**grey, mean=[0.2], source={"num_examples": 50_000, "content_hash": "a"})
    unknown = make_set(**grey, mean=[0.6], source={"num_examples": None, "content_hash": "b"})
    assert combine_condensed([known, unknown]).recipe.mean == pytest.approx([0.4])


def test_real_rows_stay_as_they_are(tmp_path: Path) -> None:
    pets, ds = real_rows(), real_rows()
    fish = ds.cast_column("label", datasets.ClassLabel(names=["eel", "cat"]))
    first, second = make_coreset(pets), make_coreset(fish, ipc=1)
    both = combine_condensed([first, second])
    assert both.recipe.class_names == ["cat", "dog", "eel"]
    assert both.column_names == first.column_names
    names = {s: [s.features["label"].names[label] for label in s["label"]] for s in (first, second, both)}
    ids = {s: list(zip(names[s], s["id"], strict=True)) for s in names}
    assert sorted(ids[both]) == sorted(ids[first] + ids[second])
    pictures = {
        (name, i): picture for s in (first, second) for (name, i), picture in zip(ids[s], raw(s)["image"], strict=True)
    }
    assert [pictures[key] for key in ids[both]] == raw(both)["image"]
    rows = [both.recipe.rows[k] for k in range(len(both))]
    assert rows[:3] == [*first.recipe.rows[:2], second.recipe.rows[1]]  # those of the class "cat"
    both.save_condensed(tmp_path)
    assert_same(both, load_condensed(tmp_path))


def test_message_about_other_columns_names_the_set_and_what_differs() -> None:
    first = make_coreset()
    wide = make_coreset(real_rows().add_column("weight", [1.0] * len(real_rows())))
    with pytest.raises(ValueError, match=r"got \{\} in set 1 and \{'weight': Value.*\} in set 3$"):
        combine_condensed([first, make_coreset(seed=1), wide])


def test_columns_in_another_order_go_together() -> None:
    ds = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
    first, second = (
        condense_dataset(ds.select_columns(columns), "random", 1, seed=seed, progress=False)
        for seed, columns in enumerate((["image", "label"], ["label", "image"]))
    )
    both = combine_condensed([first, second])
    assert both.column_names == first.column_names
    assert sorted(both["label"]) == [0, 0, 1, 1, 2, 2]


def test_card_of_single_images_says_so_and_a_stranger_cannot_write_on_it(tmp_path: Path) -> None:
    parts = [make_set(ipc=1, seed=seed) for seed in (0, 1)]
    folder = combine_condensed(parts).save_condensed(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "the first images, one image per class" not in card, "each class has the images of two sets"
    assert "images per class: cat 1, dog 1" in card
    facts = json.loads((folder / FACTS).read_text())
    facts["recipe"]["parts"][0]["recipe"]["method"] = "x`\n\n<!-- hf_condense:end -->\n\n# Buy <b>here</b>\n"
    shown = render({"a": Facts.from_values(facts)})
    assert "<b>" not in shown
    assert shown.count(END) == 1


def test_text_labels_stay_text() -> None:
    ds = [toy_dataset(labels) for labels in (("cat", "dog"), ("dog", "eel"))]
    sets = [condense_dataset(d, "random", 1, label_column="label", progress=False) for d in ds]
    both = combine_condensed(sets)
    assert sorted(both["label"]) == ["cat", "dog", "dog", "eel"]
    assert len(both.source) == len(ds[0]) + len(ds[1])


def test_soft_labels_follow_their_rows() -> None:
    first, second = (
        make_set(soft=True, factor=2, temperature=2.0),
        make_set(soft=True, factor=2, seed=1, temperature=2.0),
    )
    both = combine_condensed([first, second])
    images, _ = both.synthetic.decoded()
    for s in (first, second):
        for image, logits in zip(s.synthetic.decoded()[0], s.synthetic.soft_labels, strict=True):
            place = int((images - image).abs().amax((1, 2, 3)).argmin())
            assert torch.equal(both.synthetic.soft_labels[place], logits)


def test_learned_rate_is_kept_if_all_parts_have_it() -> None:
    first = make_set(student=True)
    assert combine_condensed([first, make_set(student=True, **FISH)]).synthetic.student_lr == 0.0125
    mixed = combine_condensed([first, make_set(**FISH)])
    assert mixed.synthetic.student_lr is None
    assert [part["student_lr"] for part in mixed.recipe.parts] == [pytest.approx(0.0125), None]


def test_combining_step_by_step_equals_combining_at_once() -> None:
    sets = [make_set(), make_set(**FISH), make_set(seed=2)]
    assert_same(combine_condensed([combine_condensed(sets[:2]), sets[2]]), combine_condensed(sets))


def test_saving_again_after_other_times_changes_nothing(tmp_path: Path) -> None:
    sets = [make_set(), make_set(**FISH)]
    combine_condensed(sets).save_condensed(tmp_path)
    files = files_below(tmp_path)
    later = make_set(created_at="2027-01-01T00:00:00Z", runtime={"device": "cpu", "seconds": 2.0})
    combine_condensed([later, sets[1]]).save_condensed(tmp_path)
    assert files_below(tmp_path) == files
    with pytest.raises(FileExistsError, match=r"another recipe \(.*parts"):
        combine_condensed([make_set(seed=5), sets[1]]).save_condensed(tmp_path)


def test_pushed_set_loads_and_its_card_names_all_parts(hub) -> None:
    both = combine_condensed([make_set(), make_set(**FISH)])
    both.push_to_hub("alice/animals")
    assert_same(both, load_condensed("alice/animals"))
    card = (both.save_condensed(hub.home / "copy").parent / "README.md").read_text()
    for text in ("part 1: `dm_ipc2` of someone/pets", "cat 2, dog 2", "states the licence mit", "the licence cc0-1.0"):
        assert text in card
    assert "- sea/fish" in card.split("---")[1]


def test_networks_are_trained_on_all_parts() -> None:
    ds = [toy_dataset(names=("cat", "dog", "eel")).filter(lambda row, c=c: row["label"] in c) for c in ((0, 1), (2,))]
    options = {"network": "convnet-w4-d1", "steps": 2, "storage": "dct", "progress": False}
    both = combine_condensed([condense_dataset(d, "dm", 1, **options) for d in ds])
    test = toy_dataset(names=("cat", "dog", "eel"))
    table = evaluate(both, test, networks="convnet-w4-d1", recipe="dc", epochs=1, seeds=1, progress=False)
    assert [score.set for score in table.scores][:2] == [both.recipe.config_name, "random"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda: make_coreset(), "kind should be equal .*'synthetic' in set 1 and 'coreset' in set 2"),
        (lambda: make_set(factor=2), "storage should be equal"),
        (lambda: make_set(image_shape=[1, 8, 8]), "image_shape should be equal"),
        (lambda: make_set(label_column="kind"), "label_column should be equal"),
        (lambda: make_set(soft=True), "soft labels should be equal"),
        (lambda: make_set(zca=True), "zca_matrix should be equal"),
        (lambda: make_set(label_values=["a", "b"]), "feature of the column 'label' should be equal"),
    ],
)
def test_sets_that_do_not_go_together_are_refused(second, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine_condensed([make_set(), second()])


def test_other_values_than_condensed_sets_are_refused() -> None:
    with pytest.raises(TypeError, match="condensed sets; got Dataset"):
        combine_condensed([make_set(), real_rows()])
    with pytest.raises(TypeError, match="a list of condensed sets; got CondensedDataset"):
        combine_condensed(make_set())
    with pytest.raises(TypeError, match="a list of condensed sets; got NoneType"):
        combine_condensed(None)
    with pytest.raises(ValueError, match="takes two condensed sets or more; got 1"):
        combine_condensed([make_set()])
    with pytest.raises(ValueError, match=r"class_names .* should be equal"):
        combine_condensed([make_set(soft=True), make_set(soft=True, **FISH)])
    with pytest.raises(ValueError, match="made from the same source"):
        combine_condensed([formed_set("dct", 4), formed_set("dct", 4, seed=1)])


PART_CHANGES = {
    "budgets that do not sum": (lambda parts: parts[0]["ipc"].update(cat=10**12), "sum to that of the set"),
    "no recipe": (lambda parts: parts[0].update(recipe=None), "part 0 should have recipe and ipc"),
    "parts within parts": (lambda parts: parts[0]["recipe"].update(parts=[]), "should not have parts themselves"),
    "another shape": (lambda parts: parts[1]["recipe"].update(image_shape=[3, 8, 9]), "part 1 should have kind"),
    "no spread": (lambda parts: parts[1]["recipe"].update(std=[0, 0, 0]), "part 1: .*positive std"),
}


@pytest.mark.parametrize(("change", "message"), PART_CHANGES.values(), ids=PART_CHANGES.keys())
def test_damaged_parts_are_refused(change, message: str, tmp_path: Path) -> None:
    both = combine_condensed([formed_set("dct", 4), formed_set("dct", 4, **FISH, **OTHER_UNITS)])
    file = both.save_condensed(tmp_path) / FACTS
    facts = json.loads(file.read_text())
    change(facts["recipe"]["parts"])
    file.write_text(json.dumps(facts))
    with pytest.raises(CondensedFormatError, match=message):
        load_condensed(tmp_path)


def test_recipe_of_one_number_of_images_cannot_have_parts() -> None:
    both = combine_condensed([make_set(), make_set(**FISH)])
    with pytest.raises(CondensedFormatError, match="sum to that of the set"):
        type(both.recipe).from_dict(replace(both.recipe, ipc=2).to_dict())


def test_labels_of_views_follow_their_rows() -> None:
    sets = [viewed_set(seed=s) for s in (0, 1)]
    both = combine_condensed(sets)
    images, every = both.synthetic.decoded()[0], torch.arange(3)
    for s in sets:
        for row, image in enumerate(s.synthetic.decoded()[0]):
            place = int((images - image).abs().amax((1, 2, 3)).argmin())
            own = s.synthetic.view_labels.logits(torch.full((3,), row), every)
            assert torch.equal(both.synthetic.view_labels.logits(torch.full((3,), place), every), own)


def test_sources_of_other_features_are_left_out(toy) -> None:
    options = {"network": "convnet-w4-d1", "steps": 1, "progress": False, "compile": False}
    sets = [condense_dataset(ds, "dm", 1, seed=i, **options) for i, ds in enumerate((toy, toy.remove_columns("note")))]
    assert combine_condensed(sets).source is None


def test_sources_with_other_classes_get_the_labels_of_all() -> None:
    pets, fish = (toy_dataset((0, 1), rows=6, names=names) for names in (("cat", "dog"), ("cod", "cat")))
    both = combine_condensed([condense_dataset(ds, "random", 1, progress=False) for ds in (pets, fish)])
    feature = both.source.features["label"]
    assert feature.names == ["cat", "dog", "cod"]
    names = [ds.features["label"].int2str(label) for ds in (pets, fish) for label in ds["label"]]
    assert [feature.int2str(label) for label in both.source["label"]] == names
    assert both.source.column_names == pets.column_names


def test_source_in_another_format_is_there_once(toy) -> None:
    first, second = (condense_dataset(ds, "random", 1, progress=False) for ds in (toy, toy.with_format("torch")))
    both = combine_condensed([first, second])
    assert len(both.source) == len(toy)
    other = condense_dataset(toy.select(range(30)), "random", 1, progress=False)
    assert len(combine_condensed([both, other, first]).source) == len(toy) + 30
    assert len(combine_condensed([first, combine_condensed([other, first])]).source) == len(toy) + 30
    third = condense_dataset(toy.select(range(20)), "random", 1, progress=False)
    shared = [combine_condensed([first, other]), combine_condensed([first, third])]
    assert combine_condensed(shared).source is None  # the rows of the first cannot be taken out of one


def test_duration_of_a_stranger_that_is_no_number_is_left_out() -> None:
    parts = [make_set(), make_set(seed=1)]
    parts[0].recipe.runtime["seconds"] = "long"
    parts[1].recipe.runtime["seconds"] = 2
    assert combine_condensed(parts).recipe.runtime["seconds"] == 2


def test_common_value_is_that_of_all() -> None:
    assert common([2, 2]) == 2
    assert common([2, None]) is None


@pytest.mark.parametrize("name", ["mean", "std"])
def test_parts_whose_units_differ_in_one_constant_keep_them(name: str) -> None:
    pets, fish = formed_set("dct", 4), formed_set("dct", 4, **FISH, **{name: OTHER_UNITS[name]})
    both = combine_condensed([pets, fish])
    assert both.recipe.format_version == "3"
    images = images_by_class(both)
    for c, own in {**images_by_class(pets), **images_by_class(fish)}.items():
        torch.testing.assert_close(images[c], own, rtol=0, atol=1e-6)


def test_labels_of_views_with_other_numbers_of_logits_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="label_top should be equal in all sets; got 2 in set 1 and 3 in set 2"):
        combine_condensed([viewed_set(k=2), viewed_set(k=3, seed=1)])


def test_sets_of_one_whitening_matrix_and_two_means_do_not_go_together() -> None:
    first, second = make_set(zca=True), make_set(zca=True, seed=1)
    tensors = replace(second.synthetic, zca_matrix=first.synthetic.zca_matrix)
    other = CondensedDataset.from_parts(second, tensors, second.recipe)
    with pytest.raises(ValueError, match="zca_mean should be equal in all sets"):
        combine_condensed([first, other])


def test_equal_images_of_other_classes_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    combine_condensed([make_set(), make_set(class_names=FISH["class_names"])])
    assert not caplog.records


def test_source_of_several_sets_counts_once_in_the_normalisation() -> None:
    grey = {"image_shape": [1, 8, 8]}
    source = {"num_examples": 30, "content_hash": "a"}
    dark = [make_set(**grey, seed=seed, mean=[0.2], std=[0.1], source=source) for seed in (0, 1)]
    light = make_set(**grey, mean=[0.6], std=[0.2], source={"num_examples": 10, "content_hash": "b"})
    both, all_three = combine_condensed([dark[0], light]).recipe, combine_condensed([*dark, light]).recipe
    assert (all_three.mean, all_three.std) == (both.mean, both.std)
    assert all_three.source == both.source


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"soft": True, "temperature": 2.0},
            {"soft": True, "temperature": 4.0},
            "the temperature of the soft labels should be equal in all sets; got 2.0 in set 1 and 4.0 in set 2",
        ),
        (
            {"label_values": [3, 7]},
            {"label_values": [7, 3]},
            "class 'cat' has the label 3 in one set and 7 in another",
        ),
    ],
)
def test_labels_that_mean_something_else_do_not_go_together(first: dict, second: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine_condensed([make_set(**first), make_set(seed=1, **second)])


def test_recipe_has_the_options_that_are_equal_in_all_parts_and_the_latest_time() -> None:
    first = make_set(options={"lr_img": 1.0, "momentum": 0.5}, created_at="2026-03-01T00:00:00Z")
    second = make_set(options={"lr_img": 2.0, "momentum": 0.5}, created_at="2026-02-01T00:00:00Z", **FISH)
    both = combine_condensed([first, second]).recipe
    assert both.options == {"momentum": 0.5}
    assert both.created_at == "2026-03-01T00:00:00Z"


def test_labels_of_views_follow_the_rows_that_an_image_holds() -> None:
    sets = [viewed_set(seed=seed, factor=2) for seed in (0, 1)]
    both = combine_condensed(sets)
    images = both.synthetic.decoded()[0]
    for s in sets:
        for row, image in enumerate(s.synthetic.decoded()[0]):
            place = int((images - image).abs().amax((1, 2, 3)).argmin())
            assert torch.equal(both.synthetic.view_labels.values[place], s.synthetic.view_labels.values[row])
            assert torch.equal(both.synthetic.view_labels.crops[place], s.synthetic.view_labels.crops[row])
