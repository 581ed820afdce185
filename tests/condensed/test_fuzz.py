"""Whatever the files of a set hold is refused with the one error or loads exactly, within bounds of memory and time.

HF_CONDENSE_FUZZ sets the number of cases of each kind; `tests/support/fuzz_run.py` tells how to run for long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.card.render import default_config
from tests.support.fuzz_run import Report, check
from tests.support.fuzz_targets import CORPUS, SEEDS, found_cases

ROOT = Path(__file__).resolve().parents[2]
CASES = int(os.environ.get("HF_CONDENSE_FUZZ", 25))


@pytest.mark.parametrize("seed", SEEDS)
def test_sets_of_every_version_load_exactly(seed: str, tmp_path: Path) -> None:
    assert check("seed", seed, {}, tmp_path, Report()) == "loaded"


@pytest.mark.parametrize(
    ("outcome", "seed", "changed"), [pytest.param(*case, id=name) for name, *case in found_cases()]
)
def test_cases_that_once_went_wrong_end_as_recorded(
    outcome: str, seed: str, changed: dict[str, bytes], tmp_path: Path
) -> None:
    report = Report()
    assert check("found", seed, changed, tmp_path, report) == outcome
    assert report.peak_mib < 64
    assert report.slowest_seconds < 5


def test_any_change_is_refused_or_loads_exactly(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.support.fuzz_run",
        "--cases",
        str(CASES),
        "--seed",
        "0",
        "--keep",
        str(tmp_path),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stderr[-3000:]}\nthe changed files are in {tmp_path / 'changed'}"
    report = json.loads(ended.stdout)
    assert all(cases > CASES / 2 for cases in report["by_target"].values())
    assert all(report["refused"].values()), report
    assert sum(report["loaded"].values()) > report["cases"] / 20, report
    assert report["peak_mib"] < 256, report
    assert report["slowest_seconds"] < 10, report


@pytest.mark.parametrize(
    "metadata",
    [
        "- config_name: a\n" * 55_000,
        "[" + "1," * 400_000 + "1]",
        "[" + "{a: 1}\u2028," * 90_000 + "1]",
        "-\r" * 400_000,
    ],
    ids=["lines", "one line", "other lines", "old lines"],
)
def test_cards_that_would_take_minutes_to_parse_are_refused(metadata: str) -> None:
    for end in ("\n---\n", "\r---\r", "\n---\nText\n---\n"):
        with pytest.raises(CondensedFormatError, match="metadata of more than 30,000 lines and commas"):
            default_config(f"---\nconfigs:\n{metadata}{end}")


def test_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 200_000
