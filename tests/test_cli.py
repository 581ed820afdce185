"""The command line: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from PIL import Image

import hf_condense
from hf_condense import CondensedDataset, __version__, list_condensed, list_methods, load_condensed
from hf_condense.base.processes import get_accelerator
from hf_condense.cli import main
from hf_condense.cli.run import _parse_option
from hf_condense.condensed.scores import Evaluation, Score
from hf_condense.methods.dm import DistributionMatching
from hf_condense.testing import toy_dataset
from tests.support.command_line import Program
from tests.support.condensed_sets import files_below, make_coreset, make_set
from tests.support.watched_bars import watch_decoding

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("--network", "convnet-w8", "--ipc", "2", "--quiet")
SHORT = ("--epochs", 1, "--max-updates", 1, "--seeds", 1, "--quiet")  # trainings of `eval`


@pytest.fixture(scope="module")
def folder(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy dataset as a folder of Parquet files, with the splits train and test."""
    place = tmp_path_factory.mktemp("data") / "toys"
    toy.select(range(24)).to_parquet(place / "train.parquet")
    toy.select(range(24, 36)).to_parquet(place / "test.parquet")
    return place


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that the program made of them."""
    out = tmp_path_factory.mktemp("saved") / "toys"
    arguments = ("run", folder, "--method", "dm", "--steps", 3, "--out", out, *QUICK)
    with pytest.raises(SystemExit, match="0"):
        main([str(argument) for argument in arguments])
    return out


def test_run_saves_a_set_that_loads(saved: Path, folder: Path) -> None:
    small = load_condensed(saved)
    assert small.recipe.config_name == "dm_ipc2"
    assert (small.recipe.network, small.recipe.steps) == ("convnet-w8", 3)
    source = load_dataset(str(folder), split="train")
    plain = load_dataset(str(saved), split="train")
    assert plain.features == source.select_columns(["image", "label"]).features
    assert sorted(plain["label"]) == [0, 0, 1, 1, 2, 2]


def test_combine_saves_the_rows_of_all_sets_and_warns_of_equal_ones(
    program: Program, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, _ = program("combine", saved, saved / "dm_ipc2", "--out", tmp_path / "both")
    assert code == 0
    assert "sets 1 and 2 are equal, so the combined set has the same rows twice" in caplog.text
    assert "Combined 2 sets: 12 images of 3 classes." in out
    assert load_condensed(tmp_path / "both").recipe.config_name == "combined_ipc4"
    code, _, err = program("combine", saved, "--out", tmp_path / "one")
    assert code == 2
    assert f"name two sets or more to combine; got '{saved}'. Those of one folder are FOLDER/NAME each" in err


def test_run_takes_options_and_reads_what_save_to_disk_wrote(program: Program, toy: Dataset, tmp_path: Path) -> None:
    DatasetDict({"train": toy.rename_column("image", "picture")}).save_to_disk(tmp_path / "disk")
    columns = ("--image-column", "picture", "--label-column", "label")
    size = ("--image-size", "8x8", "--seed", 3, "--option", "lr_img=.5", "--option", "batch_real=4")
    arguments = ("run", tmp_path / "disk", "--method", "dm", "--steps", 1, *columns, *size, *QUICK)
    code, out, _ = program(*arguments, "--out", tmp_path / "out")
    assert code == 0
    recipe = load_condensed(tmp_path / "out").recipe
    assert (recipe.seed, recipe.image_column, recipe.image_size) == (3, "picture", [8, 8])
    assert (recipe.options["lr_img"], recipe.options["batch_real"]) == (0.5, 4)
    assert f"hf-condense eval {tmp_path / 'out' / 'dm_ipc2'}" in out


@pytest.mark.parametrize("out", [(), ("--out", "sets"), ("--out", ".")])
def test_run_refuses_to_save_into_its_dataset(
    program: Program, folder: Path, out: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    code, _, err = program("run", ".", "--method", "random", "--ipc", 1, "--quiet", *out)
    assert code == 2
    assert "inside the dataset '.'" in err
    assert sorted(folder.rglob("*")) == before


def test_run_says_how_pictures_without_labels_should_lie(program: Program, toy: Dataset, tmp_path: Path) -> None:
    (flat := tmp_path / "flat").mkdir()
    for i in range(4):
        toy[i]["image"].save(flat / f"{i}.png")
    code, _, err = program("run", flat, "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "out")
    assert code == 1
    assert "no column holds a ClassLabel; columns: 'image' (Image); pictures should lie in one folder per class" in err
    assert "pass --label-column for it" in err


def test_error_of_loading_says_what_first_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise DatasetGenerationError("an error occurred") from cause

    monkeypatch.setattr("hf_condense.cli.input._load_dataset", fail)
    outcome = CliRunner().invoke(main, ["run", str(tmp_path)])
    assert outcome.exit_code == 1
    assert f"cannot load '{tmp_path}': an error occurred (KeyError: 'the cause')" in outcome.output


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_shows_no_bar_of_the_libraries_that_load_datasets(folder: Path, tmp_path: Path, quiet: bool) -> None:
    switches = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", "from hf_condense.cli import main; main()", "run", folder, "--method", "random"]
    command += ["--ipc", 1, "--out", tmp_path / "out", *(["--quiet"] if quiet else [])]
    process = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]
    assert ("Generating train split" in process.stderr) is not quiet
    assert not quiet or process.stderr == ""


def test_quiet_lasts_as_long_as_the_command(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for library in (datasets.utils, huggingface_hub.utils):
        monkeypatch.setattr(library, "are_progress_bars_disabled", lambda *names: False)
        for name in ("disable_progress_bars", "enable_progress_bars"):
            monkeypatch.setattr(library, name, partial(calls.append, name))
    run = ("run", folder, "--method", "random", "--ipc", 1, "--out", tmp_path / "out")
    assert program(*run, "--quiet")[0] == 0
    assert calls == 2 * ["disable_progress_bars"] + 2 * ["enable_progress_bars"]
    assert program(*run)[0] == 0
    assert len(calls) == 4


def test_run_takes_a_number_of_images_for_every_class(program: Program, folder: Path, tmp_path: Path) -> None:
    run = ("run", folder, "--method", "random", "--quiet", "--out", tmp_path / "set")
    names = load_dataset(str(folder), split="train").features["label"].names
    assert program(*run, *(f"--ipc={name}={n}" for name, n in zip(names, (1, 3, 2), strict=True)))[0] == 0
    assert load_condensed(tmp_path / "set").recipe.ipc == dict(zip(names, (1, 3, 2), strict=True))
    for wrong in (("1", "2"), (f"{names[0]}=0",), ("many",), (f"{names[0]}=1", "2")):
        code, _, err = program(*run, *(f"--ipc={text}" for text in wrong))
        assert (code, "--ipc takes one number of at least 1, or CLASS=NUMBER for every class" in err) == (2, True)
    code, _, err = program(*run, f"--ipc={names[0]}=1", f"--ipc={names[0]}=2")
    assert (code, f"names the class '{names[0]}' twice" in err) == (2, True)


def test_run_never_loses_a_set_to_one_that_is_in_the_way(program: Program, folder: Path, tmp_path: Path) -> None:
    again = ("run", folder, "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "set")
    assert program(*again, "--seed", 1)[0] == 0
    first = load_condensed(tmp_path / "set")
    code, _, err = program(*again, "--seed", 2)
    assert code == 1, "a script that goes on with the place that it named would take the earlier set"
    assert "saved beside it" in err
    assert load_condensed(tmp_path / "set").recipe == first.recipe
    assert load_condensed(tmp_path / "set-2").recipe.seed == 2
    assert program(*again, "--seed", 2)[0] == 1
    assert not (tmp_path / "set-3").exists(), "the set is beside it already"
    assert program(*again, "--seed", 3)[0] == 1
    assert load_condensed(tmp_path / "set-3").recipe.seed == 3
    assert program(*again, "--seed", 4, "--overwrite")[0] == 0
    assert load_condensed(tmp_path / "set").recipe.seed == 4


def test_cache_can_be_left_alone_and_a_message_about_it_says_how(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "file"))
    run = ("run", folder, "--method", "random", "--out", tmp_path / "set", *QUICK)
    code, _, err = program(*run)
    assert code == 1
    assert "use another cache (set HF_HOME, or pass --no-cache)" in err
    assert program(*run, "--no-cache")[0] == 0
    evaluation = ("eval", tmp_path / "set", "--source", folder, "--baseline", "none", "--network", "convnet-w8", *SHORT)
    assert program(*evaluation)[0] == 1
    assert program(*evaluation, "--no-cache")[0] == 0


def test_run_refuses_a_place_that_cannot_be_written_before_it_reads(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = ("run", "/no/such/folder", "--method", "random", "--quiet")
    code, _, err = program(*run, "--out", tmp_path / "file" / "sets")
    assert code == 1
    assert "cannot be read or written" in err
    assert "choose another place" in err


def test_run_never_loses_a_set_to_a_place_that_fails_at_the_end(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, places = CondensedDataset.save_condensed, []

    def full(small: CondensedDataset, place: Path, *arguments: object, **options: object) -> Path:
        places.append(place)
        if len(places) == 1:
            raise OSError(errno.ENOSPC, f"no space left while writing {place}")
        return save(small, place, *arguments, **options)

    monkeypatch.setattr(CondensedDataset, "save_condensed", full)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code, _, err = program("run", folder, "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "set")
    assert code == 1
    assert places[0] == tmp_path / "set"
    assert f"no space left while writing {places[0]}; saved in {places[1]}" in err
    assert list_condensed(places[1]) == ["random_ipc1"]


def test_run_names_the_place_that_was_asked_for_if_no_other_place_can_be_written_to(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(small: CondensedDataset, place: Path, *arguments: object, **options: object) -> Path:
        raise OSError(errno.ENOSPC, f"no space left while writing {place}")

    monkeypatch.setattr(CondensedDataset, "save_condensed", full)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    code, _, err = program("run", folder, "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "set")
    assert code == 1
    assert f"the set was not saved: no space left while writing {tmp_path / 'set'}. Nor could it be saved in" in err
    assert not list((tmp_path / "temporary").iterdir())


def test_run_never_loses_a_set_to_a_damaged_one(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("run", folder, "--method", "random", "--ipc", 1, "--quiet")
    (tmp_path / "sets" / "other").mkdir(parents=True)
    (tmp_path / "sets" / "other" / "condense_config.json").write_text("{")
    code, _, err = program(*run, "--out", tmp_path / "sets")
    assert (code, "saved beside it" in err) == (1, True)
    assert list_condensed(tmp_path / "sets-2") == ["random_ipc1"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert program(*run, "--out", ".")[0] == 0
    assert program(*run, "--out", ".", "--seed", 1)[0] == 1
    assert load_condensed(tmp_path / "here-2").recipe.seed == 1


def test_run_saves_two_sets_of_one_method_under_their_names(program: Program, folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        arguments = ("run", folder, "--method", "random", "--ipc", 1, "--quiet", "--seed", seed)
        assert program(*arguments, "--out", tmp_path / "sets", "--name", f"seed{seed}")[0] == 0
    assert list_condensed(tmp_path / "sets") == ["seed1", "seed2"]
    assert load_condensed(tmp_path / "sets", "seed2").recipe.seed == 2


def test_run_ends_with_a_command_that_measures_the_set(program: Program, folder: Path, tmp_path: Path) -> None:
    place, out = tmp_path / "my toys", tmp_path / "my sets"
    shutil.copytree(folder, place)
    (place / "train.parquet").rename(place / "validation.parquet")
    what = ("--method", "dm", "--preset", "quick", "--steps", 1, "--option", "batch_real=4", "--ipc", 1, "--quiet")
    where = ("--config", "default", "--split", "validation", "--label-column", "label", "--network", "convnet-w8")
    code, printed, _ = program("run", place, *what, *where, "--out", out)
    assert code == 0
    (line,) = [line for line in printed.splitlines() if line.startswith("To see what the set is worth:  ")]
    words = shlex.split(line.partition(":  ")[2])
    (made,) = list_condensed(out)
    assert words[:5] == ["hf-condense", "eval", str(out / made), "--source", str(place)]
    options = dict(zip(words[5::2], words[6::2], strict=True))
    given = {"--config": "default", "--source-split": "validation", "--label-column": "label"}
    assert options == {**given, "--network": "convnet-w8", "--recipe": "dc"}
    assert program(*words[1:], "--baseline", "none", *SHORT)[0] == 0


def test_run_lets_pixels_leave_their_range(program: Program, folder: Path, tmp_path: Path) -> None:
    free = ("--pixel-range", "free", "--option", "lr_img=1e6", "--option", "batch_real=4", "--steps", 1)
    assert program("run", folder, "--method", "dm", *free, "--out", tmp_path, *QUICK)[0] == 0
    small = load_condensed(tmp_path)
    assert small.recipe.pixel_range == "free"
    assert not bool(((small.synthetic.images >= 0) & (small.synthetic.images <= 1)).all())


@pytest.mark.skipif(torch.cuda.is_available(), reason="starts processes on CPUs, but there is a CUDA device")
def test_run_of_two_processes_saves_and_prints_once(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "program.py").write_text("from hf_condense.cli import main\n\nmain()\n")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    run = [tmp_path / "program.py", "run", folder, "--method", "random", "--ipc", 1, "--quiet"]
    command = [sys.executable, *launcher, *run, "--out", tmp_path / "sets"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=180)
    assert process.returncode == 0, process.stderr[-4000:]
    assert re.fullmatch(r"Made 3 images [^\n]+\nSaved [^\n]+\nTo see [^\n]+\n", process.stdout)
    assert load_condensed(tmp_path / "sets").recipe.runtime["num_processes"] == 2
    assert {entry.name for entry in tmp_path.iterdir()} == {"program.py", "sets"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_that_a_signal_ends_says_how_to_go_on(
    number: int, code: int, program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("run", folder, "--method", "dm", "--steps", 3, "--option", "batch_real=4", "--out", tmp_path / "out")
    arguments = (*arguments, "--checkpoint-dir", tmp_path / "run", *QUICK)

    def interrupt(self: DistributionMatching, run: object, t: int) -> None:
        if t == 1:
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(DistributionMatching, "after_update", interrupt)
        answer, out, err = program(*arguments)
        assert (answer, out) == (code, "")
        assert f"the checkpoint of step 2 of 3 is in {tmp_path / 'run'}. To go on from there, run the same again" in err
        assert not (tmp_path / "out").exists()
        assert "With --checkpoint-dir, a run goes on" in program(*arguments[:8], *QUICK)[2]
    assert program(*arguments)[0] == 0
    assert load_condensed(tmp_path / "out").recipe.steps == 3


def test_budget_is_for_auto_and_decides_the_steps(program: Program, folder: Path, tmp_path: Path) -> None:
    code, _, err = program("run", folder, "--method", "dm", "--budget", 5, *QUICK)
    assert code == 1
    assert "budget is for --method auto without a preset, which chooses the steps; got it with --method dm: pass" in err
    code, _, err = program("run", folder, "--budget", -1, *QUICK)
    assert code == 1
    assert "budget should be a positive number of minutes; got -1" in err
    assert program("run", folder, "--budget", 1e-6, "--out", tmp_path / "out", *QUICK)[0] == 0
    assert load_condensed(tmp_path / "out").recipe.steps == 10  # the fewest that auto takes


def test_profile_prints_where_the_time_goes(program: Program, folder: Path, tmp_path: Path) -> None:
    settings = ("--method", "dm", "--steps", 3, "--option", "batch_real=4", "--max-memory", "1GiB")
    code, out, _ = program("run", folder, *settings, "--profile", "--out", tmp_path / "out", *QUICK)
    assert code == 0
    assert out.startswith("PART OF THE RUN")
    assert "OPERATION" in out


def test_run_resumes_from_its_checkpoint(program: Program, folder: Path, tmp_path: Path) -> None:
    def arguments(out: str) -> tuple[object, ...]:
        place = ("--checkpoint-dir", tmp_path / "checkpoints", "--out", tmp_path / out)
        return ("run", folder, "--method", "dm", "--steps", 2, *place, *QUICK)

    assert program(*arguments("first"))[0] == 0
    assert any((tmp_path / "checkpoints").iterdir())
    assert program(*arguments("second"))[0] == 0
    first, second = (load_condensed(tmp_path / out).synthetic.images for out in ("first", "second"))
    assert torch.equal(first, second)


def test_eval_prints_the_set_beside_its_baselines(program: Program, saved: Path, folder: Path) -> None:
    quick = ("--network", "convnet-w8", "--epochs", 2, "--max-updates", 2, "--seeds", 2, "--quiet")
    code, out, _ = program("eval", saved, "--source", folder, "--baseline", "random", "--baseline", "full", *quick)
    assert code == 0
    for word in ("dm", "random", "full", "convnet-w8", "dsa"):
        assert word in out
    code, out, _ = program("eval", saved, "--source", folder, "--baseline", "none", *quick)
    assert code == 0
    assert "random" not in out


def test_eval_tells_which_of_several_sets_it_takes(program: Program, saved: Path, folder: Path, tmp_path: Path) -> None:
    small = load_condensed(saved)
    for name in ("first", "second"):
        small.save_condensed(tmp_path, name)
    quick = ("--network", "convnet-w8", "--max-updates", 1, "--seeds", 1, "--baseline", "none", "--quiet")
    text = "Evaluating first; other sets here, for --name: second"
    assert text in program("eval", tmp_path, "--source", folder, *quick)[2]
    assert "other sets" not in program("eval", tmp_path, "--name", "second", "--source", folder, *quick)[2]


def test_eval_needs_the_source_only_for_what_is_drawn_from_it(
    program: Program, saved: Path, folder: Path, tmp_path: Path
) -> None:
    evaluation = ("--test", folder, "--network", "convnet-w8", *SHORT)
    code, out, err = program("eval", saved, *evaluation, "--baseline", "none", "--lr", "0.02", "--format", "json")
    assert (code, err) == (0, "")
    assert [record["set"] for record in json.loads(out)] == ["dm_ipc2"]
    assert program("eval", saved, *evaluation, "--baseline", "none", "--source", tmp_path / "gone")[0] == 0
    for options in ((), ("--baseline", "none", "--lr", "search"), ("--baseline", "none", "--lr", 0.1, "--lr", 1)):
        code, _, err = program("eval", saved, *evaluation, *options)
        assert code == 2
        assert "name it by --source, or pass --baseline none and at most one --lr" in " ".join(err.split())
    code, _, err = program("eval", folder, *evaluation, "--baseline", "none")
    assert code == 2
    assert "is not a condensed set, so its images are normalised as the real training set is" in " ".join(err.split())


def test_what_a_dataset_in_a_folder_does_not_have_is_refused(
    program: Program, saved: Path, folder: Path, toy: Dataset, tmp_path: Path
) -> None:
    DatasetDict(train=toy, test=toy.select(range(9))).save_to_disk(tmp_path / "disk")
    disk = tmp_path / "disk"
    for command in (("run", disk), ("eval", saved, "--source", disk), ("page", saved, "--source", disk)):
        code, _, err = program(*command, "--config", "plain")
        assert code == 2
        assert "so it has no configurations; leave out --config" in " ".join(err.split())
    code, _, err = program("eval", disk, "--source", folder, "--name", "plain")
    assert code == 2
    assert "leave out --name" in err
    quick = ("--network", "convnet-w8", "--baseline", "none", *SHORT)
    assert program("eval", saved, "--source", disk, "--test", folder, "--config", "default", *quick)[0] == 0
    for *command, option in (
        ("run", folder, "--dataset-revision"),
        ("eval", saved, "--source", folder, "--source-revision"),
        ("eval", saved, "--source", folder, "--test", folder, "--test-revision"),
        ("page", saved, "--source", folder, "--source-revision"),
    ):
        code, _, err = program(*command, option, "v1")
        assert code == 2
        assert f"{option} v1 is for datasets on the Hub" in err
    code, _, err = program("eval", saved, "--source", folder, "--revision", "v1")
    assert code == 1
    assert "--revision v1 is for repositories" in err


def test_hints_about_a_dataset_without_a_test_split_lead_to_other_rows(
    program: Program, toy: Dataset, tmp_path: Path
) -> None:
    place = tmp_path / "train alone"
    toy.to_parquet(place / "train.parquet")
    code, printed, _ = program("run", place, "--method", "random", *QUICK, "--out", tmp_path / "sets")
    assert code == 0
    assert "--test TEST_DATASET" in printed
    evaluation = ("eval", tmp_path / "sets", "--source", place, *SHORT)
    code, _, err = program(*evaluation)
    assert code == 1
    assert "its splits: train; choose one by --test-split, or other rows by --test" in err
    for same in ((), ("--test", place), ("--test", f"{place}/."), ("--test", os.path.relpath(place))):
        code, _, err = program(*evaluation, *same, "--test-split", "train")
        assert code == 2
        assert "tested on the rows that the set was made of" in err
    disk = tmp_path / "disk"
    toy.save_to_disk(disk)
    code, _, err = program("run", disk, "--method", "random", "--split", "validation", *QUICK)
    assert code == 2
    assert "holds a single split, so there is none to choose" in err
    sets = ("eval", tmp_path / "sets", "--network", "convnet-w8", *SHORT)
    for rows in (("--source", disk, "--source-split", "all", "--test", place), ("--test", disk, "--test-split", "all")):
        code, _, err = program(*sets, *rows)
        assert code == 2
        assert f"{rows[2]} all: '{disk}' holds a single split" in err


def test_eval_refuses_to_test_on_the_rows_that_the_set_was_made_from(
    program: Program, toy: Dataset, tmp_path: Path
) -> None:
    place = tmp_path / "one split"
    toy.save_to_disk(place)
    code, printed, _ = program("run", place, "--method", "random", *QUICK, "--out", tmp_path / "sets")
    assert code == 0
    (line,) = [line for line in printed.splitlines() if line.startswith("To see what the set is worth:  ")]
    words = shlex.split(line.partition(":  ")[2])
    assert words[words.index("--test") + 1] == "TEST_DATASET"
    code, _, err = program("eval", tmp_path / "sets", "--source", place, *SHORT)
    assert code == 2
    assert "holds a single split; name the rows to test on by --test" in err
    quick = ("--network", "convnet-w8", "--baseline", "none", *SHORT)
    code, _, err = program("eval", tmp_path / "sets", "--source", place, "--test", place, *quick)
    assert code == 2
    assert "tested on the rows that the set was made of" in err
    other = tmp_path / "other rows"
    toy.select(range(9)).save_to_disk(other)
    assert program("eval", tmp_path / "sets", "--source", place, "--test", other, *quick)[0] == 0


def test_eval_trains_with_the_augmentation_that_is_named(program: Program, saved: Path, folder: Path) -> None:
    command = ("eval", saved, "--source", folder, "--network", "convnet-w8", "--baseline", "none", *SHORT)
    code, out, _ = program(*command, "--augment", "color_crop", "--format", "json")
    assert code == 0
    assert [record["augment"] for record in json.loads(out)] == ["color_crop"]
    code, _, err = program(*command, "--augment", "flipp")
    assert code == 1
    assert "unknown augmentation 'flipp'" in err


def test_eval_resizes_the_images_of_a_plain_set(program: Program, saved: Path, folder: Path) -> None:
    options = ("--source", folder, "--network", "convnet-w8", "--baseline", "none", *SHORT)
    assert program("eval", folder, *options, "--image-size", "6x4")[0] == 0
    code, _, err = program("eval", saved, *options, "--image-size", "6x4")
    assert code == 1, "images of a condensed set have their size"
    assert "leave image_size out" in err
    assert "HEIGHTxWIDTH" in program("eval", folder, *options, "--image-size", "six")[2]


def test_texts_of_strangers_reach_a_terminal_without_controls(program: Program, toy: Dataset, tmp_path: Path) -> None:
    names = ["\x1b]0;title\x07ball", "cro\u202ess", "\x9b2Jstripes"]
    hostile = toy.cast_column("label", ClassLabel(names=names))
    for split in ("train", "test"):
        hostile.to_parquet(tmp_path / "toys" / f"{split}.parquet")
    small = make_set(class_names=names[:2], options={"a\x1b[31m": "\u2066b"}, network="\x1b[8m")
    small.save_condensed(tmp_path / "sets")
    assert program("run", tmp_path / "toys", "--method", "random", "--out", tmp_path / "random", *QUICK)[0] == 0
    options = ("--by-class", "--baseline", "none", "--network", "convnet-w4", *SHORT)
    evaluation = ("eval", tmp_path / "random", "--source", tmp_path / "toys", *options)
    forms = [program(*evaluation, "--format", form) for form in ("table", "markdown")]
    for code, out, _ in (program("show", tmp_path / "sets"), *forms):
        assert code == 0
        assert not {"Cc", "Cf"} & {unicodedata.category(char) for char in out.replace("\n", "")}
        assert "title\\x07ball" in out
        assert "cro\\u202ess" in out
    code, out, _ = program(*evaluation, "--format", "json")
    assert (code, "\x9b" in out) == (0, False)
    assert [record["class"] for record in json.loads(out)[1]] == names


def test_show_prints_the_recipe_and_saves_a_picture(program: Program, saved: Path, tmp_path: Path) -> None:
    code, out, _ = program("show", saved, "--preview", tmp_path / "picture.png")
    assert code == 0
    for line in ("dm_ipc2: 6 rows", "3: ball, cross, stripes", "convnet-w8", "3 x 8 x 8"):
        assert line in out
    tensors, rows = (next((saved / "dm_ipc2").glob(f"*.{kind}")) for kind in ("safetensors", "parquet"))
    for name, value in {
        "float budget": "1,152",
        "stored floats": "1,152 float32, 4,608 B: images 6 x 3 x 8 x 8",
        "integers": "48 B: labels 6",
        "tensor file": f"{tensors.stat().st_size:,} B: all of these and a header, exact",
        "Parquet file": f"{(size := rows.stat().st_size):,} B (1/{4608 / size:.1f}): 6 decoded rows of 8-bit images",
        "source pixels": "4,608 B",
    }.items():
        assert re.search(rf"^{name} +{re.escape(value)}$", out, re.MULTILINE), name
    assert "other tensors" not in out
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 2 * 8
    assert "--preview preview.png" in program("show", saved)[1]


def test_show_tells_accuracies_and_the_other_sets_of_a_folder(program: Program, tmp_path: Path) -> None:
    score = {"network": "convnet-w8", "recipe": "dc", "mean": 0.5, "std": 0.01, "n": 3, "updates": 30, "epochs": 30}
    records = ({"set": "dm_ipc2", **score}, {"set": "random", **score, "mean": 0.25})
    make_set(evaluation=records).save_condensed(tmp_path)
    assert "Other sets" not in program("show", tmp_path)[1]
    make_coreset().save_condensed(tmp_path)
    out = " ".join(program("show", tmp_path, "--name", "dm_ipc2")[1].split())
    assert "accuracy, % exact floats 50.00 ± 1.00, random rows 25.00 ± 1.00 (convnet-w8" in out
    assert "Other sets here, for --name: herding_ipc2" in out
    make_set(seed=7).save_condensed(tmp_path / "renamed", "mine")
    make_coreset().save_condensed(tmp_path / "renamed")
    assert "Other sets here, for --name: herding_ipc2\n" in program("show", tmp_path / "renamed", "--name", "mine")[1]
    assert "Other sets here, for --name: mine\n" in program("show", tmp_path / "renamed", "--name", "herding_ipc2")[1]
    out = program("show", tmp_path / "herding_ipc2")[1]
    assert "Other sets" not in out
    assert "accuracy" not in out


def test_messages_of_the_library_name_options_of_the_command(program: Program, folder: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        code, _, err = program(*arguments, "--quiet", "--out", tmp_path / "out")
        assert code == 1
        return err.replace("\n", " ")

    run = ("run", folder, "--method", "dm", "--ipc", 1)
    assert "--image-column picture is not a column" in error(*run, "--image-column", "picture")
    assert "--store-dtype uint8 is for images in [0, 1]" in error(*run, "--storage", "dct", "--store-dtype", "uint8")
    assert "got --storage dct. Pass" in error(*run, "--storage", "dct", "--factor", 2)
    assert "; choose one by --split" in error(*run, "--split", "validation")


def test_what_does_not_suit_the_method_is_refused_before_the_dataset_is_loaded(program: Program) -> None:
    for arguments, message in (
        (("--method", "herding", "--steps", 5), "--steps 5 makes no sense for 'herding'"),
        (("--method", "herding", "--storage", "dct"), "--storage dct makes no sense for 'herding'"),
        (("--method", "dm", "--budget", 5), "budget is for --method auto"),
        (("--budget", 0), "budget should be a positive number of minutes"),
    ):
        code, _, err = program("run", "/no/such/folder", *arguments)
        assert code == 1
        assert "no folder" not in err
        assert message in err


def test_methods_lists_all_and_describes_one(program: Program) -> None:
    code, out, _ = program("methods")
    assert code == 0
    for info in list_methods():
        assert re.search(rf"^{info.name} .*{info.year}  {re.escape(info.title)}$", out, re.MULTILINE)
    _, out, _ = program("methods", "dm")
    (info,) = list_methods("dm")
    for text in (info.title, info.paper, info.link, "lr_img", "batch_real", "--preset"):
        assert text in out
    options = out[out.index("Options") :].splitlines()
    assert max(map(len, options)) <= 80
    assert any(len(line) > 40 and line.startswith("  quick") for line in options)
    assert len(program("methods", "*m*")[1]) < len(program("methods")[1])


def test_methods_says_what_presets_set_for_a_dataset(program: Program) -> None:
    set_values = {}
    for ipc, shape in ((1, "3x32x32"), (10, "1x28x28")):
        _, out, _ = program("methods", "m3d", "--ipc", ipc, "--classes", 5, "--shape", shape)
        _, _, text = out.partition(f"What they set for --ipc {ipc} --classes 5 --shape {shape}:\n")
        (quick,) = re.findall(r"^  quick +(\S.*(?:\n {4,}.*)*)", text, re.MULTILINE)
        set_values[ipc] = dict(pair.split("=") for pair in re.split(r",\s+", quick))
    assert set_values[1] | {"lr_img": ""} == {
        "steps": "1000",
        "lr_img": "",
        "network": "convnet-w32",
        "decay": "True",
        "storage": "dct",
        "expand": "32",
    }
    assert set_values[10]["expand"] == "8"
    code, _, err = program("methods", "m3d", "--shape", "32x32")
    assert (code, "--shape takes CHANNELSxHEIGHTxWIDTH" in err) == (2, True)


def test_demo_ends_with_an_equal_set_and_a_picture_of_random_and_condensed_rows(
    program: Program, tmp_path: Path
) -> None:
    quick = ("--steps", 2, "--max-updates", 2, "--seeds", 2, "--quiet")
    code, out, _ = program("demo", "--out", tmp_path / "demo", *quick)
    assert code == 0
    assert "5000 images of MNIST into 10" in out
    for word in ("random", "full", "equal to the last bit"):
        assert word in out
    assert len(load_condensed(tmp_path / "demo")) == 10
    small = load_condensed(tmp_path / "demo")
    measured = Score(small.recipe.config_name, 10, "convnet-w8", "dc", None, 3.0, 3, (0.5, 0.6), (0, 1), 1.0)
    small.with_evaluation(Evaluation((measured,))).save_condensed(tmp_path / "demo", overwrite=True)
    assert program("demo", "--out", tmp_path / "demo", *quick)[0] == 0, "a set that was measured is still equal"
    before = files_below(tmp_path / "demo")
    code, out, err = program("demo", "--out", tmp_path / "demo", "--steps", 3, *quick[2:])
    assert (code, "saved beside it" in err) == (1, True)
    assert files_below(tmp_path / "demo") == before
    assert "save to another folder, or pass --overwrite to replace it; saved beside it" in err
    assert len(load_condensed(tmp_path / "demo-2")) == 10
    assert program("demo", "--out", tmp_path / "demo-2", "--steps", 4, "--overwrite", *quick[2:])[0] == 0
    assert load_condensed(tmp_path / "demo-2").recipe.steps == 4
    assert len(load_dataset(str(tmp_path / "demo"), split="train")) == 10
    (whole,) = [line for line in out.splitlines() if line.startswith("full")]
    assert "±" not in whole  # one network
    with Image.open(tmp_path / "demo" / f"{small.recipe.config_name}_vs_random.png") as picture:
        left, right = (picture.crop((x, 130, x + 584, 360)).tobytes() for x in (36, 36 + 584 + 48))
    assert left != right
    assert len(set(left)) > 100
    assert len(set(right)) > 100


def test_page_of_a_folder_is_written_to_the_file_that_was_named(program: Program, tmp_path: Path) -> None:
    make_set().save_condensed(tmp_path / "sets")
    code, out, _ = program("page", tmp_path / "sets", "-o", tmp_path / "sets.html", "--per-class", 1)
    assert code == 0
    assert out.startswith(f"Wrote {tmp_path / 'sets.html'} (")
    assert (tmp_path / "sets.html").read_text(encoding="utf-8").count("<img ") == 2
    code, _, err = program("page", tmp_path / "nothing")
    assert code == 1
    assert err.startswith("error: no folder")


@pytest.mark.parametrize("command", ["page", "show", "combine", "eval", "push"])
def test_folder_one_level_too_high_is_refused_with_the_folders_that_could_be_meant(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pets", "birds"):
        make_set().save_condensed(tmp_path / "sets" / name)
    more = {"combine": ["--out", "both"], "eval": ["--source", "toys"], "push": ["me/pets"]}.get(command, [])
    code, _, err = program(command, "sets", *more)
    names = ", ".join(str(Path("sets", name)) for name in ("birds", "pets"))
    assert (code, err) == (1, f"error: sets has no condensed set, but its subfolders have; pass one: {names}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{folder}", "--method", "hearding"], "error: no method is named 'hearding'; did you mean 'herding'?"),
        (["run", "{folder}", "--method", "dm", "--ipc", "1", "--option", "lr_image=1"], "did you mean 'lr_img'?"),
        (["run", "{folder}", "--method", "random", "--ipc", "999"], "error: --ipc 999 is more than"),
        (["run", "{folder}", "--split", "validation"], "has no split 'validation'; its splits: train, test"),
        (["run", "{folder}", "--image-column", "img"], "img"),
        (["run", "{folder}/nothing"], "error: there is no folder or file '{folder}/nothing'\n"),
        (["run", "./nothing_here"], "error: there is no folder or file './nothing_here'\n"),
        (["run", "..\\nothing"], "error: there is no folder or file '..\\\\nothing'\n"),
        (["run", "{folder}/train.parquet"], "/train.parquet' is a file; pass the folder that it is in"),
        (["show", "{folder}", "--revision", "v1"], "--revision v1 is for repositories; {folder} is a folder"),
        (["show", "{folder}/nothing"], "error: no folder"),
        (["show", "{folder}"], "no condensed set"),
        (["methods", "dmm"], "did you mean 'dm'?"),
    ],
)
def test_an_error_of_the_user_is_printed_in_one_line(
    program: Program, folder: Path, arguments: list[str], message: str
) -> None:
    code, _, err = program(*(argument.format(folder=folder) for argument in arguments))
    assert code == 1
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert message.format(folder=folder) in err


def test_a_refusal_to_run_is_printed_in_one_line(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_accelerator()  # the one process that this is
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = program("run", folder, "--method", "random", "--out", tmp_path, *QUICK)
    assert code == 1
    assert re.fullmatch(r"error: 2 processes were launched, but Accelerate sees 1[^\n]+\n", err)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"), "CUDA out of memory. Tried to"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't allocate memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_lack_of_memory_is_printed_in_one_line(
    program: Program, saved: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("hf_condense.load_condensed", fail)
    code, _, err = program("show", saved)
    assert code == 1
    assert re.fullmatch(rf"error: {re.escape(message)}[^\n]*\n", err)


def test_an_error_that_is_a_bug_keeps_its_traceback(
    program: Program, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr("hf_condense.load_condensed", fail)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        program("show", saved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "hearding"], "no method is named 'hearding'; did you mean 'herding'?"),
        (["--method", "dm", "--option", "lr_image=1"], "unknown option 'lr_image'; did you mean 'lr_img'?"),
        (["--method", "dm", "--option", "lr_img=-1"], "lr_img should be larger than 0; got -1"),
        (["--method", "dm", "--option", "momentum=1.5"], "momentum should be smaller than 1; got 1.5"),
        (["--method", "dm", "--preset", "papr"], "dm has no preset 'papr'; did you mean 'paper'?"),
        (["--method", "random", "--preset", "paper"], "random has no preset 'paper'; presets: none"),
        (["--push", "a/b/c"], "not the name of a repository"),
        (
            ["--max-memory", "much"],
            "--max-memory should be a number of bytes, such as 4000000000, '4GB' or '4GiB'; got",
        ),
        (["--max-memory", "0"], "--max-memory should be at least 1; got 0"),
        (["--name", "a/b"], "config name 'a/b' should be 1 to 64 letters"),
        (
            ["--network", "convnett"],
            "unknown network 'convnett'; known: alexnet, convnet, lenet, mlp, resnet18, vgg11",
        ),
        (["--network", "convnet-w0x"], "unknown option 'w0x' in network 'convnet-w0x'"),
        (["--storage", "patchs"], "'pixels', 'patches', 'dct', 'siren'; got 'patchs'; did you mean 'patches'?"),
        (["--image-size", "0"], "image_size should be a side"),
    ],
)
def test_what_needs_no_data_is_refused_before_the_dataset_is_loaded(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    loads: list[object] = []
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **_: loads.append(names))
    code, _, err = program("run", folder, *arguments)
    assert code == 1
    assert message in err
    assert not loads
    program("run", folder, "--method", "random")
    assert loads, "with nothing to refuse, the dataset is loaded by the function that is watched here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "convnett"], "unknown network 'convnett'; known: alexnet"),
        (["--network", "convnet-w8", "--network", "resnet19"], "did you mean 'resnet18'?"),
        (["--augment", "flipp"], "unknown augmentation 'flipp'; known: color, crop"),
        (["--recipe", "dsaa"], "recipe should be one of 'dc', 'dsa', 'idc', 'soft'; got 'dsaa'; did you mean 'dsa'?"),
        (["--baseline", "none", "--baseline", "herdin"], "got 'herdin'; did you mean 'herding'?"),
        (["--baseline", "none", "--baseline", "full"], "has both 'none' and 'full'; leave out one or the other"),
        (["--network", "resnet-18"], "did you mean 'resnet18'?"),
    ],
)
def test_eval_refuses_wrong_names_before_the_set_or_a_dataset_is_loaded(
    program: Program, saved: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    loads: list[object] = []
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **_: loads.append(names))
    for place in (saved, folder / "nothing"):
        code, _, err = program("eval", place, "--source", folder, *arguments)
        assert code == 1
        assert message in err
    assert not loads
    code, _, err = program("eval", folder / "nothing", "--source", folder)
    assert "error: no folder" in err
    assert not loads, "the set, which is small, is loaded before the datasets"
    program("eval", saved, "--source", folder)
    assert loads, "with nothing to refuse, the dataset is loaded by the function that is watched here"


def test_run_stores_another_form_in_half_precision_and_show_counts_its_bytes(
    program: Program, folder: Path, tmp_path: Path
) -> None:
    form = ("--storage", "dct", "--expand", 12, "--store-dtype", "float16", "--steps", 1, "--option", "batch_real=2")
    assert program("run", folder, "--method", "dm", *form, *QUICK, "--out", tmp_path)[0] == 0
    assert load_condensed(tmp_path).recipe.store_dtype == "float16"
    code, out, _ = program("show", tmp_path)
    assert code == 0
    for name, value in {
        "storage": "dct, 12 rows for each image of the budget",
        "float budget": "1,152",
        "stored floats": "1,152 float16, 2,304 B: coefficients 72 x 16",
        "integers": "780 B: places 3 x 16, counts 3, labels 72",
    }.items():
        assert re.search(rf"^{name} +{re.escape(value)}$", out, re.MULTILINE), name
    assert "72 decoded rows of 8-bit images" in out


def test_show_refuses_an_unknown_picture_format_before_it_prints(program: Program, saved: Path, tmp_path: Path) -> None:
    for name in ("picture", "picture.pngg", "picture.xyz"):
        code, out, err = program("show", saved, "--preview", tmp_path / name)
        assert (code, out) == (1, "")
        assert f"--preview should end in .png or in another picture format; got '{tmp_path / name}'" in err
    for name in ("picture.PNG", "picture.jpg", "new/folder/picture.png"):
        assert program("show", saved, "--preview", tmp_path / name)[0] == 0


def test_a_tilde_in_a_path_is_the_home_folder(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (home / "toys").symlink_to(folder)
    arguments = ("run", "~/toys", "--method", "dm", "--steps", 1, *QUICK)
    assert program(*arguments, "--out=~/out", "--checkpoint-dir=~/checkpoints")[0] == 0
    assert program("show", "~/out", "--preview=~/picture.png")[0] == 0
    quick = ("--epochs", 1, "--max-updates", 1, "--seeds", 1, "--baseline", "none", "--quiet")
    assert program("eval", "~/out", "--source", "~/toys", *quick)[0] == 0
    assert sorted(entry.name for entry in home.iterdir()) == ["checkpoints", "out", "picture.png", "toys"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["run"],
        ["run", "x", "--ipc", "0"],
        ["run", "x", "--option", "lr_img"],
        ["run", "x", "--option", "lr_img=1", "--option", "lr_img=2"],
        ["run", "x", "--option", "seed=1"],
        ["run", "x", "--option", "pixel_range=free"],
        ["run", "x", "--pixel-range", "wide"],
        ["run", "x", "--image-size", "8x8x8"],
        ["run", "x", "--store-dtype", "float64"],
        ["eval", "x"],
    ],
)
def test_wrong_usage_ends_with_exit_code_two(program: Program, arguments: list[str]) -> None:
    code, _, err = program(*arguments)
    assert code == 2
    assert "Usage: hf-condense" in err


@pytest.mark.parametrize(
    ("method", "texts", "values"),
    [
        ("dm", ["lr_img=1", "ipm=2"], {"lr_img": 1, "ipm": 2}),
        ("dm", ["lr_img=1e-3", "decay=true"], {"lr_img": 1e-3, "decay": True}),
        ("dm", ["decay=False", "draws=null"], {"decay": False, "draws": None}),
        ("dm", ["augment=none", "soft_labels=none"], {"augment": "none", "soft_labels": "none"}),
        ("dm", ["augment=color_crop", "draws=none"], {"augment": "color_crop", "draws": None}),
        ("dm", ['augment="none"'], {"augment": "none"}),
        ("dm", ["augment="], {"augment": ""}),
        ("dc", ["outer_loop=none", "distance=mse"], {"outer_loop": None, "distance": "mse"}),
        ("auto", ["augment=None"], {"augment": "none"}),
        ("m3d", ["scales=1", "ipm=2", "networks=pool"], {"scales": "1", "ipm": 2, "networks": "pool"}),
        ("m3d", ["scales=1,2"], {"scales": "1,2"}),
        ("m3d", ["scales=[1]", "kernel=x=y"], {"scales": "[1]", "kernel": "x=y"}),
        ("m3d", ["networks=true"], {"networks": True}),
        ("rded", ["teacher=none"], {"teacher": None}),
        ("rded", ["teacher=5"], {"teacher": "5"}),
    ],
)
def test_options_become_numbers_truth_values_none_or_text(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, texts: list[str], values: dict
) -> None:
    """They reach the library, which refuses what is wrong with a value of the right type."""
    asked: list[dict[str, object]] = []

    def check_request(method: str, preset: object, options: dict[str, object], *others: object) -> None:
        asked.append(options)
        raise ValueError("seen enough")

    monkeypatch.setattr("hf_condense.engine.build.check_request", check_request)
    options = [word for text in texts for word in ("--option", text)]
    code, _, err = program("run", folder, "--method", method, *options)
    assert (code, err) == (1, "error: seen enough\n")
    assert asked == [values]
    assert {name: type(value) for name, value in asked[0].items()} == {
        name: type(value) for name, value in values.items()
    }


def test_options_stand_in_the_recipe_of_the_set(program: Program, folder: Path, tmp_path: Path) -> None:
    texts = ("augment=none", "draws=null", "lr_img=5e-1", "batch_real=4", "decay=true")
    options = [word for text in texts for word in ("--option", text)]
    code, _, _ = program("run", folder, "--method", "dm", "--steps", 1, *options, "--out", tmp_path, *QUICK)
    assert code == 0
    made = load_condensed(tmp_path).recipe.options
    expected = {"augment": "none", "draws": None, "lr_img": 0.5, "batch_real": 4, "decay": True}
    assert {name: made[name] for name in expected} == expected
    assert made["decay"] is True


class Flag(NamedTuple):
    """A flag of a command, the function of the library that it is for, and what it makes of an argument there."""

    command: str
    function: str
    argument: str
    usual: object
    words: tuple[object, ...]
    value: object


FLAGS = [
    Flag("demo", "condense_dataset", "ipc", 1, ("--ipc", 3), 3),
    Flag("run", "condense_dataset", "checkpoint_every", 500, ("--checkpoint-every", 7), 7),
    Flag("run", "condense_dataset", "max_memory", None, ("--max-memory", "3GiB"), "3GiB"),
    Flag("run", "condense_dataset", "log_with", None, ("--log-with", "a", "--log-with", "b"), ["a", "b"]),
    Flag("run", "condense_dataset", "logging_dir", Path("runs"), ("--logging-dir", "logs"), Path("logs")),
    Flag("run", "condense_dataset", "compile", "auto", ("--no-compile",), False),
    Flag("eval", "evaluate", "compile", "auto", ("--compile",), True),
    Flag("eval", "evaluate", "eight_bit", False, ("--eight-bit",), True),
    Flag("eval", "evaluate", "seed", 0, ("--seed", 5), 5),
    Flag("show", "CondensedDataset.preview", "per_class", 10, ("--per-class", 4), 4),
    Flag("page", "write_page", "per_class", 10, ("--per-class", 4), 4),
    Flag("page", "write_page", "max_classes", 100, ("--max-classes", 2), 2),
    Flag("page", "write_page", "revision", None, ("--revision", "v1"), "v1"),
    Flag("page", "write_page", "cache", True, ("--no-cache",), False),
    Flag("page", "write_page", "progress", True, ("--quiet",), False),
    Flag("push", "CondensedDataset.push_to_hub", "replace_card", False, ("--replace-card",), True),
    Flag("push", "CondensedDataset.push_to_hub", "commit_description", None, ("--description", "Why"), "Why"),
]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: f"{flag.command} {flag.words[0]}")
def test_flag_reaches_the_argument_that_it_is_for(
    program: Program, saved: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: Flag
) -> None:
    command = {
        "demo": ("demo",),
        "run": ("run", folder),
        "eval": ("eval", saved, "--source", folder),
        "show": ("show", saved, "--preview", tmp_path / "picture.png"),
        "page": ("page", saved),
        "push": ("push", saved, "me/toys"),
    }[flag.command]
    owner, _, name = f"hf_condense.{flag.function}".rpartition(".")
    function = getattr(CondensedDataset if "CondensedDataset" in owner else hf_condense, name)
    given: list[object] = []

    def stop(*arguments: object, **options: object) -> None:
        bound = inspect.signature(function).bind(*arguments, **options)
        bound.apply_defaults()
        given.append(bound.arguments[flag.argument])
        raise ValueError("seen enough")

    monkeypatch.setattr(f"{owner}.{name}", stop)
    for words in ((), flag.words):
        code, _, err = program(*command, *words)
        assert (code, err) == (1, "error: seen enough\n")
    assert given == [flag.usual, flag.value]


def test_eval_measures_the_eight_bit_images_on_request(program: Program, saved: Path, folder: Path) -> None:
    command = ("eval", saved, "--source", folder, "--network", "convnet-w8", "--baseline", "none", *SHORT)
    code, out, _ = program(*command, "--eight-bit", "--format", "json")
    assert code == 0
    assert [record["set"] for record in json.loads(out)] == ["dm_ipc2", "dm_ipc2 (8-bit)"]


def test_auto_among_the_methods_is_explained(program: Program) -> None:
    code, out, _ = program("methods", "auto")
    assert (code, "auto picks a method" in out) == (0, True)


def test_help_names_every_command_in_a_whole_sentence(program: Program) -> None:
    lines = program("--help")[1].split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == list(main.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_help_is_quick_and_the_version_is_printed(program: Program) -> None:
    for command in ("demo", "run", "eval", "show", "page", "push", "methods"):
        code, out, _ = program(command, "--help")
        assert code == 0
        assert "Usage: hf-condense" in out
    assert __version__ in program("--version")[1]
    heavy = "import sys, hf_condense.cli; sys.exit(bool({'torch', 'datasets'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", heavy], cwd=ROOT).returncode == 0


def test_debug_shows_the_traceback(folder: Path) -> None:
    command = [sys.executable, "-c", "from hf_condense.cli import main; main()", "--debug", "show", str(folder)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "CondensedFormatError" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["page", "x", "--config", "a"], "are for the dataset of --source"),
        (["page", "x", "--source-split", "test"], "are for the dataset of --source"),
        (["page", "x", "--source-revision", "v1"], "are for the dataset of --source"),
        (["eval", "x", "--source-revision", "v1"], "--source-revision is for the dataset of --source"),
        (["eval", "x", "--source", "y", "--test-revision", "v1"], "--test-revision is for the dataset of --test"),
        (["eval", "x", "--test", "y", "--source-split", "all"], "--source-split is for the dataset of --source"),
        (["eval", "x", "--baseline", "none"], "name the rows to test on by --test"),
        (["push", "x", "me/x", "--extra-split", "test"], "takes NAME=DATASET, for example"),
        (["push", "x", "me/x", "--extra-split", "a=b", "--extra-split", "a=c"], "names a split twice; give each once"),
        (["run", "x", "--private"], "--private is for the repository of --push"),
    ],
)
def test_option_without_the_one_that_it_belongs_to_is_refused(
    program: Program, arguments: list[str], message: str
) -> None:
    code, _, err = program(*arguments)
    assert code == 2
    assert message in err


def test_page_with_a_source_shows_the_nearest_real_images(
    program: Program, saved: Path, folder: Path, tmp_path: Path
) -> None:
    code, _, _ = program("page", saved, "-o", tmp_path / "page.html", "--source", folder)
    assert code == 0
    assert "real image nearest to" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_page_can_leave_the_cache_alone_and_a_message_about_it_says_how(
    program: Program, saved: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "file"))
    page = ("page", saved, "-o", tmp_path / "page.html", "--source", folder)
    code, _, err = program(*page)
    assert code == 1
    assert "or pass --no-cache)" in err
    shown = watch_decoding(monkeypatch)
    assert program(*page, "--no-cache", "--quiet")[0] == 0
    assert program(*page, "--no-cache")[0] == 0
    assert shown == [False, True]


def test_eval_stores_the_accuracies_with_the_set_on_request(
    program: Program, saved: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "toys")
    options = ("--source", folder, "--network", "convnet-w4", "--recipe", "dc", "--epochs", 1, "--seeds", 2, "--quiet")
    code, _, err = program("eval", tmp_path / "toys", *options, "--save")
    assert code == 0
    assert f"Stored the accuracies in {tmp_path / 'toys' / 'dm_ipc2'}" in err
    before, after = load_condensed(saved), load_condensed(tmp_path / "toys")
    assert [record["set"] for record in after.recipe.evaluation] == ["dm_ipc2", "random"]
    assert torch.equal(before.synthetic.decoded()[0], after.synthetic.decoded()[0])
    assert "convnet-w4 (width 4)" in (tmp_path / "toys" / "README.md").read_text(encoding="utf-8")
    code, _, err = program("eval", folder, *options, "--save")
    assert code == 2
    assert "--save is for condensed sets in folders of this machine" in err


def test_eval_does_not_write_the_card_of_a_set_into_the_readme_of_something_else(
    program: Program, saved: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "dm_ipc2", tmp_path / "dm_ipc2")
    (tmp_path / "README.md").write_text("# My project\n", encoding="utf-8")
    code, _, err = program("eval", tmp_path / "dm_ipc2", "--source", folder, "--save")
    assert code == 2
    assert "which is of something else; move the folder 'dm_ipc2' into a folder of its own" in " ".join(err.split())
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "# My project\n"


def test_eval_does_not_store_accuracies_with_a_set_that_was_saved_meanwhile(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ("run", folder, "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path, "--overwrite")
    assert program(*again, "--seed", 1)[0] == 0
    plain = hf_condense.evaluate

    def slow_evaluate(*args, **options):
        assert program(*again, "--seed", 2)[0] == 0
        return plain(*args, **options)

    monkeypatch.setattr(hf_condense, "evaluate", slow_evaluate)
    quick = ("--network", "convnet-w8", "--baseline", "none", *SHORT)
    code, out, err = program("eval", tmp_path, "--source", folder, *quick, "--save")
    assert code == 1
    assert "random" in out
    assert "another set was saved in" in err
    assert load_condensed(tmp_path).recipe.seed == 2
    assert load_condensed(tmp_path).recipe.evaluation == []


def test_show_refuses_images_per_class_without_a_picture(program: Program, saved: Path) -> None:
    code, _, err = program("show", saved, "--per-class", 3)
    assert code == 2
    assert "--per-class is for the picture of --preview, which is missing" in err


@pytest.mark.parametrize("text", ["1E-2", "1e-2", "0.01", ".01", "+.01"])
def test_number_of_an_option_may_have_any_exponent(text: str) -> None:
    assert _parse_option(f"lr_img={text}") == ("lr_img", 0.01)


def test_classes_without_rows_are_not_counted(program: Program, tmp_path: Path) -> None:
    toy_dataset((0, 2), names=("cat", "cow", "dog")).to_parquet(tmp_path / "toys" / "train.parquet")
    code, out, _ = program(
        "run", tmp_path / "toys", "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "a"
    )
    assert code == 0
    assert "Made 2 images of 2 classes" in out
    assert "| random_ipc1 | random | coreset | 1 | 2 | 2 |" in (tmp_path / "a" / "README.md").read_text()


def test_measuring_random_rows_is_proposed_with_a_short_training(
    program: Program, folder: Path, tmp_path: Path
) -> None:
    code, out, _ = program("run", folder, "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "a")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("To see what the set is worth:  ")]
    assert line.endswith("--network convnet-w32 --recipe dc")


def test_show_names_a_set_as_its_folder_does(program: Program, tmp_path: Path) -> None:
    make_set().save_condensed(tmp_path, "mine")
    assert re.search(r"^set +mine: ", program("show", tmp_path)[1], re.MULTILINE)
