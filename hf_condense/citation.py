"""The papers to be cited for a set: what methods say of themselves, as lines of a card."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hf_condense.markdown import escape
from hf_condense.method import MethodInfo
from hf_condense.registry import get_method

logger = logging.getLogger("hf_condense")


def citations(methods: Iterable[str]) -> dict[str, str]:
    """Return for each method the line that cites its paper; methods that are not installed here are left out.

    Args:
        methods: Canonical names, as recipes have them.

    Example:
        >>> citations(["herding", "of another package"]).keys()
        dict_keys(['herding'])
    """
    found = {}
    for name in dict.fromkeys(methods):
        try:
            found[name] = _line(name, get_method(name).info)
        except Exception:  # no such method here, or another package's that cannot be imported
            logger.info("the card cites no paper for the method %r, which is not installed here", name)
    return found


def _line(name: str, info: MethodInfo) -> str:
    """Cite a paper with title, authors, venue, year and link."""
    return escape(f'{info.title} ({name}): {info.authors}, "{info.paper}", {info.venue} {info.year}, {info.link}')
