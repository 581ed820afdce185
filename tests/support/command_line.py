"""The fixture `program`: the command line, run in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Result = tuple[int, str, str]  # exit code, stdout, stderr
Program = Callable[..., Result]


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    """Run the program with some arguments."""
    from hf_condense.cli import main  # not before conftest.py has set what the libraries read

    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments], prog_name="hf-condense")
        return end.value.code, *capsys.readouterr()

    return run
