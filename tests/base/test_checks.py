"""Values that callers pass are taken, or refused by a message that names what would be right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_condense.base.checks import boolean, check_path, integer, listed, number, one_of


@pytest.mark.parametrize("value", [True, np.True_])
def test_truth_values_are_returned_as_bool(value: Any) -> None:
    assert boolean("cache", value) is True


@pytest.mark.parametrize("value", ["no", 0, None, np.array([True])])
def test_other_kinds_are_not_truth_values(value: Any) -> None:
    with pytest.raises(TypeError, match="cache should be True or False; got "):
        boolean("cache", value)


def test_paths_are_text_or_paths() -> None:
    check_path("folder", "~/sets")
    check_path("folder", Path("sets"))
    for wrong in (3, None, b"sets"):
        with pytest.raises(TypeError, match="folder should be a path, as text or a Path; got "):
            check_path("folder", wrong)


@pytest.mark.parametrize("value", [3, np.int64(3)])
def test_integers_are_returned_as_int(value: Any) -> None:
    assert integer("seeds", value, least=3) == 3
    assert type(integer("seeds", value)) is int


@pytest.mark.parametrize("value", [True, 3.0, "3", None])
def test_other_kinds_are_not_integers(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"seeds should be an integer; got {value!r} \({type(value).__name__}\)"):
        integer("seeds", value)


def test_an_integer_below_its_bound_raises_value_error() -> None:
    with pytest.raises(ValueError, match="seeds should be at least 3; got 2"):
        integer("seeds", 2, least=3)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1)])
def test_numbers_are_returned_as_float(value: Any) -> None:
    assert number("lr", value, least=1, above=0, most=1, below=2) == 1.0
    assert type(number("lr", value)) is float


@pytest.mark.parametrize("value", [True, "1", 1j, None])
def test_other_kinds_are_not_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match="lr should be a number; got "):
        number("lr", value)


@pytest.mark.parametrize(
    ("bound", "value", "message"),
    [
        ({"least": 1}, 0.5, "at least 1"),
        ({"above": 0}, 0, "larger than 0"),
        ({"most": 1}, 1.5, "at most 1"),
        ({"below": 2}, 2, "smaller than 2"),
    ],
)
def test_numbers_out_of_range_raise_value_error(bound: dict[str, float], value: float, message: str) -> None:
    for wrong in (value, math.nan):
        with pytest.raises(ValueError, match=f"lr should be {message}; got {wrong}"):
            number("lr", wrong, **bound)


def test_a_value_that_is_not_a_choice_raises_value_error() -> None:
    one_of("pixel_range", "free", ["valid", "free"])
    with pytest.raises(
        ValueError, match=r"pixel_range should be one of 'valid', 'free'; got 'vald'; did you mean 'valid'\?"
    ):
        one_of("pixel_range", "vald", ["valid", "free"])
    with pytest.raises(ValueError, match=r"channels should be one of 1, 3; got 2$"):
        one_of("channels", 2, iter([1, 3]))


def test_names_are_listed_up_to_a_number() -> None:
    assert listed([]) == ""
    assert listed(["a", "b"]) == listed(iter("ab"), 2) == "'a', 'b'"
    assert listed("abcde", 2) == "'a', 'b' and 3 more"
    assert listed(["a", "b"], 1, quoted=False) == "a and 1 more"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
