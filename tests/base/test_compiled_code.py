"""Unfinished files in torch's cache of compiled code."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_condense import condense_dataset
from hf_condense.base.compiled_code import removes_unfinished_code
from hf_condense.testing import toy_dataset


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the empty file that a killed compiler leaves in the cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    path = tmp_path / "compiled" / "ab" / "cd.main.so"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def load(path: Path) -> None:
    raise ImportError(f"{path}: file too short")


def test_unfinished_file_is_removed_and_the_error_says_so(library: Path) -> None:
    with pytest.raises(RuntimeError, match=r"cd\.main\.so was removed, so that the same call works now"):
        removes_unfinished_code()(load)(library)
    assert not library.exists()


@pytest.mark.parametrize("error", [ImportError, OSError])
@pytest.mark.parametrize("words", ["cannot read file data", "object file has no dynamic section"])
def test_messages_for_libraries_that_were_cut_elsewhere_are_known(library: Path, error: type, words: str) -> None:
    with pytest.raises(RuntimeError, match="was removed"), removes_unfinished_code():
        raise error(f"{library}: {words}")
    assert not library.exists()


def test_error_that_torch_has_wrapped_is_understood(library: Path) -> None:
    with pytest.raises(RuntimeError, match="was removed"), removes_unfinished_code():
        raise RuntimeError(f"backend='inductor' raised:\nImportError: {library}: file too short\n\nSet a variable")
    assert not library.exists()


def test_files_elsewhere_are_left_alone(library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.touch()
    with pytest.raises(ImportError, match="file too short"), removes_unfinished_code():
        load(other)
    assert other.exists()


def test_other_errors_pass_unchanged(library: Path) -> None:
    with pytest.raises(ImportError, match="no such symbol"), removes_unfinished_code():
        raise ImportError(f"{library}: no such symbol")
    assert library.exists()


def test_condense_dataset_removes_it(library: Path) -> None:
    def fail(run: object, done: int, loss: float) -> None:
        load(library)

    with pytest.raises(RuntimeError, match="was removed"):
        condense_dataset(
            toy_dataset(names=("cat", "dog", "eel")),
            "dm",
            ipc=1,
            network="convnet-w4",
            steps=1,
            callbacks=[fail],
            compile=False,
            progress=False,
        )
    assert not library.exists()
