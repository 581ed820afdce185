"""Every example runs as it is, in its fast mode, and so does the script that draws the README's picture."""

import argparse
import dataclasses
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_condense import CondensedDataset, Evaluation, load_condensed
from hf_condense.condensed.decoders import DECODERS
from hf_condense.condensed.decoders.pixels import Pixels
from hf_condense.condensed.folder import list_sets
from hf_condense.condensed.scores import Score

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = [
    "quickstart.py",
    "own_columns.py",
    "new_method.py",
    "soft_labels.py",
    "independent_check.py",
    "benchmarks/accuracy.py",
    "benchmarks/paper.py",
    "benchmarks/curves.py",
    "benchmarks/steps.py",
    "benchmarks/speed.py",
    "benchmarks/forms.py",
    "benchmarks/rded.py",
    "benchmarks/scaling.py",
]


def run(script: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    process = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs(script: str, tmp_path: Path) -> None:
    printed = run(script, "--fast", folder=tmp_path)
    assert "CondensedDataset" in printed or "±" in printed or "s per update" in printed or "GFLOP/s" in printed
    if script == "quickstart.py":
        assert "equal to the bit: True" in printed
        assert (tmp_path / "condensed/quickstart/preview.png").is_file()
        printed = run("plain_training.py", str(tmp_path / "condensed/quickstart"), "--fast", folder=tmp_path)
        assert "trained on 10 rows" in printed


def test_rows_of_storage_forms_make_a_table(tmp_path: Path) -> None:
    run("benchmarks/forms.py", "--fast", "--out", "rows.jsonl", folder=tmp_path)
    printed = run("benchmarks/tables.py", "rows.jsonl", folder=tmp_path)
    assert "| demo, 1 per class | pixels | dct, 8 rows |\n" in printed
    assert re.search(r"\| `m3d` \| .* ± .* \(3\) \| .* ± .* \(3\) \|\n", printed)
    assert re.search(r"\| random rows, in the form \|  \| .* ± .* \|\n", printed)


def test_last_of_equal_cells_is_shown_with_its_note() -> None:
    table = names_of("benchmarks/tables.py")["table"]
    job = {"dataset": "a/b", "ipc": 2, "recipes": ["dc"], "form": "pixels"}
    costs = {"CPU seconds": 1.0, "CPU seconds before the first update": 0.4, "peak GiB of the process so far": 1.5}
    scores = [
        {"set": "dm_ipc2", "rows": 6, "mean": 0.5, "std": 0.01},
        {"set": "random", "rows": 6, "mean": 0.25, "std": 0.0},
    ]
    record = {"job": job, "method": "dm", "set": "dm_ipc2", "rows": 6, "steps": 1000, **costs, "dc": scores}
    later = [{**scores[0], "mean": 0.625}, scores[1]]
    assert table("b", [record, {**record, "dc": later, "note": "with care"}]).splitlines() == [
        "| b, 2 per class | pixels |",
        "|---|---|",
        "| `dm` | 62.5 ± 1.0 (1,000) ¹ |",
        "| random rows, as many as decoded | 25.0 ± 0.0 |",
        "",
        "- ¹ with care",
        "- CPU seconds of the steps: 1 to 1; before them, with experts and pools that were not cached: 0 to 0. "
        "Peak memory: 1.5 to 1.5 GiB.",
    ]


def test_gains_are_differences_from_the_rows_that_sets_start_from() -> None:
    def record(method: str, form: str, **accuracies: tuple[float, float]) -> dict:
        job = {"form": form, "recipes": ["dc", "dsa"]}
        of = [[{"set": name, "rows": 6, "mean": pair[i]} for name, pair in accuracies.items()] for i in range(2)]
        return {"job": job, "method": method, "set": "a", "dc": of[0], "dsa": of[1]}

    gains = names_of("benchmarks/tables.py")["gains"]
    start = {"random as dct": (0.5, 0.75), "random": (0.125, 0.25)}
    few = [record("dc", "pixels", a=(0.25, 0.125)), record("m3d", "dct", a=(0.5625, 0.75), **start)]
    many = [record("dc", "dct", a=(0.25, 0.75), **start), record("dc", "patches:4", a=(1.0, 1.0))]
    assert gains("b", {1: few, 10: many}).splitlines() == [
        "| b | dct, 1 per class | dct, 10 per class | pixels, 1 per class |",
        "|---|---|---|---|",
        "| `m3d` | +6.2, +0.0 |  |  |",
        "| `dc` |  | -25.0, +0.0 | +12.5, -12.5 |",
    ]


def test_tables_of_the_benchmarks_are_those_of_their_records() -> None:
    benchmarks = EXAMPLES / "benchmarks"
    tables = names_of("benchmarks/tables.py")["main"]([str(benchmarks / "records/forms.jsonl")])
    text = (benchmarks / "README.md").read_text(encoding="utf-8")
    assert tables
    assert not [table.splitlines()[0] for table in tables if table not in text]


def test_space_is_a_page_and_a_card_that_says_so(tmp_path: Path) -> None:
    run("space/make_space.py", "--fast", "--out", "space", folder=tmp_path)
    assert "random_ipc2" in (tmp_path / "space/index.html").read_text(encoding="utf-8")
    assert "sdk: static" in (tmp_path / "space/README.md").read_text(encoding="utf-8")


def names_of(script: str) -> dict[str, Any]:
    """Return what an example defines, to run it in this process, which is quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((EXAMPLES / script).parent))  # as Python does for a script
        return runpy.run_path(str(EXAMPLES / script))


def test_storage_form_of_ones_own_is_learned_and_loads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DECODERS, "small", Pixels)  # the end of the test then forgets it
    names_of("new_storage_form.py")["main"](fast=True)
    printed = capsys.readouterr().out
    assert "7840 numbers give 40 rows: dm_ipc1_small4" in printed
    assert "equal to the bit: True" in printed


def test_memories_of_real_rows_take_about_the_bytes_of_the_condensed_one(capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = names_of("continual_learning.py")["main"](["--fast"])
    assert {name: [len(scores) for scores in seeds] for name, seeds in accuracies.items()} == {
        name: [2, 2] for name in ("condensed", "herding", "random")
    }
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \|", capsys.readouterr().out, re.MULTILINE)
    sizes = {name: int(size.replace(",", "")) for name, size in rows}
    assert all(0.8 * sizes["condensed"] < sizes[name] <= 1.02 * sizes["condensed"] for name in ("herding", "random"))


def test_networks_are_ranked_on_every_set_and_compared_with_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    example = names_of("architecture_search.py")
    correlations = example["main"](["--fast"])
    assert {name: len(values) for name, values in correlations.items()}.items() >= {("random", 2), ("herding", 2)}
    assert "3 candidates, n = 2 networks each" in capsys.readouterr().out
    accuracies = {"full": (0.1, 0.2, 0.3), "alike": (0.3, 0.5, 0.6), "reversed": (0.6, 0.5, 0.3)}
    scores = [
        Score(name, 10, f"net{i}", "dc", None, 1, 1, (value, value + 0.01), (0, 1), 1.0)
        for name, values in accuracies.items()
        for i, value in enumerate(values)
    ]
    ranked = example["rank_correlations"](Evaluation(tuple(scores)))
    assert ranked == {"alike": ([1, 1], 1), "reversed": ([-1, -1], -1)}


LAUNCHERS = {
    "torchrun": (2, "torch.distributed.run --nproc_per_node 2 --master_addr 127.0.0.1 --master_port"),
    # On CPUs, this one starts several processes by MPI alone.
    "accelerate launch": (
        1,
        "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no "
        "--main_process_port",
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests processes on CPUs, but there is a CUDA device")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_processes_condense_and_one_saves(launcher: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes, arguments = LAUNCHERS[launcher]
    command = [sys.executable, "-m", *arguments.split(), port, str(EXAMPLES / "many_processes.py"), "--fast"]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHONWARNINGS": "ignore"}
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.count(f"{processes} processes; saved") == 1
    assert [record["n"] for record in load_condensed(tmp_path / "condensed/many_processes").recipe.evaluation] == [2, 2]


def test_trainer_trains_or_says_what_is_missing(tmp_path: Path) -> None:
    printed = run("trainer.py", "--fast", folder=tmp_path)
    assert (
        "trained on 10 rows" if find_spec("transformers") else "skipped: this example needs transformers"
    ) in printed


def test_sets_in_a_folder_and_in_a_repository_load_exactly(
    hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = names_of("push_and_load.py")["main"]
    for repo, place in ((None, tmp_path / "sets"), (hub.repo(), None)):
        main(repo, place, fast=True)
        printed = capsys.readouterr().out
        assert f"{repo or place} holds dm_ipc1, random_ipc10" in printed
        assert printed.count("equal to the bit: True") == 2


def test_published_sets_are_measured_once_and_a_killed_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = names_of("benchmarks/publish.py")["main"]
    arguments = ["--fast", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "cards")]
    evaluate, calls = main.__globals__["evaluate"], []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(args[0].recipe.config_name)
        if len(calls) == 4:  # the last network on the last set
            raise KeyboardInterrupt
        return evaluate(*args, **options)

    with monkeypatch.context() as patch:
        patch.setitem(main.__globals__, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
    assert calls == ["herding_ipc1"] * 2 + ["dm_ipc1_dct8"] * 2
    capsys.readouterr()
    assert main([*arguments, "--ship", "demo", "--ship-to", str(tmp_path / "shipped")]) == []
    printed = capsys.readouterr().out
    assert "made" not in printed
    assert list_sets(tmp_path / "shipped/demo") == ["dm_ipc1_dct8", "herding_ipc1"]
    assert load_condensed(tmp_path / "shipped/demo").recipe.method == "dm"  # herding's set was made first
    assert printed.count("dm_ipc1_dct8") == 1  # its one missing measurement
    index, card = ((tmp_path / "cards" / name).read_text() for name in ("README.md", "demo.md"))
    number = r"\d+\.\d\d ± \d+\.\d\d"
    measured = rf"({number} \| ){{4}}- \| ({number} \| ){{2}}2 \| convnet-w8"
    training = rf"dc: 2 epochs, 2 updates, no augmentation, learning rate 0\.01 \| convnet-w4-d1 {number} \|"
    assert re.search(rf"\| `dm_ipc1_dct8` \| 1 \| 2 \| {measured} \| {training}", index)
    assert "](../shipped/demo)" in index
    assert "random rows in the same form" in card
    assert f'load_condensed("{(tmp_path / "shipped/demo").as_posix()}", "dm_ipc1_dct8")' in card
    assert (tmp_path / "cards/demo/dm_ipc1_dct8/preview.png").is_file()
    (tmp_path / "cards/demo.md").unlink()
    (tmp_path / "shipped/demo/leftover").mkdir()
    main(["--only-cards", *arguments[1:], "--ship", "demo", "--ship-to", str(tmp_path / "shipped")])
    assert (tmp_path / "cards/demo.md").read_text() == card
    assert [folder.name for folder in (tmp_path / "shipped").iterdir()] == ["demo"]
    assert not (tmp_path / "shipped/demo/leftover").exists()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with sets in `work` and cards in `cards`, as publish.py makes them in its fast mode."""
    folder = tmp_path_factory.mktemp("published")
    names_of("benchmarks/publish.py")["main"](
        ["--fast", "--work", str(folder / "work"), "--out", str(folder / "cards")]
    )
    return folder


def test_index_and_card_say_where_the_tensors_are_not(published: Path) -> None:
    index, card = ((published / "cards" / name).read_text() for name in ("README.md", "demo.md"))
    assert "- demo: the tensors of these sets are not in this repository" in index
    assert "The tensors of these sets are not in this repository" in card
    assert 'load_condensed("path/to/demo", "dm_ipc1_dct8")' in card


def test_index_names_the_command_that_made_the_sets(published: Path) -> None:
    (command,) = re.findall(r"^python .*", (published / "cards/README.md").read_text(), re.MULTILINE)
    parsed = names_of("benchmarks/publish.py")["parsed"]
    said, true = (vars(parsed(arguments)) for arguments in (shlex.split(command)[2:], ["--fast"]))
    assert said["datasets"] == {"demo": "PLACE"}
    assert sorted(said["methods"]) == sorted(true["methods"])
    for name in ("ipc", "steps", "network", "cross", "recipe", "epochs", "seeds"):
        assert said[name] == true[name], name


@pytest.mark.parametrize("changed", [{"epochs": 3}, {"seeds": 3}, {"recipe": "dsa"}])
def test_accuracies_of_another_training_are_not_taken_for_those_asked_for(published: Path, changed: dict) -> None:
    names = names_of("benchmarks/publish.py")
    folder, args = published / "work/sets/demo", names["parsed"](["--fast"])
    small = load_condensed(folder, "dm_ipc1_dct8")

    def found() -> tuple[list[dict], list[dict]]:
        own = names["own_records"](small.recipe, "convnet-w8", args)
        return own, names["known_baselines"](small, "convnet-w8", args, folder)

    assert all(found())
    vars(args).update(changed)
    assert found() == ([], [])


def test_set_of_another_network_is_made_again(published: Path, tmp_path: Path) -> None:
    names = names_of("benchmarks/publish.py")
    shutil.copytree(published / "work", tmp_path / "work")
    train = names["load_demo"]()["train"].select(range(200))
    for network, expected in (("convnet-avg-w8", "convnet-w8"), ("convnet-w4", "convnet-w4")):
        args = names["parsed"](["--fast", "--work", str(tmp_path / "work")])
        args.network = network
        small = names["made"](names["Job"]("demo", "dm", 1), train, args)
        assert small.recipe.network == expected
        assert bool(small.recipe.evaluation) is (expected == "convnet-w8")  # what is new was not measured yet


def test_new_accuracies_replace_those_of_another_training(published: Path, tmp_path: Path) -> None:
    names = names_of("benchmarks/publish.py")
    shutil.copytree(published / "work", tmp_path / "work")
    args = names["parsed"](["--fast", "--work", str(tmp_path / "work")])
    args.epochs, args.cross = 1, []
    ds = {split: rows.select(range(200)) for split, rows in names["load_demo"]().items()}
    small = load_condensed(tmp_path / "work/sets/demo", "herding_ipc1")
    (again,) = names["measured"](names["Job"]("demo", "herding", 1), small, ds, args)
    trained = [(record["network"], record["epochs"]) for record in again.recipe.evaluation]
    assert set(trained) == {("convnet-w8", 1), ("convnet-w4-d1", 2)}
    assert trained[0] == ("convnet-w8", 1)


def test_baselines_of_a_like_set_are_those_that_would_be_measured(published: Path, tmp_path: Path) -> None:
    names = names_of("benchmarks/publish.py")
    arguments = ["--fast", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "cards")]
    shutil.copytree(published / "work", tmp_path / "work")
    folder, args = tmp_path / "work/sets/demo", names["parsed"](arguments)
    splits = {split: rows.select(range(200)) for split, rows in names["load_demo"]().items()}
    first = load_condensed(folder, "dm_ipc1_dct8")
    evaluate, baselines = names["evaluate"], []

    def noted(*args: Any, **options: Any) -> Any:
        baselines.append(options["baselines"])
        return evaluate(*args, **options)

    def measured() -> list[dict[str, Any]]:
        recipe = dataclasses.replace(first.recipe, method="m3d", evaluation=[])
        small = CondensedDataset.from_parts(*first.parts[:2], recipe)
        list(names["measured"](names["Job"]("demo", "m3d", 1), small, splits, args))
        records = load_condensed(folder, "m3d_ipc1_dct8").recipe.evaluation
        return sorted(({**record, "seconds": 0} for record in records), key=str)

    names["measured"].__globals__["evaluate"] = noted
    borrowed = measured()
    shutil.rmtree(folder / "dm_ipc1_dct8")
    shutil.rmtree(folder / "m3d_ipc1_dct8")
    assert measured() == borrowed
    assert baselines == [(), (), ("random", "full"), ("random",)]


