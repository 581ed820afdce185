"""Rules about devices: float64, and how convolutions round."""

from __future__ import annotations

import pytest
import torch

from hf_condense.base.devices import convolution_precision, in_float64
from tests.support.pretend_device import pretend_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_float64_is_computed_where_it_exists() -> None:
    with pretend_device():
        assert in_float64(torch.ones(2, device=GPU)).device == GPU
    with pretend_device("mps"):
        doubled = in_float64(torch.ones(2, device="mps"))
    assert doubled.device == CPU
    assert doubled.dtype == torch.float64


def test_precision_of_convolutions_is_that_of_the_device_and_the_callers_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert convolution_precision(CPU) == "float32"
    assert convolution_precision(GPU) == "tf32"  # where torch starts
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert convolution_precision(GPU) == "float32"
