"""What is shipped: the wheel, the packaged data, the time that importing takes, and the shape of the tree."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Image, load_dataset

import hf_condense
from hf_condense.demo_data import FOLDER, load_demo

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {"LICENSE", "README.md", "examples", "hf_condense", "model_cards", "pyproject.toml", "tests"}
EXCERPT_MAKER = ROOT / "examples" / "maintenance" / "make_demo_excerpt.py"
MADE_BY_TOOLS = {"__pycache__", "build", "condensed", "dist", "runs"}  # and *.egg-info and dot-files; git ignores them


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that nothing is left in the tree."""
    copy = tmp_path_factory.mktemp("copy")
    for name in TOP_LEVEL:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    build = subprocess.run(command, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    (path,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    in_tree = {p.relative_to(ROOT).as_posix() for p in (ROOT / "hf_condense").rglob("*") if p.is_file()}
    in_tree = {name for name in in_tree if "__pycache__" not in name}
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == in_tree
    data = {f"hf_condense/data/mnist/{name}" for name in ("train.parquet", "test.parquet", "LICENSE.md")}
    assert {"hf_condense/py.typed", *data} <= in_wheel


def test_wheel_names_version_licence_and_command(wheel: zipfile.ZipFile) -> None:
    info = f"hf_condense-{hf_condense.__version__}.dist-info/"
    metadata = wheel.read(f"{info}METADATA").decode()
    assert f"Version: {hf_condense.__version__}" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}licenses/LICENSE" in wheel.namelist()
    assert "hf-condense = hf_condense.cli:main" in wheel.read(f"{info}entry_points.txt").decode()


def test_metadata_has_urls_author_and_the_words_that_people_search_for(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"hf_condense-{hf_condense.__version__}.dist-info/METADATA").decode()
    fields = message_from_string(text)
    assert {"dataset condensation", "dataset distillation"} <= set(fields["Keywords"].split(","))
    assert fields["Author"]
    urls = dict(value.split(", ") for value in fields.get_all("Project-URL"))
    assert {"Homepage", "Issues", "Changelog"} <= urls.keys()
    classifiers = fields.get_all("Classifier")
    assert any(name.startswith("Operating System :: ") for name in classifiers)
    assert "Programming Language :: Python :: 3.10" in classifiers


def test_installed_command_leads_to_the_command_line() -> None:
    from hf_condense.cli import main

    points = [point for point in entry_points(group="console_scripts") if point.name == "hf-condense"]
    if not points:
        pytest.skip("hf-condense is not installed; the tests read it from the tree")
    assert points[0].load() is main


def test_excerpt_is_balanced_real_mnist_below_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000
    assert "CC BY-SA 3.0" in (FOLDER / "LICENSE.md").read_text()
    ds = load_demo()
    for split, per_class in (("train", 500), ("test", 100)):
        assert ds[split].features == {"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])}
        assert np.bincount(ds[split]["label"]).tolist() == [per_class] * 10
        assert ds[split].cache_files == []
        picture = ds[split][0]["image"]
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (28, 28))


def test_excerpt_loads_the_same_twice() -> None:
    assert load_demo()["train"]._fingerprint == load_demo()["train"]._fingerprint


def test_making_an_excerpt_keeps_columns_pixels_and_balance(toy_gray: Dataset, tmp_path: Path) -> None:
    source = toy_gray.remove_columns("note")
    for split in ("train", "test"):
        source.to_parquet(tmp_path / "source" / f"{split}.parquet")
    maker = _excerpt_maker()
    maker.make(str(tmp_path / "source"), tmp_path / "out", train=5, test=2)
    excerpt = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(excerpt, DatasetDict)
    assert {name: rows.num_rows for name, rows in excerpt.items()} == {"train": 15, "test": 6}
    assert np.bincount(excerpt["train"]["label"]).tolist() == [5, 5, 5]
    assert excerpt["train"].features == source.features
    assert _pixels(excerpt["train"]) <= _pixels(source)
    with pytest.raises(ValueError, match=r"classes \[0, 1, 2\] have fewer than 13 rows"):
        maker.excerpt(source, 13)


def test_excerpt_is_what_the_script_makes_of_mnist(data_dir: Path, tmp_path: Path) -> None:
    _excerpt_maker().make(str(data_dir / "mnist"), tmp_path / "mnist", train=500, test=100)
    excerpt = load_dataset(str(tmp_path / "mnist"), cache_dir=str(tmp_path / "cache"))
    shipped = load_demo()
    for split in ("train", "test"):
        assert excerpt[split]["label"][:] == shipped[split]["label"][:]
        for left, right in zip(shipped[split]["image"], excerpt[split]["image"], strict=True):
            assert left.tobytes() == right.tobytes()


def test_excerpt_maker_refuses_to_guess_where_the_data_is(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_CONDENSE_DATA"}
    command = [sys.executable, str(EXCERPT_MAKER), "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 2
    assert "the following arguments are required: source" in run.stderr


def test_importing_touches_neither_devices_nor_processes() -> None:
    """Launchers that start processes in a notebook refuse to, once a device or a group of processes is in use."""
    checked = "import torch, hf_condense; from accelerate.state import PartialState as S; "
    checked += "print(torch.cuda.is_initialized(), torch.distributed.is_initialized(), S._shared_state)"
    process = subprocess.run([sys.executable, "-c", checked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "False", "{}"]


def test_importing_adds_less_than_a_tenth_of_a_second() -> None:
    timed = "import time, torch, datasets; t = time.perf_counter(); import hf_condense; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", timed]
    runs = (subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT) for _ in range(3))
    assert any(float(run.stdout) < 0.1 for run in runs)


def test_top_level_holds_the_fixed_names_only() -> None:
    names = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and p.suffix != ".egg-info"}
    assert names - MADE_BY_TOOLS == TOP_LEVEL


def test_nothing_names_a_path_of_a_machine_or_a_registry() -> None:
    folders = "|".join(("work", "root", "home", "farm"))
    hosts = "|".join(("files[.]pythonhosted", "pypi[.]org", "registry[.]npmjs"))
    pattern = re.compile(rf"(?<![\w.])/(?:{folders})/\w|{hosts}")
    offences = []
    for path in _texts():
        lines = path.read_text(encoding="utf-8").splitlines()
        offences += [f"{path.relative_to(ROOT)}:{n}: {line}" for n, line in enumerate(lines, 1) if pattern.search(line)]
    assert not offences


def _texts() -> list[Path]:
    """Return every text file that is part of the project."""
    kinds = {".cfg", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}
    names = (".ci", ".github", ".pre-commit-config.yaml", *sorted(TOP_LEVEL))
    places = [ROOT / name for name in names]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    return [p for p in files if p.is_file() and p.suffix in kinds and "__pycache__" not in p.parts]


def _excerpt_maker():
    """Import the script that makes the excerpt."""
    spec = importlib.util.spec_from_file_location("make_demo_excerpt", EXCERPT_MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pixels(ds: Dataset) -> set[tuple[int, bytes]]:
    """Return label and pixels of every row."""
    return {(row["label"], row["image"].tobytes()) for row in ds}


def test_public_names_are_not_hidden_by_modules_or_packages() -> None:
    """Importing a module binds its name in the package; a function of that name would be gone."""
    modules = {module.name for module in pkgutil.iter_modules(hf_condense.__path__)}
    assert {"api", "evaluation"} <= modules  # a module and a package: both kinds are seen
    assert not modules & set(hf_condense.__all__)