def test_sets_of_a_failed_job_are_named_and_the_others_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = names_of("benchmarks/publish.py")["main"]
    condense = main.__globals__["condense_dataset"]

    def broken(train: Any, method: str, *args: Any, **options: Any) -> Any:
        if method == "herding":
            raise ArithmeticError("the loss is NaN")
        return condense(train, method, *args, **options)

    main.__globals__["condense_dataset"] = broken
    (failure,) = main(["--fast", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "cards")])
    assert "herding" in failure
    assert "the loss is NaN" in failure
    assert "`dm_ipc1_dct8`" in (tmp_path / "cards/README.md").read_text()


def test_costs_of_storage_forms_are_printed(tmp_path: Path) -> None:
    printed = run("benchmarks/forms.py", "--costs", "--fast", folder=tmp_path)
    assert "siren" in printed
    assert "ms forward and backward" in printed


def test_costs_of_large_pictures_are_printed(tmp_path: Path) -> None:
    arguments = ["--large", "66", "--classes", "2", "--rows", "3", "--fast"]
    printed = run("benchmarks/rded.py", *arguments, folder=tmp_path)
    assert "peak GiB" in printed
    assert "bytes of soft labels" in printed


def test_papers_that_never_flip_keep_their_augmentation_on_digits() -> None:
    without_flips = names_of("benchmarks/paper.py")["without_flips"]
    no_flip = "color_crop_cutout_scale_rotate"
    assert [without_flips(method) for method in ("dc", "idc", "m3d", "dance", "ncfm")] == [{}] * 5
    assert without_flips("dm") == without_flips("esp") == {"augment": no_flip}
    assert without_flips("rded") == {"augment": "crop"}
    assert without_flips("mtt") == {"augment": no_flip, "augment_expert": no_flip}


