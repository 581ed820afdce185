"""Several sets in one folder: named, never lost, and whole whatever fails."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, snapshot_download

from hf_condense import condense_dataset, write_page
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed import folder as folder_module
from hf_condense.condensed.card.render import config_names
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.facts import read_facts
from hf_condense.condensed.files.names import FACTS, PARQUET, PREVIEW, TENSORS, check_name
from hf_condense.condensed.folder import list_sets
from hf_condense.condensed.loading import list_condensed, load_condensed
from tests.support.condensed_sets import assert_same, files_below, make_recipe, make_set, real_rows


def test_first_set_stays_the_default(tmp_path):
    for ipc in (2, 1, 3):
        make_set(ipc=ipc).save_condensed(tmp_path)
    assert list_sets(tmp_path) == ["dm_ipc1", "dm_ipc2", "dm_ipc3"]
    assert load_condensed(tmp_path).recipe.ipc == 2
    assert load_condensed(str(tmp_path), "dm_ipc3").recipe.ipc == 3
    with pytest.raises(ValueError, match=r"no condensed set named 'dm_ipc4'. It has: dm_ipc1, dm_ipc2, dm_ipc3"):
        load_condensed(tmp_path, "dm_ipc4")


@pytest.mark.parametrize("text", [None, "", "# Mine\n", "---\nlicense: mit\n---\n"])
def test_several_sets_without_a_default_raise_value_error(tmp_path, text):
    for ipc in (1, 2):
        make_set(ipc=ipc).save_condensed(tmp_path)
    (tmp_path / "README.md").unlink()
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"several condensed sets: dm_ipc1, dm_ipc2; pass one of them as name="):
        load_condensed(tmp_path)
    assert load_condensed(tmp_path, "dm_ipc1").recipe.ipc == 1


def overtake(small, folder, monkeypatch):
    """Save a set in a folder after the next save there has looked at it, and before that one writes."""
    write = folder_module.write_files

    def late(place, files, **options):
        monkeypatch.setattr(folder_module, "write_files", write)
        small.save_condensed(folder)
        write(place, files, **options)

    monkeypatch.setattr(folder_module, "write_files", late)


def test_same_set_that_another_process_saves_at_once_is_no_conflict(tmp_path, monkeypatch):
    overtake(make_set(), tmp_path, monkeypatch)
    target = make_set(created_at="2027-01-01T00:00:00Z").save_condensed(tmp_path)
    assert_same(load_condensed(target), make_set())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("links", [True, False])
def test_set_is_saved_where_the_file_system_has_no_links(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links")))
    assert_same(load_condensed(make_set().save_condensed(tmp_path)), make_set())
    assert list_sets(tmp_path) == ["dm_ipc2"]


def test_set_of_another_process_that_was_faster_is_kept(tmp_path, monkeypatch):
    """Another process saves a set under the name after this one has looked and before it writes."""
    first, second = make_set(seed=1), make_set(seed=2)
    overtake(first, tmp_path, monkeypatch)
    with pytest.raises(FileExistsError, match="already holds"):
        second.save_condensed(tmp_path)
    before = files_below(tmp_path)
    assert_same(load_condensed(tmp_path), first)
    with pytest.raises(FileExistsError, match="already holds"):
        second.save_condensed(tmp_path)
    assert files_below(tmp_path) == before
    assert_same(load_condensed(second.save_condensed(tmp_path, overwrite=True)), second)


def test_set_inside_a_set_and_names_that_differ_in_case_are_refused(tmp_path):
    target = make_set().save_condensed(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(FileExistsError, match=f"is the folder of one set.* save to {re.escape(str(tmp_path))}"):
        make_set(ipc=1).save_condensed(target)
    with pytest.raises(FileExistsError, match="'dm_ipc2', which some systems do not tell from 'DM_ipc2'"):
        make_set().save_condensed(tmp_path, "DM_ipc2")
    with pytest.raises(ValueError, match="config name 'default' is what load_dataset calls a set without a name"):
        make_set().save_condensed(tmp_path, "default")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(("name", "reads"), [("a [b]", False), ("a::b", False), ("a]b[ *?", True)])
def test_folder_whose_name_load_dataset_takes_for_a_pattern_is_told(name, reads, tmp_path, caplog):
    small = make_set()
    small.save_condensed(tmp_path / name)
    assert ("for a pattern and finds no data" in caplog.text) != reads
    assert_same(load_condensed(tmp_path / name), small)
    with nullcontext() if reads else pytest.raises(FileNotFoundError):
        assert len(load_dataset(str(tmp_path / name), split="train")) == len(small)


def test_permissions_of_a_card_are_kept(tmp_path):
    make_set().save_condensed(tmp_path)
    (tmp_path / "README.md").chmod(0o600)
    make_set(ipc=1).save_condensed(tmp_path)
    assert (tmp_path / "README.md").stat().st_mode & 0o777 == 0o600


def test_folder_of_one_set_loads_and_refuses_another_name(tmp_path):
    target = make_set().save_condensed(tmp_path)
    assert load_condensed(target, "dm_ipc2").recipe.ipc == 2
    with pytest.raises(ValueError, match="folder of one set, 'dm_ipc2'; got name='dm_ipc1'"):
        load_condensed(target, "dm_ipc1")


def test_folder_of_one_set_is_listed_by_its_name(tmp_path, monkeypatch):
    target = make_set().save_condensed(tmp_path, "mine")
    make_set(ipc=1).save_condensed(tmp_path)
    assert list_condensed(target) == ["mine"]
    monkeypatch.chdir(target)
    assert list_condensed(".") == ["mine"]
    assert load_condensed(".", *list_condensed(".")).recipe.ipc == 2


@pytest.mark.parametrize("name", ["runs/cifar--10", "runs/2026.", "runs/a..b", "runs/x.git"])
@pytest.mark.parametrize("action", [load_condensed, list_condensed, write_page])
def test_missing_folder_whose_name_no_repository_can_have_is_named(name, action):
    with pytest.raises(FileNotFoundError, match=f"no folder '{name}' .*; pass a folder"):
        action(name)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder, and another folder to work in."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.mark.parametrize("kind", [str, Path])
def test_tilde_stands_for_the_home_folder_wherever_a_folder_is_passed(home, kind):
    assert make_set().save_condensed(kind("~/sets")) == home / "sets" / "dm_ipc2"
    assert list_condensed(kind("~/sets")) == ["dm_ipc2"]
    assert_same(load_condensed(kind("~/sets")), make_set())
    assert_same(load_condensed(kind("~/sets/dm_ipc2")), make_set())
    assert make_set(ipc=1).save_condensed(kind("~")) == home / "dm_ipc1"
    assert list(Path().iterdir()) == []


def test_unknown_user_behind_a_tilde_is_a_missing_folder(home):
    with pytest.raises(FileNotFoundError, match=r"no folder '~nobody-of-this-name/x' \(looked for .*"):
        load_condensed("~nobody-of-this-name/x")


def test_tilde_stands_for_the_home_folder_in_checkpoint_dir(home, toy):
    options = {"ipc": 1, "steps": 2, "network": "convnet-w4", "batch_real": 2, "progress": False}
    condense_dataset(toy, "dm", checkpoint_dir="~/run", checkpoint_every=1, **options)
    assert list((home / "run").iterdir())
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["../dm_ipc2", "/etc", "dm_ipc2/", ".", ".."])
def test_name_that_is_a_path_raises_value_error(tmp_path, name):
    make_set().save_condensed(tmp_path)
    with pytest.raises(ValueError, match="no condensed set named"):
        load_condensed(tmp_path, name)


@pytest.mark.parametrize(
    ("file", "warns"), [("cat/1.PNG", True), ("train/cat/1.jpg", True), ("1.png", False), (".git/a/1.png", False)]
)
def test_first_set_among_other_data_is_saved_with_a_warning(tmp_path, caplog, file, warns):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"picture")
    make_set().save_condensed(tmp_path)
    assert (f"has other data, such as {file}" in caplog.text) == warns
    assert path.read_bytes() == b"picture"
    caplog.clear()
    make_set(ipc=3).save_condensed(tmp_path)
    assert not caplog.text


def test_missing_folder_and_foreign_folder_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'.*save_condensed"):
        load_condensed(tmp_path / "nowhere")
    with pytest.raises(CondensedFormatError, match=r"no condensed set .*datasets.load_dataset"):
        load_condensed(tmp_path)


def test_saving_an_identical_set_changes_no_file(tmp_path):
    target = make_set().save_condensed(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_set().save_condensed(tmp_path) == target
    load_condensed(tmp_path).save_condensed(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_saving_a_set_that_was_made_again_changes_no_file(tmp_path, overwrite):
    make_set().save_condensed(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = make_set(created_at="2027-01-01T00:00:00Z", runtime={"device": "cpu", "seconds": 9.0})
    again.save_condensed(tmp_path, overwrite=overwrite)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert_same(load_condensed(tmp_path), make_set())


def test_saving_a_set_that_was_made_again_keeps_its_accuracies(tmp_path):
    measured = [{"set": "dm_ipc2", "mean": 0.5, "seconds": 1.0}]
    make_set(evaluation=measured).save_condensed(tmp_path)
    before = files_below(tmp_path)
    make_set(created_at="2027-01-01T00:00:00Z").save_condensed(tmp_path)
    assert files_below(tmp_path) == before
    other = [{**measured[0], "mean": 0.75}]
    make_set(evaluation=other).save_condensed(tmp_path)
    assert load_condensed(tmp_path).recipe.evaluation == other
    make_set(seed=5).save_condensed(tmp_path, overwrite=True)
    assert load_condensed(tmp_path).recipe.evaluation == [], "accuracies of another set"


def test_saving_into_a_copy_of_a_repository_keeps_its_other_splits(hub, tmp_path):
    repo = hub.repo()
    make_set().push_to_hub(repo, extra_splits={"test": real_rows(4)})
    copy = Path(snapshot_download(repo, repo_type="dataset", local_dir=tmp_path / "copy"))
    load_condensed(copy).save_condensed(copy)
    assert len(load_dataset(str(copy), split="test")) == 4


def test_other_splits_that_lack_the_columns_of_a_set_are_lost_with_a_warning(tmp_path, caplog):
    folder = make_set().save_condensed(tmp_path)
    facts = read_facts(folder).with_extra_splits({"test": {"num_rows": 4, "num_bytes": 9}})
    (folder / FACTS).write_bytes(facts.to_bytes())
    make_set(seed=5).save_condensed(tmp_path, folder.name, overwrite=True)
    assert read_facts(folder).extra_splits == {"test": (4, 9)}
    assert not caplog.records
    make_set(soft=True).save_condensed(tmp_path, folder.name, overwrite=True)
    assert read_facts(folder).extra_splits == {}
    assert f"the splits test beside {folder.name!r} lack the columns of the new set and are removed" in caplog.text


def test_two_processes_that_save_at_once_both_stand_on_the_card(tmp_path, monkeypatch):
    write, pending = folder_module.write_files, ["other"]

    def write_late(place, files, **options):
        if pending:
            make_set(seed=8).save_condensed(tmp_path, pending.pop())  # what another process does meanwhile
        write(place, files, **options)

    monkeypatch.setattr(folder_module, "write_files", write_late)
    make_set().save_condensed(tmp_path, "mine")
    assert config_names((tmp_path / "README.md").read_text()) == ["mine", "other"]


@pytest.mark.parametrize("file", [TENSORS, PARQUET, PREVIEW])
def test_saving_a_set_that_was_made_again_mends_a_damaged_file(tmp_path, file):
    target = make_set().save_condensed(tmp_path)
    before = files_below(tmp_path)
    (target / file).write_bytes(b"damaged")
    make_set(created_at="2027-01-01T00:00:00Z").save_condensed(tmp_path)
    assert files_below(tmp_path) == before


def test_overwriting_replaces_a_set_whose_facts_are_damaged(tmp_path):
    target = make_set().save_condensed(tmp_path)
    (target / FACTS).write_bytes(b"damaged")
    with pytest.raises(CondensedFormatError, match="not the JSON"):
        make_set().save_condensed(tmp_path)
    make_set().save_condensed(tmp_path, overwrite=True)
    assert_same(load_condensed(tmp_path), make_set())


def test_another_set_of_the_same_name_is_refused(tmp_path):
    make_set().save_condensed(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(FileExistsError, match=r"another recipe \(seed, steps differ\).*overwrite=True"):
        make_set(seed=1, steps=20).save_condensed(tmp_path)
    other = make_set()
    other.synthetic.images.mul_(0.5)
    with pytest.raises(FileExistsError, match="other tensors of the same recipe"):
        other.save_condensed(tmp_path)
    assert files_below(tmp_path) == before
    make_set(seed=1, steps=20).save_condensed(tmp_path, overwrite=True)
    assert_same(load_condensed(tmp_path), make_set(seed=1, steps=20))


def test_new_measurements_of_the_same_set_are_stored(tmp_path):
    make_set().save_condensed(tmp_path)
    measured = make_set(evaluation=[{"mean": 0.5}], runtime={"seconds": 9.0}, created_at="2027-01-01T00:00:00Z")
    measured.save_condensed(tmp_path)
    assert load_condensed(tmp_path).recipe.evaluation == [{"mean": 0.5}]


def test_sets_of_one_method_share_a_folder_under_names_of_their_own(tmp_path):
    assert make_set().save_condensed(tmp_path, "first") == tmp_path / "first"
    with pytest.raises(FileExistsError, match=r"under the name 'first'; .* pass another config_name="):
        make_set(seed=1).save_condensed(tmp_path, "first")
    make_set(seed=1).save_condensed(tmp_path, config_name="second")
    assert list_sets(tmp_path) == ["first", "second"]
    assert_same(load_condensed(tmp_path), make_set())
    assert_same(load_condensed(tmp_path, "second"), make_set(seed=1))


@pytest.mark.parametrize("name", ["", "../first", "my_train"])
def test_unusable_config_name_raises_value_error(tmp_path, name):
    with pytest.raises(ValueError, match=f"config name '{name}' should be"):
        make_set().save_condensed(tmp_path, name)
    assert not files_below(tmp_path)


def test_files_that_are_no_set_are_refused_and_kept(tmp_path):
    (tmp_path / "dm_ipc2").mkdir()
    (tmp_path / "dm_ipc2" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds something else under the name 'dm_ipc2'"):
        make_set().save_condensed(tmp_path)
    make_set().save_condensed(tmp_path, overwrite=True)
    assert (tmp_path / "dm_ipc2" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/sets"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"could not change .*: .*file is a file, and a folder is needed; the earlier"):
        make_set().save_condensed(tmp_path / place)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".x", "x" * 65, "train", "test_dm", "dm.eval", "data"])
def test_names_that_are_paths_or_splits_are_refused(name):
    with pytest.raises(ValueError, match="config name"):
        check_name(name)


def test_recipe_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON values only"):
        make_set(evaluation=[{"std": float("nan")}]).save_condensed(tmp_path)
    with pytest.raises(ValueError, match="JSON values only"):
        make_set(options={"lr": object()}).save_condensed(tmp_path)
    with pytest.raises(ValueError, match="readers accept 8,388,608"):
        make_set(options={"long": "x" * (1 << 23)}).save_condensed(tmp_path)
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ipc": 3}, "class 'cat' has 2 entries; its ipc of 3 holds 3"),
        ({"image_shape": [3, 8, 9]}, r"images should be F32 \[4, 3, 8, 9\]"),
        ({"factor": 2}, "the tensors are stored as 'pixels' with expand 1; the recipe says 'patches' with expand 4"),
        ({"kind": "coreset", "rows": [1, 2]}, "2 rows for 4 images"),
        ({"mean": [0.5]}, "one mean"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(tmp_path, changes, match):
    small = make_set()
    with pytest.raises(ValueError, match=match):
        CondensedDataset.from_parts(small, small.synthetic, make_recipe(**changes)).save_condensed(tmp_path)
    assert files_below(tmp_path) == {}


# Whatever fails, the earlier set is whole


class FailingCall:
    """Stands in for a function of `os` and fails at one of its calls, as a full disk does."""

    def __init__(self, real, at: int) -> None:
        self.real, self.left = real, at

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "over"])
def test_full_disk_leaves_the_earlier_set_whole(tmp_path, monkeypatch, call, at, earlier):
    folder = tmp_path / "sets"
    folder.mkdir()
    if earlier:
        make_set().save_condensed(folder)
    before = files_below(folder)
    monkeypatch.setattr(os, call, FailingCall(getattr(os, call), at))
    with pytest.raises(OSError, match=r"could not change .*No space left on device; .* untouched") as error:
        make_set(seed=1, source={"name": "other"}).save_condensed(folder, overwrite=True)
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    assert files_below(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == (["README.md", "dm_ipc2"] if earlier else [])
    if earlier:
        assert_same(load_condensed(folder), make_set())
    make_set(seed=1).save_condensed(folder, overwrite=True)
    assert_same(load_condensed(folder), make_set(seed=1))


def test_interrupt_leaves_the_earlier_set_whole(tmp_path, monkeypatch):
    make_set().save_condensed(tmp_path)
    before = files_below(tmp_path)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_set(seed=1).save_condensed(tmp_path, overwrite=True)
    assert files_below(tmp_path) == before


ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from tests.support.condensed_sets import make_set

real, left = getattr(os, sys.argv[2]), int(sys.argv[3])

def killing(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

setattr(os, sys.argv[2], killing)
make_set(seed=1).save_condensed(sys.argv[1], overwrite=True)
"""


