"""Errors of the command line: which ones tell a user what is wrong, and how these are printed."""

from __future__ import annotations

import sys
from typing import Any

import click

from hf_condense.base.errors import CannotRunError
from hf_condense.base.tables import visible

USER_ERRORS = (ValueError, TypeError, OSError, ArithmeticError, ImportError, MemoryError, CannotRunError)


class OneLineError(click.ClickException):
    """An error that ends the program with exit code 1 and one line on stderr."""

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.echo(f"error: {visible(' '.join(self.message.split()))}", file=file, err=file is None)


def is_of_user(error: Exception) -> bool:
    """Return whether the message of an error tells its user what is wrong, as it does where memory is short."""
    if isinstance(error, USER_ERRORS):
        return True
    if "torch" not in sys.modules:
        return False
    from hf_condense.base.memory import is_out_of_memory

    return is_out_of_memory(error)
