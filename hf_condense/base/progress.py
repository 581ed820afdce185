"""Progress bars that obey the Hub's switches, such as `HF_HUB_DISABLE_PROGRESS_BARS`."""

from __future__ import annotations

import logging
import sys
from typing import Any

from huggingface_hub.utils import are_progress_bars_disabled, tqdm

logger = logging.getLogger("hf_condense")


def progress_bar(total: int, desc: str, unit: str, *, shown: bool = True, initial: int = 0) -> Any:
    """Return a tqdm bar, to be used in a `with` statement.

    Args:
        total: Units of work in all.
        desc: What is being done, for example `"Condensing"`; also names the bar for the Hub's switches.
        unit: Name of a unit, for example `"step"`.
        shown: Whether to show it; in any case only if the Hub's switches allow it.
        initial: Units that are done already.
    """
    disable = None if shown else True  # None leaves the decision to the switches and to whether there is a terminal
    name = f"hf_condense.{desc.split()[0].lower()}"
    make: Any = tqdm
    return make(total=total, initial=initial, desc=desc, unit=unit, name=name, disable=disable)


def say(text: str, *, shown: bool = True) -> None:
    """Tell people something short where they would see a progress bar; it is logged in any case.

    Args:
        text: One line.
        shown: As for `progress_bar`.
    """
    logger.info("%s", text)
    if shown and sys.stderr.isatty() and not are_progress_bars_disabled("hf_condense"):
        tqdm.write(text, file=sys.stderr)
