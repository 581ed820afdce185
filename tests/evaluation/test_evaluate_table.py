"""What an evaluation returns: a table to read, and records to keep."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hf_condense import load_condensed
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.scores import Evaluation, Score
from tests.support.short_evaluations import run

pytestmark = pytest.mark.usefixtures("one_thread")


def scores() -> Evaluation:
    return Evaluation(
        (
            Score("dm_ipc10", 100, "convnet", "dsa", None, 300, 1000, (0.5, 0.75), (0, 1), 4.25),
            Score("<full>", 50_000, "convnet-w32", "dsa", "flip", 5.1, 1000, (0.875,), (0,), 100.0),
        )
    )


def test_the_table_prints_in_per_cent_and_what_rows_have_in_common_below_it():
    assert str(scores()).splitlines() == [
        "set         rows  network         accuracy %  n  seconds",
        "dm_ipc10     100  convnet      62.50 ± 17.68  2      4.2",
        "<full>    50,000  convnet-w32          87.50  1    100.0",
        "all rows: recipe dsa, updates 1,000",
    ]


def with_rates(*rates: float) -> Evaluation:
    return Evaluation(tuple(replace(s, lr=rate) for s, rate in zip(scores().scores, rates, strict=True)))


@pytest.mark.parametrize("written", [str, Evaluation.to_markdown, Evaluation._repr_html_])
def test_the_learning_rate_is_always_in_the_table(written):
    assert "lr 0.003" in written(with_rates(0.003, 0.003))
    text = written(with_rates(0.003, 0.01))
    assert "lr 0" not in text
    assert "0.003" in text
    alone = replace(with_rates(0.003, 0.01), scores=with_rates(0.003, 0.01).scores[:1])
    assert "0.003" in written(alone)
    assert "all rows" not in written(alone)


def test_long_names_are_folded_so_that_a_line_has_80_characters():
    name = "combined_of_all_the_sets_of_a_year_with_a_long-name_ipc10 (soft labels)"
    own = replace(scores().scores[0], set=name)
    table = Evaluation((own, replace(own, set="random"), replace(own, set="full", rows=50_000)))
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("combined_of_all_the_")
    assert "62.50" in lines[1]
    assert "(soft labels)" in str(table)
    assert name in table._repr_html_()


def test_the_table_as_html_escapes_names():
    page = scores()._repr_html_()
    assert page.count("<tr>") == 3
    assert "<td>62.50 ± 17.68</td>" in page
    assert "<td>&lt;full&gt;</td>" in page


def test_records_are_json_with_fractions():
    first, second = json.loads(json.dumps(scores().to_records(), allow_nan=False))
    assert first["accuracies"] == [0.5, 0.75]
    assert (first["mean"], first["n"], first["epochs"], first["seeds"]) == (0.625, 2, 300, [0, 1])
    assert first["std"] == pytest.approx(torch.tensor([0.5, 0.75]).std().item())
    assert second["std"] is None


def test_the_data_frame_has_fractions_and_one_row_per_score():
    frame = scores().to_pandas()
    facts = ["set", "network", "recipe", "mean", "std", "n", "seconds", "updates", "epochs", "ipc", "lr"]
    assert list(frame) == [*facts, "over_random", "low", "high"]
    assert frame["std"].isna().tolist() == [False, True]
    assert frame["mean"].tolist() == [0.625, 0.875]


def test_records_fit_into_a_recipe(toy, small, tmp_path):
    measured = replace(small.recipe, evaluation=run(small, toy, seeds=1).to_records())
    CondensedDataset.from_parts(small.select(range(6)), small.synthetic, measured).save_condensed(tmp_path)
    assert load_condensed(tmp_path).recipe.evaluation == measured.evaluation
