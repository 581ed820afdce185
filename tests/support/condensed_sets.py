"""Small condensed sets for the tests of rows, storage, cards and pictures, and how those compare them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from hf_condense.base.rng import keyed_generator
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.decoders import Frame, Origin, decoder_class
from hf_condense.condensed.decoders.patches import form_of_factor
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import decoded_rows
from hf_condense.condensed.tensors import CondensedTensors, round_robin
from hf_condense.condensed.views import ViewLabels, random_crops


def make_recipe(**changes) -> Recipe:
    """Return a recipe of two classes of 8x8 RGB images."""
    names = changes.get("class_names", ["cat", "dog"])
    channels = changes.get("image_shape", [3, 8, 8])[0]
    method = changes.get("method", "dm")
    storage, expand = form_of_factor(changes.pop("factor", 1))
    recipe = Recipe(
        method=method,
        method_version=1,
        kind="synthetic",
        ipc=2,
        storage=storage,
        expand=expand,
        seed=0,
        steps=10,
        preset=None,
        network="convnet-w32",
        options={"lr_img": 1.0},
        pixel_range="valid",
        class_names=names,
        label_values=list(range(len(names))),
        image_column="image",
        label_column="label",
        image_shape=[3, 8, 8],
        image_size=None,
        mean=[0.5] * channels,
        std=[0.25] * channels,
        source={"name": "someone/pets", "license": "mit", "num_examples": 100, "content_hash": "00ff"},
        runtime={"device": "cpu", "seconds": 1.5},
        created_at="2026-01-01T00:00:00Z",
        citation=f'Title ({method}): Ann Author, "A Paper", VENUE 2026, https://example.org/{method}',
    )
    return replace(recipe, **changes)


def make_tensors(recipe: Recipe, *, soft: bool = False, student: bool = False, zca: bool = False) -> CondensedTensors:
    """Return random tensors that fit a recipe."""
    ipc = recipe.ipc if isinstance(recipe.ipc, dict) else dict.fromkeys(recipe.class_names, recipe.ipc)
    labels = torch.tensor([i for i, name in enumerate(recipe.class_names) for _ in range(ipc.get(name, 0))])
    generator = keyed_generator(recipe.seed, "test")
    pixels = recipe.image_shape[0] * recipe.image_shape[1] * recipe.image_shape[2]
    decoder = recipe.decoder
    labels = labels.repeat_interleave(decoder.entries(1))
    images = torch.rand(len(labels), *recipe.image_shape, generator=generator) * 1.2 - 0.1
    if recipe.pixel_range == "valid":
        images = images.clamp(0, 1)
    return CondensedTensors(
        _stored(images, labels, recipe),
        labels,
        decoder,
        soft_labels=torch.randn(len(labels) * decoder.rows_per_entry, len(recipe.class_names), generator=generator)
        if soft
        else None,
        student_lr=torch.tensor(0.0125) if student else None,
        zca_matrix=torch.randn(pixels, pixels, generator=generator) if zca else None,
        zca_mean=torch.randn(pixels, generator=generator) if zca else None,
        view_labels=_view_labels(len(labels) * decoder.rows_per_entry, recipe),
    )


def _view_labels(rows: int, recipe: Recipe) -> ViewLabels | None:
    """Return random soft labels of views if a recipe has some."""
    if recipe.label_views is None:
        return None
    generator = keyed_generator(recipe.seed, "test views")
    crops = random_crops(rows * recipe.label_views, tuple(recipe.image_shape[1:]), 0.3, generator)
    logits = 3 * torch.randn(rows, recipe.label_views, len(recipe.class_names), generator=generator)
    return ViewLabels.of_logits(logits, crops.reshape(rows, recipe.label_views, 5), recipe.label_top)


def _stored(images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Return images in pixel units as a recipe stores them."""
    form = recipe.decoder
    if form.stores_images:
        stored = {"images": images}
    else:
        real = (images - form.frame.mean.reshape(-1, 1, 1)) / form.frame.std.reshape(-1, 1, 1)
        stored = form.start(real, labels, Origin(lambda c: [real[labels == c]], keyed_generator(recipe.seed, "test")))
    if recipe.store_dtype == "uint8":
        return {name: (255 * tensor).round().to(torch.uint8) for name, tensor in stored.items()}
    dtype = getattr(torch, recipe.store_dtype)
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in stored.items()}


def make_set(*, features: datasets.Features | None = None, soft=False, student=False, zca=False, **changes):
    """Return a synthetic set."""
    recipe = make_recipe(**changes)
    tensors = make_tensors(recipe, soft=soft, student=student, zca=zca)
    return CondensedDataset.from_parts(decoded_rows(tensors, recipe, features), tensors, recipe)


