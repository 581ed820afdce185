"""The rule that cuts the work of a step, checked without running anything."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_condense.base.devices import CompileOption, has_compiler
from hf_condense.base.memory import memory_budget
from hf_condense.engine.plan import Plan, Workload, make_plan
from hf_condense.engine.run import Run
from hf_condense.testing import toy_dataset
from tests.support.engine_methods import condense, same

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MIB, GIB = 2**20, 2**30


def plan(
    device: torch.device = CPU,
    *,
    num_classes: int = 10,
    largest_class_rows: int = 10,
    steps: int = 1000,
    budget: int = 8 * GIB,
    compile: CompileOption = False,
    **changed: Any,
) -> Plan:
    """Plan CIFAR-10 at ipc 10 with a network of width 32, except for what is changed."""
    class_rows = (largest_class_rows,) * num_classes
    defaults: dict[str, Any] = {
        "class_rows": class_rows,
        "most_rows": sum(class_rows),
        "images_per_step": 2660,
        "num_processes": 1,
        "activation_bytes": MIB // 2,
        "batch_statistics": False,
    }
    workload = Workload(**{**defaults, **changed})
    return make_plan(workload, steps=steps, device=device, budget=budget, compile=compile)


def test_cpu_plans_small_forward_passes() -> None:
    assert plan() == Plan(classes_per_chunk=10, images_per_forward=64, compile=False)
    assert plan(activation_bytes=2 * MIB).images_per_forward == 32
    assert plan(activation_bytes=500 * MIB).images_per_forward == 1


def test_real_images_of_many_classes_are_not_in_memory_at_once() -> None:
    many: dict[str, Any] = {"num_classes": 1000, "largest_class_rows": 1, "real_bytes": 12 * MIB}
    assert plan(num_classes=1000, largest_class_rows=1).classes_per_chunk == 1000
    assert plan(**many).classes_per_chunk == 84, "85 fit, and twelve chunks of 84 are of one size, but for the last"
    assert plan(GPU, **many).classes_per_chunk == 500, "655 fit"
    assert plan(**{**many, "real_bytes": 2 * GIB}).classes_per_chunk == 1


@pytest.mark.parametrize("device", [CPU, GPU])
def test_graphs_of_all_passes_are_kept_if_they_fit(device: torch.device) -> None:
    whole = 100 * MIB // 2
    assert plan(device, passes=8, budget=8 * whole).keep_graphs
    assert not plan(device, passes=8, budget=8 * whole - 1).keep_graphs
    assert not plan(device, passes=1).keep_graphs
    assert plan(device, passes=8, num_processes=5, budget=8 * whole - 1).keep_graphs is (device == GPU)


def test_kept_graphs_count_weights_and_gradients() -> None:
    whole = 8 * (100 * MIB // 2 + 2 * MIB)
    assert plan(passes=8, budget=whole, parameter_bytes=MIB).keep_graphs
    assert not plan(passes=8, budget=whole - 1, parameter_bytes=MIB).keep_graphs


def test_smaller_plan_first_keeps_no_graphs() -> None:
    kept = Plan(4, 64, False, keep_graphs=True)
    assert kept.halved(8) == Plan(4, 64, False)


def test_smaller_plan_cuts_only_what_saves_memory() -> None:
    whole = Plan(4, 64, False, keep_graphs=True)
    assert whole.halved(8, cuts=("classes_per_chunk",)) == Plan(2, 64, False, keep_graphs=True)
    assert whole.halved(8, cuts=("images_per_forward",)) == Plan(4, 4, False, keep_graphs=True)
    assert Plan(1, 64, False).halved(8, cuts=("keep_graphs", "classes_per_chunk")) is None
    assert whole.halved(8, cuts=()) is None


def test_gpu_plans_one_forward_pass_if_it_fits() -> None:
    assert plan(GPU) == Plan(classes_per_chunk=10, images_per_forward=0, compile=False)


def test_gpu_cuts_forward_passes_that_do_not_fit() -> None:
    assert plan(GPU, budget=GIB, images_per_step=100_000).images_per_forward == 2048
    assert plan(GPU, budget=1, images_per_step=100_000).images_per_forward == 1


def test_gpu_cuts_forward_passes_of_more_elements_than_kernels_count() -> None:
    images = plan(GPU, budget=64 * GIB, images_per_step=100_000).images_per_forward
    assert images == 16_384  # of half a MiB each, which is 2^31 numbers in float32
    assert plan(GPU, budget=64 * GIB, images_per_step=images).images_per_forward == 0


@pytest.mark.parametrize("device", [CPU, GPU])
def test_chunk_of_classes_fits_the_budget(device: torch.device) -> None:
    one_class = 10 * (MIB // 2)
    assert plan(device, budget=3 * one_class + 1).classes_per_chunk == 3
    assert plan(device, budget=12 * one_class, cost_in_forwards=4).classes_per_chunk == 3
    assert plan(device, budget=one_class // 2).classes_per_chunk == 1, "a chunk should hold at least one class"


@pytest.mark.parametrize("device", [CPU, GPU])
def test_batch_of_fewer_rows_than_all_classes_have_needs_less(device: torch.device) -> None:
    row = MIB // 2
    assert plan(device, budget=40 * row).classes_per_chunk == 4
    assert plan(device, budget=40 * row, most_rows=40).classes_per_chunk == 10, "the whole batch fits"
    assert plan(device, budget=40 * row - 1, most_rows=40).classes_per_chunk == 3, "a class may have ten rows in it"
    assert plan(device, passes=8, budget=8 * 40 * row, most_rows=40).keep_graphs
    assert not plan(device, passes=8, budget=8 * 40 * row).keep_graphs


@pytest.mark.parametrize("device", [CPU, GPU])
def test_batches_with_batch_statistics_are_never_cut(device: torch.device) -> None:
    uncut = plan(device, batch_statistics=True, budget=1, num_processes=4)
    assert uncut == Plan(classes_per_chunk=10, images_per_forward=0, compile=False)


@pytest.mark.parametrize(("processes", "share"), [(2, 5), (3, 4), (10, 1), (64, 1)])
def test_processes_share_the_classes(processes: int, share: int) -> None:
    assert plan(GPU, num_processes=processes).classes_per_chunk == share


def test_processes_share_the_memory_of_a_cpu_only() -> None:
    one_class = 10 * (MIB // 2)
    assert plan(CPU, num_processes=2, budget=4 * one_class).classes_per_chunk == 2
    assert plan(GPU, num_processes=2, budget=4 * one_class).classes_per_chunk == 3, "4 fit; 3 and 2 are nearly equal"


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 300))
def test_processes_get_nearly_the_same_number_of_classes(num_classes: int, processes: int, fit: int) -> None:
    one_class = 10 * (MIB // 2)
    size = plan(GPU, num_classes=num_classes, num_processes=processes, budget=fit * one_class).classes_per_chunk
    assert size <= fit

    def busiest(size: int) -> int:
        chunks = [min(size, num_classes - start) for start in range(0, num_classes, size)]
        return max(sum(chunks[i::processes]) for i in range(processes))

    share = math.ceil(num_classes / processes)
    most = min(fit, share)
    even = math.ceil(share / math.ceil(share / most))
    assert busiest(size) == min(busiest(most), busiest(even))


def test_gradients_of_classes_are_a_part_of_the_memory() -> None:
    many: dict[str, Any] = {"num_classes": 100, "largest_class_rows": 1, "gradient_bytes": 270 * MIB}
    assert plan(GPU, **many).classes_per_chunk == 25, "30 fit into 8 GiB"
    assert plan(GPU, **{**many, "gradient_bytes": 0}).classes_per_chunk == 100
    workload = Workload((1,) * 100, 100, 200, 1, MIB, batch_statistics=False, gradient_bytes=270 * MIB)
    assert workload.step_bytes(Plan(25, 0, compile=False)) == 25 * 271 * MIB


def test_auto_compiles_on_a_cpu_if_it_saves_time() -> None:
    compiler = has_compiler()
    assert plan(compile="auto").compile is compiler
    assert plan(compile="auto", steps=10).compile is False
    assert plan(compile="auto", steps=60, cost_in_forwards=4).compile is compiler
    assert plan(GPU, compile="auto").compile is False
    assert plan(compile="auto", batch_statistics=True).compile is False


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("compile", [False, True])
def test_callers_choice_to_compile_wins(device: torch.device, batch_statistics: bool, compile: bool) -> None:
    assert plan(device, compile=compile, batch_statistics=batch_statistics, steps=1).compile is compile


@given(
    device=st.sampled_from([CPU, GPU]),
    num_classes=st.integers(1, 1000),
    num_processes=st.integers(1, 64),
    largest_class_rows=st.integers(1, 500),
    images_per_step=st.integers(1, 10**6),
    steps=st.integers(1, 10**5),
    activation_bytes=st.integers(0, 2**34),
    budget=st.integers(1, 2**40),
    batch_statistics=st.booleans(),
)
def test_any_plan_is_in_range_and_repeatable(**facts: Any) -> None:
    first = plan(**facts)
    assert first == plan(**facts)
    assert 1 <= first.classes_per_chunk <= facts["num_classes"]
    assert first.images_per_forward >= 0
    graph_bytes = first.classes_per_chunk * facts["largest_class_rows"] * facts["activation_bytes"]
    assert graph_bytes <= facts["budget"] or first.classes_per_chunk == 1 or facts["batch_statistics"]


def test_plan_survives_a_round_trip_through_json_values() -> None:
    original = Plan(3, 64, True)
    assert Plan(**original.to_dict()) == original
    assert set(original.to_dict()) == {f.name for f in dataclasses.fields(Plan)}


def test_memory_budget_is_a_power_of_two() -> None:
    budget = memory_budget(CPU)
    assert budget >= MIB
    assert budget.bit_count() == 1


@pytest.mark.gpu
def test_memory_budget_of_a_gpu_is_at_most_its_free_memory() -> None:
    budget = memory_budget(GPU)
    assert budget.bit_count() == 1
    assert budget <= torch.cuda.mem_get_info(GPU)[0]


@pytest.mark.parametrize("method", ["dm", "dc"])
def test_batch_never_repeats_the_rows_of_every_class(method: str) -> None:
    largest = max(Counter(toy_dataset()["label"]).values())
    exact = condense(method, steps=2, batch_real=largest)
    assert same(condense(method, steps=2, batch_real=256), exact)
    assert not same(condense(method, steps=2, batch_real=largest - 1), exact)


@pytest.mark.parametrize(
    ("images", "limit", "sizes"),
    [
        (800, 64, [50] * 16),
        (400, 64, [50] * 8),
        (160, 64, [40] * 4),
        (128, 64, [64] * 2),
        (30, 64, [30]),
        (30, 0, [30]),
        (67, 64, [34, 33]),  # a prime number: equal parts would be single images
        (5, 1, [1] * 5),
    ],
)
def test_forward_passes_are_of_one_size(images: int, limit: int, sizes: list[int]) -> None:
    run = SimpleNamespace(plan=Plan(1, limit, compile=False))
    assert [len(part) for part in Run.split_for_forward(run, torch.empty(images, 1))] == sizes


def test_bytes_of_a_step_count_decoding_weights_and_gradients() -> None:
    workload = Workload(
        (1,) * 4, 4, 8, 1, MIB, batch_statistics=False, decoding_bytes=3, parameter_bytes=5, passes=2, cuts=()
    )
    assert workload.row_bytes == MIB + 3
    assert workload.step_bytes(Plan(1, 0, compile=False)) == 2 * (4 * (MIB + 3) + 2 * 5)


def test_step_is_priced_by_the_classes_with_most_rows() -> None:
    workload = Workload((1, 5, 2, 3), 11, 22, 2, MIB, batch_statistics=False)
    assert workload.step_bytes(Plan(1, 0, compile=False)) == 5 * MIB
    assert workload.step_bytes(Plan(2, 0, compile=False)) == 8 * MIB
    kept = dataclasses.replace(workload, passes=3)
    assert kept.step_bytes(Plan(1, 0, compile=False, keep_graphs=True)) == 3 * 8 * MIB


def test_forward_pass_of_all_images_is_halved_too() -> None:
    assert Plan(1, 0, compile=False).halved(9) == Plan(1, 5, compile=False)
    assert Plan(1, 0, compile=False).halved(1) is None


def test_method_that_keeps_all_graphs_anyway_does_not_plan_to() -> None:
    assert plan(passes=8).keep_graphs
    assert not plan(passes=8, cuts=()).keep_graphs
