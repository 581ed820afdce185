"""How much memory is free, and how much of it a step may use."""

from __future__ import annotations

import sys
from pathlib import Path

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


def control_group(folder: Path, limit: str, used: int, cached: int, version: int = 2) -> None:
    """Write the files of a control group as Linux shows them."""
    limit_file, used_file, name = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 300\n{name} {cached}\n")


def own_group(root: Path, lines: str) -> None:
    """Write which control groups this process is in."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)


def test_limit_of_a_container_bounds_the_free_memory(tmp_path: Path) -> None:
    assert _room_of_container(tmp_path) == sys.maxsize, "no control group is known"
    control_group(tmp_path / "sys/fs/cgroup", "1000", 700, cached=200)
    assert _room_of_container(tmp_path) == 500
    control_group(tmp_path / "sys/fs/cgroup", "max", 700, cached=200)
    assert _room_of_container(tmp_path) == sys.maxsize


def test_smallest_room_from_the_own_group_up_to_the_top_counts(tmp_path: Path) -> None:
    own_group(tmp_path, "0::/system.slice/job_7/step_0/task_0\n")
    job = tmp_path / "sys/fs/cgroup/system.slice/job_7"
    control_group(job / "step_0/task_0", "max", 100, cached=0)
    control_group(job / "step_0", "900", 100, cached=0)
    control_group(job, "1000", 700, cached=200)
    assert _room_of_container(tmp_path) == 500
    control_group(job.parent / "job_8", "10", 10, cached=0)
    assert _room_of_container(tmp_path) == 500, "another job does not matter"


def test_limits_of_version_1_count_too(tmp_path: Path) -> None:
    own_group(tmp_path, "5:cpu,cpuacct:/other\n4:hugetlb,memory:/slurm/job_7\n1:name=systemd:/\n0::/\n")
    top = tmp_path / "sys/fs/cgroup/memory"
    control_group(top, "9223372036854771712", 5000, cached=0, version=1)  # none
    control_group(top / "slurm/job_7", "1000", 700, cached=100, version=1)
    assert _room_of_container(tmp_path) == 400


@pytest.mark.parametrize("lines", ["0::/docker/7\n", "0::/../7\n", "no group\n"])
def test_top_counts_where_the_own_group_is_not_to_be_seen(lines: str, tmp_path: Path) -> None:
    own_group(tmp_path, lines)
    control_group(tmp_path / "sys/fs/cgroup", "1000", 700, cached=200)
    control_group(tmp_path / "sys/fs/7", "10", 0, cached=0)
    assert _room_of_container(tmp_path) == 500
