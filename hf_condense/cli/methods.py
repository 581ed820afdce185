"""`hf-condense methods`: list the methods, or describe one."""

from __future__ import annotations

import click

from hf_condense.base.tables import plain_table
from hf_condense.cli.text import method_text


@click.command()
@click.argument("pattern", required=False)
def methods(pattern: str | None) -> None:
    """List the methods, or describe one. PATTERN is a name or a shell pattern such as '*m*'."""
    from hf_condense import list_methods
    from hf_condense.engine.registry import canonical_name, get_method

    infos = list_methods(pattern)
    if pattern == "auto":
        click.echo("auto picks a method and its settings from the dataset, ipc, device and --budget, and says which.")
        return
    if not infos and pattern is not None:
        # The pattern may be an alias; if it is not, this raises an error with the nearest name.
        infos = list_methods(canonical_name(get_method(pattern)))
    if len(infos) == 1:
        click.echo(method_text(infos[0]))
        return
    rows = [("NAME", "KIND", "YEAR", "TITLE"), *((m.name, m.kind, str(m.year), m.title) for m in infos)]
    click.echo(plain_table(rows))
    click.echo("\nTo see the options and the paper of a method:  hf-condense methods NAME")
