"""Progress bars that obey the Hub's switches, such as `HF_HUB_DISABLE_PROGRESS_BARS`."""

from __future__ import annotations

import logging
import sys
from typing import Any

from huggingface_hub.utils import are_progress_bars_disabled, tqdm

logger = logging.getLogger("hf_condense")


def progress_bar(total: int, desc: str, unit: str, *, shown: bool = True, initial: int = 0) -> Any:
    """Return a tqdm bar, for use in a `with` statement.

    Args:
        total: Number of units of work.
        desc: What is being done, for example `"Condensing"`; it also names the bar for the Hub's switches.
        unit: Name of a unit, for example `"step"`.
        shown: Show the bar if the Hub's switches allow it; False never shows it.
        initial: Number of units that are done already.
    """
    disable = None if shown else True  # None shows the bar if the switches allow it and there is a terminal
    name = f"hf_condense.{desc.split()[0].lower()}"
    untyped_tqdm: Any = tqdm
    return untyped_tqdm(total=total, initial=initial, desc=desc, unit=unit, name=name, disable=disable)


def announce(text: str, *, shown: bool = True) -> None:
    """Log a one-line message and, on a terminal, print it above the progress bar.

    Args:
        text: One line.
        shown: Print it if the Hub's switches allow progress bars; False only logs it.
    """
    logger.info("%s", text)
    if shown and sys.stderr.isatty() and not are_progress_bars_disabled("hf_condense"):
        tqdm.write(text, file=sys.stderr)
