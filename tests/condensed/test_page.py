"""The page of sets: one file that shows everything, runs nothing of strangers and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hf_condense.condensed.files.packing import pack
from hf_condense.condensed.page.html import element
from hf_condense.condensed.page.render import Shown, render_page
from hf_condense.condensed.scores import Evaluation, Score
from tests.support.condensed_sets import formed_set, make_coreset, make_set

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</style><svg/onload=alert(3)>",
    "javascript:alert(4)",
    "<!-- &lt; \u202e",
]
VOID = {"img", "input", "meta"}


class Reader(HTMLParser):
    """Reads a page: its elements with their attributes, and the text inside elements of each kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements are closed in order"

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def shown(small) -> Shown:
    return Shown(pack(small.parts).facts, small.synthetic)


def page_of(*sets, **options) -> Reader:
    return Reader(render_page({small.recipe.config_name: shown(small) for small in sets}, **options))


def measured(small, mean: float = 0.6):
    name = small.recipe.config_name
    rows = ((name, mean), (f"{name} (8-bit)", mean - 0.1), ("random", 0.25), ("full", 0.9))
    scores = [
        Score(
            own,
            100 if own == "full" else 4,
            "convnet-w8",
            "dc",
            None,
            3.0,
            3,
            (value - 0.02, value + 0.02),
            (0, 1),
            1.0,
        )
        for own, value in rows
    ]
    return small.with_evaluation(Evaluation(tuple(scores)))


def hostile_set(method: str = "dm"):
    return make_set(
        method=method,
        class_names=HOSTILE,
        label_values=list(range(len(HOSTILE))),
        source={"name": HOSTILE[0], "license": HOSTILE[1], "num_examples": 9},
        options={HOSTILE[2]: HOSTILE[0]},
        network=HOSTILE[1],
        citation=HOSTILE[2],
        preset=HOSTILE[4],
    )


def test_texts_of_strangers_stay_texts():
    small = hostile_set()
    records = [
        {**record, "network": HOSTILE[1], "recipe": HOSTILE[0], "augment": HOSTILE[2]} for record in records_of()
    ]
    small.recipe.evaluation.extend(records)
    page = page_of(small, place=HOSTILE[0])
    harmless = page_of(make_set(class_names=[f"c{i}" for i in range(5)], label_values=list(range(5))))
    kinds = {tag for tag, _ in page.elements}
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert kinds - {"table", "thead", "tbody", "td", "svg", "rect", "line"} <= {tag for tag, _ in harmless.elements} | {
        "tr"
    }
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    names = [text.strip() for text in page.texts["figcaption"]]
    assert names == HOSTILE
    assert {image["alt"] for image in page.all("img")} == {f"{name}, image {n}" for name in HOSTILE for n in (1, 2)}


def records_of() -> list[dict]:
    score = Score("dm_ipc2", 4, "net", "dc", None, 3.0, 3, (0.5, 0.6), (0, 1), 1.0)
    return Evaluation((score,)).to_records()


def test_page_loads_nothing_and_lets_only_its_own_script_run():
    page = page_of(measured(make_set()))
    addresses = [v for _, a in page.elements for k, v in a.items() if k in ("src", "href", "action", "poster", "data")]
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert "url(" not in page.texts["style"][0]
    assert "@import" not in page.texts["style"][0]
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.texts[kind][0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not [attributes for _, attributes in page.elements if "style" in attributes], "the policy forbids them"


@pytest.mark.parametrize(
    "small", [make_set(ipc=3), formed_set("dct"), make_coreset()], ids=["pixels", "dct", "coreset"]
)
def test_images_are_those_of_the_set_by_class(small):
    page = page_of(small, per_class=2)
    images, labels = small.synthetic.decoded()
    expected = [images[labels == c][:2] for c in range(2)]
    sources = [image["src"].partition(",")[2] for image in page.all("img")]
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) / 255 for source in sources]
    assert len(pixels) == 4
    for got, want in zip(pixels, [image for rows in expected for image in rows], strict=True):
        assert np.abs(got - want.clamp(0, 1).permute(1, 2, 0).numpy()).max() <= 1 / 255
    assert {image["width"] for image in page.all("img")} == {"64"}, "8 pixels are enlarged eightfold"
    assert ("the first 2 images of each class" in page.texts["article"][0]) == (len(images) > 4)


