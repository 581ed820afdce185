"""What the options of several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

DEFAULT_NETWORK = "convnet"  # of `eval`

Command = TypeVar("Command", bound=Callable[..., None])


class Integer(click.IntRange):
    """An integer within bounds, which the help shows anyway."""

    name = "integer"


class FilePath(click.Path):
    """A path, in which `~` stands for the home folder even where the shell leaves it alone, as in `--out=~/sets`."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        return super().convert(os.path.expanduser(value), param, ctx)


cache_option = click.option(
    "--cache/--no-cache", default=True, help="Keep what is decoded and trained under $HF_HOME, and use what is there."
)
compile_flags = click.option(
    "--compile/--no-compile",
    default=None,
    callback=lambda ctx, param, value: "auto" if value is None else value,
    help="Compile the networks, or do not.  [default: if that saves time]",
)


def _without_bars(ctx: click.Context, param: click.Parameter, quiet: bool) -> bool:
    """Switch off the bars of the libraries that load datasets, too, until the command ends."""
    if quiet:
        import datasets
        from huggingface_hub import utils as hub_utils

        for library in (datasets.utils, hub_utils):
            if not library.are_progress_bars_disabled():
                library.disable_progress_bars()
                ctx.call_on_close(library.enable_progress_bars)
    return quiet


quiet_option = click.option("--quiet", is_flag=True, callback=_without_bars, help="No progress bars.")
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace a set of the same name that was made with another recipe."
)


def column_options(command: Command) -> Command:
    """Add the options that name the image and the label column."""
    command = click.option("--label-column", help="Label column.  [default: the only ClassLabel]")(command)
    return click.option("--image-column", help="Image column.  [default: the only Image column]")(command)


def parse_amounts(texts: Sequence[str]) -> int | dict[str, int]:
    """Read the texts of `--ipc`: one number, or `CLASS=NUMBER` for every class.

    Example:
        >>> parse_amounts(["10"]), parse_amounts(["cat=1", "dog=2"])
        (10, {'cat': 1, 'dog': 2})
    """
    amounts: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not number.strip().isdecimal() or int(number) < 1 or (len(texts) > 1 and not equals):
            raise click.UsageError(
                f"--ipc takes one number of at least 1, or CLASS=NUMBER for every class; got {' and '.join(texts)}"
            )
        if not equals:
            return int(number)
        if name in amounts:
            raise click.UsageError(f"--ipc names the class {name!r} twice")
        amounts[name] = int(number)
    return amounts


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read `3x32x32` (channels x height x width)."""
    sides = text.lower().split("x")
    if len(sides) != 3 or sides[0] not in ("1", "3") or not all(side.isdecimal() and int(side) for side in sides):
        raise click.UsageError(
            f"--shape takes CHANNELSxHEIGHTxWIDTH with 1 or 3 channels, for example 1x28x28; got {text!r}"
        )
    return int(sides[0]), int(sides[1]), int(sides[2])


def parse_size(text: str) -> int | tuple[int, int]:
    """Read `32` or `32x48` (height x width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise click.UsageError(f"--image-size takes a side or HEIGHTxWIDTH, for example 32 or 32x48; got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
