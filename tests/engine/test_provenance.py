"""What a recipe says of the machine on which a set was made."""

from __future__ import annotations

import torch

from tests.support.engine_methods import condense
from tests.support.pretend_device import pretend_device


def test_runtime_tells_the_device_and_its_threads() -> None:
    on_cpu = condense("dm", steps=1, batch_real=4).recipe.runtime
    assert (on_cpu["device_name"], on_cpu["threads"]) == ("cpu", torch.get_num_threads())
    with pretend_device("mps"):
        on_mac = condense("dm", steps=1, batch_real=4).recipe.runtime
    assert (on_mac["device"], on_mac["device_name"]) == ("mps", "mps")
