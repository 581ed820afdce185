"""Keep the tests off the network and the user's cache; define the fixtures that many of them share."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.command_line import program  # noqa: F401 (a fixture)
from tests.support.hub_fixtures import ENDPOINT, hub  # noqa: F401 (a fixture; neither library is imported before it is used)

# The Hugging Face libraries read these when they are imported, so they are set before anything imports them.
_read_too_early = {"datasets", "huggingface_hub"} & sys.modules.keys()
assert not _read_too_early, f"{_read_too_early} imported before tests/conftest.py could set HF_HOME"
HF_HOME = tempfile.mkdtemp(prefix="hf_condense-tests-")
atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)
for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(name, None)
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
os.environ.update(
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    HF_ENDPOINT=ENDPOINT,
    HF_HOME=HF_HOME,
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    HF_UPDATE_DOWNLOAD_COUNTS="0",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS=str(THREADS),  # for the processes that tests start
)

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures

torch.set_num_threads(THREADS)
if torch.accelerator.is_available():
    # Tests compare bits, which only CPUs repeat. What needs the GPU asks for the fixture `gpu`.
    os.environ["ACCELERATE_USE_CPU"] = "1"

TOY_CLASSES = ("ball", "cross", "stripes")
TOY_ROWS = 12  # per class


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none was found"))


def toy_pixels(label: int, row: int, channels: int) -> np.ndarray:
    """Return the pattern of a class as uint8 pixels (8, 8, channels), with noise that differs from row to row."""
    y, x = np.mgrid[-3.5:4.5, -3.5:4.5]
    pattern = (np.hypot(y, x) < 2.6, (abs(x) < 1) | (abs(y) < 1), np.mgrid[:8, :8][0] % 4 < 2)[label]
    tint = np.array([(1.0, 0.4, 0.4), (0.4, 1.0, 0.4), (0.4, 0.4, 1.0)])[label, :channels]
    noise = np.random.default_rng([label, row]).normal(0, 0.08, (8, 8, channels))
    return (np.clip(0.1 + 0.7 * pattern[..., None] * tint + noise, 0, 1) * 255).round().astype(np.uint8)


def toy_dataset(channels: int) -> Dataset:
    """Return 12 rows of each of three classes; rows go through the classes in turn."""
    turns = [(label, row) for row in range(TOY_ROWS) for label in range(len(TOY_CLASSES))]
    pixels = [toy_pixels(label, row, channels) for label, row in turns]
    return Dataset.from_dict(
        {
            "image": [Pictures.fromarray(p if channels == 3 else p[..., 0]) for p in pixels],
            "label": [label for label, _ in turns],
            "note": [f"{TOY_CLASSES[label]} number {row}" for label, row in turns],
        },
        features=Features({"image": Image(), "label": ClassLabel(names=list(TOY_CLASSES)), "note": Value("string")}),
    )


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Leave the library's log as it was: programs that tests run in this process set its level."""
    logger = logging.getLogger("hf_condense")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def toy() -> Dataset:
    """36 RGB images of 8 x 8 pixels in three classes that a small network can tell apart, and a text column."""
    return toy_dataset(channels=3)


@pytest.fixture(scope="session")
def toy_gray() -> Dataset:
    """The images of `toy` in one channel."""
    return toy_dataset(channels=1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real datasets (`mnist/`, `cifar10/`); tests that use it are skipped if it is missing."""
    folder = os.environ.get("HF_CONDENSE_DATA")
    if folder is None:
        pytest.skip("needs real data: set HF_CONDENSE_DATA to a folder with mnist/ and cifar10/")
    if not Path(folder).is_dir():
        pytest.skip(f"needs real data: HF_CONDENSE_DATA={folder} is missing; it should have mnist/ and cifar10/")
    return Path(folder)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """The CUDA device, on which everything runs in this test."""
    from accelerate.state import AcceleratorState

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield torch.device("cuda", 0)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def one_thread():
    """Use one thread: tiny networks gain nothing from a second one, and wait for it where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(toy: Dataset):
    """Two real rows of each class, as a condensed set."""
    from hf_condense import condense_dataset

    return condense_dataset(toy, "random", ipc=2, progress=False)
