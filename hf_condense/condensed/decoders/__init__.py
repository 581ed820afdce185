"""Storage forms, which turn stored tensors into images. A new form is one file and one line in `DECODERS`."""

from __future__ import annotations

from hf_condense.base.checks import one_of
from hf_condense.condensed.decoders.base import PIXELS, Decoder, Frame, Origin
from hf_condense.condensed.decoders.dct import Dct
from hf_condense.condensed.decoders.patches import Patches
from hf_condense.condensed.decoders.pixels import Pixels
from hf_condense.condensed.decoders.siren import Siren

__all__ = ["DECODERS", "PIXELS", "Decoder", "Frame", "Origin", "decoder_class"]

DECODERS: dict[str, type[Decoder]] = {
    "pixels": Pixels,
    "patches": Patches,
    "dct": Dct,
    "siren": Siren,
}


def decoder_class(storage: str) -> type[Decoder]:
    """Return the class of a storage form.

    Raises:
        ValueError: If there is no such form. The message lists all.
    """
    one_of("storage", storage, DECODERS)
    return DECODERS[storage]
