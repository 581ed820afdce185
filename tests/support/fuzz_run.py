"""Runs the fuzzing of all files that are read, alone or for the tests.

    python -m tests.support.fuzz_run --seconds 600 --keep FOLDER     # a long run
    python -m tests.support.fuzz_run --cases 60 --seed 0             # what the tests do

It writes one line of JSON: how many cases were refused and how many loaded, the most additional memory that reading one
of them took, and the most processor seconds. The first case that goes wrong ends the run, also if the process dies; its
changed files are then in the folder that --keep names, ready to be moved to `tests/corpus/found/`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Verbosity, given, seed, settings

from tests.support import fuzz_targets as targets

_KIB = 1 << 10
_MOST_BYTES = 1 << 33  # of address space, so that a case that takes more fails, and not the machine
_ROUND = 300  # cases of a target at once, because hypothesis keeps them all in memory


@dataclass
class Report:
    """The counts and extremes of a run."""

    refused: Counter[str] = field(default_factory=Counter)
    loaded: Counter[str] = field(default_factory=Counter)
    peak_mib: float = 0
    peak_case: str = ""
    slowest_seconds: float = 0
    slowest_case: str = ""

    def facts(self) -> dict[str, Any]:
        """Return JSON values."""
        cases = {name: self.refused[name] + self.loaded[name] for name in targets.TARGETS}
        return {"cases": sum(cases.values()), "by_target": cases, **vars(self)}


def check(target: str, name: str, changed: targets.Files, place: Path, report: Report) -> str:
    """Read a case, record its memory and time, and raise unless it is refused or loads exactly."""
    files = targets.with_changes(name, changed)
    folder = targets.write_folder(place, files)
    read, test = (
        (targets.read_changed_card, targets.check_card)
        if targets.README in files
        else (targets.read_set, targets.check_set)
    )
    before, started = _memory("VmRSS", reset=True), time.process_time()
    loaded = read(folder)
    seconds, peak = time.process_time() - started, (_memory("VmHWM") - before) / _KIB
    case = f"{target} of {name}, {sum(map(len, changed.values())):,} bytes"
    if seconds > report.slowest_seconds:
        report.slowest_seconds, report.slowest_case = seconds, case
    if peak > report.peak_mib:
        report.peak_mib, report.peak_case = peak, case
    if loaded is None:
        report.refused[target] += 1
        return "refused"
    test(loaded, files, folder)
    report.loaded[target] += 1
    return "loaded"


def _memory(entry: str, *, reset: bool = False) -> int:
    """Return KiB of memory in use (VmRSS) or the most since the last reset (VmHWM); 0 without figures."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def run(target: str, cases: int, number: int, keep: Path, report: Report) -> None:
    """Try cases of a target."""

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
    )
    @given(case=targets.TARGETS[target])
    def fuzz(case: tuple[str, targets.Files]) -> None:
        name, changed = case
        targets.write_folder(keep / "changed", changed)
        check(target, name, changed, keep / "case", report)

    fuzz()


def main() -> None:
    """Run until the time is up, or for a number of cases of each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, help="of each target")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--keep", type=Path, help="where a case that goes wrong is kept")
    parser.add_argument("--target", choices=targets.TARGETS, action="append")
    options = parser.parse_args()
    keep = options.keep or Path(tempfile.mkdtemp(prefix="hf_condense-fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    report, end, number = Report(), time.monotonic() + (options.seconds or 0), options.seed
    names = options.target or list(targets.TARGETS)
    while True:
        for target in names:
            try:
                run(target, options.cases or _ROUND, number, keep, report)
            except BaseException:
                sys.stderr.write(f"target {target}, seed {number}: see {keep / 'changed'}\n")
                raise
        number += 1
        if time.monotonic() > end:
            break
    sys.stdout.write(json.dumps(report.facts()) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
