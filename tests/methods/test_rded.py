"""RDED: the crops that a teacher recognises best, its mosaics, its soft labels, and teachers of the user's own."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from torch import Tensor

from hf_condense import Teacher, condense_dataset, evaluate, load_condensed
from hf_condense.base.paths import cache_folder
from hf_condense.base.rng import keyed_generator
from hf_condense.cli.text import facts_table
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.facts import read_facts
from hf_condense.condensed.scores.records import EIGHT_BIT_ROWS, FLOATS, groups_of
from hf_condense.condensed.views import ViewLabels, random_crops, view
from hf_condense.methods.rded import RealisticConfig, RealisticDistillation, _padded, crop_boxes, cut_crops
from hf_condense.networks.augment import Augmentation
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.load import load_source
from hf_condense.testing import quick_method, toy_dataset
from tests.reference.rded import best_crops, mosaics
from tests.support.short_evaluations import watch_trainings

NAMES = ("cat", "dog", "eel")
TOY = toy_dataset(names=NAMES, size=16)
WEIGHTS = torch.randn(3 * 4, 3, generator=torch.Generator().manual_seed(5))


def predict(images: Tensor) -> Tensor:
    """Score images of any size by the means of their quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) @ WEIGHTS


@functools.cache
def centres() -> Tensor:
    """Return the mean image of every toy class, in sixteen parts: (3, 48)."""
    source = load_source(TOY, cache=False, progress=False)
    means = torch.stack([source.images[source.labels == c].float().mean(0) / 255 for c in range(3)])
    return torch.nn.functional.adaptive_avg_pool2d(means, 4).flatten(1)


def nearest_class(images: Tensor) -> Tensor:
    """Tell the toy classes apart: by the channels' differences of corners, whose patterns are turned."""
    return -20 * torch.cdist(torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1), centres())


KNOWING = Teacher(nearest_class, NAMES)


def condense(**options) -> CondensedDataset:
    return quick_method("rded", teacher=KNOWING, cache=False, **options).condense(TOY)


def distances(images: Tensor) -> Tensor:
    """Tell the toy classes apart less surely, so that no two crops have a loss of zero."""
    return nearest_class(images) / 20


def distances_padded(crops: Tensor) -> Tensor:
    """Score crops in the middle of a black image of 16 x 16 pixels."""
    margin = (16 - crops.shape[-1]) // 2
    canvas = torch.zeros(len(crops), 3, 16, 16)
    canvas[..., margin : margin + crops.shape[-2], margin : margin + crops.shape[-1]] = crops
    return distances(canvas)


