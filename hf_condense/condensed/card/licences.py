"""Licences by the names that the Hub has for them."""

from __future__ import annotations

from hf_condense.base.checks import check_text
from hf_condense.base.errors import did_you_mean
from hf_condense.condensed.recipe import Recipe

OTHER = "other"
_HUB_NAMES = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0",
    "eupl-1.1", "eupl-1.2", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "h-research", "intel-research", "isc",
    "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "lppl-1.3c",
    "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "open-mdw", "openrail", "openrail++", "osl-3.0",
    "other", "pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
})  # fmt: skip


def check_licence(licence: str | None) -> None:
    """Raise `ValueError` if a licence that is asked for is no name that the Hub may have: it refuses the whole card.

    Raises:
        TypeError: If it is not text.
        ValueError: If it is not written as the Hub writes names. Names that are new there pass.
    """
    check_text("license", licence)
    if licence is None or licence in _HUB_NAMES:
        return
    written = licence.strip().lower().replace(" ", "-").removesuffix("-license")
    if written != licence or not licence:
        raise ValueError(
            f"license should be a name that the Hub has, such as 'mit' or 'cc-by-4.0'; got {licence!r:.80}"
            f"{did_you_mean(written, _HUB_NAMES)}; all names: https://huggingface.co/docs/hub/repositories-licenses"
        )


def licence_of(recipe: Recipe) -> str | list[str] | None:
    """Return the licence that a set inherits from its sources, as the Hub names it.

    Returns:
        One name, or as many as the sources state; `"other"` stands for a licence that the Hub has no name for, because
        it refuses a card with any other text. None if a source states no licence.

    References:
        https://huggingface.co/docs/hub/repositories-licenses
    """
    common = recipe.source.get("license")
    stated = [common] if common else [source.get("license") for source in recipe.sources]
    if not all(stated):
        return None
    lists = [licence if isinstance(licence, list) else [licence] for licence in stated]
    names = dict.fromkeys(str(name).strip().lower() for licence in lists for name in licence)
    hub_names = list(dict.fromkeys(name if name in _HUB_NAMES else OTHER for name in names))
    return hub_names if len(hub_names) > 1 or isinstance(stated[0], list) else hub_names[0]
