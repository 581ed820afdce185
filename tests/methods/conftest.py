"""Fixtures of the tests of methods."""

import pytest

from hf_condense.methods import _recordings


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the numbers of the recorded networks that are trained from now on."""
    numbers: list[int] = []
    original = _recordings.train_network

    def spy(*args, **options):
        numbers.append(args[5])
        return original(*args, **options)

    monkeypatch.setattr(_recordings, "train_network", spy)
    return numbers