def test_papers_numbers_on_digits_are_of_networks_trained_without_flips() -> None:
    augmentation_of = names_of("benchmarks/paper.py")["augmentation_of"]
    assert augmentation_of("dsa", "mnist") == "color_crop_cutout_scale_rotate"
    assert augmentation_of("dsa", "cifar10") == "color_crop_cutout_flip_scale_rotate"
    assert augmentation_of("dc", "mnist") is None


def test_run_of_a_paper_makes_as_many_steps_as_fit_and_no_more_than_asked_for(tmp_path: Path) -> None:
    main, rows = names_of("benchmarks/paper.py")["main"], tmp_path / "rows"
    common = ["--methods", "dm", "--ipc", "1", "--network", "convnet-w8", "--seeds", "1", "--epochs", "1"]

    def steps(minutes: str, **options: Any) -> int:
        texts = json.dumps({"batch_real": 8, **options})
        places = ["--out", str(rows), "--checkpoints", str(tmp_path / minutes)]
        (row,) = main([*common, *places, "--minutes", minutes, "--options", texts, "--baselines"])
        return row["steps"]

    assert steps("1e-9") == 1
    assert steps("99", steps=3) == 3
    assert steps("99", steps=3) == 3  # which finds its checkpoint
    seconds = [json.loads(line)["seconds per step"] for line in rows.read_text().splitlines()]
    assert [number is None for number in seconds] == [True, False, True]  # one step, three, none


