"""Sets that other programs made: tensors in memory, files, folders of images, and plain repositories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_condense.evaluation.reader import Reader
from hf_condense.evaluation.subject import _tensor_subject
from hf_condense.evaluation.tensor_sets import read_tensor_set
from hf_condense.source.load import load_source
from tests.support.condensed_sets import make_set
from tests.support.short_evaluations import rows_of, run, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ("--network", "convnet-w8", "--epochs", 2, "--seeds", 1, "--baseline", "none", "--recipe", "dc", "--quiet")


@pytest.fixture
def trainings(monkeypatch):
    return watch_trainings(monkeypatch)


@pytest.fixture(scope="module")
def tensors(toy):
    """Nine images of the toy set as tensors in the order of its rows: uint8 (9, 3, 8, 8) and int64 (9,)."""
    source = load_source(toy.select(range(9)), cache=False, progress=False)
    order = source.rows.argsort()
    return source.images[order], source.labels[order]


def test_channel_without_variation_is_not_stretched(toy, tensors):
    """Without a source, the constants are those of the tensors: of the same pixels as a dataset, they are the same."""
    images = tensors[0].clone()
    images[:, 2] = 0
    reader = Reader(None, None, cache=False, progress=False, device=torch.device("cpu"))
    subject = _tensor_subject((images, tensors[1]), toy, None, reader)
    assert subject.std[2] == 1
    assert torch.allclose(subject.std[:2], (images[:, :2] / 255).std((0, 2, 3), correction=0))


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory) -> Path:
    """The toy set as a folder of Parquet files, with the splits train and test."""
    place = tmp_path_factory.mktemp("data") / "toys"
    toy.select(range(24)).to_parquet(place / "train.parquet")
    toy.select(range(24, 36)).to_parquet(place / "test.parquet")
    return place


def test_tensors_are_trained_on_in_the_normalisation_of_the_source(toy, tensors, trainings):
    images, labels = tensors
    result = run((images, labels), toy, source=toy, seeds=1)
    real = load_source(toy, cache=False, progress=False)
    data = trainings[0].data
    expected = (images / 255 - real.mean.reshape(-1, 1, 1)) / real.std.reshape(-1, 1, 1)
    torch.testing.assert_close(data.images, expected)
    assert torch.equal(data.labels, labels)
    assert [(s.set, s.rows) for s in result.scores] == [("train", 9), ("random", 9)]
    floats = run((images.double() / 255, labels.int()), toy, source=toy, seeds=1)
    assert rows_of(floats)["train"].accuracies == rows_of(result)["train"].accuracies


def test_tensors_and_a_dataset_of_the_same_images_have_the_same_classes(toy, tensors):
    options = {"source": toy, "seeds": 2, "epochs": 60, "baselines": ()}
    as_tensors = run(tensors, toy, **options).scores[0]
    as_rows = run(toy.select(range(9)), toy, **options).scores[0]
    assert as_tensors.mean > 0.9
    assert as_tensors.mean == pytest.approx(as_rows.mean, abs=0.1)


def test_logits_are_soft_labels_with_hard_ones_beside_them(toy, tensors, trainings):
    images, labels = tensors
    logits = 4 * torch.nn.functional.one_hot(labels, 3).half()
    result = run((images, logits), toy, source=toy, seeds=1, ipc=1)
    assert [(s.set, s.rows) for s in result.scores] == [("train", 3), ("train (hard labels)", 3), ("random", 3)]
    assert torch.equal(trainings[0].data.labels, logits[:3].float())
    assert torch.equal(trainings[1].data.labels, labels[:3])


def test_tensors_without_a_source_are_normalised_by_themselves(toy, tensors, trainings, caplog):
    run(tensors, toy, seeds=1, baselines=())
    assert "own mean and std" in caplog.text
    assert trainings[0].data.images.mean((0, 2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 8, 8), torch.tensor([0, 1]), r"images should be \(N, C, H, W\).*got \(2, 8, 8\)"),
        (torch.zeros(2, 4, 8, 8), torch.tensor([0, 1]), "with 1 or 3 channels"),
        (torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long), r"got \(0, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int), torch.tensor([0, 1]), "floats in .0, 1., or uint8; got torch.int32"),
        (torch.full((2, 3, 8, 8), float("nan")), torch.tensor([0, 1]), "images should be finite"),
        (
            torch.full((2, 3, 8, 8), -1.9),
            torch.tensor([0, 1]),
            r"values from -1.9 to -1.9; .*images \* std \+ mean",
        ),
        (torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8), torch.tensor([0, 1]), r"look like \[-1, 1\]; pass \(images"),
        (torch.zeros(2, 3, 8, 8), torch.eye(3)[:2], r"got probabilities, .*labels\.argmax\(1\)"),
        (torch.full((2, 3, 8, 8), 255.0), torch.tensor([0, 1]), "divide them by 255"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 3]), r"labels should be in 0..2, .*got 0..3"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1, 2]), r"integers \(2,\).*got torch.int64 \(3,\)"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([True, False]), "got torch.bool"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 4), r"finite logits \(2, 3\).*got \(2, 4\)"),
    ],
)
def test_bad_tensors_are_refused_with_what_would_be_right(toy, images, labels, message):
    with pytest.raises(ValueError, match=message):
        run((images, labels), toy, source=toy)


def test_what_is_no_pair_of_tensors_is_refused(toy, tensors):
    for train in (("a", "b"), (*tensors, tensors[0])):
        with pytest.raises(TypeError, match=r"two tensors \(images, labels\); got \("):
            run(train, toy, source=toy)


def test_a_safetensors_file_is_scored(program, tensors, folder, tmp_path):
    images, labels = tensors
    save_file({"images": images.contiguous(), "labels": labels, "more": torch.zeros(1)}, tmp_path / "set.safetensors")
    assert torch.equal(read_tensor_set(tmp_path / "set.safetensors")[1], labels)
    code, out, _ = program("eval", tmp_path / "set.safetensors", "--source", folder, *QUICK)
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["train", "9", "convnet-w8"]


def test_a_folder_of_images_by_class_is_scored(program, toy, folder, tmp_path):
    names = toy.features["label"].names
    for i, row in enumerate(toy.select(range(6))):
        place = tmp_path / "images" / names[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{i}.png")
    code, out, _ = program("eval", tmp_path / "images", "--source", folder, "--format", "json", "--by-class", *QUICK)
    assert code == 0
    scores, classes = json.loads(out)
    assert [(record["set"], record["rows"]) for record in scores] == [("train", 6)]
    assert [record["class"] for record in classes] == names


def test_a_plain_dataset_on_the_hub_is_scored(hub, program, toy, folder):
    repo = hub.repo()
    toy.select(range(12)).push_to_hub(repo)
    options = ("--ipc", 2, "--ipc", 1, "--lr", 0.02, "--format", "markdown")
    code, out, _ = program("eval", repo, "--source", folder, *options, *QUICK)
    assert code == 0
    head, _, first, second, _, common = out.splitlines()
    assert "lr 0.02" in common
    assert head.startswith("| set | ipc | rows |")
    assert (first.split(" | ")[:3], second.split(" | ")[:3]) == (["| train", "1", "3"], ["| train", "2", "6"])


@pytest.mark.parametrize("name", ["images_best.pt", "res.PTH", "data.pkl"])
def test_a_pickle_is_refused_with_a_way_to_convert_it(program, folder, tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    code, _, err = program("eval", tmp_path / name, "--source", folder, *QUICK)
    assert code == 1
    for part in ("is a pickle", "weights_only=True", "safetensors.torch.save_file", '"images"', '"labels"'):
        assert part in err
    code, _, err = program("eval", f"missing-{name}", "--source", folder, *QUICK)
    assert (code, err) == (1, f"error: no file 'missing-{name}' (looked for {Path.cwd() / f'missing-{name}'})\n")


def test_files_that_are_no_set_are_refused_with_what_is_missing(program, folder, tmp_path):
    save_file({"image": torch.zeros(1), "labels": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    for name, message in {
        "a": "should hold the tensors images and labels; images are missing, it holds image, labels",
        "b": "is not a safetensors file",
        "c": "no file",
    }.items():
        code, _, err = program("eval", tmp_path / f"{name}.safetensors", "--source", folder, *QUICK)
        assert code == 1
        assert message in err


def test_a_rate_that_is_no_number_is_refused(program, folder):
    code, _, err = program("eval", folder, "--source", folder, "--lr", "search", "--lr", "0.1", *QUICK)
    assert code == 2
    assert "--lr takes a number, or search alone; got search and 0.1" in err


def test_a_damaged_set_is_not_taken_for_a_folder_of_images(program, folder, tmp_path):
    (tmp_path / "condense_config.json").write_text("{")
    code, _, err = program("eval", tmp_path, "--source", folder, *QUICK)
    assert code == 1
    assert "condense_config.json: not the JSON that hf_condense writes" in err


def test_tensors_inside_a_condensed_set_are_refused_with_its_folder(program, folder, tmp_path):
    place = make_set().save_condensed(tmp_path / "sets")
    code, _, err = program("eval", place / "condensed.safetensors", "--source", folder, *QUICK)
    assert code == 1
    assert f"belongs to a condensed set, whose recipe says how to read it; pass {place}" in err
    code, _, err = program("eval", tmp_path / "x.safetensors", "--name", "a", "--source", folder, *QUICK)
    assert code == 2
    assert "--name is for folders and repositories" in err
