"""Files are whole or not there, and errors say what to do."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from hf_condense.base.files import check_place, output_file, write_tensors


def test_earlier_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with pytest.raises(TypeError), output_file(target) as work:
        work.write_text(None)
    assert target.read_text() == "old"
    with output_file(target) as work:
        work.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_folder_is_made_and_the_home_folder_may_be_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with output_file("~/new folder/page.html") as work:
        work.write_text("new")
    assert (tmp_path / "new folder" / "page.html").read_text() == "new"


def test_link_stays_a_link(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "real.html"
    target.write_text("old")
    link.symlink_to(target)
    with output_file(link) as work:
        work.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_what_is_no_regular_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with output_file(pipe) as work:
        assert work == pipe
    assert pipe.is_fifo()


def test_system_error_of_a_library_is_one_of_python(tmp_path: Path) -> None:
    """The failure is real: the process may not write a file of that size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_tensors(tmp_path / "large.safetensors", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_place_is_checked_without_making_it(tmp_path: Path) -> None:
    check_place(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(NotADirectoryError, match=r"is a file, and a folder is needed\)?; choose another place"):
            check_place(place)
