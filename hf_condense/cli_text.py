"""What the command line prints: tables and texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hf_condense.base.tables import plain_table

if TYPE_CHECKING:
    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.condensed.facts import Facts
    from hf_condense.engine.method import MethodInfo


def facts_table(small: CondensedDataset, stored: Facts) -> str:
    """Return how a set was made and what it takes, one fact in a line.

    Args:
        small: The set.
        stored: What its `condense_config.json` says.
    """
    from hf_condense.condensed.summary import summary

    return plain_table(list(summary(stored, small.synthetic).items()))


def method_text(info: MethodInfo) -> str:
    """Return the description of one method: summary, paper, cost, options, presets."""
    import dataclasses

    from hf_condense.engine.registry import get_method

    cls = get_method(info.name)
    text = click.HelpFormatter()
    lines = [
        f"{info.name}: {info.title}",
        info.summary,
        "",
        f'{info.authors}, "{info.paper}", {info.venue} {info.year}',
        info.link,
        f"Cost: {info.cost}",
    ]
    fields = [(f"{f.name}={f.default}", f.metadata.get("help", "")) for f in dataclasses.fields(cls.Config)]
    presets = [(name, preset.description) for name, preset in cls.presets.items()]
    for title, rows in (("Options (--option NAME=VALUE)", fields), ("Presets (--preset NAME)", presets)):
        if rows:
            with text.section(title):
                text.write_dl(rows)
    return "\n".join([*lines, "", text.getvalue()]).rstrip()
