"""How a condensed set was made, as data: the part of `condense_config.json` that a run writes."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from hf_condense.base.cache import content_key
from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.json_types import is_a, spelled
from hf_condense.condensed.decoders import PIXELS, Decoder, Frame, decoder_class
from hf_condense.condensed.decoders.patches import LARGEST_FACTOR, factor_of_form, form_of_factor
from hf_condense.condensed.recipe_checks import (
    check_amounts,
    check_classes,
    check_form,
    check_images,
    check_provenance,
    check_soft_labels,
)


@dataclass(frozen=True)
class Recipe:
    """How a set was made and how its files are read, as JSON values.

    Attributes:
        method: Canonical name of the method.
        method_version: Version of the method, which is incremented when the same options start to give other results.
        kind: `"synthetic"` (learned images), `"composed"` (images composed from real ones) or `"coreset"` (real rows).
        ipc: Images per class that may be stored: one number, or a number for each class name.
        storage: Storage form: a name in `condensed.decoders.DECODERS`.
        expand: Rows that the form decodes into for each image of the budget.
        seed: Seed of every random draw.
        steps: Updates of the images; None if the method takes no steps.
        preset: Name of the preset that was asked for, or None.
        network: Name of the network that was matched, or that gave the features.
        options: Every field of the method's config, including defaults.
        augment: Families of augmentation with which the images were learned, or None.
        pixel_range: `"valid"` (images inside [0, 1]) or `"free"`.
        store_dtype: Type of the stored numbers in the file, `"float32"`, `"float16"` or, for images, `"uint8"`.
        class_names: Names of all classes in label order, including classes without rows.
        label_values: Value of the label column for each class name.
        image_column: Name of the image column.
        label_column: Name of the label column.
        image_shape: (channels, height, width) of the decoded images.
        image_size: What `image_size=` asked for, as (height, width), or None for the source's own size.
        mean: Mean of the normalisation for which the set was made, per channel, in pixel units.
        std: Standard deviation of that normalisation, per channel, in pixel units.
        source: Facts about the source: `name`, `config`, `revision`, `split`, `license`, `num_examples`,
            `content_hash`.
        citation: Lines that cite the papers of the method, or None in sets of older versions.
        rows: For a coreset, row numbers in the source, in the order of the tensors; None otherwise. In a combined set
            they are row numbers in the sources of its parts.
        temperature: Temperature of the soft labels (logits), or None without soft labels.
        label_views: Augmented views of every row that have soft labels; None if the rows themselves have them.
        label_top: Logits that are stored for each view; None if `label_views` is.
        teacher: The networks that gave the soft labels, or the first ones: `network` (their name), `networks` (how many
            there are), `updates` (of their training), `seed`, `content_hash` (of their weights), `held_out` (source
            rows that were kept from training) and `classes` (the order of the logits). Newer sets may also have
            `accuracy` (a fraction, on held-out rows) and, for a classifier of the user's own, which the library has
            not trained, `accuracy_rows` (how many source rows that accuracy is of). None without soft labels, and in
            sets of older versions.
        plan: Chunk plan of the run; equal bits need an equal plan, and a CPU.
        runtime: `device`, `num_processes`, `seconds`, versions. Frozen when the set is made.
        created_at: UTC time at which the set was made, ISO 8601.
        evaluation: Measured accuracies, as rows of `Evaluation.to_records()`.
        nearest: Distances of the images to their nearest source images, as `nearest_real` returns them, or None.
        parts: For a set that `combine_condensed` put together, what each part brought: `recipe` (its recipe), `ipc`
            (images of the budget, by class name) and `student_lr` (learned rate, or None). The entries of a class are
            in the order of the parts. None for all other sets.
        extra: Keys of newer versions that this version does not know. They are kept unchanged.
    """

    method: str
    method_version: int
    kind: str
    ipc: int | dict[str, int]
    storage: str
    expand: int
    seed: int
    steps: int | None
    preset: str | None
    network: str
    options: dict[str, Any]
    pixel_range: str
    class_names: list[str]
    label_values: list[int | str | bool]
    image_column: str
    label_column: str
    image_shape: list[int]
    image_size: list[int] | None
    mean: list[float]
    std: list[float]
    source: dict[str, Any]
    augment: str | None = None
    store_dtype: str = "float32"
    citation: str | None = None
    rows: list[int] | None = None
    temperature: float | None = None
    teacher: dict[str, Any] | None = None
    label_views: int | None = None
    label_top: int | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    created_at: str = ""
    evaluation: list[dict[str, Any]] = field(default_factory=list)
    nearest: dict[str, Any] | None = None
    parts: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def config_name(self) -> str:
        """Name of config and folder: `{method}_ipc{n}`, or `ipc{min}-{max}` for a dict, and the suffix of the form."""
        return f"{self.method}_ipc{self.ipc_text}{self.decoder.suffix}"

    @property
    def ipc_text(self) -> str:
        """Images per class: one number, or the smallest and the largest."""
        low, high = min(self._budgets), self.largest_ipc
        return f"{low}-{high}" if low != high else str(low)

    @property
    def largest_ipc(self) -> int:
        """The largest number of images that a class may store."""
        return max(self._budgets)

    @property
    def _budgets(self) -> Collection[int]:
        """The numbers of images per class."""
        return self.ipc.values() if isinstance(self.ipc, dict) else [self.ipc]

    def budget(self, name: str) -> int:
        """Return the number of images that a class may store."""
        return self.ipc[name] if isinstance(self.ipc, dict) else self.ipc

    def number_of_classes(self, entries: int) -> int:
        """Return how many classes a set of this recipe has, if it has that many entries."""
        if isinstance(self.ipc, dict):
            return len(self.ipc)
        # Exact whatever number a stranger's file claims, where a quotient of floats would be rounded.
        return -(-entries // self.decoder.entries(self.ipc))

    @property
    def format_version(self) -> str:
        """Version of the file format that a reader of the set must know."""
        if self.label_views is not None or self.store_dtype == "uint8" or self._has_own_frames:
            return "3"
        return "2" if self.store_dtype != "float32" else self.decoder.format_version

    @property
    def teacher_text(self) -> str:
        """Line that says which networks gave the soft labels; empty if none did."""
        if self.teacher is None:
            return ""
        facts = self.teacher
        networks = f"{facts['networks']} networks {facts['network']}" if facts["networks"] > 1 else facts["network"]
        weights = f"weights {facts['content_hash'][:12]}"
        if "accuracy_rows" in facts:
            return (
                f"{networks}, a classifier that was given ({facts['accuracy']:.1%} of {facts['accuracy_rows']:,} rows "
                f"of the source right, which it may have been trained on); {weights}"
            )
        held_out = ""
        if "accuracy" in facts:
            held_out = f" ({facts['accuracy']:.1%} of {facts['held_out']:,} held-out rows right)"
        elif facts["held_out"]:
            held_out = f", a number chosen on {facts['held_out']:,} held-out rows"
        return f"{networks} after {facts['updates']:,} updates{held_out}; seed {facts['seed']}, {weights}"

    def without_times(self) -> Recipe:
        """Return the recipe without the times at which, and how long, the set was made and measured.

        What remains is equal when the same script runs again.
        """
        return dataclasses.replace(
            self,
            created_at="",
            runtime=_without_seconds(self.runtime),
            evaluation=[_without_seconds(record) for record in self.evaluation],
            parts=None if self.parts is None else [_without_times(part) for part in self.parts],
        )

    @property
    def decoder(self) -> Decoder:
        """The decoder of the tensors in a file."""
        cls = decoder_class(self.storage)
        frame = Frame(torch.tensor(self.mean), torch.tensor(self.std), clip=self.pixel_range == "valid")
        return cls(self.image_shape, self.expand, PIXELS if cls.stores_images else frame)

    @cached_property
    def part_recipes(self) -> list[Recipe]:
        """The recipes of the parts of a combined set; that of the set itself for any other one."""
        return [self] if self.parts is None else [Recipe.from_dict(part["recipe"]) for part in self.parts]

    @property
    def run(self) -> str:
        """Identifies the run that made the set: sets of one method and ipc may have the same name."""
        facts = {name: getattr(self, name) for name in ("created_at", "method", "network", "seed", "steps", "options")}
        parts = [] if self.parts is None else [recipe.run for recipe in self.part_recipes]
        return content_key(**facts, content=self.source.get("content_hash"), parts=parts)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Facts about every source, each once."""
        sources = [recipe.source for recipe in self.part_recipes]
        return [source for i, source in enumerate(sources) if source not in sources[:i]]

    @property
    def tensor_decoder(self) -> Decoder:
        """The decoder with the units of every row, for the tensors of a set whose labels were checked.

        The parts of a combined set keep the normalisation that their stored numbers are meant for.
        """
        decoder = self.decoder
        if not self._has_own_frames:
            return decoder
        parts = self.parts or []
        owners = torch.tensor(
            [
                i
                for name in self.class_names
                for i, part in enumerate(parts)
                for _ in range(decoder.entries(part["ipc"].get(name, 0)) * decoder.rows_per_entry)
            ]
        )
        mean, std = (torch.tensor([part["recipe"][name] for part in parts])[owners] for name in ("mean", "std"))
        return decoder.in_frame(Frame(mean, std, clip=decoder.frame.clip))

    @property
    def _has_own_frames(self) -> bool:
        """Whether the stored numbers of the parts are meant for different normalisations."""
        frames = [[part["recipe"][name] for name in ("mean", "std")] for part in self.parts or []]
        return not decoder_class(self.storage).stores_images and any(frame != frames[0] for frame in frames)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the keys of `extra` come last."""
        values = dataclasses.asdict(self)
        extra = values.pop("extra")
        if decoder_class(self.storage).format_version == "1":
            extra["factor"] = factor_of_form(self.storage, self.expand)  # readers of version 1 need it
        return {**values, **extra}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Make a recipe from untrusted JSON values.

        Raises:
            CondensedFormatError: If a key is missing, of the wrong type, or out of range.
        """
        values = _with_storage(values)
        hints = typing.get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls) if f.name != "extra"]
        required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
        if missing := sorted(required - values.keys()):
            raise CondensedFormatError(f"recipe: missing {', '.join(missing)}")
        for name in names:
            if name in values and not is_a(values[name], hints[name]):
                raise CondensedFormatError(f"recipe: {name} should be {spelled(hints[name])}; got {values[name]!r:.80}")
        recipe = cls(
            **{name: values[name] for name in names if name in values},
            extra={name: value for name, value in values.items() if name not in names},
        )
        recipe._check()
        return recipe

    def _check(self) -> None:
        """Raise `CondensedFormatError` for values that contradict each other."""
        names = self.class_names
        check_form(self.kind, self.pixel_range, self.store_dtype, self.storage)
        check_soft_labels(self.temperature, self.label_views, self.label_top, len(names))
        check_amounts(self.ipc, names, self.kind, self.rows, self.storage)
        check_classes(names, self.label_values)
        check_images(self.image_shape, self.mean, self.std)
        check_provenance(self.nearest, self.teacher, names)
        try:
            _ = self.decoder
        except ValueError as error:
            raise CondensedFormatError(f"recipe: {error}") from None
        if self.parts is not None:
            self._check_parts(self.parts)

    def _check_parts(self, parts: list[dict[str, Any]]) -> None:
        """Raise `CondensedFormatError` unless parts have recipes like the set's, and their budgets sum to its own."""
        form = (self.kind, self.storage, self.expand, self.image_shape)
        totals: Counter[str] = Counter()
        for i, part in enumerate(parts):
            if not (is_a(part.get("recipe"), dict[str, Any]) and is_a(part.get("ipc"), dict[str, int])):
                raise CondensedFormatError(f"recipe: part {i} should have recipe and ipc by class; got {part!r:.80}")
            try:
                if part["recipe"].get("parts") is not None:
                    raise CondensedFormatError("parts should not have parts themselves")
                recipe = Recipe.from_dict(part["recipe"])
            except CondensedFormatError as error:
                raise CondensedFormatError(f"recipe: part {i}: {error}") from None
            if (recipe.kind, recipe.storage, recipe.expand, recipe.image_shape) != form:
                raise CondensedFormatError(
                    f"recipe: part {i} should have kind, storage, expand and image_shape {form}, as the set has"
                )
            totals.update(part["ipc"])
        least = min((n for part in parts for n in part["ipc"].values()), default=0)
        if least < 1 or not isinstance(self.ipc, dict) or totals != self.ipc:
            raise CondensedFormatError(
                f"recipe: the ipc of the parts should be >= 1 and sum to that of the set, {self.ipc!s:.80}; got "
                f"{dict(totals)!s:.80}"
            )


def _without_times(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "recipe": Recipe.from_dict(part["recipe"]).without_times().to_dict()}


def _without_seconds(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "seconds"}


def _with_storage(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe with the storage form. The first files named it by its factor alone."""
    values = dict(values)
    factor = values.pop("factor", None)
    if factor is not None:
        if not is_a(factor, int) or not 1 <= factor <= LARGEST_FACTOR:
            raise CondensedFormatError(
                f"recipe: factor should be an integer in 1..{LARGEST_FACTOR}; got {factor!r:.40}"
            )
        storage, expand = form_of_factor(factor)
        if (values.setdefault("storage", storage), values.setdefault("expand", expand)) != (storage, expand):
            raise CondensedFormatError(
                f"recipe: factor {factor} contradicts storage {values['storage']!r:.40} with expand "
                f"{values['expand']!r:.40}"
            )
    return values


def common(values: list[Any]) -> Any:
    """Return the value that all have in common, or None."""
    return values[0] if all(value == values[0] for value in values) else None
