"""A figure of where the images of a set lie among real ones, as a network sees them."""

from __future__ import annotations

from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from hf_condense.base.checks import integer
from hf_condense.base.rng import seeded_globals
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.tensors import check_shown
from hf_condense.networks.factory import NetworkSpec, network_factory
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet
from hf_condense.pictures.sets import class_in, real_source
from hf_condense.pictures.sheet import look, new_figure, save_figure, short

_COLOURS = tuple(f"C{n}" for n in range(10))
_MARKERS = "osD^v<>pP*"
_CHUNK = 256
_LONGEST_COLUMN = 28  # entries of a legend that are as high as the figure


@plain_torch()
def embedding_scatter(
    small: CondensedDataset,
    source: datasets.Dataset | None = None,
    *,
    network: NetworkSpec | None = None,
    updates: int = 100,
    per_class: int = 100,
    max_classes: int = 10,
    seed: int = 0,
    file: str | Path | None = None,
    cache: bool = True,
    progress: bool = True,
) -> Figure:
    """Return the embeddings of real and synthetic rows in the plane of their two main directions.

    The directions are those of a principal component analysis of the real rows alone.

    Args:
        small: The set.
        source: The real training set. Default: the one that the set carries in memory.
        network: What embeds: a name such as `"convnet-w32"` or a callable. Default: a ConvNet of width 32.
        updates: Updates for which the network is trained on the real rows first, >= 0; 0 leaves it as it is.
        per_class: Real rows to draw per class, at most; >= 1.
        max_classes: Largest number of classes to show, in label order, >= 1.
        seed: Seed of the weights and of the real rows.
        file: File to save the figure to, or None. Its suffix decides the format: `.png`, `.pdf`, `.svg`, ...
        cache: Keep decoded images of `source` under `$HF_HOME/condense`; obeys `datasets.disable_caching()`.
        progress: Show a progress bar while they are decoded.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If there is no source, it lacks a class of the set, or a number is too small.
    """
    check_shown(per_class, max_classes)
    integer("updates", updates, least=0)
    real, names = real_source(small, source, cache=cache, progress=progress), small.recipe.class_names
    images, labels = small.synthetic.decoded()
    classes = labels.unique()[:max_classes].tolist()
    channels, height, width = real.image_shape
    factory = network_factory(
        "convnet-w32" if network is None else network,
        channels=channels,
        image_size=(height, width),
        num_classes=len(real.class_names),
    )
    net = factory.build(seed, "scatter")
    if updates:
        data = TrainingSet(real, real.labels, len(real.class_names))
        train_network(net, data, RECIPES["dc"], seed, "scatter", max_updates=updates)
    groups = []
    for c in classes:
        of_real = class_in(real, names[c])
        rows = real.draw(of_real, min(per_class, real.counts[of_real]), seed, "scatter")
        own = (images[labels == c] - real.mean.reshape(-1, 1, 1)) / real.std.reshape(-1, 1, 1)
        groups.append((names[c], _embedded(net, real.at(rows)), _embedded(net, own)))
    return save_figure(_drawn(_in_plane(groups), f"{small.recipe.config_name}, as {factory.name} sees it"), file)


@torch.no_grad()
def _embedded(net: nn.Module, images: Tensor) -> Tensor:
    """Return the embeddings of normalised images: (n, C, H, W) -> (n, D)."""
    net.eval()
    return torch.cat([net.embed(part) for part in images.float().split(_CHUNK)])  # type: ignore[operator]


def _in_plane(groups: list[tuple[str, Tensor, Tensor]]) -> list[tuple[str, Tensor, Tensor]]:
    """Project embeddings (n, D) onto the two main directions of the real ones, the first of each group: (n, 2)."""
    real = torch.cat([rows for _, rows, _ in groups])
    centre = real.mean(0)
    with seeded_globals("plane"):
        _, _, directions = torch.linalg.svd(real - centre, full_matrices=False)
    missing = max(0, 2 - len(directions))  # a single real row has one direction
    plane = F.pad(directions[:2], (0, 0, 0, missing)).T  # (D, 2)
    return [(name, (rows - centre) @ plane, (own - centre) @ plane) for name, rows, own in groups]


def _drawn(groups: list[tuple[str, Tensor, Tensor]], title: str) -> Figure:
    """Draw real rows small and light, synthetic rows large and dark, each class with a marker of its own."""
    figure = new_figure(760, 560)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    handles = []
    for number, (name, real, own) in enumerate(groups):
        colour, marker = look(number, _COLOURS, _MARKERS)
        (real_x, real_y), (own_x, own_y) = real.T.numpy(), own.T.numpy()
        axes.scatter(real_x, real_y, s=14, marker=marker, color=colour, alpha=0.35, linewidths=0)
        axes.scatter(own_x, own_y, s=110, marker=marker, color=colour, edgecolors="black", linewidths=1.4, zorder=3)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=short(name)))
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    axes.set_xticks([])
    axes.set_yticks([])
    kinds = (("real rows", 4.0, "none"), ("rows of the set", 10.0, "black"))
    handles += [
        Line2D([], [], color="#888888", marker="o", linestyle="", markersize=size, markeredgecolor=edge, label=label)
        for label, size, edge in kinds
    ]
    labels = [str(handle.get_label()) for handle in handles]
    columns = 1 + len(handles) // _LONGEST_COLUMN
    legend = figure.legend(handles, labels, loc="outside right upper", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
