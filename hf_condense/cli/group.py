"""The program: its commands, in the order in which one meets them, and how it ends."""

from __future__ import annotations

import logging
import signal
from typing import Any

import click

from hf_condense._version import __version__
from hf_condense.base.errors import RunInterrupted, plain_text
from hf_condense.cli.combine import combine
from hf_condense.cli.demo import demo
from hf_condense.cli.errors import OneLineError, is_of_user
from hf_condense.cli.eval import evaluate_command
from hf_condense.cli.methods import methods
from hf_condense.cli.page import page
from hf_condense.cli.push import push
from hf_condense.cli.remove import remove
from hf_condense.cli.run import run
from hf_condense.cli.show import show
from hf_condense.cli.text import as_options

COMMANDS = (demo, run, push, evaluate_command, show, page, combine, remove, methods)


class _Commands(click.Group):
    """Commands that report a user's error in one line instead of a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which one meets them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except RunInterrupted as error:
            click.echo(self._in_options(ctx, error), err=True)
            ctx.exit(128 + (error.signal or signal.SIGTERM))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(128 + signal.SIGINT)
        except Exception as error:
            if ctx.params["debug"] or not is_of_user(error):
                raise
            raise OneLineError(self._in_options(ctx, error) or type(error).__name__) from error

    def _in_options(self, ctx: click.Context, error: BaseException) -> str:
        """Return the message of an error in the options of the command that ran."""
        text = plain_text(error) if isinstance(error, Exception) else str(error)
        return as_options(text, self.commands.get(ctx.invoked_subcommand or "", self))


@click.group(
    cls=_Commands,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--debug", is_flag=True, help="Show the library's log, and full tracebacks.")
@click.version_option(__version__, prog_name="hf-condense")
def main(debug: bool) -> None:
    """Condense a labelled image dataset into a few images per class, and measure what they are worth."""
    if debug:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("hf_condense").setLevel(logging.INFO)
