"""What a recipe says of the machine on which a set was made."""

from __future__ import annotations

import torch

from tests.support.engine_methods import condense
from tests.support.pretend_device import pretend_device


def test_runtime_tells_the_device_and_its_threads() -> None:
    on_cpu = condense("dm", steps=1, batch_real=4).recipe.runtime
    assert (on_cpu["device_name"], on_cpu["threads"]) == ("cpu", torch.get_num_threads())
    with pretend_device("mps"):
        on_mac = condense("dm", steps=1, batch_real=4).recipe.runtime
    assert (on_mac["device"], on_mac["device_name"]) == ("mps", "mps")


def test_papers_of_parts_that_the_options_ask_for_are_cited_too() -> None:
    def cited(method: str, **options: object) -> list[str]:
        small = condense(method, steps=1, batch_real=4, **options)
        return [line.split(" (")[1].split(")")[0] for line in (small.recipe.citation or "").splitlines()]

    def trajectory(method: str, **options: object) -> list[str]:
        small = condense(method, steps=1, expert_span=1, **options)
        return [line.split(" (")[1].split(")")[0] for line in (small.recipe.citation or "").splitlines()]

    pool = {"networks": "pool", "pool_size": 1, "pool_updates": 1}
    assert cited("m3d") == ["m3d"]
    assert cited("m3d", kernel="characteristic", frequencies=8, **pool) == ["m3d", "dance", "ncfm"]
    assert cited("dance", pool_size=1, pool_updates=1) == ["dance"]
    experts = {"experts": 1, "snapshots": 5, "snapshot_every": 1, "student_steps": 1}
    of_experts = {"soft_labels": "teacher", "labels_from": "experts", "first_max_start": 1, "max_start": 2, **experts}
    assert trajectory("tesla", **of_experts) == ["TESLA", "datm"]
    assert trajectory("mtt", **of_experts) == ["mtt", "datm", "TESLA"]
    assert trajectory("mtt", **experts) == ["mtt"]


def test_card_has_a_line_for_each_paper(tmp_path) -> None:
    small = condense("dm", steps=1, batch_real=4, networks="pool", pool_size=1, pool_updates=1)
    small.save_condensed(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "\n- Distribution Matching (dm): " in card
    assert "\n- Dual-View Distribution Alignment (dance): " in card