def test_run_of_a_paper_scores_methods_without_steps(tmp_path: Path) -> None:
    main = names_of("benchmarks/paper.py")["main"]
    arguments = ["--methods", "random", "--ipc", "1", "--minutes", "1", "--fast", "--checkpoints", str(tmp_path)]
    (row,) = main([*arguments, "--recipes", "dc", "--baselines"])
    assert row["steps"] is None
    assert [score["set"] for score in row["dc"]] == ["random_ipc1"]


def test_pool_that_methods_share_is_recorded_once() -> None:
    recorded_options = names_of("benchmarks/curves.py")["recorded_options"]
    quick = {"preset": "quick", "steps": 9}
    dance = recorded_options("dance", quick)
    assert dance == recorded_options("m3d", {**quick, "networks": "pool", "calibration": 0.01})
    assert dance != recorded_options("dance", {**quick, "pool_size": 3})
    assert recorded_options("m3d", quick) is None
    assert recorded_options("mtt", quick) == {"preset": "quick"}


def test_share_of_the_plain_loop_counts_recording_and_the_first_point_that_gets_there() -> None:
    def point(method: str, minutes: float, mean: float, experts: float = 0.0) -> dict[str, Any]:
        return {"method": method, "minutes": minutes, "mean": mean, "experts": experts}

    points = [
        point("dm, plain loop", 10.0, 0.3),
        point("random", 10.0, 0.9),
        *(point("m3d", minutes, mean) for minutes, mean in ((1.0, 0.2), (2.0, 0.3), (4.0, 0.5))),
        *(point("esp", minutes, mean, experts=3.0) for minutes, mean in ((1.0, 0.4), (2.0, 0.5))),
        point("dc", 1.0, 0.1),
    ]
    assert names_of("benchmarks/curves.py")["ratios"](points) == {"m3d": 0.2, "esp": 0.4, "dc": None}


