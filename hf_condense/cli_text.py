"""What the command line prints: tables and texts."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import click

from hf_condense.base.tables import plain_table, visible

if TYPE_CHECKING:
    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.condensed.facts import Facts
    from hf_condense.engine.method import MethodInfo


def command_line(command: str, *arguments: object, **options: object) -> str:
    """Return a command line that a shell takes as it is.

    Args:
        command: The command of `hf-condense`.
        *arguments: Its arguments.
        **options: Its options by name; those that are None are left out.

    Example:
        >>> command_line("eval", "my sets", source_split="all", config=None)
        "hf-condense eval 'my sets' --source-split all"
    """
    words = ["hf-condense", command, *map(str, arguments)]
    for name, value in options.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def json_text(records: object) -> str:
    """Return records as JSON text, in which controls are escapes and other characters stand as they are."""
    lines = json.dumps(records, indent=2, ensure_ascii=False).split("\n")
    return "\n".join("".join(c if visible(c) == c else json.dumps(c)[1:-1] for c in line) for line in lines)


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
