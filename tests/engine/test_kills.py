"""Runs that are killed at random moments, by SIGKILL, SIGTERM or SIGINT, give the bits of runs that nobody killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from hf_condense.engine.checkpoint import FILE_NAME

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("HF_CONDENSE_KILLS", "4"))


def test_killed_runs_go_on_to_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.kills", str(KILLS), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60 * max(KILLS, 10), check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
    kills = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(kills) == KILLS
    for kill in kills:
        number = signal.Signals[kill["signal"]]
        # A signal that arrives before the run begins, or after it, ends the process as usual.
        assert kill["code"] in (-number, 128 + number, 1), kill
        assert kill["again"] == 0, kill
        assert kill["files"] == [FILE_NAME], kill
        assert kill["equal"], kill
