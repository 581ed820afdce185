"""`hf-condense methods`: list the methods, or describe one."""

from __future__ import annotations

import click

from hf_condense.base.tables import plain_table
from hf_condense.cli.options import Integer, parse_shape
from hf_condense.cli.text import method_text


@click.command()
@click.argument("pattern", required=False)
@click.option("--ipc", type=Integer(1), default=10, show_default=True, help="Images per class.")
@click.option("--classes", type=Integer(1), default=10, show_default=True, help="Number of classes.")
@click.option("--shape", default="3x32x32", show_default=True, help="Shape of an image, CHANNELSxHEIGHTxWIDTH.")
def methods(pattern: str | None, ipc: int, classes: int, shape: str) -> None:
    """List the methods, or describe one. PATTERN is a name or a shell pattern such as '*m*'.

    What the presets of a method set depends on the dataset; the options describe yours and are for one method.
    """
    from hf_condense import list_methods
    from hf_condense.engine.registry import canonical_name, get_method
    from hf_condense.engine.task import Task

    task = Task(ipc, classes, parse_shape(shape))

    infos = list_methods(pattern)
    if pattern == "auto":
        click.echo("auto picks a method and its settings from the dataset, ipc, device and --budget, and says which.")
        return
    if not infos and pattern is not None:
        # The pattern may be an alias; if it is not, this raises an error with the nearest name.
        infos = list_methods(canonical_name(get_method(pattern)))
    if len(infos) == 1:
        click.echo(method_text(infos[0], task))
        return
    rows = [("NAME", "KIND", "YEAR", "TITLE"), *((m.name, m.kind, str(m.year), m.title) for m in infos)]
    click.echo(plain_table(rows))
    click.echo("\nTo see the options and the paper of a method:  hf-condense methods NAME")
