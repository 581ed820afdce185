"""Soft labels of views: crops, the largest logits, and files that hold them."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from hf_condense import CondensedFormatError, load_condensed
from hf_condense.base.rng import keyed_generator
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.facts import read_facts
from hf_condense.condensed.files.names import FACTS, TENSORS
from hf_condense.condensed.files.sizes import Sizes
from hf_condense.condensed.hub.splits import write_splits
from hf_condense.condensed.tensors import round_robin
from hf_condense.condensed.views import CLASSES, CROPS, VALUES, ViewLabels, random_crops, view
from tests.support.condensed_sets import make_set
from tests.support.pretend_device import pretend_device

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def viewed_set(k: int = 2, views: int = 3, **changes) -> CondensedDataset:
    """Return a set whose rows have soft labels of views."""
    return make_set(class_names=NAMES, temperature=20.0, label_views=views, label_top=k, **changes)


class TestCrops:
    def test_crops_lie_within_the_image_and_have_the_least_area(self) -> None:
        crops = random_crops(2000, (20, 30), 0.5, keyed_generator("a")).int()
        top, left, height, width, mirrored = crops.unbind(1)
        assert bool((top >= 0).all() & (left >= 0).all())
        assert bool((top + height <= 20).all() & (left + width <= 30).all())
        share = (height * width).float() / 600
        assert float(share.min()) > 0.4, "only cutting to the image's sides and rounding make a crop smaller"
        assert 0.45 < float(mirrored.float().mean()) < 0.55
        assert float(share.max()) > 0.9

    def test_crops_reach_both_ends_of_an_image(self) -> None:
        top, left, height, width, _ = random_crops(4000, (8, 8), 0.25, keyed_generator("a")).int().unbind(1)
        for place, length in ((top, height), (left, width)):
            assert set(place[length == 6].tolist()) == {0, 1, 2}

    def test_area_of_one_gives_the_whole_image(self) -> None:
        crops = random_crops(50, (7, 9), 1.0, keyed_generator("a"), mirror=False)
        assert bool((crops == torch.tensor([0, 0, 7, 9, 0])).all())

    def test_whole_image_is_its_own_view_and_a_mirrored_one_is_flipped(self) -> None:
        images = torch.rand(2, 3, 6, 8, generator=keyed_generator("a"))
        crops = torch.tensor([[0, 0, 6, 8, 0], [0, 0, 6, 8, 1]])
        torch.testing.assert_close(view(images, crops), torch.stack([images[0], images[1].flip(2)]))

    def test_view_is_the_crop_resized(self) -> None:
        """Inside, where no pixel beyond the crop takes part, the view is what resizing the crop alone gives."""
        images = torch.rand(1, 3, 16, 16, generator=keyed_generator("a"))
        resized = F.interpolate(images[:, :, 4:12, 2:10], size=(16, 16), mode="bilinear")
        seen = view(images, torch.tensor([[4, 2, 8, 8, 0]]))
        torch.testing.assert_close(seen[:, :, 1:-1, 1:-1], resized[:, :, 1:-1, 1:-1])

    def test_device_gets_one_copy_and_no_small_steps(self) -> None:
        images = torch.rand(5, 3, 8, 8, generator=keyed_generator("a"))
        crops = random_crops(5, (8, 8), 0.3, keyed_generator("b"))
        with pretend_device() as counts:
            on_device = images.to(torch.device("cuda", 0))
            counts.clear()
            seen = view(on_device, crops)
            assert not counts.waits
            launches = dict(counts.launches)
            assert torch.equal(seen.cpu(), view(images, crops))
        assert launches == {"_to_copy": 1, "affine_grid_generator": 1, "grid_sampler_2d": 1}


class TestLabels:
    def test_all_logits_give_the_probabilities_back(self) -> None:
        logits = torch.randn(3, 2, 5, generator=keyed_generator("a"))
        labels = ViewLabels.of_logits(logits, torch.zeros(3, 2, 5, dtype=torch.int16), k=5)
        rows, views = torch.tensor([0, 2]), torch.tensor([1, 0])
        expected = logits[rows, views].softmax(1)
        torch.testing.assert_close(labels.logits(rows, views).softmax(1), expected, rtol=2e-3, atol=2e-4)

    def test_classes_that_are_not_stored_share_the_rest_evenly(self) -> None:
        probabilities = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04])
        labels = ViewLabels.of_logits(probabilities.log().reshape(1, 1, 5), torch.zeros(1, 1, 5).short(), k=2)
        (filled,) = labels.logits(torch.tensor([0]), torch.tensor([0])).exp()
        torch.testing.assert_close(filled, torch.tensor([0.6, 0.2, 0.2 / 3, 0.2 / 3, 0.2 / 3]), rtol=2e-3, atol=1e-4)

    def test_no_other_class_gets_more_than_the_smallest_that_is_stored(self) -> None:
        labels = ViewLabels.of_logits(torch.zeros(1, 1, 5), torch.zeros(1, 1, 5).short(), k=1)
        (filled,) = labels.logits(torch.tensor([0]), torch.tensor([0])).exp()
        torch.testing.assert_close(filled, torch.full((5,), 0.2), rtol=2e-3, atol=1e-4)

    def test_certain_teacher_gives_finite_logits(self) -> None:
        logits = torch.tensor([1e6, 0.0, 0.0, 0.0, -1e6]).reshape(1, 1, 5)
        for k in (1, 3, 5):
            labels = ViewLabels.of_logits(logits, torch.zeros(1, 1, 5).short(), k=k)
            filled = labels.logits(torch.tensor([0]), torch.tensor([0]))
            assert bool(filled.isfinite().all())
            assert int(filled.argmax()) == 0


class TestFiles:
    def test_set_loads_exactly_and_its_rows_have_the_labels(self, tmp_path: Path) -> None:
        small = viewed_set()
        small.save_condensed(tmp_path)
        loaded = load_condensed(tmp_path)
        for name, tensor in small.synthetic.all().items():
            assert torch.equal(loaded.synthetic.all()[name], tensor)
        assert loaded.recipe == small.recipe
        plain = datasets.load_dataset(str(tmp_path), split="train")
        assert plain[0]["soft_label"] == small[0]["soft_label"]
        assert plain.features == small.features
        assert plain[0]["soft_label_class"] == small.synthetic.view_labels.classes[0].tolist()
        assert plain[0]["soft_label_crop"] == small.synthetic.view_labels.crops[0].tolist()

    @pytest.mark.parametrize(("k", "views"), [(1, 1), (2, 3), (5, 2)])
    def test_card_counts_every_byte(self, k: int, views: int, tmp_path: Path) -> None:
        folder = viewed_set(k, views).save_condensed(tmp_path)
        sizes = Sizes.of(read_facts(folder))
        stored = safetensors.torch.load_file(folder / TENSORS)
        expected = sum(t.numel() * t.element_size() for name, t in stored.items() if name.startswith("soft_label"))
        assert sizes.soft_label_bytes == expected == 10 * views * (4 * k + 10)
        assert f"soft labels {expected:,} B" in (tmp_path / "README.md").read_text()

    def test_real_rows_in_another_split_lack_the_labels(self, tmp_path: Path) -> None:
        small = viewed_set()
        real = datasets.Dataset.from_dict(
            {"image": [small[0]["image"]] * 2, "label": [0, 1]},
            features=datasets.Features({name: small.features[name] for name in ("image", "label")}),
        )
        sizes = write_splits({"test": real}, small.features, tmp_path)
        assert sizes["test"]["num_rows"] == 2
        rows = datasets.Dataset.from_parquet(str(next(tmp_path.glob("*.parquet"))), cache_dir=str(tmp_path / "cache"))
        assert rows.features["soft_label_crop"] == small.features["soft_label_crop"]
        assert np.isnan(rows[0]["soft_label"]).all()
        assert rows[0]["soft_label_class"] == [[-1, -1]] * 3

    def test_file_has_version_3(self, tmp_path: Path) -> None:
        folder = viewed_set().save_condensed(tmp_path)
        assert json.loads((folder / FACTS).read_text())["format_version"] == "3"

    def test_images_of_8_bits_load_exactly(self, tmp_path: Path) -> None:
        small = make_set(store_dtype="uint8")
        images = small.synthetic.stored["images"]
        assert images.dtype == torch.uint8
        folder = small.save_condensed(tmp_path)
        loaded = load_condensed(tmp_path)
        assert torch.equal(loaded.synthetic.stored["images"], images)
        assert torch.equal(loaded.synthetic.decoded()[0], images.float() / 255)
        assert torch.equal(loaded.synthetic.decoded(torch.tensor([3, 0]))[0], images[[3, 0]].float() / 255)
        assert Sizes.of(read_facts(folder)).stored_bytes == images.numel()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label_top": 6}, "label_views should be in"),
            ({"label_views": 0}, "label_views should be in"),
            ({"label_views": None}, "label_views should be in"),
            ({"temperature": None}, "soft labels of views should have a temperature"),
            ({"store_dtype": "uint8", "storage": "dct"}, "store_dtype uint8 should be that of images"),
        ],
    )
    def test_recipe_that_contradicts_itself_raises_value_error(self, change: dict, message: str, tmp_path) -> None:
        small = viewed_set()
        small.recipe = replace(small.recipe, **change)
        with pytest.raises(ValueError, match=message):
            small.save_condensed(tmp_path)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (CLASSES, 5, "range over"),
            (CLASSES, -1, "range over"),
            (CLASSES, None, "should name a class once"),
            (CROPS, 9, "should lie within images of 8x8"),
            (CROPS, -1, "should lie within images of 8x8"),
            (VALUES, 1.0, "should be logarithms of probabilities"),
            (VALUES, float("nan"), "holds NaN"),
        ],
    )
    def test_impossible_values_in_a_file_raise_format_error(self, name, value, message, tmp_path: Path) -> None:
        small = viewed_set()
        folder = small.save_condensed(tmp_path)
        tensors = safetensors.torch.load_file(folder / TENSORS)
        tensors[name][0, 0, 0] = tensors[name][0, 0, 1] if value is None else value
        rewrite(folder, tensors)
        with pytest.raises(CondensedFormatError, match=message):
            load_condensed(tmp_path)

    def test_missing_tensor_of_the_labels_raises_format_error(self, tmp_path: Path) -> None:
        folder = viewed_set().save_condensed(tmp_path)
        tensors = safetensors.torch.load_file(folder / TENSORS)
        del tensors[CROPS]
        rewrite(folder, tensors)
        with pytest.raises(CondensedFormatError, match="one is missing"):
            load_condensed(tmp_path)


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the tensors of a set anew, with the hash that their author would have written."""
    import hashlib

    old = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    data = safetensors.torch.save(tensors, metadata={"hf_condense": "3"})
    (folder / TENSORS).write_bytes(data)
    facts = (folder / FACTS).read_text().replace(old, hashlib.sha256(data).hexdigest())
    facts = facts.replace(json.dumps(read_facts(folder).tensor_bytes), json.dumps(len(data)))
    (folder / FACTS).write_text(facts)


