"""Figures of measured accuracies, from what `evaluate` returns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from hf_condense.base import checks
from hf_condense.condensed.scores import Evaluation, Score
from hf_condense.pictures.sheet import look, new_figure, save_figure

# Dark and light in turn, so that neighbours differ in grey, too.
_COLOURS = ("#0b3c6f", "#e07b00", "#5b1a8b", "#2a9d6f", "#a3123a", "#6fa8dc")
_MARKERS = "osD^vP"
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++")
_DASHES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))  # of baselines
_GREYS = ("#5f6b76", "#1f2328", "#9aa4ad")  # of baselines; another one after all dashes
_FILLS = ("white", "#ccd3da", "#8b96a1")  # of bars of baselines; another one after all hatches
_IPC = re.compile(r"_ipc\d+(-\d+)?")
_WIDE = 20  # the axis is logarithmic from this ratio of the largest to the smallest value on

Tables = Mapping[Any, Evaluation] | Iterable[tuple[float, Evaluation]]  # a number, and what belongs to it
Points = list[tuple[float, Score]]  # where the score stands, and the score


def accuracy_against_ipc(
    tables: Evaluation | Tables,
    *,
    network: str | None = None,
    axes: Axes | None = None,
    file: str | Path | None = None,
) -> Figure:
    """Return accuracy against images per class: a line for each method and each baseline, with error bars.

    Args:
        tables: What `evaluate(..., ipc=[1, 10])` returned; or images per class and what `evaluate` returned for sets of
            that size, as a dict or as pairs, of which several may have the same number. Baselines are dashed.
        network: Which of the networks, as the tables name it. Default: the first.
        axes: Where to draw. Default: a new figure.
        file: File to save the figure to, or None. Its suffix decides the format: `.png`, `.pdf`, `.svg`, ...

    Raises:
        TypeError: If the tables are something else.
        ValueError: If there is no table or no score of the network, or if the only table is not of several images per
            class.

    Example:
        >>> score = Score("dm_ipc1", 10, "convnet", "dc", None, 300, 300, (0.5, 0.75), (0, 1), 4.2)
        >>> figure = accuracy_against_ipc([(1, Evaluation((score,)))])
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['dm']
    """
    pairs = _by_ipc(tables) if isinstance(tables, Evaluation) else _pairs(tables, "images per class")
    axes = _axes(axes)
    own, baselines = _series(pairs, network)
    merged: dict[str, Points] = {}
    for name, points in own.items():
        plain = _IPC.sub("", name)
        plain = f"{plain} (set)" if plain in baselines else plain  # a coreset beside a baseline of its own name
        merged.setdefault(plain, []).extend(points)
    _draw_lines(axes, {**merged, **baselines}, dashed=set(baselines))
    _label_axis(axes, [ipc for ipc, _ in pairs], "images per class")
    return _finished(axes, [p for line in (*merged.values(), *baselines.values()) for p in line], file)


def accuracy_against_time(
    tables: Tables,
    *,
    unit: str = "minutes",
    network: str | None = None,
    axes: Axes | None = None,
    file: str | Path | None = None,
) -> Figure:
    """Return accuracy against the time of condensing: a line for each set, with error bars, and baselines across.

    A baseline is as it was measured at the latest time. The band along it is as wide as its error bars would be: mean ±
    std.

    Args:
        tables: Times, and what `evaluate` returned for the set as it was then, as a dict or as pairs.
        unit: Unit of the times.
        network: Which of the networks, as the tables name it. Default: the first.
        axes: Where to draw. Default: a new figure.
        file: File to save the figure to, or None. Its suffix decides the format: `.png`, `.pdf`, `.svg`, ...

    Raises:
        TypeError: If the tables are something else.
        ValueError: If there is no table, or no score of the network.
    """
    axes = _axes(axes)
    own, baselines = _series(_pairs(tables, "time"), network)
    _draw_lines(axes, own, dashed=set())
    for number, (name, points) in enumerate(baselines.items()):
        last = max(points, key=lambda point: point[0])[1]
        mean, std = 100 * last.mean, 100 * (last.std or 0.0)
        grey, dashes = _GREYS[number // len(_DASHES) % len(_GREYS)], _DASHES[number % len(_DASHES)]
        axes.axhline(mean, linestyle=dashes, color=grey, linewidth=1.4, label=name)
        if std:
            axes.axhspan(mean - std, mean + std, color=grey, alpha=0.15, linewidth=0, zorder=0)
    _label_axis(axes, [x for points in own.values() for x, _ in points], f"{unit} of condensing", exact=False)
    return _finished(axes, [p for line in (*own.values(), *baselines.values()) for p in line], file)


def accuracy_by_network(table: Evaluation, *, axes: Axes | None = None, file: str | Path | None = None) -> Figure:
    """Return the accuracies on a set and on its baselines for every network, as bars with error bars.

    Args:
        table: What `evaluate(..., networks=[...])` returned.
        axes: Where to draw. Default: a new figure, which grows with the number of bars.
        file: File to save the figure to, or None. Its suffix decides the format: `.png`, `.pdf`, `.svg`, ...

    Raises:
        TypeError: If it is no such table.
        ValueError: If the table is empty.
    """
    if not isinstance(table, Evaluation):
        raise TypeError(f"table should be what evaluate returned; got {type(table).__name__}")
    if not table.scores:
        raise ValueError("table should hold at least one score; got none")
    networks = list(dict.fromkeys(score.network for score in table.scores))
    by_name = _by_name(table)
    is_new = axes is None
    axes = _axes(axes, width=max(640, 120 + 52 * len(networks) * len(by_name)))
    width = 0.8 / len(by_name)
    for number, (name, scores) in enumerate(by_name.items()):
        x = [networks.index(score.network) + (number - (len(by_name) - 1) / 2) * width for score in scores]
        heights, errors = [100 * s.mean for s in scores], [100 * (s.std or 0.0) for s in scores]
        axes.bar(
            x,
            heights,
            width,
            yerr=errors if any(errors) else None,
            color=_FILLS[number // len(_HATCHES) % len(_FILLS)] if number else _COLOURS[0],
            edgecolor="#1f2328",
            hatch=_HATCHES[number % len(_HATCHES)],
            ecolor="#1f2328" if number else "#d28e00",
            capsize=4,
            label=name,
        )
        for place, height, error in zip(x, heights, errors, strict=True):
            axes.annotate(
                f"{height:.1f}", (place, height + error), (0, 3), textcoords="offset points", ha="center", fontsize=9
            )
    axes.set_xticks(range(len(networks)), networks, parse_math=False)
    axes.margins(y=0.12)
    return _finished(axes, [(0.0, score) for score in table.scores], file, title_network=False, beside=is_new)


def _axes(axes: Axes | None, width: int = 640) -> Axes:
    """Return the axes that were given, or those of a new figure."""
    if axes is not None:
        return axes
    figure = new_figure(width, 440)
    figure.set_layout_engine("constrained")
    return figure.subplots()


def _by_ipc(table: Evaluation) -> list[tuple[float, Evaluation]]:
    """Return a table of a set that was cut down as pairs of images per class and the scores that belong to them."""
    sizes = sorted({score.ipc for score in table.scores if score.ipc is not None})
    if not sizes:
        raise ValueError(
            "a single table should be of evaluate(..., ipc=[1, 10]), with several images per class; for one that is "
            "not, pass a dict with the images per class of each table, such as {1: first, 10: second}"
        )
    return [(ipc, Evaluation(tuple(s for s in table.scores if s.ipc in (ipc, None)))) for ipc in sizes]


def _by_name(table: Evaluation) -> dict[str, list[Score]]:
    """Return the scores of a table by the set and, where it was cut down to several sizes, the images per class."""
    has_sizes = len({score.ipc for score in table.scores} - {None}) > 1
    scores: dict[str, list[Score]] = {}
    for score in table.scores:
        name = f"{score.set}, ipc {score.ipc}" if has_sizes and score.ipc is not None else score.set
        scores.setdefault(name, []).append(score)
    return scores


def _pairs(tables: Tables, what: str) -> list[tuple[float, Evaluation]]:
    """Return tables as pairs of a number and a table."""
    items: Any = tables.items() if isinstance(tables, Mapping) else tables
    right = f"tables should be a dict from {what} to what evaluate returned, or pairs of both"
    if isinstance(items, (str, Evaluation)) or not isinstance(items, Iterable):
        raise TypeError(f"{right}; got {type(tables).__name__}")
    pairs = []
    for item in items:
        if not (isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], Evaluation)):
            raise TypeError(f"{right}; got {item!r:.80}")
        pairs.append((checks.number(what, item[0]), item[1]))
    if not pairs:
        raise ValueError(f"{right}; got none")
    return pairs


def _series(
    tables: Sequence[tuple[float, Evaluation]], network: str | None
) -> tuple[dict[str, Points], dict[str, Points]]:
    """Return the scores of one network by set: those of the evaluated sets, and those of the baselines."""
    scores = [(x, score) for x, table in tables for score in table.scores]
    networks = list(dict.fromkeys(score.network for _, score in scores))
    network = network or next(iter(networks), None)
    if network not in networks:
        names = ", ".join(networks) or "none"
        raise ValueError(f"network should be one that the tables name: {names}; got {network!r}")
    condensed = {score.set for _, score in scores if _IPC.search(score.set)}
    evaluated = condensed or {table.scores[0].set for _, table in tables if table.scores}
    own: dict[str, Points] = {}
    baselines: dict[str, Points] = {}
    for x, score in scores:
        if score.network == network:
            (own if score.set in evaluated else baselines).setdefault(score.set, []).append((x, score))
    return own, baselines


def _draw_lines(axes: Axes, lines: dict[str, Points], dashed: set[str]) -> None:
    """Draw a line with error bars for each name; those of baselines are grey and dashed."""
    for number, (name, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda point: point[0])
        plain = name not in dashed
        colour, marker = look(number, _COLOURS, _MARKERS)
        axes.errorbar(
            [x for x, _ in points],
            [100 * score.mean for _, score in points],
            yerr=[100 * (score.std or 0.0) for _, score in points],
            color=colour if plain else _GREYS[0],
            linestyle="-" if plain else _DASHES[number % len(_DASHES)],
            marker=marker,
            markersize=6,
            markerfacecolor=None if plain else "white",
            linewidth=1.8 if plain else 1.4,
            capsize=3,
            label=name,
        )


def _label_axis(axes: Axes, values: Sequence[float], label: str, *, exact: bool = True) -> None:
    """Name the x axis and choose its scale: logarithmic if the values are far apart, with the values as ticks."""
    if min(values) > 0 and max(values) >= (2 if exact else _WIDE) * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    if exact:
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.set_xlabel(label)


def _finished(
    axes: Axes, points: Points, file: str | Path | None, *, title_network: bool = True, beside: bool = False
) -> Figure:
    """Name the y axis and the figure, add a legend, beside the axes if bars leave no room in them, and return it."""
    scores = [score for _, score in points]
    counts = sorted({score.n for score in scores})
    spread = ", mean ± std" if counts[-1] > 1 else ""
    amount = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    axes.set_ylabel(f"accuracy %{spread}, n = {amount}", parse_math=False)
    recipes = ", ".join(dict.fromkeys(score.recipe for score in scores))
    title = f"network {scores[0].network}, recipe {recipes}" if title_network else f"recipe {recipes}"
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    axes.grid(axis="y", color="#d9dee3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Lines across come first otherwise, although baselines should come last, as in the tables.
    handles = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda pair: isinstance(pair[0], Line2D))
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if beside else {"loc": "best"}
    legend = axes.legend(*zip(*handles, strict=True), frameon=False, fontsize=9, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return save_figure(figure, file)
