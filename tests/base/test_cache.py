"""Tensors are cached where that is possible, and damaged files of them are made again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import datasets
import pytest
import torch

from hf_condense.base.cache import cached_or_made, cached_tensors
from hf_condense.base.paths import cache_folder


def test_tensors_that_cannot_be_cached_are_returned_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    file = cache_folder("features") / "full.safetensors"
    assert torch.equal(cached_tensors(file, lambda: {"features": torch.arange(4.0)})["features"], torch.arange(4.0))
    assert not file.exists()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"no space left while writing {file} (")
    assert "use another cache (set HF_HOME, or pass cache=False)" in message
    assert message.endswith("What was computed is used, but not cached")


def test_tensors_that_another_user_keeps_private_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    file = tmp_path / "key.safetensors"
    cached_tensors(file, lambda: {"features": torch.arange(4.0)})
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="ask its owner for access"):
        cached_tensors(file, lambda: {"features": torch.arange(4.0)})


@pytest.mark.parametrize("left", [0, 5, 20, -1], ids=["empty", "no header", "half a header", "last byte missing"])
def test_a_damaged_file_of_tensors_is_made_again_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    calls: list[None] = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(None)
        return {"features": torch.arange(4.0)}

    file = tmp_path / "features" / "key.safetensors"
    cached_tensors(file, make)
    assert not caplog.records
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    for _ in range(2):
        assert torch.equal(cached_tensors(file, make)["features"], torch.arange(4.0))
    assert len(calls) == 2
    assert file.read_bytes() == whole
    (record,) = caplog.records
    assert f"{file} in the cache is damaged" in record.getMessage()


@pytest.mark.parametrize(("enabled", "disabled", "made"), [(True, False, 1), (False, False, 2), (True, True, 2)])
def test_tensors_are_cached_unless_that_is_switched_off(
    enabled: bool, disabled: bool, made: int, request: pytest.FixtureRequest
) -> None:
    calls: list[None] = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(None)
        return {"features": torch.arange(4.0)}

    if disabled:
        datasets.disable_caching()
        request.addfinalizer(datasets.enable_caching)
    key = f"switched-{enabled}-{disabled}"
    for _ in range(2):
        tensors = cached_or_made("features", key, make, enabled=enabled)
        assert torch.equal(tensors["features"], torch.arange(4.0))
    assert len(calls) == made
    assert (cache_folder("features") / f"{key}.safetensors").exists() == (made == 1)
