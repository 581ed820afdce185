"""How an evaluation runs: networks, compiling and processes, and which input it refuses."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

import hf_condense
import hf_condense.base.devices
import hf_condense.evaluation.reader
from hf_condense import combine_condensed, condense_dataset
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.networks.training_recipe import TrainingRecipe
from tests.support.short_evaluations import relabelled, run, synthetic, watch_trainings

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_unknown_argument_names_the_one_that_may_have_been_meant(toy, small):
    with pytest.raises(TypeError, match=r"evaluate has no argument 'network'; did you mean 'networks'\?"):
        hf_condense.evaluate(small, toy, network="convnet-w4")


def test_several_networks_and_a_callable_are_trained_in_turn(toy, small):
    def linear(*, channels, num_classes, image_size):
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(channels * image_size[0] * image_size[1], num_classes)
        )

    result = run(small, toy, networks=["convnet-w4", linear, "convnet-w4-bn"], seeds=1, baselines=("random", "full"))
    assert [(s.set, s.network.split(".")[-1]) for s in result.scores] == [
        (name, network)
        for network in ("convnet-w4", "linear", "convnet-w4-bn")
        for name in ("random_ipc2", "random", "full")
    ]


def test_two_names_of_one_network_are_trained_once(toy, small):
    result = run(small, toy, networks=["convnet", "convnet-w128"], seeds=1, max_updates=1, baselines=())
    assert [score.network for score in result.scores] == ["convnet"]


def test_function_of_the_name_of_a_network_stands_beside_it(toy, small):
    def make():
        class Own(torch.nn.Sequential):
            pass

        def convnet(*, channels, num_classes, image_size):
            return Own(torch.nn.Flatten(), torch.nn.Linear(channels * image_size[0] * image_size[1], num_classes))

        convnet.__qualname__ = "convnet-w4"
        return convnet

    result = run(small, toy, networks=[make(), "convnet-w4"], seeds=1, max_updates=1, baselines=())
    assert [score.network for score in result.scores] == ["convnet-w4", "convnet-w4 (2)"]


def test_test_set_in_the_place_of_the_condensed_one_raises_value_error(toy, small):
    with pytest.raises(
        ValueError, match=r"tested on the condensed set 'random_ipc2'; pass it first.*evaluate\(small, te"
    ):
        run(toy, small)


def test_a_grey_set_learns_from_grey_and_refuses_colour(toy_gray, toy):
    grey = condense_dataset(toy_gray, "random", ipc=2, progress=False)
    assert run(grey, toy_gray, seeds=1, epochs=60).scores[0].mean > 0.9
    with pytest.raises(ValueError, match="test has pictures of mode 'RGB', but the set's are grey"):
        run(grey, toy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "dsaa"}, "recipe should be one of 'dc', 'dsa', 'idc', 'soft'; got 'dsaa'; did you mean 'dsa'"),
        ({"networks": "convnett"}, "unknown network 'convnett'.*did you mean 'convnet'"),
        ({"networks": ()}, "at least one network"),
        (
            {"baselines": "randon"},
            "baselines should be one of 'random', 'full', .*; got 'randon'; did you mean 'random'",
        ),
        ({"baselines": "dm"}, "baselines should be one of .*'herding'.*; got 'dm'"),
        ({"seeds": 0}, "seeds should be at least 1; got 0"),
        ({"seeds": ()}, "seeds should be a number of networks"),
        ({"seeds": [1, 1]}, "different integers"),
        ({"seeds": [0, 2**64]}, r"seeds should be in -2\*\*63\.\.2\*\*64 - 1; got \[0, 18446744073709551616\]"),
        ({"seeds": [-(2**63) - 1]}, r"seeds should be in -2\*\*63\.\."),
        ({"seed": 2**64}, r"seed should be in 0\.\.2\*\*64 - 1; got 18446744073709551616"),
        ({"epochs": 0}, "epochs should be at least 1"),
        ({"max_updates": 0}, "max_updates should be at least 1"),
        ({"augment": "colour"}, "did you mean 'color'"),
        ({"augment": ""}, "unknown augmentation ''; known: color, .*, or 'none' alone"),
        ({"label_column": "nope"}, "'nope' is not a column"),
    ],
)
def test_a_bad_option_is_refused_with_what_would_be_right(toy, small, options, message):
    with pytest.raises(ValueError, match=message):
        run(small, toy, **options)


@pytest.mark.parametrize(("name", "value"), [("epochs", 2.5), ("max_updates", "3"), ("epochs", True)])
def test_a_number_that_is_no_integer_is_refused(toy, small, name, value):
    with pytest.raises(TypeError, match=f"{name} should be an integer; got {value!r}"):
        run(small, toy, **{name: value})


def test_numbers_may_be_those_of_numpy(toy, small):
    counted = run(small, toy, seeds=np.int64(2), epochs=np.int32(3), max_updates=np.int64(2), baselines=())
    assert (counted.scores[0].seeds, counted.scores[0].updates) == ((0, 1), 2)
    assert run(small, toy, seeds=[np.int64(5)], epochs=1, baselines=()).scores[0].seeds == (5,)


@pytest.mark.parametrize(
    "seeds", [[np.int64(0), np.uint8(1)], np.arange(2), np.array([0, 1], np.uint16), (0, 1), range(2), np.int8(2)]
)
def test_seeds_may_come_in_any_list_of_integers(toy, small, seeds):
    options = {"epochs": 2, "cache": False}
    scores = run(small, toy, seeds=seeds, seed=np.int64(3), baselines=np.array(["random", "full"]), **options).scores
    expected = run(small, toy, seeds=[0, 1], seed=3, baselines=["random", "full"], **options).scores
    assert [(s.set, s.seeds, s.accuracies) for s in scores] == [(s.set, s.seeds, s.accuracies) for s in expected]
    assert {type(seed) for s in scores for seed in s.seeds} == {int}


@pytest.mark.parametrize("seeds", [True, "12", [True], [0.5], np.array([0.0, 1.0]), np.array([False, True]), None, {}])
def test_seeds_that_are_no_integers_are_refused(toy, small, seeds):
    with pytest.raises((ValueError, TypeError), match="seeds should be "):
        run(small, toy, seeds=seeds)


@pytest.mark.parametrize("seed", [True, 0.0, "0", None, np.float32(1)])
def test_a_seed_that_is_no_integer_is_refused(toy, small, seed):
    with pytest.raises(TypeError, match="seed should be an integer; got "):
        run(small, toy, seed=seed)


def test_a_recipe_with_numbers_of_numpy_gives_scores_that_are_cached(toy, small, monkeypatch):
    plain = TrainingRecipe("own", 3, batch_size=4, lr=0.125, milestones=(0.25, 0.5), gamma=0.5, flatness=0.0)
    own = TrainingRecipe(
        "own",
        np.int64(3),
        batch_size=np.int32(4),
        lr=np.float32(0.125),
        momentum=np.float64(0.9),
        milestones=np.array([0.25, 0.5], np.float32),
        gamma=np.float16(0.5),
        restart_optimiser=np.bool_(True),
        flatness=np.float32(0),
    )
    assert own == plain
    assert json.dumps(dataclasses.asdict(own)) == json.dumps(dataclasses.asdict(plain))
    options = {"recipe": own, "epochs": None, "seeds": 1, "baselines": "full"}
    first = run(small, toy, **options)
    trainings = watch_trainings(monkeypatch)
    assert run(small, toy, **{**options, "recipe": plain}).scores[1] == first.scores[1]
    assert len(trainings) == 1, "the score of the full source is in the cache"


def test_what_needs_no_data_is_refused_before_anything_is_read(toy, small, monkeypatch):
    monkeypatch.setattr(hf_condense.evaluation.reader, "load_source", lambda *_, **__: pytest.fail("data were read"))
    wrong = {
        "networks": (["convnet", "convnet-w0x"], "w0x"),
        "recipe": ("dsaa", "recipe.*'dsaa'"),
        "epochs": (0, "epochs should be .*0"),
        "max_updates": (1.5, "max_updates should be .*1.5"),
        "seeds": ([1, 1], "seeds .*1, 1"),
        "baselines": (["random", "herdin"], "herdin"),
        "augment": ("colour", "augmentation 'colour'"),
        "compile": ("always", "compile should be"),
        "seed": ("0", "seed"),
        "image_column": ("nope", "image_column='nope'"),
    }
    for option, (value, message) in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            run(small, toy, **{option: value})
    for networks in (torch.nn.Linear(2, 2), None, 3, [3], [torch.nn.Linear(2, 2)]):
        with pytest.raises(TypeError, match=r"networks? should (be|make)"):
            run(small, toy, networks=networks)


def test_a_missing_source_is_explained(toy, small):
    loaded = CondensedDataset.from_parts(small.select(range(6)), small.synthetic, small.recipe)
    with pytest.raises(
        ValueError, match=r"random, full are drawn from the real training set.*source=.*baselines='none'"
    ):
        run(loaded, toy, baselines=("random", "full"))
    with pytest.raises(ValueError, match=r"the baseline random is drawn from .*a loaded set does not carry it, and"):
        run(loaded, toy, baselines="random")
    assert run(loaded, toy, baselines=(), seeds=1).scores[0].set == "random_ipc2"


def test_numbers_in_place_of_names_are_explained(toy, small):
    features = Features({"image": Image(), "label": Value("int64")})
    numbers = Dataset.from_dict({"image": toy["image"][:6], "label": [0, 1, 2] * 2}, features=features)
    with pytest.raises(ValueError, match=r"test\.cast_column\('label', datasets\.ClassLabel\(names=\[\.\.\.\]\)\)"):
        run(small, numbers, source=toy, label_column="label")
    beyond = Dataset.from_dict({"image": toy["image"][:2], "label": [0, 3]}, features=features)
    with pytest.raises(ValueError, match="test has classes") as caught:
        run(small, beyond, source=toy, label_column="label")
    assert "cast_column" not in str(caught.value), "3 is no class of the set"


def test_unknown_classes_are_explained(toy, small):
    other = relabelled(toy, ["ball", "cross", "stripes"]).cast_column(
        "label", ClassLabel(names=["ball", "square", "stripes"])
    )
    with pytest.raises(ValueError, match=r"test has classes that the set does not know: 'square'.*'ball', 'cross'"):
        run(small, other)
    with pytest.raises(ValueError, match="source has no rows of 'cross'"):
        run(small, toy, source=toy.filter(lambda row: row["label"] != 1))


def test_splits_and_streams_are_refused(toy, small):
    with pytest.raises(TypeError, match="test should be one split"):
        run(small, datasets.DatasetDict({"test": toy}))
    for baselines in ("random", ()):
        with pytest.raises(TypeError, match="train should be one split; got DatasetDict with 'train'; pick one"):
            run(datasets.DatasetDict({"train": small}), toy, baselines=baselines)
    with pytest.raises(TypeError, match="source is an IterableDataset"):
        run(small, toy, source=toy.to_iterable_dataset())


def test_compiling_is_decided_by_the_amount_of_work(toy, small, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    monkeypatch.setattr(hf_condense.base.devices, "has_compiler", lambda: True)
    run(small, toy, seeds=1)
    assert not compiled
    run(small, toy, seeds=1, compile=True)
    assert len(compiled) == 1
    monkeypatch.setattr(hf_condense.base.devices, "_COMPILE_PAYS_BYTES", 1e5)
    run(small, toy, seeds=1)
    assert len(compiled) == 2
    run(small, toy, seeds=1, compile=False)
    assert len(compiled) == 2


WORKER = """
import atexit, json, os, sys

