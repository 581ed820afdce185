"""Every registered method keeps every law."""

from collections.abc import Callable

import pytest

import hf_condense.testing
from hf_condense.engine.registry import list_methods
from hf_condense.testing import LAWS, MethodUnderTest, quick_method

METHODS = [info.name for info in list_methods()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
def test_method_keeps_law(law: Callable[[MethodUnderTest], None], method: str) -> None:
    law(quick_method(method))


def test_every_law_is_listed() -> None:
    assert list(LAWS) == [law for name, law in vars(hf_condense.testing).items() if name.startswith("law_")]