@pytest.mark.parametrize(
    ("mosaic", "area", "padded", "ipc"),
    [
        (1, 0.08, False, 1),
        (1, 0.3, True, 3),
        (2, 0.08, False, 2),
        (2, 0.6, False, 1),
        (3, 0.08, False, 1),
        (3, 0.3, True, 1),
    ],
)
def test_images_are_those_of_the_textbook_version(
    mosaic: int, area: float, padded: bool, ipc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same boxes are cut and scored one at a time. Every class has enough pictures for one crop each."""
    monkeypatch.setattr("hf_condense.methods.rded._PICTURES", 5)
    options = {"mosaic": mosaic, "crop_area": area, "padded": padded, "pictures": 11, "crops": 3}
    bench = quick_method("rded", teacher=Teacher(distances, NAMES), soft_labels="none", cache=False, **options)
    small = bench.condense(TOY, ipc)
    source = load_source(TOY, cache=False, progress=False)
    tile = -(-16 // mosaic)
    for c, name in enumerate(NAMES):
        generator = keyed_generator(0, "crops", name)
        order = torch.randperm(12, generator=generator)[:11]
        boxes = crop_boxes(len(order) * 3, (16, 16), area, generator).reshape(-1, 3, 4).tolist()
        pictures = [source.images[source.positions(c).start + i] for i in order]
        score = distances_padded if padded else distances
        crops = best_crops(pictures, boxes, (tile, tile), score, c, ipc * mosaic**2)
        stored = small.synthetic.stored["images"][c * ipc : (c + 1) * ipc]
        assert stored.dtype == torch.uint8
        expected = torch.stack(mosaics(crops, mosaic, ipc))[..., :16, :16]
        assert int((stored.int() - expected.int()).abs().max()) <= 1


def test_tiles_of_an_image_are_crops_j_plus_multiples_of_the_number_of_images() -> None:
    """This is the textbook version, with which images are compared above."""
    crops = [torch.full((1, 2, 2), i) for i in range(8)]
    images = mosaics(crops, 2, 2)
    assert images[1][0, ::2, ::2].tolist() == [[1, 3], [5, 7]]


def test_boxes_lie_within_the_picture_have_its_shape_and_the_least_area() -> None:
    boxes = crop_boxes(3000, (20, 40), 0.25, torch.Generator().manual_seed(0))
    top, left, height, width = boxes.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + height <= 20) & (left + width <= 40)).all())
    assert float((width / height - 2).abs().max()) < 0.15, "a crop has the shape of the picture, but for rounding"
    assert 0.23 < float((height * width).min() / 800) < 0.27
    assert set(top[height == 19].tolist()) == {0, 1}


def test_whole_picture_at_its_own_size_is_cut_unchanged() -> None:
    pictures = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 6, 8], [0, 0, 6, 8]])
    assert torch.equal(cut_crops(pictures, boxes, (6, 8)), pictures)


def test_class_with_too_few_pictures_gives_several_crops_of_each() -> None:
    ds = toy_dataset(names=NAMES, size=16, rows=3)
    small = quick_method("rded", teacher=KNOWING, mosaic=2, crops=1, cache=False).condense(ds, 3)
    assert len(small) == 9
    tiles = small.synthetic.stored["images"][:3].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
    assert len({tuple(tile.flatten().tolist()) for tile in tiles.flatten(0, 2)}) == 12


def test_as_many_pictures_are_looked_at_as_crops_are_needed() -> None:
    options = {"soft_labels": "none", "pictures": 1, "crops": 1, "crop_area": 1.0, "mosaic": 1, "cache": False}
    images = quick_method("rded", teacher=KNOWING, **options).condense(TOY, 4).synthetic.stored["images"]
    assert len(images[:4].unique(dim=0)) == 4


def test_crops_that_leave_the_device_early_give_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_condense.methods.rded._PICTURES", 5)
    whole = condense(soft_labels="none", pictures=12).synthetic.stored["images"]
    monkeypatch.setattr("hf_condense.methods.rded._GATHERED", 0)
    assert torch.equal(condense(soft_labels="none", pictures=12).synthetic.stored["images"], whole)


@pytest.mark.parametrize(
    ("side", "storage", "mosaic"), [(63, "pixels", 1), (64, "pixels", 2), (65, "pixels", 2), (64, "patches", 1)]
)
def test_images_of_64_pixels_or_more_are_mosaics_if_they_are_stored_as_pixels(
    side: int, storage: str, mosaic: int
) -> None:
    ds = toy_dataset(names=NAMES, size=side, rows=6)
    options = {"teacher": KNOWING, "soft_labels": "none", "storage": storage, "cache": False}
    usual, single, double = (
        quick_method("rded", **options, mosaic=crops).condense(ds, 1).synthetic.stored["images"]
        for crops in (None, 1, 2)
    )
    assert not torch.equal(single, double)
    assert torch.equal(usual, (single, double)[mosaic - 1])


def test_labels_are_the_logits_of_the_stored_views() -> None:
    small = condense(views=4, top_k=3, mosaic=2)
    labels = small.synthetic.view_labels
    assert labels.values.shape == (6, 4, 3)
    images, _ = small.synthetic.decoded()
    rows, views = torch.arange(6).repeat_interleave(4), torch.arange(4).repeat(6)
    expected = nearest_class(view(images[rows], labels.crops[rows, views])).log_softmax(1)
    torch.testing.assert_close(labels.logits(rows, views), expected, rtol=2e-3, atol=2e-2)


def test_views_of_digits_are_not_mirrored() -> None:
    assert int(condense(views=8).synthetic.view_labels.crops[..., 4].sum()) > 0
    assert int(condense(views=8, augment="crop").synthetic.view_labels.crops[..., 4].sum()) == 0


def test_crops_of_the_whole_area_are_whole_pictures() -> None:
    source = load_source(TOY, cache=False, progress=False)
    pictures = {tuple(picture.flatten().tolist()) for picture in source.images[torch.arange(len(source))]}
    images = condense(crop_area=1.0, mosaic=1).synthetic.stored["images"]
    assert {tuple(image.flatten().tolist()) for image in images} <= pictures


@pytest.mark.parametrize("area", [0.2, 0.5, 1.0])
def test_views_have_the_least_area(area: float) -> None:
    crops = condense(views=8, view_area=area, seed=3).synthetic.view_labels.crops
    expected = random_crops(6 * 8, (16, 16), area, keyed_generator(3, "views"))
    assert torch.equal(crops, expected.reshape(6, 8, 5))
    smallest = float((crops[..., 2] * crops[..., 3]).min()) / 256
    assert area - 0.1 < smallest < area + 0.15


@pytest.mark.parametrize("storage", ["pixels", "patches", "dct"])
def test_set_in_any_form_has_labels_of_its_decoded_rows(storage: str, tmp_path: Path) -> None:
    small = quick_method("rded", teacher=KNOWING, storage=storage, cache=False).condense(TOY, 1)
    assert small.recipe.store_dtype == ("float32" if storage == "dct" else "uint8")
    assert len(small.synthetic.view_labels.values) == small.synthetic.num_rows == len(small)
    small.save_condensed(tmp_path)
    loaded = load_condensed(tmp_path)
    assert all(torch.equal(loaded.synthetic.all()[name], t) for name, t in small.synthetic.all().items())


def test_grey_images_stay_grey() -> None:
    ds = toy_dataset(names=NAMES, size=16, mode="L")
    small = quick_method("rded", cache=False, padded=True, mosaic=2).condense(ds, 1)
    assert small.recipe.image_shape == [1, 16, 16]
    assert small.synthetic.view_labels is not None


def test_padded_crops_stand_in_the_middle_of_an_empty_image() -> None:
    seen = []
    teacher = Teacher(lambda images: seen.append(images) or predict(images), NAMES, mean=[0.2, 0.4, 0.6])
    score = _padded(teacher.logits, teacher, (3, 8, 8))
    score(torch.ones(1, 3, 4, 4))
    assert float(seen[0][:, :, :2].abs().max()) == 0, "the empty part is zero after normalisation"
    torch.testing.assert_close(seen[0][0, :, 4, 4], torch.tensor([0.8, 0.6, 0.4]))


@pytest.mark.parametrize(("mean", "channels", "border"), [([0.2, 0.4, 0.6], 1, [0.4]), ([0.3], 3, [0.3, 0.3, 0.3])])
def test_empty_image_around_a_crop_has_the_channels_of_the_crop(
    mean: list[float], channels: int, border: list[float]
) -> None:
    seen = []

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), len(NAMES))

    teacher = Teacher(logits_of, NAMES, mean=mean)
    score = _padded(logits_of, teacher, (channels, 8, 8))
    score(torch.ones(2, channels, 4, 4))
    assert seen[0].shape == (2, channels, 8, 8)
    torch.testing.assert_close(seen[0][1, :, 0, 0], torch.tensor(border))
    assert bool((seen[0][:, :, 2:6, 2:6] == 1).all())


def test_views_of_more_classes_than_their_labels_can_name_are_refused() -> None:
    method = RealisticDistillation(RealisticConfig())
    assert method.label_views(2**15)[0] == method.config.views
    with pytest.raises(ValueError, match=r"at most 32,768 classes; got 32,769\. Pass soft_labels='none'"):
        method.label_views(2**15 + 1)


class TestTeacher:
    def test_recipe_has_the_teacher_its_accuracy_and_its_class_order(self, tmp_path: Path) -> None:
        small = quick_method("rded", teacher_updates=30, cache=False).condense(TOY)
        facts = small.recipe.teacher
        assert (facts["network"], facts["updates"], facts["held_out"]) == ("convnet-w8-d1", 30, 3)
        assert facts["classes"] == list(NAMES)
        assert 0 <= facts["accuracy"] <= 1
        small.save_condensed(tmp_path)
        card = (tmp_path / "README.md").read_text()
        assert f"convnet-w8-d1 after 30 updates ({facts['accuracy']:.1%} of 3 held-out rows right)" in card
        assert "for 2 views of each row, the soft labels are the 3 largest logits of" in card
        assert load_condensed(tmp_path).recipe.teacher == facts

    def test_command_line_shows_what_is_stored(self, tmp_path: Path) -> None:
        small = quick_method("rded", teacher=KNOWING, cache=False).condense(TOY)
        shown = facts_table("mine", small, read_facts(small.save_condensed(tmp_path)))
        assert "4,608 uint8, 4,608 B: images 6 x 3 x 16 x 16" in shown
        assert "soft_label_values 6 x 2 x 3" in shown

    def test_held_out_rows_are_not_trained_on(self, monkeypatch) -> None:
        trained = []

        def record(net, data, *args, **kwargs) -> int:
            trained.append(data)
            return train_network(net, data, *args, **kwargs)

        monkeypatch.setattr("hf_condense.engine.picture_teacher.train_network", record)
        quick_method("rded", cache=False).condense(TOY)
        (data,) = trained
        assert len(data) == 33

    @pytest.mark.parametrize(
        ("augment", "stages"), [("flip_color_crop", [Augmentation(("flip", "color", "crop"), "all")]), ("none", [])]
    )
    def test_training_of_a_teacher_applies_all_families_of_the_option(self, augment, stages, monkeypatch) -> None:
        recipes = []

        def record(net, data, recipe, *args, **kwargs) -> int:
            recipes.append(recipe)
            return train_network(net, data, recipe, *args, **kwargs)

        monkeypatch.setattr("hf_condense.engine.picture_teacher.train_network", record)
        quick_method("rded", augment=augment, cache=False).condense(TOY)
        assert [recipe.augmentations() for recipe in recipes] == [stages]

    def test_teachers_of_other_augmentations_are_cached_apart(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
        augmentations = ("crop_flip", "none", "crop", "crop_flip")
        sets = [quick_method("rded", augment=augment).condense(TOY) for augment in augmentations]
        hashes = [small.recipe.teacher["content_hash"] for small in sets]
        assert len(set(hashes)) == 3
        assert hashes[0] == hashes[3]
        assert len(list(cache_folder("networks").glob("*.safetensors"))) == 3

    def test_teacher_of_another_size_sees_images_of_that_size(self) -> None:
        small = quick_method("rded", teacher_size=8, cache=False).condense(TOY)
        assert small.labeller.__self__.image_size == (8, 8)

    @pytest.mark.parametrize(
        ("image_size", "teacher_size", "expected"),
        [((16, 32), 8, (8, 16)), ((12, 8), None, (12, 8)), ((8, 12), 16, (16, 24)), (16, 10, (10, 10))],
    )
    def test_teacher_sees_images_in_their_own_ratio(self, image_size, teacher_size, expected) -> None:
        bench = quick_method("rded", teacher_size=teacher_size, image_size=image_size, soft_labels="none", cache=False)
        assert bench.condense(TOY).labeller.__self__.image_size == expected

    def test_teacher_keeps_a_depth_that_is_the_default_at_the_size_of_the_images(self, tmp_path, monkeypatch) -> None:
        """At 16 pixels the default depth is 2, at 8 pixels it is 1."""
        monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
        options = {"teacher_size": 8, "soft_labels": "none"}
        names = {"convnet-w4": "convnet-w4", "convnet-w4-d2": "convnet-w4-d2", "convnet-w4-d1": "convnet-w4"}
        for network, expected in names.items():
            small = quick_method("rded", network=network, **options).condense(TOY)
            blocks = sum(isinstance(m, torch.nn.Conv2d) for m in small.labeller.__self__.predict.modules())
            assert blocks == (2 if expected == "convnet-w4-d2" else 1)
            assert small.recipe.teacher["network"] == small.labeller.__self__.name == expected
        assert len(list(cache_folder("networks").glob("*.safetensors"))) == 2, "equal teachers share a file"

    def test_own_teacher_is_named_with_its_accuracy(self, tmp_path: Path) -> None:
        small = quick_method("rded", teacher=Teacher(nearest_class, NAMES, name="mine"), cache=False).condense(TOY)
        assert (small.recipe.teacher["network"], small.recipe.teacher["accuracy"]) == ("mine", 1.0)
        assert small.recipe.options["teacher"] == "mine"
        small.save_condensed(tmp_path)
        assert (
            f"mine, a classifier that was given (100.0% of {len(TOY)} rows of the source right"
            in (tmp_path / "README.md").read_text()
        )

    def test_permuted_classes_with_their_names_give_the_same_set(self) -> None:
        order = [2, 0, 1]
        permuted = Teacher(lambda images: nearest_class(images)[:, order], [NAMES[i] for i in order])
        first, second = (
            quick_method("rded", teacher=teacher, cache=False).condense(TOY) for teacher in (KNOWING, permuted)
        )
        for name, tensor in first.synthetic.all().items():
            assert torch.equal(tensor, second.synthetic.all()[name])

    def test_permuted_classes_under_wrong_names_raise_value_error(self) -> None:
        wrong = Teacher(lambda images: nearest_class(images)[:, [2, 0, 1]], NAMES)
        with pytest.raises(ValueError, match=r"is right on 0\.0% of \d+ rows, no more than by chance.*'cat' as 'dog'"):
            quick_method("rded", teacher=wrong, cache=False).condense(TOY)

    def test_teacher_without_finite_logits_raises_value_error(self) -> None:
        lost = Teacher(lambda images: nearest_class(images) / 0.0, NAMES)
        with pytest.raises(ValueError, match=r"the teacher '.*' gives logits that are NaN or infinite"):
            quick_method("rded", teacher=lost, cache=False).condense(TOY)

    def test_training_that_diverges_raises_value_error(self, monkeypatch) -> None:
        def diverge(net, *args, **options) -> None:
            with torch.no_grad():
                next(net.parameters()).fill_(torch.nan)

        monkeypatch.setattr("hf_condense.engine.picture_teacher.train_network", diverge)
        with pytest.raises(ValueError, match=r"the weights of the teacher, .* after \d+ updates, are NaN or infinite"):
            quick_method("rded", cache=False).condense(TOY)

    def test_teacher_that_is_wrong_on_a_few_rows_is_used(self, caplog) -> None:
        few = TOY.select(
            [row for c in range(3) for row in [i for i, label in enumerate(TOY["label"]) if label == c][:2]]
        )
        wrong = Teacher(lambda images: nearest_class(images)[:, [2, 0, 1]], NAMES)
        quick_method("rded", teacher=wrong, cache=False).condense(few)
        assert "is right on only 0.0 % of 6 rows" in caplog.text

    def test_foreign_classes_raise_value_error(self) -> None:
        with pytest.raises(ValueError, match="it does not know 'eel'"):
            quick_method("rded", teacher=Teacher(nearest_class, ("cat", "dog", "elk")), cache=False).condense(TOY)

    def test_value_that_is_no_teacher_raises_type_error(self) -> None:
        with pytest.raises(TypeError, match="teacher should be a string or Teacher or None; got 5"):
            condense_dataset(TOY, "rded", 1, teacher=5, progress=False)

    def test_folder_that_is_missing_raises_an_error(self) -> None:
        pytest.importorskip("transformers", reason="transformers is not installed")
        with pytest.raises(OSError, match="no/such/folder"):
            quick_method("rded", teacher="/no/such/folder", cache=False).condense(TOY)


@pytest.mark.parametrize(("name", "value"), [("crop_area", 1.5), ("view_area", 2.0)])
def test_area_above_1_raises_value_error(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} should be at most 1"):
        RealisticConfig(**{name: value})


def test_too_many_views_raise_value_error() -> None:
    with pytest.raises(ValueError, match="views should be at most 1000; got 1001"):
        RealisticConfig(views=1001)


def test_empty_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown augmentation ''; .*'none'"):
        quick_method("rded", augment="", network="convnet-w4-d1").condense(TOY)


def test_8_bit_numbers_for_a_form_without_images_raise_value_error() -> None:
    with pytest.raises(ValueError, match="store_dtype='uint8' is for images"):
        quick_method("dm", storage="dct", store_dtype="uint8").condense(TOY)


class TestEvaluation:
    @staticmethod
    def rows_of(small: CondensedDataset, **options) -> dict[str, float]:
        table = evaluate(
            small,
            TOY,
            networks="convnet-w4-d1",
            recipe="soft",
            epochs=1,
            seeds=1,
            cache=False,
            compile=False,
            progress=False,
            **options,
        )
        return {record["set"]: record["mean"] for record in table.to_records()}

    def test_random_rows_with_the_same_labels_stand_beside_the_set(self, tmp_path: Path) -> None:
        small = condense()
        own = ["rded_ipc2", "rded_ipc2 (hard labels)"]
        assert list(self.rows_of(small)) == [*own, "random", "random (soft labels)"]
        small.save_condensed(tmp_path)
        loaded = load_condensed(tmp_path)
        assert list(self.rows_of(loaded, source=TOY)) == [*own, "random"]
        assert "random (soft labels)" in self.rows_of(loaded, source=TOY, teacher=KNOWING)

    def test_random_rows_have_the_teachers_labels_of_views_like_those_of_the_set(self, monkeypatch) -> None:
        small = condense(views=3, top_k=2, temperature=5.0)
        trainings = watch_trainings(monkeypatch)
        self.rows_of(small)
        _, _, random, labelled = (training.data for training in trainings)
        assert torch.equal(labelled.images, random.images), "the same rows"
        assert (labelled.temperature, labelled.views.k) == (5.0, 2)
        crops = small.synthetic.view_labels.crops
        assert torch.equal(labelled.views.crops, crops)
        source = load_source(TOY, cache=False, progress=False)
        pixels = random.images * source.std.reshape(-1, 1, 1) + source.mean.reshape(-1, 1, 1)
        rows, views = torch.arange(6).repeat_interleave(3), torch.arange(3).repeat(6)
        expected = nearest_class(view(pixels[rows], crops[rows, views])).log_softmax(1).topk(2)
        assert torch.equal(labelled.views.classes.flatten(0, 1).long(), expected.indices)
        torch.testing.assert_close(labelled.views.values.flatten(0, 1).float(), expected.values, rtol=2e-3, atol=2e-2)

    def test_relabelling_reaches_the_networks_on_eight_bit_images(self) -> None:
        labelled = list[int]()

        def label(images: Tensor) -> Tensor:
            labelled.append(len(images))
            return nearest_class(images)

        options = {"networks": "convnet-w4-d1", "epochs": 1, "seeds": 1, "baselines": (), "progress": False}
        small = quick_method("dm", cache=False).condense(TOY)
        both = {"relabel": True, "teacher": Teacher(label, small.recipe.class_names)}
        evaluate(small, TOY, **both, **options)
        once = len(labelled)
        evaluate(small, TOY, eight_bit=True, **both, **options)
        looks = 1  # at what the teacher gives, in each call
        assert once > looks
        assert len(labelled) - once - looks == 2 * (once - looks)

    def test_accuracies_with_labels_of_another_classifier_are_not_shown_as_those_of_the_set(self) -> None:
        small = quick_method("dm", cache=False).condense(TOY)
        teacher = Teacher(nearest_class, small.recipe.class_names)
        options = {"networks": "convnet-w4-d1", "epochs": 1, "seeds": 1, "progress": False}
        table = evaluate(small, TOY, relabel=True, teacher=teacher, eight_bit=True, **options)
        names = [f"{small.recipe.config_name}{ending}" for ending in (" (relabelled)", " (8-bit) (relabelled)")]
        assert [score.set for score in table.scores] == [
            *names,
            f"{small.recipe.config_name} (hard labels)",
            "random",
            "random (relabelled)",
        ]
        (group,) = groups_of(small.with_evaluation(table).recipe)
        assert {FLOATS, EIGHT_BIT_ROWS}.isdisjoint(group)
        assert "exact floats, labelled by a teacher in every update" in group

    def test_relabelling_without_a_teacher_raises_value_error(self) -> None:
        with pytest.raises(ValueError, match="relabel=True needs the teacher of the set"):
            evaluate(TOY, TOY, relabel=True, baselines=(), progress=False)


class TestTraining:
    def test_update_sees_a_stored_view_and_its_label(self) -> None:
        small = condense(views=3, top_k=3)
        images, labels = small.synthetic.decoded()
        data = TrainingSet(images, labels, 3, 20.0, views=small.synthetic.view_labels)
        index = torch.tensor([4, 0, 5])
        seen, targets = data.draw(index, ("a",))
        again = data.draw(index, ("a",))
        assert torch.equal(seen, again[0])
        assert torch.equal(targets, again[1])
        for i, row in enumerate(index.tolist()):
            views = [view(images[[row]], small.synthetic.view_labels.crops[row, [v]])[0] for v in range(3)]
            (which,) = (v for v in range(3) if torch.allclose(seen[i], views[v]))
            expected = small.synthetic.view_labels.logits(torch.tensor([row]), torch.tensor([which]))
            torch.testing.assert_close(targets[[i]], (expected / 20).softmax(1))

    def test_relabelling_replaces_all_labels_after_mixing(self) -> None:
        seen = []

        def label(images: Tensor) -> Tensor:
            seen.append(images)
            return torch.zeros(len(images), 3)

        images = torch.rand(6, 3, 8, 8)
        data = TrainingSet(images, torch.tensor([0, 0, 1, 1, 2, 2]), 3, relabel=label)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        torch.nn.init.zeros_(net[1].weight)
        torch.nn.init.zeros_(net[1].bias)
        recipe = dataclasses.replace(RECIPES["soft"], optimiser="sgd")  # Adam would magnify rounding errors
        train_network(net, data, recipe, "key", max_updates=2)
        assert len(seen) == 2
        assert not torch.equal(seen[0].sort(0).values, images.sort(0).values), "images are cropped and mixed before"
        assert float(net[1].weight.detach().abs().max()) < 1e-7, "even targets leave a network of even logits as it is"

    def test_learning_rate_ends_at_half(self) -> None:
        recipe = RECIPES["soft"]
        assert (recipe.rate(0), recipe.rate(1)) == (1.0, 0.5)
        assert RECIPES["dc"].rate(0.7) == 1.0
        np.testing.assert_allclose(recipe.rate(0.5), 0.5 * (1 + np.cos(np.pi / 4)))

    def test_first_update_of_adamw_moves_weights_by_the_rate_and_spares_biases_the_decay(self) -> None:
        """The first step of Adam has the length of the rate; decay then shrinks weights, not biases."""
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        before = [p.detach().clone() for p in net.parameters()]
        data = TrainingSet(torch.rand(6, 3, 8, 8), torch.tensor([0, 0, 1, 1, 2, 2]), 3)
        train_network(net, data, RECIPES["soft"], "key", max_updates=1)
        weight, bias = (p.detach() for p in net.parameters())
        step = (weight - before[0] * (1 - 0.001 * 0.01)).abs()
        torch.testing.assert_close(step, torch.full_like(step, 0.001), rtol=0.02, atol=1e-6)
        torch.testing.assert_close((bias - before[1]).abs(), torch.full((3,), 0.001), rtol=0.02, atol=1e-6)


def test_labels_of_images_outside_the_valid_range_are_those_of_clipped_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (12, 8, 8, 3))
    ds = Dataset.from_dict(
        {"image": [Pictures.fromarray(p) for p in pixels], "label": [0, 1] * 6},
        features=Features({"image": Image(), "label": ClassLabel(names=["a", "b"])}),
    )
    seen: list[torch.Tensor] = []
    original = ViewLabels.of_images

    def watched(images: torch.Tensor, *rest: Any) -> ViewLabels:
        seen.append(images)
        return original(images, *rest)

    monkeypatch.setattr(ViewLabels, "of_images", watched)
    options = {"storage": "dct", "expand": 2, "pixel_range": "free", "crop_area": 1.0, "cache": False}
    decoded, _ = quick_method("rded", **options).condense(ds).synthetic.decoded()
    assert float(decoded.min()) < 0 or float(decoded.max()) > 1
    torch.testing.assert_close(torch.cat(seen), decoded.clamp(0, 1))


def test_views_of_more_rows_than_are_labelled_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = condense(views=2, top_k=3).synthetic.view_labels
    monkeypatch.setattr("hf_condense.methods.rded._ROWS", 4)
    parts = condense(views=2, top_k=3).synthetic.view_labels
    assert torch.equal(parts.crops, whole.crops)
    rows, views = torch.arange(6).repeat_interleave(2), torch.arange(2).repeat(6)
    torch.testing.assert_close(parts.logits(rows, views), whole.logits(rows, views), rtol=2e-3, atol=2e-2)


def test_second_crops_of_pictures_are_the_best_of_them() -> None:
    """Three pictures give five images: the best crop of each, then the better ones of their second best."""
    ds = toy_dataset(names=NAMES, size=16, rows=3)
    options = {"teacher": Teacher(distances, NAMES), "soft_labels": "none", "cache": False}
    small = quick_method("rded", **options, mosaic=1, crops=3, crop_area=0.1).condense(ds, 5)
    source = load_source(ds, cache=False, progress=False)
    for c, name in enumerate(NAMES):
        generator = keyed_generator(0, "crops", name)
        order = torch.randperm(3, generator=generator)
        boxes = crop_boxes(9, (16, 16), 0.1, generator)
        crops = cut_crops(source.images[order + source.positions(c).start], boxes, (16, 16))
        labels = torch.full((9,), c)
        losses = torch.nn.functional.cross_entropy(distances(crops.float() / 255), labels, reduction="none")
        ranks = losses.reshape(3, 3).argsort(1) + 3 * torch.arange(3)[:, None]  # numbers of crops, best first
        chosen = [n for place in (0, 1) for n in sorted(ranks[:, place].tolist(), key=losses.tolist().__getitem__)]
        stored = small.synthetic.stored["images"][5 * c : 5 * c + 5]
        assert int((stored.int() - crops[chosen[:5]].int()).abs().max()) <= 1


def test_mosaic_has_at_most_one_crop_for_each_pixel() -> None:
    options = {"soft_labels": "none", "image_size": 4}
    images = [condense(**options, mosaic=mosaic).synthetic.stored["images"] for mosaic in (4, 9)]
    assert torch.equal(*images)
