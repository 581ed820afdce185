"""Which progress bars are asked for."""

from __future__ import annotations

from typing import Any

import pytest

from hf_condense.source import class_source


def watch_decoding(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list to which every decoding of a source from now on adds whether it shows its progress."""
    shown: list[bool] = []
    original = class_source.progress_bar

    def watched(*arguments: Any, **options: Any) -> Any:
        shown.append(options["shown"])
        return original(*arguments, **options)

    monkeypatch.setattr(class_source, "progress_bar", watched)
    return shown
