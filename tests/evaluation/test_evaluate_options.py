"""How an evaluation runs: networks, compiling and processes, and which input it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel

import hf_condense.base.devices
from hf_condense import condense_dataset
from hf_condense.condensed.dataset import CondensedDataset
from tests.support.short_evaluations import relabelled, run

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_a_grey_set_learns_from_grey_and_refuses_colour(toy_gray, toy):
    grey = condense_dataset(toy_gray, "random", ipc=2, progress=False)
    assert run(grey, toy_gray, seeds=1, epochs=60).scores[0].mean > 0.9
    with pytest.raises(ValueError, match="test has pictures of mode 'RGB', but the set's are grey"):
        run(grey, toy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "dsaa"}, "recipe should be one of 'dc', 'dsa', 'idc'; got 'dsaa'; did you mean 'dsa'"),
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
        ({"epochs": 0}, "epochs should be at least 1"),
        ({"max_updates": 0}, "max_updates should be at least 1"),
        ({"augment": "colour"}, "did you mean 'color'"),
        ({"label_column": "nope"}, "'nope' is no column"),
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


def test_a_missing_source_is_explained(toy, small):
    loaded = CondensedDataset.from_parts(small.select(range(6)), small.synthetic, small.recipe)
    with pytest.raises(ValueError, match=r"random, full are drawn from the real training set.*source=.*baselines=\(\)"):
        run(loaded, toy, baselines=("random", "full"))
    assert run(loaded, toy, baselines=(), seeds=1).scores[0].set == "random_ipc2"


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
    with pytest.raises(TypeError, match="source is an IterableDataset"):
        run(small, toy, source=toy.to_iterable_dataset())


def test_compiling_is_decided_by_the_amount_of_work(toy, small, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    monkeypatch.setattr(hf_condense.base.devices.shutil, "which", lambda _: "/usr/bin/g++")
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