def formed_set(storage: str, expand: int = 2, *, soft: bool = False, **changes) -> CondensedDataset:
    """Return a synthetic set in another storage form than pixels, made of random rows."""
    recipe = make_recipe(storage=storage, expand=expand, **changes)
    frame = Frame(torch.tensor(recipe.mean), torch.tensor(recipe.std), clip=recipe.pixel_range == "valid")
    form = decoder_class(storage)(recipe.image_shape, expand, frame)
    budgets = [recipe.budget(name) for name in recipe.class_names]
    labels = torch.arange(len(budgets)).repeat_interleave(torch.tensor([form.rows(n) for n in budgets]))
    entries = torch.arange(len(budgets)).repeat_interleave(torch.tensor([form.entries(n) for n in budgets]))
    generator = keyed_generator(recipe.seed, "test")
    rows = torch.randn(len(labels), *recipe.image_shape, generator=generator)
    stored = form.start(rows, labels, Origin(lambda c: [rows[labels == c]], generator))
    exported, decoder = form.export(stored, form.frame.to_pixels)
    tensors = CondensedTensors(
        stored={
            n: t.to(getattr(torch, recipe.store_dtype)) if t.is_floating_point() else t for n, t in exported.items()
        },
        labels=entries,
        decoder=decoder,
        soft_labels=torch.randn(len(labels), len(budgets), generator=generator) if soft else None,
    )
    return CondensedDataset.from_parts(decoded_rows(tensors, recipe), tensors, recipe)


def real_rows(n: int = 8, *, classes: int = 2, image_type: str = "PNG") -> datasets.Dataset:
    """Return real rows with more columns than a set needs."""
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(n):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, image_type)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    columns = {
        "id": list(range(100, 100 + n)),
        "image": encoded,
        "label": [i % classes for i in range(n)],
        "note": [None if i % 3 == 0 else f"row {i}" for i in range(n)],
        "boxes": [[[0.5, float(i)]] * (i % 3) for i in range(n)],
        "good": [i % 2 == 0 for i in range(n)],
        "wave": [[[float(i), 1.0], [2.0, 3.0]] for i in range(n)],
    }
    features = datasets.Features(
        {
            "id": datasets.Value("int16"),
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "cow"][:classes]),
            "note": datasets.Value("string"),
            "boxes": datasets.List(datasets.List(datasets.Value("float32"))),
            "good": datasets.Value("bool"),
            "wave": datasets.Array2D((2, 2), "float32"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def make_coreset(ds: datasets.Dataset | None = None, *, ipc: int = 2, **changes) -> CondensedDataset:
    """Return the first rows of every class as a coreset."""
    ds = real_rows() if ds is None else ds
    names = ds.features["label"].names
    labels = list(ds["label"])
    rows = [i for c in range(len(names)) for i in [k for k, label in enumerate(labels) if label == c][:ipc]]
    recipe = make_recipe(
        method="herding",
        kind="coreset",
        steps=None,
        ipc=ipc,
        rows=rows,
        class_names=names,
        label_values=list(range(len(names))),
        **changes,
    )
    pixels = np.stack([np.array(ds[i]["image"].convert("RGB")) for i in rows])
    tensors = CondensedTensors.of_images(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous() / 255,
        labels=torch.tensor([labels[i] for i in rows]),
    )
    order = round_robin(tensors.labels.tolist())
    return CondensedDataset.from_parts(ds.select([rows[i] for i in order]), tensors, recipe, source=ds)


def raw(ds: datasets.Dataset) -> dict:
    """Return the rows with pictures as bytes."""
    images = [name for name, feature in ds.features.items() if isinstance(feature, datasets.Image)]
    for name in images:
        ds = ds.cast_column(name, datasets.Image(decode=False))
    return ds.with_format(None).to_dict()


def assert_same(first: CondensedDataset, second: CondensedDataset) -> None:
    """Check that two sets are equal to the bit."""
    content = [tensors.all() for tensors in (first.synthetic, second.synthetic)]
    assert content[0].keys() == content[1].keys()
    for name, tensor in content[0].items():
        assert tensor.dtype == content[1][name].dtype
        assert torch.equal(tensor, content[1][name])
    assert first.synthetic.decoder.name == second.synthetic.decoder.name
    assert first.synthetic.decoder.expand == second.synthetic.decoder.expand
    assert first.recipe == second.recipe
    assert first.features == second.features
    assert list(first.features) == list(second.features)
    assert raw(first) == raw(second)


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
