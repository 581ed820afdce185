"""Rules about devices: float64, how convolutions round, and whether compiling pays."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from hf_condense.base.devices import compiling_pays, convolution_precision, device_facts, in_float64
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


def test_cache_keys_of_networks_of_a_cpu_do_not_change_with_settings_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_facts(GPU) == {"device": "cuda", "convolutions": "tf32"}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert device_facts(GPU) == {"device": "cuda", "convolutions": "float32"}
    assert device_facts(CPU) == {"device": "cpu"}


def test_compiling_pays_only_with_a_compiler_and_the_headers_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert not compiling_pays(1e12, CPU)
    (tmp_path / "Python.h").touch()
    assert compiling_pays(1e12, CPU)
    assert not compiling_pays(1e9, CPU), "it takes longer than it saves"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not compiling_pays(1e12, CPU)