def note_threads():
    names = {task: open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")}
    with open(f"{sys.argv[1]}/{rank}.threads", "w") as file:
        json.dump(sorted(names.values()), file)

if os.path.isdir("/proc/self/task"):
    atexit.register(note_threads)  # before others are registered, so it is called after them
from hf_condense import condense_dataset, evaluate
from hf_condense.testing import toy_dataset
import torch
torch.set_num_threads(1)
ds = toy_dataset(names=("cat", "dog", "eel"))
small = condense_dataset(ds, "random", ipc=1, progress=False)
table = evaluate(
    small, ds, networks="convnet-w8", recipe="dsa", epochs=3, seeds=3, baselines=("random", "full"), progress=False
)
rows = [{k: v for k, v in row.items() if k != "seconds"} for row in table.to_records()]
rank = os.environ.get("RANK", "alone")
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(rows, file)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="about processes on CPUs; a CUDA device was found")
def test_two_processes_share_the_seeds(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([sys.executable], launcher):
        home = str(tmp_path / f"home of {len(command)}")  # apart, or the second would find the scores of the first
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": home}
        process = subprocess.run(
            [*command, str(script), str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "0", "1"))
    assert alone == first == second
    for file in tmp_path.glob("*.threads"):  # one of gloo's that is left may abort the process while it exits
        assert "gloo" not in file.read_text()


def test_callables_of_one_name_are_told_apart(toy, small):
    def make(width, *, channels, num_classes, image_size):
        pixels = channels * image_size[0] * image_size[1]
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(pixels, width), torch.nn.Linear(width, num_classes)
        )

    networks = [functools.partial(make, width) for width in (2, 40)]
    result = run(small, toy, networks=networks, seeds=2)
    first, second = dict.fromkeys(score.network for score in result.scores)
    assert second == f"{first} (2)"
    for gap in result.differences():
        own, other = (result.score(name, network=gap.network).mean for name in (gap.set, "random"))
        assert gap.mean == pytest.approx(own - other)


