"""Print seconds and memory of one update of the images against the number of a student's steps.

Every line is a process of its own, so that its peak is its own. For example:

    python examples/benchmarks/steps.py uoft-cs/cifar10 --methods mtt tesla esp --ipc 10 --student-steps 5 10 20 40
"""

import argparse
import json
import multiprocessing
import statistics
import time
from itertools import pairwise

import datasets
import psutil
import torch

from hf_condense import condense_dataset
from hf_condense.demo_data import load_demo
from hf_condense.engine.run import Run


def measure(dataset: str | None, method: str, ipc: int, network: str, updates: int, options: dict) -> tuple:
    """Return the median seconds of an update, and in MiB the memory at the start and at the peak."""
    ds = (datasets.load_dataset(dataset) if dataset else load_demo())["train"]
    clock: list[float] = []
    peaks: list[float] = []

    def note(run: Run, done: int, loss: float) -> None:
        clock.append(time.perf_counter())
        peaks.append(peak(run.device))

    before = 0.0 if torch.cuda.is_available() else psutil.Process().memory_info().rss / 2**20
    condense_dataset(ds, method, ipc, network=network, steps=updates, progress=False, callbacks=[note], **options)
    seconds = [b - a for a, b in pairwise(clock)]
    return statistics.median(seconds) if seconds else 0.0, before, max(peaks)


def peak(device: torch.device) -> float:
    """Peak memory so far in MiB: of the GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--methods", nargs="+", default=["mtt", "tesla", "esp"])
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--network", default="convnet-w32")
    parser.add_argument("--student-steps", nargs="+", type=int, default=[5, 10, 20, 40])
    parser.add_argument("--updates", type=int, default=6, help="updates that are timed")
    parser.add_argument("--options", type=json.loads, default={}, help="options of all methods as JSON")
    parser.add_argument("--fast", action="store_true", help="a tiny network, to see that it runs")
    given = parser.parse_args(argv)
    if given.fast:
        given.methods, given.network, given.student_steps, given.updates = ["esp"], "convnet-w4", [2], 3

    experts = {"experts": 1, "snapshots": 5, "snapshot_every": 1, "expert_span": 4, **given.options}
    lines = []
    spawn = multiprocessing.get_context("spawn")

    def alone(method: str, updates: int, options: dict) -> tuple:
        with spawn.Pool(1) as pool:
            arguments = (given.dataset, method, given.ipc, given.network, updates, {**experts, **options})
            return pool.apply(measure, arguments)

    alone(given.methods[0], 1, {})  # records the experts, which the others find in the cache
    for method in given.methods:
        for steps in given.student_steps:
            seconds, before, most = alone(method, given.updates, {"student_steps": steps})
            lines.append({"method": method, "student_steps": steps, "seconds": seconds, "mib": most - before})
            timed = f"{seconds:.3f} s an update (median of {given.updates - 1})"
            print(
                f"{method}, {steps} student steps: {timed}; {most - before:.0f} MiB above an idle process", flush=True
            )
    return lines


if __name__ == "__main__":
    main()
