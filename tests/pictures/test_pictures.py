"""Figures show what was measured, in the words of the tables; pixels are drawn as they are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from hf_condense import condense_dataset
from hf_condense.base.paths import cache_folder
from hf_condense.condensed.scores import Evaluation, Score
from hf_condense.pictures import (
    Snapshots,
    accuracy_against_ipc,
    accuracy_against_time,
    accuracy_by_network,
    class_grid,
    embedding_scatter,
    evolution_gif,
    evolution_strip,
    nearest_real_images,
    real_beside_condensed,
)
from hf_condense.pictures.embeddings import _in_plane
from tests.support.condensed_sets import make_coreset, make_set
from tests.support.picture_sets import encoded, noise, picture_set
from tests.support.torch_states import STATES, in_state
from tests.support.watched_bars import watch_decoding

NASTY = ["$x_1$ & {", "_hidden", "a" * 60]


def score(name: str, mean: float, *, network: str = "convnet-w8", rows: int = 10) -> Score:
    return Score(name, rows, network, "dc", None, 3.0, 3, (mean - 0.02, mean + 0.02), (0, 1), 1.0)


def table(ipc: int, own: float, random: float, method: str = "dm") -> Evaluation:
    return Evaluation((score(f"{method}_ipc{ipc}", own), score("random", random), score("full", 0.95)))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def blocks(image: torch.Tensor, factor: int) -> np.ndarray:
    """Return an image (C, H, W) as it is drawn: 8 bits, enlarged."""
    array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return array.repeat(factor, 0).repeat(factor, 1)


def holds(picture: np.ndarray, part: np.ndarray) -> bool:
    """Return whether a picture shows a part somewhere, pixel by pixel."""
    height, width = part.shape[:2]
    corners = np.argwhere((picture[: -height + 1, : -width + 1] == part[0, 0]).all(-1))
    return any((picture[y : y + height, x : x + width] == part).all() for y, x in corners)


def test_grid_names_the_classes_and_shows_single_pixels(tmp_path):
    small = make_set(ipc=3, class_names=["cat", "dog"])
    figure = class_grid(small, per_class=2, file=tmp_path / "grid.png")
    assert texts(figure)[0] == "dm_ipc3: 6 rows of 2 classes"
    assert set(texts(figure)[1:]) == {"cat", "dog"}
    drawn = pixels(tmp_path / "grid.png")
    images = small.synthetic.decoded()[0]
    assert [holds(drawn, blocks(images[row], 7)) for row in range(6)] == [True, True, False, True, True, False]


def test_single_images_stand_in_rows_above_their_names(tmp_path):
    small = make_set(ipc=1, class_names=list("abcdefg"), label_values=list(range(7)))
    figure = class_grid(small, max_classes=6, file=tmp_path / "grid.png")
    assert texts(figure)[1:] == list("abcdef")
    drawn = pixels(tmp_path / "grid.png")
    assert drawn.shape[1] > 5 * 112
    assert holds(drawn, blocks(small.synthetic.images[5], 14))


def test_names_of_strangers_are_drawn_as_they_are(tmp_path):
    small = make_set(class_names=NASTY, label_values=[0, 1, 2])
    figure = class_grid(small, file=tmp_path / "grid.png")  # a formula would raise an error
    assert texts(figure)[1:] == [*NASTY[:2], "a" * 27 + "…"]


def test_real_rows_stand_beside_condensed_ones_with_their_accuracies(tmp_path):
    small = make_coreset()
    measured = Evaluation((score("herding_ipc2", 0.6), score("random", 0.5)))
    figure = real_beside_condensed(small, table=measured, file=tmp_path / "both.png")
    assert "random rows: accuracy 50.0 ± 2.8 %" in texts(figure)
    assert "herding_ipc2: accuracy 60.0 ± 2.8 %" in texts(figure)
    assert texts(figure).count("cat") == 1
    drawn = pixels(tmp_path / "both.png")
    real = [np.asarray(row["image"].convert("RGB")).repeat(7, 0).repeat(7, 1) for row in small.source]
    own = [holds(drawn[:, drawn.shape[1] // 2 :], blocks(image, 7)) for image in small.synthetic.images]
    assert all(own)
    assert sum(holds(drawn[:, : drawn.shape[1] // 2], image) for image in real) == 4


def test_a_set_without_its_source_asks_for_it():
    with pytest.raises(ValueError, match="source should be the real training set"):
        real_beside_condensed(make_set())


@pytest.fixture(scope="module")
def run(toy) -> tuple:
    snapshots = Snapshots(per_class=2)
    options = {"network": "convnet-w8", "batch_real": 4, "progress": False, "cache": False}
    small = condense_dataset(toy, "dm", ipc=2, steps=5, callbacks=[snapshots], **options)
    return small, snapshots


def test_snapshots_hold_doublings_and_the_last_step(run):
    small, snapshots = run
    assert snapshots.steps == [1, 2, 4, 5]
    final = small.synthetic.decoded()[0]
    assert (snapshots.images[-1].float() / 255 - final.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert any((snapshots.images[-1] != other).any() for other in snapshots.images[:-1])
    assert snapshots.class_names == list(small.recipe.class_names)


def test_snapshots_at_chosen_steps_keep_these_and_the_last(toy):
    snapshots = Snapshots(at=[2])
    options = {"network": "convnet-w8", "batch_real": 4, "progress": False, "cache": False}
    for ipc in (2, 1):  # the second run replaces the copies of the first
        condense_dataset(toy, "dm", ipc=ipc, steps=4, callbacks=[snapshots], **options)
        assert snapshots.steps == [2, 4]
        assert [len(images) for images in snapshots.images] == [3, 3]


def test_strip_has_a_column_for_each_step_and_a_row_for_each_class(run, tmp_path):
    _, snapshots = run
    figure = evolution_strip(snapshots, max_steps=3, file=tmp_path / "new folder" / "strip.png")
    assert [text for text in texts(figure) if text.isdigit()] == ["1", "4", "5"]
    assert set(snapshots.class_names) < set(texts(figure))
    drawn = pixels(tmp_path / "new folder" / "strip.png")
    assert holds(drawn, blocks(snapshots.images[-1][0] / 255, 7))
    assert not holds(drawn, blocks(snapshots.images[-1][1] / 255, 7)), "one image per class"


def test_gif_has_a_frame_for_each_step_and_rests_on_the_last(run, tmp_path):
    _, snapshots = run
    path = evolution_gif(snapshots, tmp_path / "new folder" / "run.gif", milliseconds=100)
    with Image.open(path) as picture:
        assert picture.n_frames == 4
        durations = []
        for number in range(4):
            picture.seek(number)
            durations.append(picture.info["duration"])
    assert durations == [100, 100, 100, 500]


def test_snapshots_without_a_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match="should hold copies"):
        evolution_strip(Snapshots())
    with pytest.raises(ValueError, match="should hold copies"):
        evolution_gif(Snapshots(), tmp_path / "run.gif")
    with pytest.raises(TypeError, match=r"at should be a list of steps.*got 2"):
        Snapshots(at=2)


def test_a_coreset_beside_the_baseline_of_its_name_has_a_line_of_its_own():
    tables = [(n, Evaluation(tuple(score(name, 0.1 * n) for name in (f"random_ipc{n}", "random")))) for n in (1, 5)]
    axes = accuracy_against_ipc(tables).axes[0]
    assert sorted(legend(axes)) == ["random", "random (set)"]


def test_every_frame_of_a_small_set_has_room_for_its_caption(tmp_path):
    snapshots = Snapshots()
    for step in (1, 1024):
        snapshots.steps.append(step)
        snapshots.images.append(torch.full((1, 1, 8, 8), 100 + step % 100, dtype=torch.uint8))
    snapshots.labels = torch.tensor([0])
    with Image.open(evolution_gif(snapshots, tmp_path / "run.gif")) as picture:
        assert picture.n_frames == 2
        assert picture.width > 80


def test_accuracy_against_ipc_joins_the_sets_of_a_method():
    tables = [(10, table(10, 0.8, 0.7)), (1, table(1, 0.5, 0.3)), (1, table(1, 0.4, 0.3, "m3d"))]
    axes = accuracy_against_ipc(tables).axes[0]
    assert legend(axes) == ["dm", "m3d", "random", "full"]
    line = axes.containers[0].lines[0]
    assert line.get_xdata().tolist() == [1, 10]
    assert line.get_ydata() == pytest.approx([50, 80])
    (bars,) = axes.containers[0].lines[2]
    assert bars.get_segments()[0][:, 1] == pytest.approx([50 - 2.83, 50 + 2.83], abs=0.01)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "images per class",
        "accuracy %, mean ± std, n = 2",
    )
    assert axes.get_xscale() == "log"
    styles = {line.lines[0].get_linestyle() for line in axes.containers}
    assert len(styles) == 3, "baselines differ from sets, and from each other, without colour"


def test_a_table_of_several_images_per_class_is_enough_against_ipc():
    parts = [replace(s, ipc=ipc) for ipc in (10, 1) for s in table(10, ipc / 20, ipc / 50).scores[:2]]
    single = Evaluation((*parts, score("full", 0.95)))
    axes = accuracy_against_ipc(single).axes[0]
    assert legend(axes) == ["dm", "random", "full"]
    lines = [container.lines[0] for container in axes.containers]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 10]] * 3
    for line, values in zip(lines, ([5, 50], [2, 20], [95, 95]), strict=True):
        assert line.get_ydata() == pytest.approx(values)
    with pytest.raises(ValueError, match=r"a single table should be of evaluate\(\.\.\., ipc=\[1, 10\]\)"):
        accuracy_against_ipc(table(1, 0.5, 0.3))


def test_tables_may_be_a_dict():
    for figure in (accuracy_against_ipc, accuracy_against_time):
        line = figure({1: table(1, 0.5, 0.3), 10: table(1, 0.8, 0.7)}).axes[0].containers[0].lines[0]
        assert line.get_xdata().tolist() == [1, 10]


@pytest.mark.parametrize("wrong", [5, "table", [table(1, 0.5, 0.3)], [(1, None)], [("1", table(1, 0.5, 0.3))], {}])
def test_what_is_no_table_is_refused_with_what_would_be_right(wrong):
    for figure, what in ((accuracy_against_ipc, "images per class"), (accuracy_against_time, "time")):
        with pytest.raises((TypeError, ValueError), match=f"dict from {what} to what evalu.*; got|{what} should be a"):
            figure(wrong)
    with pytest.raises(TypeError, match="dict from time to what evaluate returned, or pairs of both; got Evaluation"):
        accuracy_against_time(table(1, 0.5, 0.3))
    with pytest.raises(TypeError, match="table should be what evaluate returned; got "):
        accuracy_by_network(wrong)


def test_accuracy_against_time_has_a_line_for_each_set_and_baselines_across():
    tables = [(0.5, table(1, 0.4, 0.3)), (2.0, table(1, 0.6, 0.3))]
    axes = accuracy_against_time(tables).axes[0]
    assert legend(axes) == ["dm_ipc1", "random", "full"]
    assert axes.containers[0].lines[0].get_ydata() == pytest.approx([40, 60])
    across = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert across == pytest.approx([30, 95])
    bands = [[patch.get_y(), patch.get_y() + patch.get_height()] for patch in axes.patches]
    assert np.array(bands) == pytest.approx(np.array([[30 - 2.83, 30 + 2.83], [95 - 2.83, 95 + 2.83]]), abs=0.01)
    assert axes.get_xlabel() == "minutes of condensing"


def test_tables_of_single_rows_are_told_apart_by_the_names_of_sets():
    tables = [(1.0, Evaluation((one,))) for one in table(1, 0.4, 0.3).scores]
    assert legend(accuracy_against_time(tables).axes[0]) == ["dm_ipc1", "random", "full"]
    alone = [(x, Evaluation((score("train", 0.4), score("random", 0.3)))) for x in (1.0, 2.0)]
    axes = accuracy_against_time(alone).axes[0]
    assert len(axes.containers) == 1, "a set without a recipe is the first of its table"


def test_bars_stand_for_every_network_and_set(tmp_path):
    scores = [
        score(name, mean, network=net) for net, mean in (("a", 0.5), ("b", 0.4)) for name in ("dm_ipc1", "random")
    ]
    axes = accuracy_by_network(Evaluation(tuple(scores)), file=tmp_path / "bars.png").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert legend(axes) == ["dm_ipc1", "random"]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([50, 40, 50, 40])
    assert axes.patches[0].get_hatch() != axes.patches[2].get_hatch()
    assert pixels(tmp_path / "bars.png").shape[:2] == (440, 640)


def test_bars_of_a_set_that_was_cut_down_stand_side_by_side():
    parts = [replace(s, ipc=ipc) for ipc in (1, 10) for s in table(10, ipc / 20, ipc / 50).scores[:2]]
    axes = accuracy_by_network(Evaluation((*parts, score("full", 0.95)))).axes[0]
    assert legend(axes) == ["dm_ipc10, ipc 1", "random, ipc 1", "dm_ipc10, ipc 10", "random, ipc 10", "full"]
    assert len({bar.get_x() for bar in axes.patches}) == 5


def test_twelve_bars_and_twelve_lines_are_told_apart():
    bars = accuracy_by_network(Evaluation(tuple(score(f"set {n}", 0.5) for n in range(12)))).axes[0].patches
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 12
    tables = [(ipc, table(ipc, 0.5, 0.3, f"method{n}")) for n in range(12) for ipc in (1, 10)]
    containers = accuracy_against_ipc(tables).axes[0].containers
    lines = [container.lines[0] for container in containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines[:12]}) == 12
    assert len(lines) == 14


def test_legend_of_bars_stands_beside_them(tmp_path):
    axes = accuracy_by_network(table(1, 0.5, 0.3), file=tmp_path / "bars.png").axes[0]
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_network_that_no_table_names_is_refused():
    with pytest.raises(ValueError, match="convnet-w8; got 'vgg'"):
        accuracy_against_ipc([(1, table(1, 0.5, 0.3))], network="vgg")
    with pytest.raises(ValueError, match="at least one score"):
        accuracy_by_network(Evaluation(()))


def test_scatter_draws_real_and_synthetic_rows_of_every_class(run, toy, tmp_path):
    small, _ = run
    figure = embedding_scatter(
        small, toy, network="convnet-w8", updates=2, per_class=5, max_classes=2, file=tmp_path / "scatter.png"
    )
    real_a, own_a, real_b, own_b = figure.axes[0].collections
    assert [len(points.get_offsets()) for points in (real_a, own_a, real_b, own_b)] == [5, 2, 5, 2]
    centre = np.concatenate([real_a.get_offsets(), real_b.get_offsets()]).mean(0)
    assert np.abs(centre).max() < 1e-3, "the plane is that of the real rows"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [*small.recipe.class_names[:2], "real rows", "rows of the set"]


def test_twelve_classes_are_told_apart(tmp_path):
    names = [f"class {n}" for n in range(12)]
    source = picture_set(
        [encoded(noise(8, 8, 3, seed=n)) for n in range(24)], [n % 12 for n in range(24)], label=ClassLabel(names=names)
    )
    small = make_set(class_names=names)
    axes = embedding_scatter(small, source, network="convnet-w8", updates=0, max_classes=12).axes[0]
    looks = {(tuple(real.get_facecolor()[0]), real.get_paths()[0].vertices.tobytes()) for real in axes.collections[::2]}
    assert len(looks) == 12


def drawn(run, toy, folder: Path) -> list[bytes]:
    """Return the files of all figures of sets and runs."""
    small, snapshots = run
    class_grid(small, file=folder / "grid.png")
    real_beside_condensed(small, toy, file=folder / "both.png")
    embedding_scatter(small, toy, network="convnet-w8", updates=2, file=folder / "scatter.png")
    evolution_strip(snapshots, file=folder / "strip.png")
    evolution_gif(snapshots, folder / "run.gif")
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def files(run, toy, tmp_path_factory) -> list[bytes]:
    return drawn(run, toy, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("state", STATES)
def test_figures_are_the_same_whatever_state_torch_is_in(run, toy, files, tmp_path, state):
    with in_state(state):
        assert drawn(run, toy, tmp_path) == files
    assert len(files) == 5


def test_figure_that_cannot_be_drawn_leaves_the_earlier_file(tmp_path, monkeypatch):
    class_grid(make_set(), file=tmp_path / "grid.png")
    expected = (tmp_path / "grid.png").read_bytes()

    def half_drawn(figure, file, **options):
        Path(file).write_bytes(expected[:99])
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", half_drawn)
    with pytest.raises(KeyboardInterrupt):
        class_grid(make_set(ipc=1), file=tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == expected
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "written"), [("grid", "grid.png"), ("grid.svg", "grid.svg"), ("grid.pdf", "grid.pdf")]
)
def test_the_ending_of_a_file_says_its_format(tmp_path, name, written):
    class_grid(make_set(), file=tmp_path / name)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert (tmp_path / written).read_bytes().startswith(starts[written[-3:]])


def test_a_single_real_row_can_be_drawn(run, toy):
    figure = embedding_scatter(run[0], toy, network="convnet-w8", updates=2, per_class=1, max_classes=1)
    assert [len(points.get_offsets()) for points in figure.axes[0].collections] == [1, 2]


def test_scatter_refuses_a_source_of_other_classes(run):
    small, _ = run
    other = make_coreset().source
    with pytest.raises(ValueError, match="no rows of class 'ball'"):
        embedding_scatter(small, other, network="convnet-w8", updates=0)


def test_without_matplotlib_the_error_names_the_extra():
    code = "import sys; sys.modules['matplotlib'] = None; import hf_condense; import hf_condense.pictures"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.strip().endswith("install the extra: pip install '.[pictures]' in a clone of hf_condense")


@pytest.mark.parametrize("draw", [real_beside_condensed, nearest_real_images])
def test_real_rows_are_cached_and_progress_is_shown_unless_switched_off(draw, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    small = make_coreset()
    shown = watch_decoding(monkeypatch)
    draw(small, cache=False)
    assert shown == [True]
    assert not cache_folder("sources").exists()
    draw(small, progress=False)
    assert shown == [True, False]
    assert list(cache_folder("sources").iterdir())


@pytest.mark.parametrize("ipc", [1, 3])
def test_images_stand_above_the_real_rows_nearest_to_them(toy, tmp_path, ipc):
    small = condense_dataset(toy, "dm", ipc, steps=2, network="convnet-w4-d1", progress=False, compile=False)
    figure = nearest_real_images(small, per_class=2, file=tmp_path / "nearest.png")
    assert texts(figure)[0] == f"dm_ipc{ipc}, above the nearest real rows"
    written = texts(figure)[1:]  # for every class its name, then the distances
    shown = min(ipc, 2)
    assert written[:: shown + 1] == [str(name) for name in small.recipe.class_names]
    drawn = pixels(tmp_path / "nearest.png")
    real = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in toy["image"]]) / 255
    for row, image in enumerate(small.synthetic.decoded()[0]):
        if row % ipc < 2:  # the rows of a class follow each other
            distances = (real - image).square().flatten(1).mean(1).sqrt()
            nearest = distances.argmin()
            assert written[row // ipc * (shown + 1) + 1 + row % ipc] == f"{distances[nearest]:.3f}"
            pair = np.concatenate([blocks(image, 7), np.full((2, 56, 3), 255, np.uint8), blocks(real[nearest], 7)])
            assert holds(drawn, pair), row


def test_run_of_another_set_replaces_the_copies_also_if_it_was_resumed(toy, tmp_path):
    options = {"network": "convnet-w4-d1", "batch_real": 4, "progress": False, "cache": False, "compile": False}
    snapshots = Snapshots()
    condense_dataset(toy, "dm", ipc=2, steps=2, callbacks=[snapshots], **options)
    assert snapshots.steps == [1, 2]
    condense_dataset(toy, "dm", ipc=1, steps=4, checkpoint_dir=tmp_path, **options)
    condense_dataset(toy, "dm", ipc=1, steps=6, checkpoint_dir=tmp_path, callbacks=[snapshots], **options)
    assert snapshots.steps[0] > 2
    assert all(len(images) == 3 for images in snapshots.images)


@pytest.mark.parametrize(
    "draw",
    [
        lambda small, copies: class_grid(small, per_class=0),
        lambda small, copies: real_beside_condensed(small, max_classes=0),
        lambda small, copies: nearest_real_images(small, per_class=0),
        lambda small, copies: embedding_scatter(small, updates=-1),
        lambda small, copies: evolution_strip(copies, max_steps=1),
        lambda small, copies: evolution_strip(copies, max_classes=0),
        lambda small, copies: evolution_gif(copies, "x.gif", milliseconds=19),
        lambda small, copies: Snapshots(per_class=0),
    ],
)
def test_numbers_that_are_too_small_are_refused(run, draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"should be (>=|at least) "):
        draw(*run)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("draw", [class_grid, real_beside_condensed, nearest_real_images, embedding_scatter])
def test_plain_datasets_are_refused(draw, toy):
    with pytest.raises(TypeError, match=r"small should be a CondensedDataset, as .*; got Dataset"):
        draw(toy)


def test_nearest_images_need_a_source(toy):
    with pytest.raises(ValueError, match="source should be the real training set"):
        nearest_real_images(make_set())


@pytest.mark.parametrize("draw", [real_beside_condensed, nearest_real_images])
def test_real_rows_may_have_other_columns_and_sizes(draw, toy):
    small = condense_dataset(toy, "random", 1, progress=False)
    large = [image.resize((16, 12)) for image in toy["image"]]
    image, label = toy.features["image"], toy.features["label"]
    twice = {"picture": large, "copy": large, "kind": toy["label"][:]}
    ambiguous = Dataset.from_dict(twice, Features(picture=image, copy=image, kind=label))
    source = ambiguous.remove_columns("copy")
    assert draw(small, source, cache=False).axes
    message = "source: several columns hold an Image: 'picture', 'copy'; call the one that is meant 'image', as the set"
    with pytest.raises(ValueError, match=message):
        draw(small, ambiguous, cache=False)
    with pytest.raises(TypeError, match=r"source should be one split; got DatasetDict with 'train'; pick one"):
        draw(small, DatasetDict(train=source), cache=False)
    numbers = toy.remove_columns("image").add_column("image", [1] * len(toy))
    with pytest.raises(ValueError, match=r"'image' is int64; it should be an Image") as error:
        draw(small, numbers, cache=False)
    assert "call the one that is meant" not in str(error.value)


def test_figures_are_drawn_into_axes_that_are_given():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    tables = {1: table(1, 0.5, 0.3), 10: table(10, 0.8, 0.7)}
    assert accuracy_against_ipc(tables, axes=left) is figure
    assert accuracy_against_time(tables, unit="hours", axes=right) is figure
    assert right.get_xlabel() == "hours of condensing"
    assert len(figure.axes) == 2


def test_plane_is_that_of_the_principal_components_of_real_rows():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(60, 6, generator=generator) * torch.arange(1.0, 7)
    own = 9 * torch.randn(5, 6, generator=generator)
    ((_, seen, drawn),) = _in_plane([("a", real, own)])
    values, vectors = torch.linalg.eigh(torch.cov(real.T, correction=0))
    torch.testing.assert_close(seen.var(0, correction=0), values[-2:].flip(0), rtol=1e-3, atol=1e-3)
    expected = (own - real.mean(0)) @ vectors[:, -2:].flip(1)
    torch.testing.assert_close(drawn.abs(), expected.abs(), rtol=1e-3, atol=1e-3)


def test_baseline_is_that_of_the_latest_time_in_whatever_order_the_tables_are():
    early, late = table(1, 0.5, 0.3), table(1, 0.6, 0.4)
    heights = []
    for tables in ({1: early, 10: late}, {10: late, 1: early}):
        axes = accuracy_against_time(tables).axes[0]
        (line,) = [line for line in axes.get_lines() if line.get_label() == "random"]
        heights.append(float(line.get_ydata()[0]))
    assert heights == [pytest.approx(40), pytest.approx(40)]


def test_accuracy_beside_random_rows_is_that_of_as_many_as_are_shown(toy):
    options = {"network": "convnet-w8-d1", "batch_real": 4, "progress": False, "cache": False}
    small = condense_dataset(toy, "dm", ipc=1, steps=1, storage="dct", expand=4, **options)
    scores = [score(small.recipe.config_name, 0.6), score("random", 0.3), score("random x4", 0.5, rows=40)]
    drawn = texts(real_beside_condensed(small, table=Evaluation(tuple(scores)), cache=False, progress=False))
    assert "random rows: accuracy 50.0 ± 2.8 %" in drawn


def test_title_of_a_grid_counts_the_classes_that_have_rows(toy):
    some = toy.filter(lambda row: row["label"] != 0)
    small = condense_dataset(some, "random", ipc=1, network="convnet-w8", progress=False, cache=False)
    names = toy.features["label"].names
    assert texts(class_grid(small))[0] == f"random_ipc1: {len(names) - 1} rows of {len(names) - 1} classes"
