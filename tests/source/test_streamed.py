"""Large pictures are decoded when they are asked for; they are the same images, and nothing else is decoded."""

import io
import pickle
from collections import Counter
from collections.abc import Collection
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_condense import Teacher, condense_dataset, evaluate
from hf_condense.base.spread import spread
from hf_condense.engine.picture_teacher import _measured
from hf_condense.source import streamed
from hf_condense.source.load import load_source

SIDE = 66


def pictures(rows: int = 12, side: int = SIDE, mode: str = "RGB", broken: Collection[int] = ()) -> datasets.Dataset:
    """Return pictures of noise of three classes in turn; some may be cut off."""
    noise, table = np.random.default_rng(0), []
    for row in range(rows):
        buffer = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (side, side + 4, 3), dtype=np.uint8)).convert(mode).save(buffer, "PNG")
        data = buffer.getvalue()[:2000] if row in broken else buffer.getvalue()
        table.append({"image": {"bytes": data, "path": None}, "label": row % 3})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    return datasets.Dataset.from_list(table, features=features)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each row was decoded."""
    counts, plain = Counter(), streamed.decode_picture

    def counting(data, row, *arguments):
        counts[row] += 1
        return plain(data, row, *arguments)

    monkeypatch.setattr(streamed, "decode_picture", counting)
    return counts


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_are_those_that_decoding_in_advance_gives(mode: str) -> None:
    ds = pictures(mode=mode).select([5, 3, 8, 0, 1, 2, 7, 11])
    lazy, eager = (load_source(ds, streams=streams, cache=False, progress=False) for streams in (True, False))
    index = torch.tensor([6, 0, 3])
    assert not isinstance(lazy.images, torch.Tensor)
    assert torch.equal(lazy.images[index], eager.images[index])
    assert lazy.image_shape == eager.image_shape
    assert lazy.content_hash == eager.content_hash
    assert len(lazy.images[torch.tensor([], dtype=torch.int64)]) == 0
    torch.testing.assert_close(lazy.mean, eager.mean)
    torch.testing.assert_close(lazy.std, eager.std)
    torch.testing.assert_close(lazy.sample([0, 2], 2, "key"), eager.sample([0, 2], 2, "key"))


def test_pictures_of_up_to_64_pixels_are_decoded_in_advance() -> None:
    source = load_source(pictures(side=64), streams=True, cache=False, progress=False)
    assert isinstance(source.images, torch.Tensor)


def test_only_the_pictures_of_an_index_are_decoded(decoded: Counter[int], monkeypatch) -> None:
    monkeypatch.setattr("hf_condense.source.load._SAMPLED", 3)
    source = load_source(pictures(), streams=True, cache=False, progress=False)
    assert sorted(decoded) == [0, 6, 11], "three rows, evenly spread, give mean and std"
    decoded.clear()
    _ = source.at(torch.tensor([4]))
    assert decoded == {1: 1}, "position 4 is the first row of the second class"


def test_rows_for_the_mean_are_spread_over_all_of_a_large_dataset() -> None:
    rows = spread(20_000_000, 1000)
    assert (len(rows), int(rows[0]), int(rows[-1])) == (1000, 0, 19_999_999)
    assert set(rows.diff().tolist()) == {20_020, 20_021}, "they are 20,020.02 rows apart"
    assert spread(3, 1000).tolist() == [0, 1, 2]
    assert spread(1, 1000).tolist() == [0]


@pytest.mark.parametrize("rows", [2, 999, 1001, 3925, 5000])
def test_rows_for_the_mean_of_a_small_dataset_are_those_that_float32_gives(rows: int) -> None:
    """Sets of earlier versions keep their normalisation."""
    assert torch.equal(spread(rows, 1000), torch.linspace(0, rows - 1, min(1000, rows)).round().long())


@pytest.mark.parametrize(("most", "together"), [(1, 1), (3 * SIDE * (SIDE + 4) * 5, 5), (2**28, 8)])
def test_pictures_for_the_mean_are_decoded_a_few_at_a_time(most: int, together: int, monkeypatch) -> None:
    decoded, plain = [], streamed.StreamedPictures.with_depths

    def noting(images, index):
        decoded.append(len(index))
        return plain(images, index)

    whole = load_source(pictures(), streams=True, cache=False, progress=False)
    monkeypatch.setattr(streamed.StreamedPictures, "with_depths", noting)
    monkeypatch.setattr("hf_condense.source.load._SLICE", 8)
    monkeypatch.setattr("hf_condense.source.load._DECODED_BYTES", most)
    source = load_source(pictures(), streams=True, cache=False, progress=False)
    assert max(decoded) == together
    assert sum(decoded) == 12
    assert torch.equal(source.mean, whole.mean)
    assert torch.equal(source.std, whole.std)


def test_teacher_sees_held_out_pictures_before_the_next_ones_are_decoded(monkeypatch) -> None:
    events, plain = [], streamed.StreamedPictures.__getitem__

    def noting(images, index):
        events.append("decoded")
        return plain(images, index)

    def predict(images):
        events.append("seen")
        return torch.eye(3)[[0] * len(images)]

    source = load_source(pictures(), streams=True, cache=False, progress=False)
    monkeypatch.setattr(streamed.StreamedPictures, "__getitem__", noting)
    monkeypatch.setattr("hf_condense.engine.picture_teacher.FORWARD_IMAGES", 1)
    run = SimpleNamespace(source=source, device=torch.device("cpu"), seed=0)
    facts = _measured(run, Teacher(predict, ["a", "b", "c"]))
    assert events == ["decoded", "seen"] * 12
    assert facts == {"accuracy": pytest.approx(1 / 3), "accuracy_rows": 12}


@pytest.mark.parametrize("in_advance", [True, False])
def test_pictures_of_a_part_are_decoded_now_or_when_they_are_asked_for(
    in_advance: bool, decoded: Counter[int], monkeypatch
) -> None:
    monkeypatch.setattr("hf_condense.source.load._SAMPLED", 3)
    source = load_source(pictures(), streams=True, cache=False, progress=False)
    positions = torch.tensor([1, 4, 6])
    expected = source.images[positions]
    decoded.clear()
    part = source.part(positions, decoded=in_advance)
    assert sum(decoded.values()) == (3 if in_advance else 0)
    assert torch.equal(part.images[torch.tensor([2, 0])], expected[[2, 0]])
    assert part.image_shape == source.image_shape
    assert len(part) == len(part.images) == 3


def test_damaged_picture_raises_value_error_that_names_its_row(monkeypatch) -> None:
    monkeypatch.setattr("hf_condense.source.load._SAMPLED", 2)
    source = load_source(pictures(broken=(4, 7)), streams=True, cache=False, progress=False)
    with pytest.raises(ValueError, match="row 4 has a picture that cannot be decoded") as caught:
        _ = source.images[torch.arange(12)]
    assert str(caught.value).endswith("repair or remove it. Nor can that of 1 other row be decoded: 7")
    copy = pickle.loads(pickle.dumps(caught.value))  # as for other processes
    assert (type(copy), str(copy)) == (type(caught.value), str(caught.value))


@pytest.mark.parametrize("method", ["random", "rded"])
def test_method_never_decodes_more_than_it_looks_at(method: str, decoded: Counter[int], monkeypatch) -> None:
    monkeypatch.setattr("hf_condense.source.load._SAMPLED", 2)
    options = {
        "pictures": 1,
        "mosaic": 1,
        "teacher_size": 8,
        "teacher_updates": 1,
        "views": 1,
        "network": "convnet-w4-d1",
    }
    if method == "random":
        options = {}
    small = condense_dataset(pictures(30), method, 1, progress=False, cache=False, **options)
    assert sum(decoded.values()) <= 5, "two for the mean, one of each class"
    assert len(small) == 3


def test_random_rows_of_an_evaluation_are_all_that_is_decoded(decoded: Counter[int], monkeypatch) -> None:
    monkeypatch.setattr("hf_condense.source.load._SAMPLED", 2)
    ds = pictures(30)
    small = condense_dataset(ds, "random", 1, progress=False, cache=False)
    decoded.clear()
    evaluate(
        small,
        pictures(3),
        networks="convnet-w4-d1",
        recipe="dc",
        epochs=1,
        seeds=1,
        cache=False,
        compile=False,
        progress=False,
    )
    assert sum(decoded.values()) == 5, "two for the mean of the source, and a random row of each class"


def test_auto_composes_large_pictures(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="hf_condense"):
        small = condense_dataset(
            pictures(),
            ipc=1,
            network="convnet-w4-d2",
            teacher_updates=2,
            pictures=2,
            views=1,
            progress=False,
            cache=False,
        )
    assert small.recipe.method == "rded"
    assert small.recipe.image_shape == [3, 66, 70]
    assert small.recipe.nearest is None
    assert any("method='auto' runs rded" in message for message in caplog.messages)


def test_other_damaged_pictures_are_named_once_however_they_are_read() -> None:
    for streams in (True, False):
        with pytest.raises(ValueError, match="row 4 has a picture") as caught:
            load_source(pictures(broken=(4, 7)), streams=streams, cache=False, progress=False)
        assert str(caught.value).count("Nor can that of 1 other row be decoded: 7") == 1
