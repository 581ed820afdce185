"""A source is the same whatever state torch is in and whichever kind of integers its options are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_condense.source.load import load_source
from hf_condense.source.whitening import fit_whitening
from hf_condense.testing import toy_dataset
from tests.support.torch_states import default_device, default_dtype

TOY = toy_dataset(names=("cat", "dog", "eel"))


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
}


def values(state: Any, *, cache: bool) -> dict[str, torch.Tensor]:
    """Return all that a source gives, read and used inside a state of torch."""
    context: AbstractContextManager[Any] = state()
    with context:
        source = load_source(TOY, cache=cache, progress=False)
        images = next(source.all_images(10))
        return {
            "images": source.images,
            "labels": source.labels,
            "rows": source.rows,
            "mean": source.mean,
            "std": source.std,
            "batch": images,
            "sample": source.sample([2, 0], 14, 0, "real"),
            "positions": torch.tensor(source.positions(1), device="cpu"),
            "whitening": fit_whitening(source.images).matrix,
        }


@pytest.mark.parametrize("cache", ["none", "cold", "warm"])
@pytest.mark.parametrize("state", STATES)
def test_a_source_is_the_same_whatever_state_torch_is_in(
    state: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    expected = values(nullcontext, cache=cache == "warm")
    given = values(STATES[state], cache=cache != "none")
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype, name
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("cache", [False, True])
def test_a_source_that_was_read_in_inference_mode_can_be_trained_on(
    cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    with torch.inference_mode():
        source = load_source(TOY, cache=cache, progress=False)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (source.at(torch.tensor([0, 1])) * weight).sum().backward()
    assert weight.grad is not None
    assert not source.images.is_inference()


@pytest.mark.parametrize("side", [np.int64(4), np.uint8(4), (np.int32(4), 4), [np.int16(4), np.int64(4)]])
def test_numpy_integers_are_sides(side: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    source = load_source(TOY, image_size=side, channels=np.int64(1), progress=False)  # type: ignore[arg-type]
    assert source.image_shape == (1, 4, 4)
    assert source.image_size == (4, 4)
    assert all(type(side) is int for side in source.image_size)
    assert len(list((tmp_path / "condense" / "sources").iterdir())) == 1
    load_source(TOY, image_size=4, channels=1, progress=False)
    assert len(list((tmp_path / "condense" / "sources").iterdir())) == 1, "the key should not depend on the kind"


@pytest.mark.parametrize("side", [np.True_, np.float32(4), (4, np.float64(4)), np.array([4, 4])])
def test_other_numpy_values_are_no_sides(side: Any) -> None:
    with pytest.raises(TypeError, match=r"integers in 1\.\.4096"):
        load_source(TOY, image_size=side)


@pytest.mark.parametrize("channels", [True, np.int64(2), np.True_])
def test_other_values_are_no_channels(channels: Any) -> None:
    with pytest.raises(ValueError, match="channels should be 1 or 3"):
        load_source(TOY, channels=channels)
