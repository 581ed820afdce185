"""Which progress bars are asked for."""

from __future__ import annotations

from typing import Any

import pytest

from hf_condense.source import load


def watch_decoding(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list to which every decoding of a source from now on adds whether it shows its progress."""
    shown: list[bool] = []
    original = load.progress_bar

    def watched(*arguments: Any, **options: Any) -> Any:
        shown.append(options["shown"])
        return original(*arguments, **options)

    monkeypatch.setattr(load, "progress_bar", watched)
    return shown
