"""How much memory is free, and how much of it a step may use."""

from __future__ import annotations

import sys

import pytest
import torch

from hf_condense.base.memory import _room_of_container, free_memory, memory_budget

GPU = torch.device("cuda", 0)
GIB = 2**30


def test_memory_that_torch_keeps_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"mem_get_info": (60 * GIB, 80 * GIB), "memory_reserved": 15 * GIB, "memory_allocated": 5 * GIB}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(GPU) == 70 * GIB
    assert memory_budget(GPU) == 32 * GIB


def test_budget_stays_the_same_when_an_earlier_run_has_left_memory_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = set()
    for kept in (0, 20 * GIB, 70 * GIB):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, kept=kept: (78 * GIB - kept, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, kept=kept: kept)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        budgets.add(memory_budget(GPU))
    assert budgets == {32 * GIB}


def test_limit_of_a_container_bounds_the_free_memory(tmp_path):
    assert _room_of_container(tmp_path) == sys.maxsize, "no control group is known"
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 200\n")
    assert _room_of_container(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert _room_of_container(tmp_path) == sys.maxsize
