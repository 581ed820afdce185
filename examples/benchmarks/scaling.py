"""Print seconds and memory against the number of classes, of images per class and of rows.

The pictures are generated noise of 32 x 32 pixels in PNG files; nothing is learned from them. Every line is measured in
a separate process. Its memory leaves out files that are mapped: the dataset's, and the cached images. For example:

    python examples/benchmarks/scaling.py --classes 10 100 1000 --ipc 1 10 50 --rows 10000 100000 1000000
"""

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from itertools import pairwise

import datasets
import numpy as np
import psutil
from PIL import Image

from hf_condense import condense_dataset
from hf_condense.engine.run import Run

SIDE = 32
DISTINCT = 2000  # pictures; the rows repeat them


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the benchmark and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dm", help="a method that learns images")
    parser.add_argument("--classes", nargs="+", type=int, default=[10], help="numbers of classes to compare")
    parser.add_argument("--ipc", nargs="+", type=int, default=[1], help="numbers of images per class to compare")
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000], help="numbers of rows to compare")
    parser.add_argument("--network", default="convnet-w32", help="network that the method uses")
    parser.add_argument("--updates", type=int, default=6, help="updates of the images")
    parser.add_argument("--fast", action="store_true", help="a tiny network, to see that it runs")
    args = parser.parse_args(argv)
    if args.fast:
        args.network, args.rows, args.updates = "convnet-w4", [40], 3

    # One number changes at a time; the others are the first of their list.
    cases = [(classes, args.ipc[0], args.rows[0]) for classes in args.classes]
    cases += [(args.classes[0], ipc, args.rows[0]) for ipc in args.ipc[1:]]
    cases += [(args.classes[0], args.ipc[0], rows) for rows in args.rows[1:]]
    print("| classes | images per class | rows | s to read | s to read again | s per update | MiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    lines, spawn = [], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder  # of the processes that measure: what they cache goes with the folder
        for classes, ipc, rows in cases:
            place = f"{folder}/{classes}_{rows}"
            generated(classes, rows, folder).save_to_disk(place)
            measures = []
            for _ in range(2):  # the second one finds the decoded images in the cache
                with spawn.Pool(1) as pool:
                    measures.append(pool.apply(measure, (place, ipc, args.method, args.network, args.updates)))
            (reading, _, first_peak), (again, seconds, second_peak) = measures
            peak = max(first_peak, second_peak)
            lines.append({"classes": classes, "ipc": ipc, "rows": rows, "seconds": seconds, "mib": peak})
            cells = f"{reading:.1f} | {again:.1f} | {seconds:.3f} | {peak:,.0f}"
            print(f"| {classes:,} | {ipc} | {rows:,} | {cells} |", flush=True)
    print(f"{args.method}, {args.network}: s per update are the median of {args.updates - 1}")
    return lines


def generated(classes: int, rows: int, folder: str) -> datasets.Dataset:
    """Return rows of noise whose classes take turns."""
    pictures = [png(number) for number in range(min(DISTINCT, rows))]

    def table() -> object:
        for row in range(rows):
            yield {"image": {"bytes": pictures[row % len(pictures)], "path": None}, "label": row % classes}

    names = [f"class {c}" for c in range(classes)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_generator(table, features=features, cache_dir=f"{folder}/generated")


def png(number: int) -> bytes:
    """Return an encoded picture of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def measure(place: str, ipc: int, method: str, network: str, updates: int) -> tuple[float, float, float]:
    """Return the seconds until the first update is done, those of an update, and the peak memory in MiB."""
    ds = datasets.load_from_disk(place)
    peaks, ends = [0.0], threading.Event()

    def watch() -> None:
        while not ends.wait(0.05):
            memory = psutil.Process().memory_info()
            peaks.append((memory.rss - getattr(memory, "shared", 0)) / 2**20)  # `shared` are mapped files, on Linux

    watcher = threading.Thread(target=watch)
    watcher.start()
    clock: list[float] = [time.perf_counter()]

    def note(run: Run, done: int, loss: float) -> None:
        clock.append(time.perf_counter())

    try:
        condense_dataset(ds, method, ipc, network=network, steps=updates, progress=False, callbacks=[note])
    finally:
        ends.set()
        watcher.join()
    seconds = [b - a for a, b in pairwise(clock)]
    return seconds[0], statistics.median(seconds[1:] or seconds), max(peaks)


if __name__ == "__main__":
    main()
