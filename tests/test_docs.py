"""README.md says what is true: its snippets and first command run as written, its table is the registry."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import hf_condense
from hf_condense.engine.registry import list_methods

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs_as_written(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub) -> None:
    monkeypatch.chdir(tmp_path)
    # A snippet is run with fewer steps and epochs, so that it takes seconds; everything else is as written.
    code = re.sub(r"steps=\d+", "steps=2", SNIPPETS[number]).replace('recipe="dc")', 'recipe="dc", epochs=1, seeds=2)')
    code = code.replace('"me/', '"alice/')  # who is logged in on the stand-in Hub
    exec(compile(code, f"README.md snippet {number}", "exec"), {})


def test_table_of_methods_is_the_registry() -> None:
    (section,) = re.findall(r"^## Methods\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert rows == [info.name for info in list_methods()]


def test_first_command_runs_as_written(tmp_path: Path) -> None:
    """The demo command in a copy of the tree; its environment sees the packages of this one instead of the registry."""
    (command,) = re.findall(r"<!-- command: demo -->\n```bash\n(.*)\n```", README)
    setup, install, demo = command.split(" && ")
    assert setup == "python -m venv .venv"
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", ".*_cache"))
    steps = [
        [sys.executable, "-m", "venv", ".venv"],
        [*install.split(), "--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"],
        [*demo.split(), "--quiet", "--steps", "2", "--max-updates", "2", "--seeds", "2"],
    ]
    # Before its own packages, such as an old setuptools, the new environment sees those of this one.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    for step in steps:
        done = subprocess.run(step, cwd=copy, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    assert "equal to the last bit" in done.stdout
    assert (copy / "condensed/demo/preview.png").is_file()


def test_public_names_are_documented() -> None:
    for name in hf_condense.__all__:
        if name != "__version__":
            assert len(getattr(hf_condense, name).__doc__.strip()) > 20, name


def test_pictures_exist() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
