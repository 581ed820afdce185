"""What must happen to a changed file of a condensed set: it is refused with the one error, or it loads exactly."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import safetensors.torch
import torch
from hypothesis import strategies as st

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.card.render import config_names, default_config, render
from hf_condense.condensed.card.template import START
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.names import FACTS, PARQUET, README, TENSORS
from hf_condense.condensed.files.packing import pack
from hf_condense.condensed.files.parquet import to_parquet
from hf_condense.condensed.folder import read_card
from hf_condense.condensed.loading import load_condensed
from tests.support import fuzz_changes as changes
from tests.support.make_corpus import CORPUS

Files = dict[str, bytes]


def read_files(folder: Path) -> Files:
    """Return the files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


SEEDS = {folder.name: read_files(folder) for folder in sorted((CORPUS / "seeds").iterdir())}


def with_changes(seed: str, changed: Files) -> Files:
    """Return the files of a seed with some replaced, and the hashes that their author would have written."""
    files = {**SEEDS[seed], **changed}
    for name in changed.keys() & {PARQUET, TENSORS}:
        old, new = (hashlib.sha256(data).hexdigest().encode() for data in (SEEDS[seed][name], changed[name]))
        files[FACTS] = files[FACTS].replace(old, new)
    return files


def write_folder(folder: Path, files: Files) -> Path:
    """Write files into a folder, and remove everything else from it."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def read_set(folder: Path) -> CondensedDataset | None:
    """Load a set, or return None if it is refused for what it says, not because memory has run out."""
    try:
        return load_condensed(folder)
    except CondensedFormatError as error:
        if "alloc" in str(error):
            raise AssertionError("memory has run out") from error
        return None


def check_set(small: CondensedDataset, files: Files, folder: Path) -> None:
    """Raise unless a set equals what its files say, and can be written and read again without a change."""
    tensors = small.synthetic.all()
    stored = safetensors.torch.load(files[TENSORS])
    assert tensors.keys() == stored.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, stored[name])
        assert tensor.dtype == stored[name].dtype
        assert bool(torch.isfinite(tensor).all())
    assert small.synthetic.decoded()[0].shape == (small.synthetic.num_rows, *small.recipe.image_shape)
    recipe, written = small.recipe.to_dict(), json.loads(files[FACTS])["recipe"]
    assert {name: json.dumps(recipe[name]) for name in written} == {n: json.dumps(v) for n, v in written.items()}
    if small.recipe.kind == "coreset":
        table = pq.read_table(io.BytesIO(files[PARQUET]))
        assert to_parquet(small.with_format("arrow")[:].cast(table.schema)) == to_parquet(table)
    try:
        packed = pack(small.parts).files
    except ValueError as error:
        if "readers accept" in str(error):  # some facts are written twice
            return
        raise
    again = load_condensed(write_folder(folder, packed))
    assert again.recipe == small.recipe
    assert again.features == small.features
    assert pack(again.parts).files == packed


def read_changed_card(folder: Path) -> str | None:
    """Return the card of two sets written over an existing card, or None if that card is refused."""
    try:
        card = read_card(folder) or ""
        default_config(card)
        return render(FACTS_OF_SETS, card)
    except CondensedFormatError:
        return None


FACTS_OF_SETS = {name: Facts.from_values(json.loads(SEEDS[name][FACTS])) for name in ("coreset", "synthetic")}


def check_card(card: str, files: Files, folder: Path) -> None:
    """Raise unless a card marks one config as default, lists each set once, and does not change when written again."""
    names = config_names(card)
    assert [names.count(name) for name in FACTS_OF_SETS] == [1, 1]
    assert default_config(card) in names
    assert card.count(START) >= 1
    assert render(FACTS_OF_SETS, card) == card


def _of(file: str, *ways: Callable[[bytes], st.SearchStrategy[bytes]]) -> st.SearchStrategy[tuple[str, Files]]:
    """Return a strategy of changes to one file of every seed that has it."""
    seeds = [
        name for name, files in SEEDS.items() if file in files and (file != PARQUET or b'"coreset"' in files[FACTS])
    ]
    return st.one_of(
        [way(SEEDS[seed][file]).map(lambda data, seed=seed: (seed, {file: data})) for seed in seeds for way in ways]
    )


TARGETS = {
    "tensors": _of(TENSORS, changes.changed_header, changes.changed_bytes),
    "numbers": _of(TENSORS, changes.changed_numbers),
    "facts": _of(FACTS, changes.changed_json, changes.changed_bytes),
    "footer": _of(PARQUET, changes.changed_footer),
    "parquet": _of(PARQUET, changes.changed_bytes),
    "table": _of(PARQUET, changes.changed_table),
    "card": _of(README, changes.changed_card, changes.changed_bytes),
}


def found_cases() -> Iterator[tuple[str, str, str, Files]]:
    """Yield name, outcome, seed and changed files of every case in the corpus that once went wrong.

    They are in `found/{refused or loaded}/{seed}-{what it is}/`.
    """
    for folder in sorted((CORPUS / "found").glob("*/*")):
        yield folder.name, folder.parent.name, folder.name.split("-")[0], read_files(folder)
