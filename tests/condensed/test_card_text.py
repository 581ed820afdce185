"""The text of a card: the whole of it by one pattern, and what it says of sets with few or with strange facts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.markdown import escape
from hf_condense.condensed.card.accuracy import accuracies
from hf_condense.condensed.card.render import render
from hf_condense.condensed.card.template import BLOCK, END, fill
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.decoders import decoder_class
from hf_condense.condensed.scores import Evaluation
from hf_condense.condensed.scores.records import FLOATS, RANDOM, groups_of, paired_difference
from hf_condense.condensed.wording import accuracy_text, nearest_verdict, size_text, training_text
from hf_condense.engine.registry import list_methods
from hf_condense.source.whitening import Whitening
from tests.support.card_sets import NEAREST, card_sets, facts_of, measured_set, score
from tests.support.condensed_sets import formed_set, make_coreset, make_recipe, make_set

PATTERN = Path(__file__).parents[1] / "support" / "card_pattern.md"
MODEL_CARDS = Path(__file__).resolve().parents[2] / "model_cards"
CARDS = [path for path in sorted(MODEL_CARDS.glob("*.md")) if path.stem != "README"]  # that page is their index
PLACES = {"⟨bytes⟩": r"[\d,]+", "⟨count⟩": r"[\d,]+(?:\.\d)?", "⟨number⟩": r"\d+\.\d+"}  # sizes depend on the libraries


def section(card: str, head: str) -> str:
    """Return one section of a card."""
    return card.split(f"## {head}\n", 1)[1].split("\n## ", 1)[0].split(END)[0].strip()


def test_card_matches_the_pattern_file():
    card = render(card_sets(), None, place="me/pets")
    pattern = re.escape(PATTERN.read_text(encoding="utf-8"))
    for place, meaning in PLACES.items():
        pattern = pattern.replace(re.escape(place), meaning)
    assert re.fullmatch(pattern, card), f"a card that differs from {PATTERN.name}:\n{card}"


def test_card_has_the_sections_of_the_template_in_its_order():
    headings = re.findall(r"^## .*", BLOCK, re.MULTILINE)
    assert len(headings) > 8
    assert re.findall(r"^## .*", render(card_sets()), re.MULTILINE) == headings


TEMPLATE = "Intro.\n\n## One\n\nText about {a}.\n\n{b}\n\n## Two\n\nNote.\n\n{b}\n\n## Three\n\nThe end."


@pytest.mark.parametrize(
    ("gaps", "text"),
    [
        (
            {"a": "this", "b": "more"},
            "Intro.\n\n## One\n\nText about this.\n\nmore\n\n## Two\n\nNote.\n\nmore\n\n## Three\n\nThe end.",
        ),
        ({"a": "this", "b": ""}, "Intro.\n\n## One\n\nText about this.\n\n## Three\n\nThe end."),
        ({"a": "", "b": ""}, "Intro.\n\n## Three\n\nThe end."),
        ({"a": "{b}", "b": ""}, "Intro.\n\n## One\n\nText about {b}.\n\n## Three\n\nThe end."),
    ],
    ids=["all", "one", "none", "text that looks like a gap"],
)
def test_empty_paragraphs_and_sections_vanish_from_a_filled_template(gaps, text):
    assert fill(TEMPLATE, gaps) == text


def test_gap_without_a_text_raises_key_error():
    with pytest.raises(KeyError, match=r"^'a'$"):
        fill("{a}", {})


def test_card_of_a_whitened_set_says_how_images_are_whitened(tmp_path):
    small = make_set(zca=True)
    target = small.save_condensed(tmp_path)
    make_set(ipc=1).save_condensed(tmp_path)
    text = section((tmp_path / "README.md").read_text(), "Load").split("\n\n")[-1]
    assert text.startswith("Whiten all images before networks train on `dm_ipc2` or are tested:")
    for words in (
        "`(pixels - zca_mean) @ zca_matrix`",
        "both for training and for test images",
        "values of an image in",
    ):
        assert words in text
    stored = load_file(target / "condensed.safetensors")
    pixels, _ = small.synthetic.decoded()
    expected = Whitening(small.synthetic.zca_matrix, small.synthetic.zca_mean)(pixels)  # what evaluate does
    assert torch.equal((pixels.flatten(1) - stored["zca_mean"]) @ stored["zca_matrix"], expected.flatten(1))


def test_only_cards_of_whitened_sets_speak_of_whitening():
    earlier = {"whitened": None}  # removes the key, which earlier versions did not write
    for whitened, facts in (
        (False, facts_of(make_set())),
        (False, facts_of(make_coreset())),
        (False, facts_of(make_set(options={"zca": False}), **earlier)),
        (True, facts_of(make_set(zca=True, options={"zca": True}), **earlier)),
        (True, facts_of(make_set(zca=True))),
        (True, facts_of(make_set(zca=True, options={"white": 1}))),
    ):
        assert ("zca_matrix" in render({"dm_ipc2": facts})) is whitened


def test_sections_without_facts_vanish_or_say_so():
    earlier = facts_of(make_set(source={}, runtime={}, citation=None), preview=None)  # as of an earlier version
    card = render({"dm_ipc2": earlier})
    assert "## Images" not in card
    assert "## Citation" not in card
    assert section(card, "Accuracy").startswith("Not measured: dm_ipc2.")
    assert section(card, "Storage").splitlines()[2].endswith("B | unknown |")
    assert "(1/" not in section(card, "Storage")
    assert section(card, "Nearest real images") == "- dm_ipc2: not checked."
    assert "| not stated |" in section(card, "Sets")
    assert "This card states no licence." in section(card, "Licence")


def test_only_the_picture_of_the_set_itself_is_shown():
    for strange in ("../secret.png", "http://elsewhere/x.png", True):
        assert "![" not in render({"dm_ipc2": facts_of(make_set(), preview=strange)})
    assert "![dm_ipc2](pictures/dm_ipc2/preview.png)" in render({"dm_ipc2": facts_of(make_set())}, pictures="pictures/")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"set": "dm_ipc2"},
        {**score("dm_ipc2", 0.5).__dict__, "mean": "0.5", "n": 1},
        {**score("dm_ipc2", 0.5).__dict__, "mean": 50.0, "n": 1},
        {**score("dm_ipc2", 0.5).__dict__, "augment": ["flip"]},
    ],
)
def test_malformed_measurements_are_left_out(record):
    record.pop("accuracies", None)
    small = make_set(evaluation=[record])
    assert groups_of(small.recipe) == []
    assert "Not measured: dm_ipc2." in render({"dm_ipc2": facts_of(small)})


def test_accuracies_of_a_coreset_are_those_of_8_bit_images():
    small = make_coreset().with_evaluation(Evaluation((score("herding_ipc2", 0.5), score("random", 0.25))))
    table = accuracies({"herding_ipc2": small.recipe}).splitlines()
    assert table[2].startswith("| config | 8-bit images | random rows | n |")
    assert table[4].startswith("| herding_ipc2 | 50.00 | 25.00 | 1 |")


def test_resized_coreset_was_not_measured_on_the_rows_that_load_dataset_returns():
    small = make_coreset().with_evaluation(Evaluation((score("herding_ipc2", 0.5),)))
    recipe = replace(small.recipe, image_size=(4, 4))
    assert accuracies({"herding_ipc2": recipe}).splitlines()[2].startswith("| config | exact floats | n |")
    assert size_text(recipe).endswith(" (resized; the rows are as in the source)")
    assert "resized" not in size_text(small.recipe)


def test_source_without_some_of_its_rows_is_not_called_whole():
    small = make_set()
    known = small.recipe.source["num_examples"]
    for rows, name in ((known, "whole source"), (known - 1, f"{known - 1:,} rows of the source")):
        full = replace(score("full", 0.75), rows=rows)
        measured = small.with_evaluation(Evaluation((score("dm_ipc2", 0.5), full)))
        assert f"| {name} |" in accuracies({"dm_ipc2": measured.recipe})


@pytest.mark.parametrize(
    ("epochs", "updates", "text"), [(1, 1, "1 epoch, 1 update,"), (300, 1200, "300 epochs, 1,200 updates,")]
)
def test_training_is_told_in_the_singular_and_the_plural(epochs, updates, text):
    record = {"recipe": "dc", "epochs": epochs, "updates": updates}
    assert training_text(record) == f"dc: {text} no augmentation"


def test_differences_are_paired_by_seed():
    first, second = Evaluation((score("a", 0.5, 0.75), score("b", 0.25, 0.75))).to_records()
    assert paired_difference(first, second) == pytest.approx((0.125, 0.1767767))
    assert paired_difference(first, {**second, "seeds": [1, 0]}) is None
    assert paired_difference(first, {**second, "accuracies": [0.5]}) is None
    assert paired_difference(first, {**second, "accuracies": ["x", "y"]}) is None
    assert paired_difference({"mean": 0.5}, {"mean": 0.5}) is None
    assert paired_difference(*Evaluation((score("a", 0.5), score("b", 0.25))).to_records()) == (0.25, None)


def test_verdict_on_composed_images_says_what_is_not_found():
    distances = {"min": 0.05, "median": 0.1, "max": 0.2}
    nearest = {"synthetic": distances, "real": distances}
    assert "combined from source images" in nearest_verdict(nearest, "composed")
    assert "almost a copy" in nearest_verdict({**nearest, "synthetic": {**distances, "min": 0.0}}, "composed")


@pytest.mark.parametrize(
    ("synthetic", "verdict"),
    [
        ({"min": 0.0, "median": 0.1, "max": 0.2}, "at least one image is almost a copy"),
        ({"min": 0.02, "median": 0.07, "max": 0.2}, "no copies; the images are much closer to single source images"),
        ({"min": 0.05, "median": 0.1, "max": 0.2}, "no copies; the images are closer to single source images"),
        (
            {"min": 0.05, "median": 0.13, "max": 0.2},
            "no copies; the images are a little closer to single source images",
        ),
        ({"min": 0.05, "median": 0.2, "max": 0.2}, "no copies; the images are no closer to single source images"),
    ],
)
def test_verdict_says_how_close_the_images_are_to_copies(synthetic, verdict):
    card = render({"dm_ipc2": facts_of(make_set(nearest={**NEAREST, "synthetic": synthetic}))})
    assert verdict in section(card, "Nearest real images")


def test_citation_of_every_method_names_the_whole_paper():
    for info in list_methods():
        for part in (info.title, info.authors, info.paper, info.venue, str(info.year), info.link):
            assert part in info.citation


def test_method_that_is_not_installed_is_cited():
    card = render({"dm_ipc2": facts_of(make_set(method="of_another_package", citation="Somebody | 2026"))})
    assert section(card, "Citation") == "- Somebody &#124; 2026"


@pytest.mark.parametrize("storage", ["dct", "siren"])
def test_card_says_what_a_form_stores_and_cites_its_papers(storage):
    small = formed_set(storage)
    card = render({small.recipe.config_name: facts_of(small)})
    form = decoder_class(storage)
    said = f"stores {form.content} (storage form `{storage}`). In the space of one image it holds 2 images"
    assert said in section(card, "Sets")
    assert form.papers
    assert [line[2:] for line in section(card, "Citation").splitlines()] == [small.recipe.citation, *form.papers]


def test_card_of_whole_images_speaks_of_no_storage_form():
    card = render({"dm_ipc2": facts_of(make_set()), "herding_ipc2": facts_of(make_coreset())})
    assert "storage form `" not in card
    assert "Storage form" not in section(card, "Citation")


def test_real_rows_in_another_form_than_that_of_the_set_keep_their_name():
    name = "dm_ipc2"
    small = make_set().with_evaluation(Evaluation((score(name, 0.5), score("random as dct16", 0.25))))
    accuracy = section(render({name: facts_of(small)}), "Accuracy")
    assert "| config | exact floats | random as dct16 | n |" in accuracy
    assert "same form" not in accuracy


def test_set_of_an_older_version_has_no_citation():
    assert "## Citation" not in render({"dm_ipc2": facts_of(make_set(citation=None))})


def test_text_of_strangers_is_escaped():
    nasty = 'a|b\n## c <script>x</script> ![x](http://t) `y` *z* ~~w~~ {{ 7*7 }} & --- "q"'
    record = score(nasty, 0.5, network=nasty, recipe=nasty, augment=nasty)
    small = make_set(
        source={"name": nasty, "license": nasty},
        network=nasty,
        options={"x": nasty},
        runtime={"seconds": 1, "device": nasty},
        evaluation=Evaluation((record, score("dm_ipc2", 0.5, network=nasty, recipe=nasty, augment=nasty))).to_records(),
    )
    text = render({"dm_ipc2": facts_of(small)}).split("---\n", 2)[2]
    assert "<script>" not in text
    assert "![x]" not in text
    assert "\n## c" not in text
    assert "*z*" not in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith(("| dm_ipc2 | dm", "| dm_ipc2 | 0"))}
    assert widths == {9}
    assert [line.count("|") for line in section(text, "Accuracy").splitlines() if line.startswith("|")] == [7] * 3
    assert escape("a|b\r\nc") == "a&#124;b c"
    assert escape("__init__ of m3d_ipc1") == "&#95;&#95;init__ of m3d_ipc1"
    assert escape("a\\|b $x$") == "a&#92;&#124;b &#36;x&#36;"
    assert render({"dm_ipc2": facts_of(make_set(network=END))}).count(END) == 1


@pytest.mark.parametrize(
    "broken",
    [
        {"png": {"clipped_fraction": 0}},
        {"png": 1},
        {"num_rows": None},
        {"parquet_bytes": None},
        {"tensor_bytes": "many"},
        {"extra_splits": []},
    ],
)
def test_facts_that_cannot_be_shown_raise_format_error(broken):
    with pytest.raises(CondensedFormatError, match="dm_ipc2"):
        render({"dm_ipc2": facts_of(make_set(), **broken)})


def test_card_of_a_saved_set_shows_its_measurements(tmp_path):
    small = measured_set()
    plain = CondensedDataset.from_parts(small, small.synthetic, replace(small.recipe, evaluation=[], nearest=None))
    plain.save_condensed(tmp_path)
    assert "Not measured" in (tmp_path / "README.md").read_text()
    target = small.save_condensed(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "62.00 ± 16.97" in card
    assert "Not measured" not in card
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert small.save_condensed(tmp_path) == target
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == again


def test_evaluation_of_another_set_is_refused():
    small = make_set()
    table = Evaluation((score("dm_ipc9", 0.5),))
    with pytest.raises(ValueError, match="should be that of 'dm_ipc2'; got one of 'dm_ipc9'"):
        small.with_evaluation(table)
    with pytest.raises(TypeError, match="what evaluate returns; got"):
        small.with_evaluation(table.to_records())
    measured = small.with_evaluation(Evaluation((score("dm_ipc2", 0.5),)))
    assert (small.recipe.evaluation, len(measured.recipe.evaluation)) == ([], 1)
    assert measured.recipe == make_recipe(evaluation=measured.recipe.evaluation)
    assert isinstance(measured, CondensedDataset)


def test_evaluation_of_another_run_of_the_same_name_is_refused():
    first, second = make_set(), make_set(seed=1)
    table = Evaluation((score("dm_ipc2", 0.5),), run=first.recipe.run)
    assert first.with_evaluation(table).recipe.evaluation
    with pytest.raises(ValueError, match="of another set that is called 'dm_ipc2', too"):
        second.with_evaluation(table)


def test_evaluation_of_a_part_of_the_set_is_refused():
    small = make_set()
    part = replace(score("dm_ipc2", 0.5), ipc=1)
    with pytest.raises(ValueError, match=r"of its first 1 images per class\. Leave ipc= out, or pass ipc=2 too"):
        small.with_evaluation(Evaluation((part, score("full", 0.9))))  # the whole source is not cut down
    both = small.with_evaluation(Evaluation((part, replace(part, ipc=2))))
    assert len(groups_of(both.recipe)) == 1


def test_index_of_model_cards_has_every_set_with_its_accuracy():
    index = (MODEL_CARDS / "README.md").read_text(encoding="utf-8")
    for card in CARDS:
        for folder in sorted((MODEL_CARDS / card.stem).iterdir()):
            row = rf"\| \[{card.stem}\]\({card.name}\) \| `{folder.name}` \| \d+ \| [\d,-]+ \| \d+\.\d\d ± \d+\.\d\d \|"
            assert re.search(row, index), folder


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_model_cards_are_rendered_and_measured(path):
    card = path.read_text(encoding="utf-8")
    assert card.endswith(f"{END}\n"), "nothing is added by hand"
    assert "Not measured" not in card
    assert section(card, "Accuracy").count("| config | 8-bit images | exact floats | random rows |") == 1
    pictures = re.findall(r"!\[.*\]\((.*)\)", card)
    assert pictures
    assert all((MODEL_CARDS / picture).is_file() for picture in pictures)


def test_hard_labels_of_a_coreset_are_those_of_its_8_bit_images():
    small = make_coreset()
    name = small.recipe.config_name
    scores = (score(f"{name} (relabelled)", 0.5), score(f"{name} (hard labels)", 0.25))
    (group,) = groups_of(small.with_evaluation(Evaluation(scores)).recipe)
    assert [*group] == ["8-bit images, labelled by a teacher in every update", "8-bit images, hard labels"]


def test_rates_that_differ_from_the_first_are_named():
    small = make_set()
    scores = (score(small.recipe.config_name, 0.5, 0.75, lr=0.02), score("random", 0.25, 0.5, lr=0.01))
    group = groups_of(small.with_evaluation(Evaluation(scores)).recipe)[0]
    first, random = group[FLOATS], group[RANDOM]
    assert training_text(first).endswith("learning rate 0.02")
    assert accuracy_text(random, first).endswith("(learning rate 0.01)")


def test_accuracies_at_the_largest_ipc_of_a_dict_are_those_of_the_set():
    small = make_set(ipc={"cat": 1, "dog": 3})
    scores = [score(small.recipe.config_name, 0.5, 0.75, ipc=n) for n in (1, 3)]
    groups = groups_of(small.with_evaluation(Evaluation(tuple(scores))).recipe)
    assert [record["ipc"] for group in groups for record in group.values()] == [3]


def test_what_learning_adds_leaves_out_what_soft_labels_add():
    small = formed_set("patches", 4, soft=True)
    name = small.recipe.config_name
    scores = (
        score(name, 0.75),
        score(f"{name} (hard labels)", 0.5),
        score("random x4", 0.4375),
        score("random as patches4", 0.375),
    )
    card = accuracies({name: small.with_evaluation(Evaluation(scores)).recipe})
    assert "learning adds 12.50 points to random rows in the same form" in card
    assert "decodes into, is 6.25 points" in card
    assert ", all with hard labels)." in card
