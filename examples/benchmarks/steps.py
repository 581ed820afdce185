"""Print the seconds and the memory of one update of the images, by storage form and by number of student steps.

Every line is measured in a separate process, so that each has its own peak of memory. For example:

    python examples/benchmarks/steps.py uoft-cs/cifar10 --methods mtt tesla esp --ipc 10 --student-steps 5 10 20 40
    python examples/benchmarks/steps.py uoft-cs/cifar10 --methods m3d dm --forms pixels patches:16 dct:32 --ipc 1
"""

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import time
from itertools import pairwise

import datasets
import psutil
import torch
from common import peak_of_process

from hf_condense import condense_dataset, get_method
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
    return 2**10 * peak_of_process()


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="Hub id or folder; default: the MNIST excerpt in the package")
    parser.add_argument("--methods", nargs="+", default=["mtt", "tesla", "esp"], help="methods that learn images")
    parser.add_argument("--forms", nargs="+", default=["pixels"], help="FORM[:EXPAND] ...; ratios are to the first")
    parser.add_argument("--ipc", type=int, default=10, help="images per class")
    parser.add_argument("--network", default="convnet-w32", help="network of methods, experts and students")
    parser.add_argument(
        "--student-steps",
        nargs="+",
        type=int,
        default=[5, 10, 20, 40],
        help="of methods that follow experts",
    )
    parser.add_argument("--updates", type=int, default=6, help="updates of the images that each line runs")
    parser.add_argument("--options", type=json.loads, default={}, help="options for all methods as JSON")
    parser.add_argument("--fast", action="store_true", help="a tiny network, to see that it runs")
    args = parser.parse_args(argv)
    if args.fast:
        args.methods, args.network, args.student_steps, args.updates = ["esp"], "convnet-w4", [2], 3
        args.forms = ["pixels", "dct"]

    lines: list[dict] = []
    for method in args.methods:
        student = method_follows_experts(method)
        if student:  # all later runs take the experts from the cache
            measure_alone(args.dataset, method, args.ipc, args.network, 1, options_of(method, "pixels", None, args))
        for steps in args.student_steps if student else [None]:
            first: dict | None = None
            for form in args.forms:
                options = options_of(method, form, steps, args)
                seconds, before, most = measure_alone(
                    args.dataset, method, args.ipc, args.network, args.updates, options
                )
                line = {"method": method, "form": form, "student_steps": steps, "seconds": seconds}
                line["mib"] = most - before
                first = first or line
                lines.append(line)
                print(text_of(line, first, args.updates), flush=True)
    return lines


def method_follows_experts(method: str) -> bool:
    """Return whether a method trains a student and compares it with experts."""
    return "student_steps" in {field.name for field in dataclasses.fields(get_method(method).Config)}


def options_of(method: str, form: str, student_steps: int | None, args: argparse.Namespace) -> dict:
    """Return the options of a line: a storage form and, of methods that follow experts, one short expert."""
    storage, _, expand = form.partition(":")
    options = {"storage": storage, "expand": int(expand) if expand else None}
    if method_follows_experts(method):
        options |= {"experts": 1, "snapshots": 5, "snapshot_every": 1, "expert_span": 4}
    if student_steps is not None:
        options |= {"student_steps": student_steps}
    return options | args.options


def measure_alone(*arguments: object) -> tuple:
    """Return what `measure` does in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def text_of(line: dict, first: dict, updates: int) -> str:
    """Return a line as text, with its ratios to the first form of the same method and number of student steps."""
    steps = "" if line["student_steps"] is None else f", {line['student_steps']} student steps"
    text = f"{line['method']}, {line['form']}{steps}: {line['seconds']:.3f} s per update (median of {updates - 1}); "
    text += f"{line['mib']:.0f} MiB above an idle process"
    if line is first or not first["seconds"] or not first["mib"]:
        return text
    seconds, memory = line["seconds"] / first["seconds"], line["mib"] / first["mib"]
    return f"{text}; {seconds:.2f} x the time and {memory:.2f} x the memory of {first['form']}"


if __name__ == "__main__":
    main()