def kill_while_saving(folder: Path, call: str, at: int) -> Path:
    """Kill a process that saves a set, at one of its calls of a function of `os`, and return what it leaves."""
    command = [sys.executable, "-c", KILLED, str(folder), call, str(at)]
    process = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (left,) = folder.glob(".hf_condense-*")
    return left


@pytest.mark.parametrize(("call", "at"), [("fsync", 3), ("replace", 1)])
def test_what_a_process_left_that_was_killed_while_it_wrote_is_removed(tmp_path, call, at):
    if call == "fsync":
        make_set().save_condensed(tmp_path)
    left = kill_while_saving(tmp_path, call, at)
    if call == "fsync":
        assert_same(load_condensed(tmp_path), make_set())
    make_set(ipc=1).save_condensed(tmp_path)
    assert not left.exists()


def test_files_that_a_killed_process_was_replacing_are_kept_and_named(tmp_path, caplog):
    earlier = files_below(make_set().save_condensed(tmp_path))
    left = kill_while_saving(tmp_path, "replace", 3)
    for _ in range(2):
        caplog.clear()
        make_set(ipc=1).save_condensed(tmp_path)
        assert f"the earlier ones are in {left / 'old'}: move them back" in caplog.text
    kept = files_below(left / "old" / "dm_ipc2")
    assert len(kept) == 3
    assert kept.items() <= earlier.items()