def test_a_rate_that_was_learned_for_sgd_is_not_taken_by_adamw(toy, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    learned = synthetic(toy, student_lr=torch.tensor(0.25))
    for recipe in ("dc", "soft"):
        run(learned, toy, recipe=recipe, seeds=1, epochs=1, baselines=())
    assert [training.recipe.lr for training in trainings] == [0.25, 0.001]


@pytest.mark.parametrize("parts", [("color_crop_cutout", "color_scale"), ("color_crop", "color_flip")])
def test_flips_stay_away_from_a_combined_set_if_a_part_was_made_without(toy, parts):
    sets = [synthetic(toy, recipe_changes={"augment": families, "seed": i}) for i, families in enumerate(parts)]
    result = run(combine_condensed(sets), toy, recipe="dsa", seeds=1, epochs=1, baselines=())
    assert result.scores[0].augment == "color_crop_cutout_scale_rotate"


def test_whole_source_is_compared_with_a_set_that_was_cut_down(toy, small):
    result = run(small, toy, ipc=1, seeds=2, baselines=("random", "full"))
    assert result.score("full", ipc=1).rows == 36
    assert [gap.set for gap in result.differences("full")] == ["random_ipc2", "random"]


def test_one_network_that_is_named_twice_is_trained_once(toy, small):
    def make(channels, num_classes, image_size):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * image_size[0] ** 2, num_classes))

    for networks in ([make, make], ["lenet", "lenet"]):
        assert len(run(small, toy, networks=networks, seeds=1, baselines=()).scores) == 1
