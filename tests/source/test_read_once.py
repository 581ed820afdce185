"""Encoded pictures are read once, as long as they fit into the memory that they may take."""

from __future__ import annotations

import builtins
import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_condense.source import decode, load
from hf_condense.source.decode import EncodedPictures, raw_batches
from hf_condense.source.load import load_source
from tests.support.picture_sets import encoded, noise, picture_set, read

ROWS = 2500  # three batches


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of decoded sources."""
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "condense" / "sources"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Six pictures in files."""
    paths = [tmp_path / f"{row}.png" for row in range(6)]
    for row, path in enumerate(paths):
        path.write_bytes(encoded(noise(4, 4, 3, seed=row)))
    return paths


@pytest.fixture
def opened(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the files was opened."""
    names, counts, plain_open = set(map(str, files)), Counter(), builtins.open

    def counting_open(file: Any, *args: Any, **options: Any) -> Any:
        if str(file) in names:
            counts[Path(file).name] += 1
        return plain_open(file, *args, **options)

    monkeypatch.setattr(builtins, "open", counting_open)
    return counts


@pytest.fixture
def first_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first row of every batch that was read from a dataset."""
    rows: list[int] = []

    def noting_batches(*args: Any, **options: Any) -> Iterator[tuple[int, list[bytes]]]:
        for start, batch in raw_batches(*args, **options):
            rows.append(start)
            yield start, batch

    monkeypatch.setattr(decode, "raw_batches", noting_batches)
    return rows


def in_files(files: list[Path]) -> Dataset:
    """Return a dataset that holds the paths of pictures."""
    return picture_set([{"path": str(path), "bytes": None} for path in files], [0, 1] * 3)


def large_set() -> Dataset:
    """Return three batches of small pictures, the rows of which can be told apart."""
    values = [(7 * row) % 251 for row in range(ROWS)]
    cells = {value: encoded(np.full((2, 2), value, np.uint8)) for value in set(values)}
    return picture_set([cells[value] for value in values], [row % 2 for row in range(ROWS)])


def test_files_are_opened_once_on_a_cold_and_on_a_warm_cache(
    files: list[Path], opened: Counter[str], cache: Path
) -> None:
    cold = load_source(in_files(files), progress=False)
    assert opened == {path.name: 1 for path in files}
    warm = load_source(in_files(files), progress=False)
    assert opened == {path.name: 2 for path in files}
    assert torch.equal(cold.images, warm.images)


def test_files_are_opened_once_without_the_cache(files: list[Path], opened: Counter[str]) -> None:
    read(in_files(files))
    assert opened == {path.name: 1 for path in files}


def test_a_dataset_is_passed_through_once(cache: Path, first_rows: list[int]) -> None:
    load_source(large_set(), progress=False)
    assert first_rows == [0, 1000, 2000]


def test_a_warm_cache_parses_no_header(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = large_set()
    load_source(ds, progress=False)
    monkeypatch.delattr(load, "header")
    assert len(load_source(ds, progress=False)) == ROWS


def test_rows_beyond_the_limit_are_read_again(monkeypatch: pytest.MonkeyPatch, first_rows: list[int]) -> None:
    ds = large_set()
    whole = read(ds)
    first_rows.clear()
    size = sum(len(data) for _, batch in raw_batches(ds, "image") for data in batch)
    monkeypatch.setattr(load, "_KEPT_BYTES", size // 2)  # one batch of 1000 rows fits, two do not
    limited = read(ds)
    assert first_rows == [0, 1000, 2000, 1000, 2000, 1000, 2000]
    assert torch.equal(limited.images, whole.images)
    assert limited.content_hash == whole.content_hash


@pytest.mark.parametrize("kept_bytes", [0, 2**30])
@pytest.mark.parametrize("damaged", [1, 1700])
def test_errors_name_the_row_whatever_is_kept(monkeypatch: pytest.MonkeyPatch, kept_bytes: int, damaged: int) -> None:
    monkeypatch.setattr(load, "_KEPT_BYTES", kept_bytes)
    cells: list[Any] = [encoded(noise(40, 40))] * 1800
    for bad, message in ((cells[0][:20], "cannot be decoded"), (cells[0][:-60], "truncated"), (None, "no picture")):
        cells[damaged] = bad
        with pytest.raises(ValueError, match=f"row {damaged} .*{message}"):
            read(picture_set(cells))


@pytest.mark.parametrize(("seconds", "others"), [(10, True), (-1, False)])
def test_other_rows_that_cannot_be_decoded_are_named(
    monkeypatch: pytest.MonkeyPatch, seconds: int, others: bool
) -> None:
    monkeypatch.setattr(decode, "_SEARCH_SECONDS", seconds)
    good = encoded(noise(4, 4))
    with pytest.raises(ValueError, match=r"row 1 .*repair or remove it") as caught:
        read(picture_set([good, good[:20], good, b"", good[:20]]))
    end = "repair or remove it"
    assert str(caught.value).endswith(f"{end}. Nor can those of 2 other rows be decoded: 3, 4" if others else end)


def test_search_for_other_rows_ends_at_one_without_a_picture() -> None:
    good = encoded(noise(4, 4))
    ds = picture_set([good[:20], good, good[:20], *[good] * 1000, None])
    message = r"row 0 .*\. Nor can that of 1 other row among the first 1,000 be"
    with pytest.raises(ValueError, match=message), decode.files_named(ds, "image"):
        raise decode.UndecodableError(0, "(unknown format)")


@pytest.mark.parametrize("limit", [0, 100_000, 2**30])
def test_every_pass_hands_out_the_same_pictures(limit: int) -> None:
    ds = large_set().shuffle(seed=1)
    expected = list(raw_batches(ds, "image"))
    pictures = EncodedPictures(ds, "image", limit)
    assert list(pictures.batches()) == expected
    assert list(pictures.batches()) == expected
    assert list(pictures.batches(last=True)) == expected
    assert list(pictures.batches()) == expected, "a pass after the last one reads the dataset again"


def test_a_pass_that_was_broken_off_changes_nothing() -> None:
    ds = large_set()
    expected = list(raw_batches(ds, "image"))
    pictures = EncodedPictures(ds, "image", 2**30)
    next(pictures.batches())
    assert list(pictures.batches()) == expected
    next(pictures.batches(last=True))
    assert list(pictures.batches()) == expected


class Batch(list):
    """A list that weak references can point to."""


def test_the_last_pass_frees_what_was_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    references: list[weakref.ref[Batch]] = []

    def referenced_batches(*args: Any, **options: Any) -> Iterator[tuple[int, list[bytes]]]:
        for start, pictures in raw_batches(*args, **options):
            batch = Batch(pictures)
            references.append(weakref.ref(batch))
            yield start, batch

    monkeypatch.setattr(decode, "raw_batches", referenced_batches)
    pictures = EncodedPictures(large_set(), "image", 2**30)
    for _ in pictures.batches():
        pass
    alive = []
    for _ in pictures.batches(last=True):
        gc.collect()
        alive.append(sum(reference() is not None for reference in references))
    assert alive == [3, 2, 1]


@pytest.mark.parametrize(("most", "sizes"), [(2**26, [6]), (1, [1] * 6), (2 * 100 + 50, None)])
def test_batches_take_little_memory(most: int, sizes: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = picture_set([encoded(noise(5, 7, 3, seed=row)) for row in range(6)])
    (whole,) = raw_batches(ds, "image")
    monkeypatch.setattr(decode, "_BATCH_BYTES", most)
    batches = list(raw_batches(ds, "image"))
    assert [data for _, batch in batches for data in batch] == whole[1]
    lengths = [len(batch) for _, batch in batches]
    assert [start for start, _ in batches] == [sum(lengths[:i]) for i in range(len(lengths))]
    assert sizes is None or lengths == sizes
    assert all(len(batch) == 1 or sum(map(len, batch)) <= most + max(map(len, batch)) for _, batch in batches)


def test_pictures_in_files_are_taken_for_a_mebibyte_each(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_BATCH_BYTES", 2**20)
    batches = list(raw_batches(in_files(files), "image"))
    assert [len(batch) for _, batch in batches] == [1] * len(files)
