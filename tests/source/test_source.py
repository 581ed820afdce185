"""Any dataset becomes class-indexed images: labels, row mappings, the cache, sampling."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Value

from hf_condense.source import load
from hf_condense.source.class_source import ClassSource
from hf_condense.source.columns import read_labels
from hf_condense.source.load import load_source
from hf_condense.testing import toy_dataset
from tests.support.picture_sets import encoded, noise, picture_set, read

NAMES = ("cat", "dog", "eel")


@pytest.fixture
def toy() -> Dataset:
    return toy_dataset(names=NAMES)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of decoded sources."""
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path))
    return tmp_path / "condense" / "sources"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows decoded so far."""
    rows: list[int] = []
    decode = load.decode_picture

    def noted(data: bytes, row: int, *args: Any) -> np.ndarray:
        rows.append(row)
        return decode(data, row, *args)

    monkeypatch.setattr(load, "decode_picture", noted)
    return rows


def assert_holds(source: ClassSource, ds: Dataset, column: str = "label") -> None:
    """Check every image and label against the row that it claims to be."""
    assert sorted(source.rows.tolist()) == list(range(len(ds)))
    assert source.labels.tolist() == sorted(source.labels.tolist())
    for image, label, row in zip(source.images, source.labels.tolist(), source.rows.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).squeeze(), np.asarray(ds[row]["image"]))
        assert source.label_values[label] == ds[row][column]


# Rows


def test_rows_are_sorted_by_class_and_keep_their_order(toy: Dataset) -> None:
    source = read(toy)
    assert_holds(source, toy)
    assert source.images.dtype == torch.uint8
    assert source.rows.tolist() == [row * 3 + c for c in range(3) for row in range(12)]
    assert (len(source), source.image_shape, source.classes) == (36, (3, 8, 8), (0, 1, 2))
    assert [source.positions(c) for c in range(3)] == [range(0, 12), range(12, 24), range(24, 36)]


def test_index_mappings_are_followed(toy: Dataset) -> None:
    shuffled = toy.shuffle(seed=3)
    for ds in (shuffled, shuffled.select([5, 0, 30, 7, 7]), toy.select(range(4, 20)), shuffled.flatten_indices()):
        assert_holds(read(ds), ds)


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow", "pandas"])
def test_formats_do_not_matter(toy: Dataset, kind: str) -> None:
    given = toy.with_format(kind)
    assert torch.equal(read(given).images, read(toy).images)
    assert given.format["type"] == kind


def test_a_transform_is_ignored_with_a_warning(toy: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    given = toy.with_transform(lambda batch: {"image": [None] * len(batch["image"])})
    with caplog.at_level(logging.WARNING, "hf_condense"):
        assert torch.equal(read(given).images, read(toy).images)
    assert "transform" in caplog.text


def test_rows_beyond_one_batch_keep_their_order() -> None:
    values = [(7 * row) % 256 for row in range(1100)]
    cells = {value: encoded(np.full((2, 2), value, np.uint8)) for value in set(values)}
    ds = picture_set([cells[value] for value in values], [row % 2 for row in range(1100)])
    source = read(ds)
    assert source.images[:, 0, 0, 0].tolist() == values[::2] + values[1::2]


def test_pictures_in_files_are_read_like_those_in_the_table(toy: Dataset, tmp_path: Path) -> None:
    cells = []
    for row, picture in enumerate(toy["image"]):
        picture.save(tmp_path / f"{row}.png")
        cells.append({"path": str(tmp_path / f"{row}.png"), "bytes": None})
    source = read(picture_set(cells, toy["label"][:], label=toy.features["label"]))
    assert torch.equal(source.images, read(toy).images)


def test_a_source_carries_the_dataset_and_the_size_that_it_was_read_with(toy: Dataset) -> None:
    given = toy.shuffle(seed=3).with_format("numpy")
    source = read(given, image_size=[4, 6])
    assert source.image_size == (4, 6)
    assert read(given).image_size is None
    assert source.dataset.format["type"] is None
    assert source.dataset["note"][:] == given["note"][:].tolist()


# Labels


@pytest.mark.parametrize(
    ("kind", "labels", "values"),
    [
        (Value("int64"), [5, -3, 5, 0], (-3, 0, 5)),
        (Value("uint8"), [200, 3, 3, 7], (3, 7, 200)),
        (Value("string"), ["wolf", "elk", "", "elk"], ("", "elk", "wolf")),
        (Value("large_string"), ["b", "a", "a", "a"], ("a", "b")),
        (Value("bool"), [True, False, True, True], (False, True)),
    ],
)
def test_labels_without_a_class_label_are_mapped_in_sorted_order(
    kind: Value, labels: list[Any], values: tuple[Any, ...]
) -> None:
    ds = picture_set([encoded(noise(4, 4, seed=seed)) for seed in range(4)], labels, label=kind)
    source = read(ds, label_column="label")
    assert_holds(source, ds)
    assert source.label_values == values
    assert source.class_names == tuple(map(str, values))


def test_absent_classes_keep_their_place() -> None:
    label = ClassLabel(names=["ant", "bee", "cow", "doe"])
    source = read(picture_set([encoded(noise(4, 4))] * 3, [3, 1, 3], label=label))
    assert source.class_names == ("ant", "bee", "cow", "doe")
    assert source.label_values == (0, 1, 2, 3)
    assert source.counts == {1: 1, 3: 2}
    assert [list(source.positions(c)) for c in range(4)] == [[], [0], [], [1, 2]]


# Content hash


def test_hash_is_equal_for_equal_content(toy: Dataset, tmp_path: Path) -> None:
    toy.to_parquet(tmp_path / "toy.parquet")
    again = Dataset.from_parquet(str(tmp_path / "toy.parquet"), cache_dir=str(tmp_path / "cache"))
    halves = datasets.concatenate_datasets([toy.select(range(10)), toy.select(range(10, 36))])
    same = (toy.select(range(36)), toy.with_format("torch"), toy.remove_columns("note"), again, halves)
    assert {read(ds).content_hash for ds in same} == {read(toy).content_hash}


def test_hash_differs_for_other_content(toy: Dataset) -> None:
    label = toy.features["label"]
    swapped = toy.remove_columns("label").add_column("label", [1, 0, *toy["label"][2:]]).cast_column("label", label)
    renamed = toy.cast_column("label", ClassLabel(names=["cat", "dog", "fox"]))
    others = (toy, toy.select([1, 0, *range(2, 36)]), toy.select(range(35)), swapped, renamed)
    assert len({read(ds).content_hash for ds in others}) == len(others)


# Cache


def test_a_cached_source_is_not_decoded_again(toy: Dataset, cache: Path, decoded: list[int]) -> None:
    first = load_source(toy, progress=False)
    assert sorted(decoded) == list(range(36))
    second = load_source(toy.with_format("numpy"), progress=False)
    assert len(decoded) == 36
    assert len(list(cache.iterdir())) == 1
    assert_holds(second, toy)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.std, second.std)
    load_source(toy, image_size=4, progress=False)
    load_source(toy, channels=1, progress=False)
    load_source(toy.select(range(12)), progress=False)
    assert len(decoded) == 36 * 3 + 12


@pytest.mark.parametrize("file", ["images.bin", "source.json"])
def test_a_damaged_cache_is_made_again(toy: Dataset, cache: Path, file: str) -> None:
    load_source(toy, progress=False)
    damaged = next(cache.glob(f"*/{file}"))
    damaged.write_bytes(damaged.read_bytes()[:5])
    assert_holds(load_source(toy, progress=False), toy)
    damaged.unlink()
    assert_holds(load_source(toy, progress=False), toy)


def test_nothing_is_written_without_the_cache(toy: Dataset, cache: Path) -> None:
    load_source(toy, cache=False, progress=False)
    datasets.disable_caching()
    try:
        load_source(toy, progress=False)
    finally:
        datasets.enable_caching()
    assert not cache.exists()


def test_writing_to_a_cached_source_leaves_the_cache_as_it_is(toy: Dataset, cache: Path) -> None:
    load_source(toy, progress=False).images.zero_()
    load_source(toy, progress=False).images.zero_()
    assert_holds(load_source(toy, progress=False), toy)


def test_a_part_copies_no_images(toy: Dataset, cache: Path) -> None:
    source = load_source(toy, progress=False)
    part = source.part(torch.tensor([1, 5, 14, 30])).part(torch.tensor([1, 2]))
    assert (part.rows.tolist(), part.images.shape) == (source.rows[[5, 14]].tolist(), (2, 3, 8, 8))
    assert torch.equal(part.at(torch.arange(2)), source.at(torch.tensor([5, 14])))
    source.images[14] = 255
    assert torch.equal(part.images[1], torch.full((3, 8, 8), 255, dtype=torch.uint8)), "it reads the mapped file"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_raises_a_plain_error_and_leaves_nothing_behind(
    toy: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"no space left while writing .*sources.*HF_HOME.*cache=False") as caught:
            load_source(toy, progress=False)
    assert caught.value.errno == code
    assert list(cache.iterdir()) == []
    assert_holds(load_source(toy, progress=False), toy)


def test_a_damaged_picture_leaves_nothing_behind(cache: Path) -> None:
    with pytest.raises(ValueError, match="row 1"):
        load_source(picture_set([encoded(noise(40, 40)), encoded(noise(40, 40))[:-60]]), progress=False)
    assert list(cache.iterdir()) == []


# Statistics and tensors


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_statistics_are_those_of_all_pixels(mode: str) -> None:
    source = read(toy_dataset(mode=mode, names=NAMES))
    pixels = source.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(source.mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(source.std, pixels.std((0, 2, 3)), rtol=1e-5)
    normal = source.at(torch.arange(len(source)))
    np.testing.assert_allclose(normal.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std((0, 2, 3), correction=0), 1, atol=1e-5)


def test_a_constant_channel_is_not_blown_up() -> None:
    source = read(picture_set([encoded(np.full((4, 4), 90, np.uint8))]))
    assert source.std.tolist() == [1.0]
    assert float(source.at(torch.tensor([0])).abs().max()) < 1e-6


def test_normalise_takes_bytes_and_fractions(toy: Dataset) -> None:
    source, pixels = read(toy), read(toy).images[:5]
    expected = (pixels.double() / 255 - source.mean.view(3, 1, 1)) / source.std.view(3, 1, 1)
    for given in (pixels, pixels.float() / 255):
        assert source.normalise(given).dtype == torch.float32
        np.testing.assert_allclose(source.normalise(given), expected, atol=1e-5)
    assert torch.equal(source.at(torch.tensor([4, 0])), source.normalise(pixels[[4, 0]]))


def test_batches_are_the_whole_in_order(toy: Dataset) -> None:
    source = read(toy)
    images = torch.cat(list(source.all_images(10)))
    assert torch.equal(images, source.at(torch.arange(36)))


# Sampling


def positions_of(source: ClassSource, drawn: torch.Tensor) -> list[int]:
    """Find the positions of normalised images (n, C, H, W), which all differ."""
    rows = source.at(torch.arange(len(source))).flatten(1)
    return [int((rows == image.flatten()).all(1).nonzero()) for image in drawn]


def test_samples_have_no_repeats(toy: Dataset) -> None:
    source = read(toy)
    drawn = source.sample([2, 0], 12, 0, "real", 1)
    assert drawn.shape == (2, 12, 3, 8, 8)
    assert drawn.dtype == torch.float32
    assert sorted(positions_of(source, drawn[0])) == list(source.positions(2))
    assert sorted(positions_of(source, drawn[1])) == list(source.positions(0))


def test_small_classes_are_drawn_in_whole_permutations(toy: Dataset) -> None:
    source = read(toy)
    positions = positions_of(source, source.sample([1], 30, "key")[0])
    rounds = [positions[:12], positions[12:24]]
    assert all(sorted(part) == list(source.positions(1)) for part in rounds)
    assert rounds[0] != rounds[1]
    assert len(set(positions[24:])) == 6


def test_a_draw_depends_on_its_key_and_class_name_alone(toy: Dataset) -> None:
    source = read(toy)
    alone = source.sample([1], 5, 0, "real", 3)
    assert torch.equal(source.sample([0, 1, 2], 5, 0, "real", 3)[1], alone[0])
    assert torch.equal(source.sample([1], 5, 0, "real", 3), alone)
    assert not torch.equal(source.sample([1], 5, 0, "real", 4), alone)
    # Classes of the same size draw different rows, and the class keeps its draw in a set without the others.
    offsets = [[p - 12 * c for p in positions_of(source, source.sample([c], 12, "k")[0])] for c in range(3)]
    assert len(set(map(tuple, offsets))) == 3
    fewer = toy.filter(lambda label: label == 1, input_columns="label").cast_column("label", ClassLabel(names=NAMES))
    only = read(fewer)
    assert positions_of(only, only.sample([1], 12, "k")[0]) == offsets[1]


def test_held_out_rows_are_a_tenth_within_the_bound(monkeypatch):
    source = read(toy_dataset(rows=40, names=NAMES))
    assert len(source.held_out("k")) == 3 * 4
    monkeypatch.setattr("hf_condense.source.class_source._MOST_HELD_OUT", 6)
    assert source.labels[source.held_out("k")].bincount().tolist() == [2, 2, 2]
    among = source.labels == 1
    assert source.labels[source.held_out("k", among=among)].tolist() == [1] * 4, "the bound is for classes in question"
    assert len(read(toy_dataset(rows=1, names=NAMES)).held_out("k")) == 0


def test_source_larger_than_the_memory_is_mapped_for_reading(toy, monkeypatch):
    expected = load_source(toy, progress=False)  # it is in the cache from now on

    def refused(*args: object, **options: object) -> torch.Tensor:
        raise RuntimeError("unable to mmap 40000000000 bytes from file: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "from_file", refused)
    again = load_source(toy, progress=False)
    assert torch.equal(again.images, expected.images)
    assert torch.equal(again.at(torch.tensor([3, 0])), expected.at(torch.tensor([3, 0])))


def test_first_number_beyond_the_names_of_a_class_label_is_refused() -> None:
    table = Dataset.from_dict({"label": [0, 2, 1]}).data.table
    features = datasets.Features({"label": ClassLabel(names=["a", "b"])})
    ds = Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features))
    with pytest.raises(ValueError, match=r"row 1 has the label 2 in 'label', whose ClassLabel has names for 0\.\.1"):
        read_labels(ds, "label")