def test_removed_set_leaves_the_card_whatever_its_name(tmp_path):
    for name in ("a-_b", "c"):
        make_set().save_condensed(tmp_path, name)
    shutil.rmtree(tmp_path / "a-_b")
    make_set(ipc=1).save_condensed(tmp_path, "d")
    assert config_names((tmp_path / "README.md").read_text()) == ["c", "d"]
    assert len(load_dataset(str(tmp_path), "c", split="train", cache_dir=str(tmp_path / "cache"))) == 4
    assert list_sets(tmp_path) == ["c", "d"]


@pytest.mark.parametrize("name", ["README.md", "readme.MD", FACTS, "page.html", "a.", "nul", "COM1.txt"])
def test_name_of_a_file_beside_the_sets_or_that_windows_cannot_have_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="choose another one"):
        make_set().save_condensed(tmp_path, name)
    assert files_below(tmp_path) == {}
    assert check_name("common") == "common"


def test_folder_of_one_set_is_called_by_its_name_from_below(tmp_path, monkeypatch):
    place = make_set().save_condensed(tmp_path, "mine")
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    assert list_condensed("..") == ["mine"]
    assert_same(load_condensed("..", "mine"), make_set())


def test_what_a_card_says_of_the_sources_follows_the_sets(tmp_path):
    def facts() -> tuple[object, ...]:
        data = DatasetCard.load(tmp_path / "README.md").data.to_dict()
        return data["source_datasets"], data["pretty_name"], data.get("license")

    def of(name: str, licence: str) -> CondensedDataset:
        return make_set(source={"name": name, "license": licence})

    of("u/one", "mit").save_condensed(tmp_path, "a")
    assert facts() == (["u/one"], "u/one, condensed", "mit")
    of("v/two", "mit").save_condensed(tmp_path, "b")
    assert facts()[0] == ["u/one", "v/two"]
    of("w/three", "cc0-1.0").save_condensed(tmp_path, "a", overwrite=True)
    assert facts()[0] == ["v/two", "w/three"]
    assert facts()[2] is None, "the sources do not agree"
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(re.sub("pretty_name: .*", "pretty_name: Mine", card))
    of("x/four", "mit").save_condensed(tmp_path, "c")
    assert facts()[:2] == (["v/two", "w/three", "x/four"], "Mine")


