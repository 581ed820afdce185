"""What the command line prints: tables and texts."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from hf_condense.base.tables import plain_table, visible
from hf_condense.base.words import plural

if TYPE_CHECKING:
    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.condensed.files.facts import Facts
    from hf_condense.engine.method import MethodInfo
    from hf_condense.engine.task import Task


_WIDTH = 100  # characters of a line of facts


def command_line(command: str, *arguments: object, **options: object) -> str:
    """Return a command line that a shell takes as it is.

    Args:
        command: The command of `hf-condense`.
        *arguments: Its arguments.
        **options: Its options by name; those that are None or False are left out, and True stands for a flag.

    Example:
        >>> command_line("eval", "my sets", source_split="all", config=None)
        "hf-condense eval 'my sets' --source-split all"
    """
    words = ["hf-condense", command, *map(str, arguments)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += [] if value is None or value is False else [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def as_options(text: str, command: click.Command) -> str:
    """Return a message of the library in which arguments are spelled as the options of a command.

    False stands for the other side of a flag with two, such as `--cache/--no-cache`.

    Example:
        >>> @click.command()
        ... @click.option("--image-size")
        ... @click.option("--overwrite", is_flag=True)
        ... def run(image_size, overwrite): ...
        >>> as_options("pass image_size=, overwrite=True or lr_img=5; image_size='32' is small", run)
        'pass --image-size, --overwrite or lr_img=5; --image-size 32 is small'
    """
    options = [option for option in command.params if isinstance(option, click.Option)]
    flags = {option.name: max(option.opts, key=len) for option in options}
    opposites = {option.name: max(option.secondary_opts, key=len) for option in options if option.secondary_opts}
    if "name" in flags:
        flags["config_name"] = flags["name"]
    else:  # the set takes the name of its recipe
        text = text.replace(" pass another config_name=,", "")
    names = "|".join(re.escape(name) for name in flags if name)
    if not names:
        return text
    # A value follows the flag after a blank. What stands in a path, an address or a longer word is no argument, and an
    # object of Python is no value of an option.
    argument = re.compile(rf"(?<![\w/.'?&-])({names})=(?!\w+\()(?:True\b|'([\w.-]+)'|(?=([\w'(])))?")
    text = re.sub(r"(?<![\w/.'?&-])(\w+)=False\b", lambda m: opposites.get(m[1], m[0]), text)
    return argument.sub(lambda m: flags[m[1]] + (f" {m[2]}" if m[2] else " " if m[3] else ""), text)


def json_text(records: object) -> str:
    """Return records as JSON text, in which controls are escapes and other characters stand as they are."""
    lines = json.dumps(records, indent=2, ensure_ascii=False).split("\n")
    return "\n".join("".join(c if visible(c) == c else json.dumps(c)[1:-1] for c in line) for line in lines)


def facts_table(name: str, small: CondensedDataset, stored: Facts) -> str:
    """Return how a set was made and what it takes, one fact in a line.

    Args:
        name: Name of the set where it lies.
        small: The set.
        stored: What its `condense_config.json` says.
    """
    from hf_condense.condensed.summary import summary
    from hf_condense.condensed.wording import accuracy_lines

    facts = summary(name, stored, small.synthetic)
    if measured := accuracy_lines(stored.recipe):
        facts["accuracy, %"] = "; ".join(measured)
    return plain_table(list(facts.items()), width=_WIDTH)


def method_text(info: MethodInfo, task: Task) -> str:
    """Return the description of one method: summary, paper, cost, options, presets.

    Args:
        info: Facts about the method.
        task: What the values of the presets are shown for.
    """
    import dataclasses

    from hf_condense.engine.registry import get_method
    from hf_condense.engine.settings import preset_values

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
    options = [f for f in dataclasses.fields(cls.Config) if f.name != "steps"]  # steps have an option of their own
    fields = [(f"{f.name}={f.default}", f.metadata.get("help", "") + _bounds(f.metadata)) for f in options]
    presets = [(name, preset.description) for name, preset in cls.presets.items()]
    own = "Options (--option NAME=VALUE; presets, also the default one, change values)"
    values = [
        (name, ", ".join(f"{key}={value}" for key, value in preset_values(cls, name, task).items()))
        for name in cls.presets
    ]
    shape = "x".join(map(str, task.image_shape))
    what = f"What they set for --ipc {task.ipc} --classes {task.num_classes} --shape {shape}"
    for title, rows in ((own, fields), ("Presets (--preset NAME)", presets), (what, values)):
        if rows:
            with text.section(title):
                text.write_dl(rows)
    return "\n".join([*lines, "", text.getvalue()]).rstrip()


def _bounds(rules: Mapping[str, Any]) -> str:
    """Return the range of an option, such as " (>= 1)", or nothing if it has none."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {rules[rule]:g}" for rule, sign in signs.items() if rules.get(rule) is not None]
    return f" ({', '.join(bounds)})" if bounds else ""


def amount(images: int, classes: int) -> str:
    """Return how many images of how many classes there are.

    Example:
        >>> amount(10, 1)
        '10 images of 1 class'
    """
    return f"{images} {plural(images, 'image')} of {classes} {plural(classes, 'class')}"


def seconds(started: float) -> str:
    """Return the time since a moment, for a message."""
    return f"{time.perf_counter() - started:.1f} s"
