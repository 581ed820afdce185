"""The laws that every method keeps. Run `check_method("mine")` in the tests of your own method."""

from __future__ import annotations

import dataclasses
import inspect
import io
import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_condense.api import condense_dataset
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.decoders import DECODERS
from hf_condense.condensed.loading import load_condensed
from hf_condense.engine.method import Method, Selector
from hf_condense.engine.registry import get_method
from hf_condense.engine.run import Run
from hf_condense.source.load import load_source

logger = logging.getLogger("hf_condense")

_ROUNDING = 1e-3  # What rounding may add up to in a few steps, where sums have no fixed order.


def toy_dataset(
    labels: tuple[int | str, ...] | None = None,
    rows: int = 12,
    *,
    mode: str = "RGB",
    size: int = 8,
    names: tuple[str, ...] = (),
) -> datasets.Dataset:
    """Make a tiny labelled image dataset: each class has its own pattern, and each row its own noise.

    Args:
        labels: Label of every class. Default: 0, 1, ..., for each of the names, or up to 2.
        rows: Rows per class.
        mode: Mode of the pictures: "L", "RGB", "P", ...
        size: Side of the pictures, in pixels, >= 2.
        names: Class names of a ClassLabel; default: the label column holds plain values.

    Returns:
        A dataset with the columns `image`, `label` and `note` (text); its rows go through the classes in turn.
    """
    labels = labels or tuple(range(len(names) or 3))
    noise = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(size), np.arange(size)) * 128 // (2 * size)
    table = []
    for row in range(rows):
        for k, label in enumerate(labels):
            pattern = np.stack([np.rot90(ramp, k + c) for c in range(3)], axis=2)  # (H, W, C)
            pixels = pattern + noise.integers(0, 100, pattern.shape)
            picture = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(picture, "PNG")
            cell = {"bytes": picture.getvalue(), "path": None}
            table.append({"image": cell, "label": label, "note": f"{label}-{row}"})
    plain = datasets.Value("int64" if isinstance(labels[0], int) else "string")
    kind = datasets.ClassLabel(names=list(names)) if names else plain
    features = datasets.Features({"image": datasets.Image(), "label": kind, "note": datasets.Value("string")})
    return datasets.Dataset.from_list(table, features=features)


@dataclasses.dataclass(frozen=True)
class MethodUnderTest:
    """A method under test, with options that make it quick.

    Attributes:
        name: Name of the method.
        options: Its options.
    """

    name: str
    options: dict[str, Any]

    def condense(self, ds: datasets.Dataset, ipc: Any = 2, **options: Any) -> CondensedDataset:
        """Condense a toy dataset quickly; `options` win over those of the method under test."""
        label_column = None if isinstance(ds.features["label"], datasets.ClassLabel) else "label"
        base = {"label_column": label_column, "progress": False, "network": "convnet-w8-d1", "compile": False}
        given = {**self.options, **options}
        if not given.keys() & {"storage", "expand", "factor", "preset"}:
            base["storage"] = "pixels"  # the laws count rows; the default preset may store several images in one
        return condense_dataset(ds, self.name, ipc, **{**base, **given})

    @property
    def learns(self) -> bool:
        """Whether the method learns images (and so has steps)."""
        return issubclass(get_method(self.name), Method)

    @property
    def selects(self) -> bool:
        """Whether the method selects real rows, which stay as they are."""
        return issubclass(get_method(self.name), Selector)


def _repeats(first: CondensedDataset, second: CondensedDataset) -> bool:
    """Return whether two runs gave the same set: the same bits on a CPU; elsewhere equal tensors up to rounding."""
    if first.recipe.runtime["device"] == "cpu":
        return first.synthetic.equals(second.synthetic)
    tensors, others = first.synthetic.all(), second.synthetic.all()
    return tensors.keys() == others.keys() and all(
        tensor.shape == others[name].shape and torch.allclose(tensor, others[name], rtol=_ROUNDING, atol=_ROUNDING)
        for name, tensor in tensors.items()
    )


def law_counts_and_columns(method: MethodUnderTest) -> None:
    """Each class has ipc rows; columns, features and class names are those of the source."""
    ds = toy_dataset(names=("cat", "dog", "eel"))
    small = method.condense(ds, 2)
    assert sorted(small["label"]) == [0, 0, 1, 1, 2, 2], small["label"]
    assert list(small[:3]["label"]) == [0, 1, 2], "rows should take the classes in turn"
    assert small.features["image"] == ds.features["image"]
    assert small.features["label"] == ds.features["label"]
    assert ("note" in small.column_names) == method.selects, "only a coreset keeps columns beside image and label"


