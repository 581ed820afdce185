"""Declarations of options: a field that a subclass declares again keeps all but its default."""

from dataclasses import dataclass, fields

import pytest

from hf_condense.engine.options import MethodConfig, option, redefined


@dataclass(frozen=True)
class Base(MethodConfig):
    """Options of a method."""

    rate: float = option(0.1, "Learning rate.", gt=0, role="image_rate")
    steps: int = option(10, "Updates.", ge=1, tiny=2)


@dataclass(frozen=True)
class Derived(Base):
    """Options of a method that is built on it."""

    steps: int = redefined(Base, "steps", 500)


def test_redefined_option_differs_in_its_default_alone() -> None:
    base, derived = (dict(zip([f.name for f in fields(cls)], fields(cls), strict=True)) for cls in (Base, Derived))
    assert list(derived) == list(base), "options keep their order"
    assert (Derived().steps, derived["steps"].metadata) == (500, base["steps"].metadata)
    assert Derived.tiny_options() == Base.tiny_options() == {"steps": 2}


def test_redefined_option_is_checked_as_the_base_says() -> None:
    with pytest.raises(ValueError, match="steps should be at least 1; got 0"):
        Derived(steps=0)


def test_redefined_option_that_the_base_lacks_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"name should be one of .*'rate'.*; got 'rats'; did you mean 'rate'"):
        redefined(Base, "rats", 1.0)
