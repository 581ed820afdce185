"""Every registered method keeps every law."""

import pytest

from hf_condense.engine.registry import list_methods
from hf_condense.testing import LAWS, quick_bench

METHODS = [info.name for info in list_methods()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("law", LAWS)
def test_method_keeps_law(law: str, method: str) -> None:
    LAWS[law](quick_bench(method))