def test_networks_on_sets_of_a_method_without_flips_are_trained_as_the_recipe_says_but_for_digits() -> None:
    augment_argument = names_of("benchmarks/forms.py")["augment_argument"]

    def trained(recipe: str, dataset: str | None, augment: str | None = None) -> str | None:
        return augment_argument(recipe, argparse.Namespace(dataset=dataset, augment=augment))

    assert trained("idc", "uoft-cs/cifar10") == "color_crop_flip_scale_rotate"
    assert trained("dc", "uoft-cs/cifar10", "color") is None
    assert trained("idc", "ylecun/mnist") is trained("idc", None) is None  # evaluate decides
    assert trained("dsa", "ylecun/mnist", "color") == "color"


@pytest.mark.parametrize(
    ("dataset", "options", "augment"),
    [
        ("uoft-cs/cifar10", "{}", "color_crop_flip_scale_rotate"),
        ("uoft-cs/cifar10", '{"augment": "color"}', None),  # evaluate decides
        ("ylecun/mnist", "{}", None),
    ],
)
def test_accuracy_is_that_of_networks_trained_with_flips_unless_these_are_unwanted(
    dataset: str, options: str, augment: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, asked = names_of("benchmarks/accuracy.py")["main"], {}
    small, table = SimpleNamespace(recipe=SimpleNamespace(plan=None)), SimpleNamespace(to_records=list)
    splits = SimpleNamespace(load_dataset=lambda name: {"train": name, "test": name})
    for name, stand_in in (
        ("datasets", splits),
        ("condense_dataset", lambda *_, **__: small),
        ("evaluate", lambda *_, **how: asked.update(how) or table),
    ):
        monkeypatch.setitem(main.__globals__, name, stand_in)
    main([dataset, "--methods", "m3d", "--recipes", "idc", "--options", options])
    assert asked.get("augment") == augment


@pytest.mark.parametrize(
    ("changed", "runs"), [([], 1), (["--seeds", "5"], 2), (["--network", "mlp"], 2), (["--augment", "color"], 2)]
)
def test_finished_rows_of_forms_are_kept_unless_something_was_changed(
    changed: list[str], runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = names_of("benchmarks/forms.py")["main"]
    rows: list[dict] = []
    monkeypatch.setitem(main.__globals__, "measured", lambda *_: rows.append({}) or {})
    monkeypatch.setitem(main.__globals__, "line_of", str)
    arguments = ["--forms", "pixels", "--out", str(tmp_path / "rows")]
    main(arguments)
    main([*arguments, *changed])
    assert len(rows) == runs


def test_picture_script_draws_both_sets_and_their_accuracies(tmp_path: Path) -> None:
    printed = run("maintenance/picture.py", "--fast", "--out", str(tmp_path / "picture.png"), folder=tmp_path)
    assert "dm_ipc1" in printed
    assert "random" in printed
    with Image.open(tmp_path / "picture.png") as drawn, Image.open(EXAMPLES / "condensed_vs_random.png") as shipped:
        assert drawn.size == shipped.size


def test_the_plain_loop_imports_nothing_of_the_package() -> None:
    assert "hf_condense" not in {line.split()[1].split(".")[0] for line in imports(EXAMPLES / "plain_loop.py")}


def imports(script: Path) -> list[str]:
    return [line for line in script.read_text().splitlines() if line.strip().startswith(("import ", "from "))]


@pytest.mark.slow
def test_evaluate_agrees_with_a_plain_loop_within_a_point(tmp_path: Path) -> None:
    printed = run("independent_check.py", folder=tmp_path)
    assert abs(float(re.search(r"difference +(\S+) points", printed)[1])) < 1


def test_shipped_sets_are_whole_and_both_loaders_read_them() -> None:
    folder = EXAMPLES / "sets/mnist"
    for name in list_sets(folder):
        small = load_condensed(folder, name)
        rows = datasets.load_dataset(str(folder), name, split="train")
        assert rows["label"] == small["label"]
        assert np.array_equal(np.array(rows[0]["image"]), np.array(small[0]["image"]))
        assert len(small) == small.synthetic.num_rows
        assert f"| `{name}` | {small.recipe.ipc} |" in (EXAMPLES.parent / "model_cards/README.md").read_text()


def test_every_example_is_run_by_a_test() -> None:
    elsewhere = {"maintenance/make_demo_excerpt.py", "benchmarks/common.py"}  # in test_packaging.py, and in benchmarks
    others = {"plain_training.py", "plain_loop.py", "many_processes.py", "trainer.py", "benchmarks/publish.py"}
    others |= {"maintenance/picture.py", "space/make_space.py", "benchmarks/tables.py"}
    in_this_process = {"new_storage_form.py", "push_and_load.py", "continual_learning.py", "architecture_search.py"}
    in_this_file = {*SCRIPTS, *others, *in_this_process}
    scripts = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert scripts == in_this_file | elsewhere
