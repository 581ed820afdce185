"""The next write of a file or folder removes what killed processes left beside it, and nothing that may be in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_condense.base.files import atomic_file, new_folder

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from hf_condense.base import files

with getattr(files, sys.argv[1])(Path(sys.argv[2])) as work:
    (work / "images.bin" if work.is_dir() else work).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(how: str, target: Path) -> Path:
    """Kill a process while it writes, and return the file or folder that it leaves."""
    before = set(target.parent.iterdir())
    command = [sys.executable, "-c", KILLED, how, str(target)]
    process = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (leftover,) = set(target.parent.iterdir()) - before
    return leftover


def write(how: str, target: Path) -> None:
    """Write `target` in the way of this name."""
    with {"atomic_file": atomic_file, "new_folder": new_folder}[how](target) as work:
        (work / "images.bin" if work.is_dir() else work).write_bytes(b"whole")


def aged(path: Path, hours: float) -> Path:
    """Make a file or folder look as if it had not been touched for some hours."""
    for each in (*path.rglob("*"), path):
        when = each.stat().st_mtime - hours * 3600
        os.utime(each, (when, when))
    return path


@pytest.mark.parametrize("how", ["atomic_file", "new_folder"])
def test_leftovers_of_a_killed_process_are_removed_by_the_next_write(tmp_path: Path, how: str) -> None:
    target = tmp_path / "a [b] (c).bin"
    killed_while_writing(how, target)
    write(how, tmp_path / "other.bin")
    assert len(list(tmp_path.iterdir())) == 2, "leftovers of another target should stay"
    write(how, target)
    assert {path.name for path in tmp_path.iterdir()} == {target.name, "other.bin"}


@pytest.mark.parametrize("how", ["atomic_file", "new_folder"])
def test_files_that_a_live_process_writes_stay(tmp_path: Path, how: str) -> None:
    target = tmp_path / "set"
    with {"atomic_file": atomic_file, "new_folder": new_folder}[how](target) as work:
        write(how, target)
        assert work.exists()
        (work / "images.bin" if work.is_dir() else work).write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("how", ["atomic_file", "new_folder"])
@pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
def test_leftovers_of_another_machine_stay_for_a_day(tmp_path: Path, how: str, hours: float, stays: bool) -> None:
    target = tmp_path / "set"
    leftover = killed_while_writing(how, target)
    name, _, process, end = leftover.name.split("-")
    elsewhere = aged(leftover.rename(tmp_path / f"{name}-0123abcd-{process}-{end}"), hours)
    write(how, target)
    assert elsewhere.exists() == stays


def test_a_folder_that_holds_a_recent_file_stays(tmp_path: Path) -> None:
    folder = tmp_path / ".set-0123abcd-1-abcdefgh"
    folder.mkdir()
    (folder / "images.bin").write_bytes(b"half")
    aged(folder, 25)
    (folder / "images.bin").touch()
    write("new_folder", tmp_path / "set")
    assert folder.exists()


def test_other_hidden_files_stay_however_old(tmp_path: Path) -> None:
    leftover = killed_while_writing("atomic_file", tmp_path / "set")
    names = {f"{leftover.name}.bak", f"x{leftover.name}", ".set-abcdefgh", ".set", ".settings-0123abcd-1-abcdefgh"}
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
        aged(tmp_path / name, 1000)
    write("atomic_file", tmp_path / "set")
    assert {path.name for path in tmp_path.iterdir()} == names | {"set"}