def test_saving_removes_stray_shards_that_would_be_read_with_the_rows(tmp_path):
    place = make_set().save_condensed(tmp_path)
    stray, other = place / "train-more.parquet", place / "test-00000-of-00001.parquet"
    for file in (stray, other):
        shutil.copy(place / PARQUET, file)
    make_set().save_condensed(tmp_path)
    assert stray.exists(), "without overwrite=True, nothing is removed"
    make_set().save_condensed(tmp_path, overwrite=True)
    assert (stray.exists(), other.exists()) == (False, True)
    other.unlink()
    assert len(load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))) == 4


def test_stray_shard_comes_back_if_saving_fails(tmp_path, monkeypatch):
    place = make_set().save_condensed(tmp_path)
    shutil.copy(place / PARQUET, place / "train-00001-of-00002.parquet")
    before = files_below(tmp_path)
    monkeypatch.setattr(folder_module, "_replace", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="the earlier files are untouched"):
        make_set(seed=5).save_condensed(tmp_path, overwrite=True)
    assert files_below(tmp_path) == before


def test_files_of_no_set_are_never_taken_for_its_rows_and_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    stray = tmp_path / "mine" / "train-raw.parquet"
    stray.write_bytes(b"rows of somebody")
    with pytest.raises(FileExistsError, match=r"no set named 'mine', but files .*'mine/train-raw.parquet'; move them"):
        make_set().save_condensed(tmp_path, "mine", overwrite=True)
    assert files_below(tmp_path) == {"mine/train-raw.parquet": b"rows of somebody"}


def test_files_of_a_set_that_another_process_is_writing_are_no_other_data(tmp_path, caplog):
    (tmp_path / "dm_ipc9").mkdir()
    for name in (PREVIEW, TENSORS, PARQUET):
        (tmp_path / "dm_ipc9" / name).write_bytes(b"?")
    make_set().save_condensed(tmp_path)
    assert "has other data" not in caplog.text
    assert not caplog.records


def test_card_with_a_byte_order_mark_keeps_its_metadata(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n", encoding="utf-8-sig")
    make_set().save_condensed(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert DatasetCard(card).data.license == "mit"
    assert card.count("license: mit") == 1
