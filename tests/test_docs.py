"""What the project tells its readers is true: snippets and commands run, tables and maps are whole, links work."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

import hf_condense
from hf_condense.engine.registry import list_methods

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
GITHUB = ROOT / ".github"
EXAMPLES = ROOT / "examples"
OVERVIEW = (EXAMPLES / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "model_cards" / "README.md", *sorted(GITHUB.glob("*.md"))]
PAGES += [EXAMPLES / "README.md", *sorted((EXAMPLES / "benchmarks").glob("*.md"))]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs_as_written(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub) -> None:
    monkeypatch.chdir(tmp_path)
    # A snippet is run with fewer steps and epochs, so that it takes seconds; everything else is as written.
    code = re.sub(r"steps=\d+", "steps=2", SNIPPETS[number]).replace('recipe="dc")', 'recipe="dc", epochs=1, seeds=2)')
    code = code.replace('"me/', '"alice/')  # who is logged in on the stand-in Hub
    exec(compile(code, f"README.md snippet {number}", "exec"), {})


def test_readme_has_at_most_1000_words() -> None:
    assert len(README.split()) <= 1000


def test_table_of_methods_is_the_registry() -> None:
    (section,) = re.findall(r"^## Which method\?\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (?:\[`(\w+)`\]\((\S+)\)|`(\w+)`) \|", section, re.MULTILINE)
    assert [linked or plain for linked, _, plain in rows] == [info.name for info in list_methods()]
    links = {info.name: info.link for info in list_methods()}
    assert [link for name, link, _ in rows if name] == [links[name] for name, _, _ in rows if name]


def test_first_command_runs_as_written(tmp_path: Path) -> None:
    """The demo command in a copy of the tree; its environment sees the packages of this one instead of the registry."""
    (command,) = re.findall(r"<!-- command: demo -->\n```bash\n(.*)\n```", README)
    setup, install, demo = command.split(" && ")
    assert setup == "python -m venv .venv"
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", ".*_cache"))
    steps = [
        [sys.executable, "-m", "venv", ".venv"],
        [*install.split(), "--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"],
        [*demo.split(), "--quiet", "--steps", "2", "--max-updates", "2", "--seeds", "2"],
    ]
    # Before its own packages, such as an old setuptools, the new environment sees those of this one.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    for step in steps:
        process = subprocess.run(step, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr
    assert "equal to the last bit" in process.stdout
    (picture,) = (copy / "condensed/demo").glob("*_vs_random.png")
    assert str(picture.relative_to(copy)) in process.stdout


def test_public_names_are_documented() -> None:
    for name in hf_condense.__all__:
        if name != "__version__":
            assert len(getattr(hf_condense, name).__doc__.strip()) > 20, name


def test_public_names_can_be_found_on_the_first_page_or_in_the_overview_of_the_examples() -> None:
    names = set(hf_condense.__all__) - {"__version__"}
    assert not {name for name in names if not re.search(rf"\b{name}\b", README + OVERVIEW)}


def test_overview_of_the_examples_links_every_script() -> None:
    links = re.findall(r"\]\((\S+\.py)\)", OVERVIEW)
    assert sorted(set(links)) == sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py"))


def test_citation_names_this_version_and_the_address_of_the_project() -> None:
    (entry,) = re.findall(r"```bibtex\n(.*?)```", README, re.DOTALL)
    (homepage,) = re.findall(r'^Homepage = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    fields = dict(re.findall(r"^  (\w+)=\{(.*)\},?$", entry, re.MULTILINE))
    assert (fields["version"], fields["url"]) == (hf_condense.__version__, homepage)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "workflows/test.yml"])
def test_file_for_people_who_join_exists(name: str) -> None:
    assert (GITHUB / name).read_text(encoding="utf-8").strip()


def test_relative_links_lead_to_files_and_headings() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\((\S+?)\)", page.read_text(encoding="utf-8"))]
    relative = [(page, *link.partition("#")[::2]) for page, link in links if "://" not in link]
    assert {page.name for page, _, _ in relative} >= {"README.md", "CONTRIBUTING.md"}
    broken = [
        (page.name, path, heading)
        for page, path, heading in relative
        if not (target := page.parent / path if path else page).exists()
        or (heading and heading not in _anchors(target))
    ]
    assert not broken


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_map_of_rooms_names_every_package_and_every_module_at_the_top() -> None:
    text = (GITHUB / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## The rooms\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    places = {place.rstrip("/") for place in re.findall(r"`([\w./]+)`", section)}
    package = ROOT / "hf_condense"
    rooms = {path.parent.relative_to(package).as_posix() for path in package.rglob("__init__.py")} - {"."}
    doors = {path.name for path in package.glob("*.py")} - {"_version.py"}
    assert rooms | doors <= places


def test_set_up_command_of_contributing_is_that_of_the_readme() -> None:
    (command,) = re.findall(r"<!-- command: tests -->\n```bash\n(.*)\n```", README)
    set_up, _, tests = command.rpartition(" && ")
    commands = re.findall(r"^(.*?) +# (set up|check|test)$", (GITHUB / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert [purpose for _, purpose in commands] == ["set up", "check", "test"]
    assert (commands[0][0], commands[2][0]) == (set_up, tests)


def test_workflow_tests_every_version_that_the_metadata_names() -> None:
    jobs = yaml.safe_load((GITHUB / "workflows" / "test.yml").read_text())["jobs"]
    metadata = (ROOT / "pyproject.toml").read_text()
    versions = re.findall(r"Programming Language :: Python :: (3\.\d+)", metadata)
    assert jobs["test"]["strategy"]["matrix"]["python"] == versions
    assert f'requires-python = ">={versions[0]}"' in metadata
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands["oldest"] == ["bash tests/oldest.sh"]
    assert commands["macos"][-1].startswith("hf-condense demo ")
    assert jobs["macos"]["runs-on"].startswith("macos")
