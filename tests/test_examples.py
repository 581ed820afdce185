"""Every example runs as it is, in its fast mode."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = [
    "quickstart.py",
    "own_columns.py",
    "new_method.py",
    "benchmarks/accuracy.py",
    "benchmarks/paper.py",
    "benchmarks/curves.py",
    "benchmarks/steps.py",
    "benchmarks/make_cards.py",
]


def run(script: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs(script: str, tmp_path: Path) -> None:
    printed = run(script, "--fast", folder=tmp_path)
    assert "CondensedDataset" in printed or "±" in printed or "s an update" in printed
    if script == "quickstart.py":
        assert "equal to the bit: True" in printed
        assert (tmp_path / "condensed/quickstart/preview.png").is_file()
        printed = run("plain_training.py", str(tmp_path / "condensed/quickstart"), "--fast", folder=tmp_path)
        assert "trained on 10 rows" in printed


def test_every_example_is_tested() -> None:
    others = {
        "plain_training.py",
        "make_demo_excerpt.py",
        "picture.py",
    }  # run above; made once
    found = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")}
    assert found == {*SCRIPTS, *others}
