"""Every example runs as it is, in its fast mode, and so does the script that draws the README's picture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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
    "benchmarks/make_cards.py",
    "benchmarks/rded.py",
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


def test_space_is_a_page_and_a_card_that_says_so(tmp_path: Path) -> None:
    run("space/make_space.py", "--fast", "--out", "space", folder=tmp_path)
    assert "random_ipc2" in (tmp_path / "space/index.html").read_text(encoding="utf-8")
    assert "sdk: static" in (tmp_path / "space/README.md").read_text(encoding="utf-8")


def test_costs_of_storage_forms_are_printed(tmp_path: Path) -> None:
    printed = run("benchmarks/forms.py", "--costs", "--fast", folder=tmp_path)
    assert "siren" in printed
    assert "ms forward and backward" in printed


def test_costs_of_large_pictures_are_printed(tmp_path: Path) -> None:
    arguments = ["--large", "66", "--classes", "2", "--rows", "3", "--fast"]
    printed = run("benchmarks/rded.py", *arguments, folder=tmp_path)
    assert "peak GiB" in printed
    assert "bytes of soft labels" in printed


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


def test_every_example_is_run_by_a_test() -> None:
    elsewhere = {"maintenance/make_demo_excerpt.py"}  # in test_packaging.py
    in_this_file = {
        *SCRIPTS,
        "plain_training.py",
        "plain_loop.py",
        "maintenance/picture.py",
        "space/make_space.py",
    }
    scripts = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert scripts == in_this_file | elsewhere