def law_counts_by_class(method: MethodUnderTest) -> None:
    """Each class has the number of rows that `ipc` gives for it."""
    small = method.condense(toy_dataset(names=("cat", "dog", "eel")), {"dog": 3, "cat": 1, "eel": 2})
    assert sorted(small["label"]) == [0, 1, 1, 1, 2, 2], small["label"]


def law_input_unchanged(method: MethodUnderTest) -> None:
    """Condensing leaves the dataset as it was."""
    ds = toy_dataset(names=("cat", "dog", "eel")).with_format("numpy")
    before = (load_source(ds, cache=False, progress=False).content_hash, ds.features.copy(), ds.format, ds._fingerprint)
    method.condense(ds)
    after = (load_source(ds, cache=False, progress=False).content_hash, ds.features.copy(), ds.format, ds._fingerprint)
    assert before == after


def law_seeds(method: MethodUnderTest) -> None:
    """The same seed gives the same set, another one another set if the method draws anything; on a CPU, to the bit."""
    ds = toy_dataset(rows=30)
    # The second run trains again whatever networks the first one has left in the cache.
    first, again, other = method.condense(ds), method.condense(ds, cache=False), method.condense(ds, seed=1)
    assert _repeats(first, again)
    if not method.selects or method.name == "random":
        assert not _repeats(first, other)


