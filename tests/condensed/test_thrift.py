"""Headers of files of strangers are parsed within bounds."""

from __future__ import annotations

import pytest

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.files import thrift
from hf_condense.condensed.files.thrift import read_struct
from hf_condense.condensed.files.untrusted import check_version


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x19" * 200, "nests deeper than 8"),  # lists of one list
        (b"\x1c" * 200, "nests deeper than 8"),  # structs of one struct
        (b"\x19\xf3\x88\x27" + b"\0" * 5000, "a list of 5,000 items; at most 4,096 are read"),
        (b"\x19\xf3\x80\x20" + b"\0" * 4096 + b"\x19\x13\0\0", None),
    ],
)
def test_headers_are_parsed_within_bounds(data: bytes, message: str | None) -> None:
    if message is None:
        assert read_struct(data, 0)[0] == {1: [0] * 4096, 2: [0]}
    else:
        with pytest.raises(CondensedFormatError, match=message):
            read_struct(data, 0)


def test_header_of_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thrift, "_MAX_VALUES", 100)
    part = b"\x19\xf3\x32" + b"\0" * 50  # a list of 50 bytes
    assert len(read_struct(part + b"\0", 0)[0]) == 1
    with pytest.raises(CondensedFormatError, match="a header has more than 100 values"):
        read_struct(2 * part + b"\0", 0)


def test_version_of_very_many_digits_is_a_newer_one() -> None:
    with pytest.raises(CondensedFormatError, match="upgrade hf_condense"):
        check_version("9" * 5000, "x")