def test_border_of_a_crop_at_the_border_of_its_image_is_as_bright_as_the_rest() -> None:
    """Where a crop is enlarged, its outermost pixels lie beyond the image by less than a pixel."""
    crops = torch.tensor([[0, 0, 4, 4, 0], [4, 4, 4, 4, 1]])
    torch.testing.assert_close(view(torch.ones(2, 3, 8, 8), crops), torch.ones(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("crop", "fits"), [([0, 0, 6, 8, 0], True), ([0, 0, 8, 6, 0], False), ([0, 0, 6, 8, 2], False)]
)
def test_crops_are_checked_against_height_and_width_and_end_in_zero_or_one(crop: list[int], fits: bool) -> None:
    labels = ViewLabels.of_logits(torch.zeros(1, 1, 3), torch.tensor(crop, dtype=torch.int16).reshape(1, 1, 5), 2)
    if fits:
        labels.check((6, 8))
    else:
        with pytest.raises(ValueError, match="should lie within images of 6x8 and end in 0 or 1"):
            labels.check((6, 8))


def test_rows_have_the_labels_of_their_own_views() -> None:
    small = viewed_set()
    order = round_robin(small.synthetic.row_labels.tolist())
    assert order != sorted(order)
    views = small.synthetic.view_labels
    assert small["soft_label"] == views.values[order].tolist()
    assert small["soft_label_class"] == views.classes[order].tolist()
    assert small["soft_label_crop"] == views.crops[order].tolist()
