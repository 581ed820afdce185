"""What cards, pages and the command line say of a set in the same words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hf_condense.base.words import plural
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores.class_scores import per_cent
from hf_condense.condensed.scores.records import Record, groups_of, ordered_roles

_LITTLE = 0.8  # share of the distance between real rows; above, images are only a little closer
_COPY = 0.01  # an image shows a source row if it is this near: two or three grey levels

_ACCURACY = """\
Test accuracy in per cent after the last epoch: mean ± standard deviation (n - 1) over n networks with fresh weights. \
The scoring chose nothing on the test images. The networks of a {group} share their initial weights and the \
training recipe, whatever they are trained on, but for the learning rate where one stands beside an accuracy: a set \
may have learned its own, and rates may be chosen on held-out training rows. Random rows are drawn again for every \
network. ConvNets have instance normalisation unless their name says otherwise."""
_WHITENING = """\
Whiten all images before networks train on {names} or are tested: networks get `(pixels - zca_mean) @ zca_matrix` in \
place of normalised images, both for training and for test images. `pixels` are the values of an image in [0, 1], \
flattened from (channels, height, width); `zca_matrix` and `zca_mean` are tensors in the file `condensed.safetensors` \
of the set, and `ds.synthetic.zca_matrix` and `ds.synthetic.zca_mean` after `load_condensed`."""
DISTANCE_NOTE = """\
The table summarises the distances of the learned images to their nearest source images of any class and, for \
comparison, those of real rows to the nearest other real row. A distance is the root mean square over the pixels: 0 \
between equal images, 1 between black and white. Shifted or recoloured copies are not detected."""
"""What stands beside a table of distances."""


def title(sets: Iterable[Facts]) -> str:
    """Return the title of a new card; it is text of unknown origin."""
    names = {str(name) for facts in sets if (name := facts.recipe.source.get("name"))}
    return f"{names.pop()}, condensed" if len(names) == 1 else "Condensed image sets"


def amount_text(recipe: Recipe) -> str:
    """Return how many images per class a set stores, and how many rows each is decoded into if these are more."""
    return recipe.ipc_text + (f", each decoded into {recipe.expand}" if recipe.expand > 1 else "")


def size_text(recipe: Recipe) -> str:
    """Return width, height and colour of the images of a set."""
    channels, height, width = recipe.image_shape
    resized = " (resized; the rows are as in the source)" if recipe.kind == "coreset" and recipe.image_size else ""
    return f"{width}x{height} {'RGB' if channels == 3 else 'grey'}{resized}"


def source_text(recipe: Recipe) -> str:
    """Return the name of the source of a set, and how many images it has; it is text of unknown origin."""
    total = recipe.source.get("num_examples")
    images = f", {total:,} {plural(total, 'image')}" if isinstance(total, int) and total else ""
    return str(recipe.source.get("name") or "not stated") + images


def accuracy_lines(recipe: Recipe) -> list[str]:
    """Return the measured accuracies of a set as texts, one for each network and training."""
    lines = []
    for group in groups_of(recipe):
        roles = ordered_roles(group)
        first = group[roles[0]]
        cells = ", ".join(f"{role} {accuracy_text(group[role], first)}" for role in roles)
        lines.append(f"{cells} ({network_text(first['network'])}, {training_text(first)}, n = {first['n']})")
    return lines


def accuracy_text(record: Record, first: Record) -> str:
    """Return an accuracy, and what differs from the first measurement of its row."""
    differences = [f"n = {record['n']}"] if record["n"] != first["n"] else []
    if record["epochs"] != first["epochs"]:
        differences.append(_epochs(record))
    if record["updates"] != first["updates"]:
        differences.append(_updates(record))
    rates = record.get("lr"), first.get("lr")
    if rates[0] != rates[1] and all(isinstance(rate, (int, float)) for rate in rates):
        differences.append(f"learning rate {rates[0]:g}")
    return per_cent(record["mean"], record.get("std")) + (f" ({', '.join(differences)})" if differences else "")


def network_text(name: str) -> str:
    """Return the name of a network, with the width if it is a ConvNet."""
    base, *suffixes = name.split("-")
    if base != "convnet":
        return name
    width = next((suffix[1:] for suffix in suffixes if re.fullmatch(r"w\d+", suffix)), "128")
    return f"{name} (width {width})"


def training_text(record: Record) -> str:
    """Return in words how the networks of a record were trained."""
    augment = f"augmentation {record['augment']}" if record.get("augment") else "no augmentation"
    rate = f", learning rate {record['lr']:g}" if isinstance(record.get("lr"), (int, float)) else ""
    return f"{record['recipe']}: {_epochs(record)}, {_updates(record)}, {augment}{rate}"


def _epochs(record: Record) -> str:
    return f"{record['epochs']:g} {plural(record['epochs'], 'epoch')}"


def _updates(record: Record) -> str:
    return f"{record['updates']:,} {plural(record['updates'], 'update')}"


def accuracy_note(place: str) -> str:
    """Return what stands beside a table of accuracies.

    Args:
        place: What holds the networks of one kind there: a row or a table.
    """
    return _ACCURACY.format(group=place)


def whitening_note(names: str) -> str:
    """Return how images are whitened for the sets of some names; nothing if there are none."""
    return _WHITENING.format(names=names) if names else ""


def distance_cells(distances: Mapping[str, float]) -> list[str]:
    """Return the smallest, the median and the largest of some distances, as a table shows them."""
    return [f"{distances[name]:.4f}" for name in ("min", "median", "max")]


def nearest_verdict(nearest: Mapping[str, Any], kind: str) -> str:
    """Say in words how close the images of a set are to single source images.

    Args:
        nearest: The distances, as `nearest_real` returns them.
        kind: Kind of the method; the images of a composed set are combined from source images.
    """
    learned, real = nearest["synthetic"], nearest["real"]
    if learned["min"] < _COPY:
        return f"at least one image is almost a copy of a source image, at a distance of {learned['min']:.4f}."
    if kind == "composed":
        return "the images are combined from source images, and this check does not find parts of these."
    consequence = ""
    if learned["median"] < max(real["median"] / 2, real["min"]):
        compared, consequence = "much closer", ", so they still show single source images"
    elif learned["median"] < _LITTLE * real["median"]:
        compared = "closer"
    else:
        compared = "a little closer" if learned["median"] < real["median"] else "no closer"
    medians = f"medians {learned['median']:.3f} and {real['median']:.3f}"
    return (
        f"no copies; the images are {compared} to single source images than real rows are to each other "
        f"({medians}){consequence}."
    )