def test_classes_beyond_the_limit_are_left_out_and_the_page_says_so():
    small = make_set(class_names=["a", "b", "c"], label_values=[0, 1, 2])
    page = page_of(small, max_classes=2)
    assert page.texts["figcaption"] == ["a", "b"]
    assert "the first 2 of 3 classes" in page.texts["article"][0]


def test_large_images_are_scaled_down():
    page = page_of(make_set(image_shape=[3, 400, 200], ipc=1))
    assert {(image["width"], image["height"]) for image in page.all("img")} == {("96", "192")}


def test_scores_have_bars_with_the_standard_deviation_and_the_words_of_the_card():
    page = page_of(measured(make_set()))
    article = page.texts["article"][0]
    for text in ("8-bit images", "exact floats", "random rows", "whole source", "60.00 ± 2.83", "mean ± standard"):
        assert text in article
    bars = [float(rect["width"]) for rect in page.all("rect") if rect["class"] == "bar"]
    assert bars == pytest.approx([100, 120, 50, 180])  # of 200: the 8-bit images come first
    assert len(page.all("line")) == 4 * 3


def test_table_sorts_by_numbers_and_shows_the_first_accuracy_of_the_card():
    page = page_of(measured(make_set()), formed_set("dct", method="m3d"))
    heads = page.texts["th"][: len(page.all("button"))]
    cells = [cell["data-value"] for cell in page.all("td") if "data-value" in cell]
    rows = [cells[: len(heads) - 1], cells[len(heads) - 1 :]]
    place = heads.index("accuracy %") - 1
    assert [float(rows[0][place]), rows[1][place]] == [pytest.approx(0.5), ""]
    assert rows[1][heads.index("storage") - 1] == "dct"
    links = [link["href"] for link in page.all("a")]
    assert links == [f"#{article['id']}" for article in page.all("article")]


def test_page_works_on_phones_in_the_dark_and_by_keyboard():
    page = page_of(measured(make_set()))
    style = page.texts["style"][0]
    assert "width=device-width" in next(m["content"] for m in page.all("meta") if m.get("name") == "viewport")
    assert "prefers-color-scheme: dark" in style
    assert "color-scheme: light dark" in style
    assert ":focus-visible" in style
    areas = [area for area in page.all("div") if area.get("class") == "scroll"]
    assert {area["tabindex"] for area in areas} == {"0"}
    assert page.all("html")[0]["lang"] == "en"


def test_distances_and_whitening_are_told_where_the_facts_have_them():
    distances = {"min": 0.1, "median": 0.2, "max": 0.3}
    near = make_set(nearest={"synthetic": distances, "real": distances, "rows": 50})
    assert "No copies" in page_of(near).texts["article"][0]
    assert page_of(near).texts["h3"] == ["Accuracy", "Load", "Distances to real images"]
    assert "Distances to real images" not in page_of(make_set()).texts["article"][0]
    assert "zca_mean" in page_of(make_set(zca=True, pixel_range="free")).texts["article"][0]


def test_equal_sets_have_equal_pages():
    first, second = (render_page({"a": shown(make_set()), "b": shown(make_coreset())}) for _ in range(2))
    assert first == second


def test_half_a_character_is_written_as_a_question_mark():
    assert element("p", "a\ud800b") == "<p>a?b</p>"


def test_numbers_below_one_and_no_sets_are_refused():
    with pytest.raises(ValueError, match="per_class should be at least 1; got 0"):
        page_of(make_set(), per_class=0)
    with pytest.raises(ValueError, match="at least one set"):
        render_page({})
