"""The command line `hf-condense`: a thin layer over the functions of the package.

Every command has a file of its own; `group.py` lists them. Everything heavy is imported inside the commands, so that
`--help` is quick.
"""

from hf_condense.cli.group import main

__all__ = ["main"]