def law_global_generators(method: MethodUnderTest) -> None:
    """Condensing leaves the global random generators as they were."""
    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002 - the global one is what is checked
    of_python = random.getstate()
    method.condense(toy_dataset(), cache=False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == repr(np.random.get_state())  # noqa: NPY002
    assert of_python == random.getstate()


def law_pixels(method: MethodUnderTest) -> None:
    """Exact tensors are float32, finite and in [0, 1]; the rows are the same images in 8 bits."""
    small = method.condense(toy_dataset())
    images = small.synthetic.decoded()[0]
    assert images.dtype == torch.float32
    assert bool(torch.isfinite(images).all())
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    view = load_source(small, label_column="label", cache=False, progress=False)
    decoded, labels = small.synthetic.decoded()
    assert torch.equal(view.labels, labels)
    assert float((view.images[torch.arange(len(view))].float() / 255 - decoded).abs().max()) <= 0.5001 / 255


def law_factor(method: MethodUnderTest) -> None:
    """With factor 2 a class has four times as many rows, from the same number of stored images."""
    if method.learns:
        small = method.condense(toy_dataset(), 1, factor=2)
        assert len(small) == 12
        assert len(small.synthetic.labels) == 3


def law_storage_forms(method: MethodUnderTest) -> None:
    """The method learns in every storage form; a class has as many rows as the form says, and the set loads exactly."""
    if not method.learns:
        return
    ds = toy_dataset()
    for storage in DECODERS:
        states: list[Tensor] = []  # what is learned, after every update

        def observe(run: Run, done: int, loss: float, states: list[Tensor] = states) -> None:
            states.append(torch.cat([tensor.detach().flatten() for tensor in run.synthetic.learned().values()]))

        small = method.condense(ds, 1, storage=storage, callbacks=[observe])
        rows = small.recipe.decoder.rows(1)
        assert list(small["label"]).count(0) == rows, f"a class in the form {storage!r} should have {rows} rows"
        assert len(small) == 3 * rows
        assert len(states) == 1 or not torch.equal(states[0], states[-1]), f"nothing is learned in the form {storage!r}"
        with tempfile.TemporaryDirectory() as folder:
            small.save_condensed(folder)
            loaded = load_condensed(folder)
        assert small.synthetic.equals(loaded.synthetic), f"a set in the form {storage!r} should load bit for bit"
        assert torch.equal(small.synthetic.decoded()[0], loaded.synthetic.decoded()[0])


def law_any_labels(method: MethodUnderTest) -> None:
    """Labels that are text or not 0..K-1 come out as they went in; two classes of one row are enough."""
    for labels in ((0, 2, 5), ("wolf", "elk"), (7, -3)):
        small = method.condense(toy_dataset(labels), 1)
        assert sorted(small["label"]) == sorted(labels)


def law_any_mode(method: MethodUnderTest) -> None:
    """Grey, palette and transparent pictures are accepted; grey ones stay grey."""
    for mode, channels in (("L", 1), ("1", 1), ("P", 3), ("RGBA", 3)):
        assert method.condense(toy_dataset(mode=mode), 1).synthetic.decoded()[0].shape[1] == channels


def law_small_class(method: MethodUnderTest) -> None:
    """A class may give all its rows, and more images than it has rows only if these are not real ones."""
    ds = toy_dataset(rows=3)
    assert len(method.condense(ds, 3)) == 9  # a real batch may be larger than a class
    if not method.selects:
        assert len(method.condense(ds, 4)) == 12
        return
    message = ""
    try:
        method.condense(ds, 4)
    except ValueError as error:
        message = str(error)
    assert "3 rows" in message, f"a coreset larger than a class should be refused; got {message!r}"


def law_resume(method: MethodUnderTest) -> None:
    """A run that is interrupted at any step and resumed equals the uninterrupted run, on a CPU bit for bit."""
    if not method.learns:
        return
    ds = toy_dataset()
    steps = method.options.get("steps", 4)
    straight = method.condense(ds, checkpoint_dir=None)
    for cut in range(1, steps):
        with tempfile.TemporaryDirectory() as folder:

            def stop(run: Run, done: int, loss: float, cut: int = cut) -> None:
                if done == cut + 1:
                    raise KeyboardInterrupt

            interrupted = False
            try:
                method.condense(ds, checkpoint_dir=folder, checkpoint_every=cut, callbacks=[stop])
            except KeyboardInterrupt:
                interrupted = True
            assert interrupted, f"a callback that raises should end the run after step {cut + 1}"
            resumed = method.condense(ds, checkpoint_dir=folder, checkpoint_every=cut)
            assert _repeats(straight, resumed), f"interrupted after step {cut + 1}, checkpoint at step {cut}"


def law_save_and_load(method: MethodUnderTest) -> None:
    """A saved set loads bit for bit: tensors, rows and recipe."""
    small = method.condense(toy_dataset(names=("cat", "dog", "eel")))
    with tempfile.TemporaryDirectory() as folder:
        small.save_condensed(folder)
        loaded = load_condensed(folder)
    assert small.synthetic.equals(loaded.synthetic)
    assert small.recipe == loaded.recipe
    assert small.with_format("arrow")[:] == loaded.with_format("arrow")[:]


def law_declared(method: MethodUnderTest) -> None:
    """The method describes itself and every option; options survive a round trip through a dict."""
    cls = get_method(method.name)
    for f in dataclasses.fields(cls.info):
        assert getattr(cls.info, f.name) or f.name == "aliases", f"info.{f.name} is empty"
    assert cls.info.link.startswith("https://")
    arguments = inspect.signature(condense_dataset).parameters.keys() - {"steps"}  # steps are both
    for f in dataclasses.fields(cls.Config):
        assert f.metadata.get("help"), f"option {f.name} has no help"
        assert f.name not in arguments, f"option {f.name} cannot be set: condense_dataset has an argument of this name"
    config = cls.Config()
    if getattr(cls, "optimiser", None) is Method.optimiser:
        rate = config.of_role("image_rate")
        assert rate is not None, "the default optimiser needs an option with role='image_rate'"
    assert cls.Config.build(dataclasses.asdict(config)) == config


LAWS: tuple[Callable[[MethodUnderTest], None], ...] = (
    law_counts_and_columns,
    law_counts_by_class,
    law_input_unchanged,
    law_seeds,
    law_global_generators,
    law_pixels,
    law_factor,
    law_storage_forms,
    law_any_labels,
    law_any_mode,
    law_small_class,
    law_resume,
    law_save_and_load,
    law_declared,
)
"""Every law; each takes a `MethodUnderTest` and raises `AssertionError` if the method breaks it."""


def check_method(name: str, **options: Any) -> None:
    """Check that a registered method keeps every law; this takes a few seconds for a cheap method.

    Args:
        name: Name of the method.
        **options: Options of the method and of `condense_dataset`; those that make a method quick (few steps, small
            batches) are set already, where it has them.

    Raises:
        AssertionError: If a law is broken; the message begins with the law's name.
    """
    method = quick_method(name, **options)
    with _repeated_messages_muted():
        for law in LAWS:
            try:
                law(method)
            except AssertionError as error:
                raise AssertionError(f"{law.__name__.removeprefix('law_')}: {law.__doc__} {error}") from error


@contextmanager
def _repeated_messages_muted() -> Iterator[None]:
    """Log each kind of message once while a block runs: the laws make dozens of sets of the same toy data."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        if record.msg in seen:
            return False
        seen.add(record.msg)
        return True

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def quick_method(name: str, **options: Any) -> MethodUnderTest:
    """Return a method under test with options that make it quick, and others that are given."""
    config = get_method(name).Config
    quick = {**config.tiny_options(), **options}
    used = {
        option: value for option, value in config.tiny_options().items() if config.unmet_need(option, quick) is None
    }
    return MethodUnderTest(name, {**used, **options})
