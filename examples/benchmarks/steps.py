"""Print the seconds and the memory of one update of the images against the number of student steps.

Every line is measured in a separate process, so that each has its own peak of memory. For example:

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
    """Return the median seconds of an update, the memory at the start and the peak memory, both in MiB."""
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
    """Return the peak memory so far in MiB: of the GPU if the run uses one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--methods", nargs="+", default=["mtt", "tesla", "esp"], help="methods that follow experts")
    parser.add_argument("--ipc", type=int, default=10, help="images per class")
    parser.add_argument("--network", default="convnet-w32", help="network of experts and students")
    parser.add_argument("--student-steps", nargs="+", type=int, default=[5, 10, 20, 40], help="numbers to compare")
    parser.add_argument("--updates", type=int, default=6, help="updates of the images that each line runs")
    parser.add_argument("--options", type=json.loads, default={}, help="options for all methods as JSON")
    parser.add_argument("--fast", action="store_true", help="a tiny network, to see that it runs")
    args = parser.parse_args(argv)
    if args.fast:
        args.methods, args.network, args.student_steps, args.updates = ["esp"], "convnet-w4", [2], 3

    experts = {"experts": 1, "snapshots": 5, "snapshot_every": 1, "expert_span": 4, **args.options}
    lines = []
    spawn = multiprocessing.get_context("spawn")

    def measure_alone(method: str, updates: int, options: dict) -> tuple:
        with spawn.Pool(1) as pool:
            arguments = (args.dataset, method, args.ipc, args.network, updates, {**experts, **options})
            return pool.apply(measure, arguments)

    measure_alone(args.methods[0], 1, {})  # records the experts, which all later runs take from the cache
    for method in args.methods:
        for steps in args.student_steps:
            seconds, before, most = measure_alone(method, args.updates, {"student_steps": steps})
            lines.append({"method": method, "student_steps": steps, "seconds": seconds, "mib": most - before})
            timed = f"{seconds:.3f} s per update (median of {args.updates - 1})"
            print(
                f"{method}, {steps} student steps: {timed}; {most - before:.0f} MiB above an idle process", flush=True
            )
    return lines


if __name__ == "__main__":
    main()
