"""DANCE is DM under a pool of networks, with a calibration."""

import pytest
import torch

from hf_condense.engine.registry import get_method
from hf_condense.engine.settings import settle
from hf_condense.engine.task import Task
from hf_condense.testing import quick_method, toy_dataset

POOL = {"networks": "pool", "pool_size": 2, "pool_updates": 4}


def images(method: str, **options: object) -> torch.Tensor:
    return quick_method(method, **POOL, cache=False, **options).condense(toy_dataset()).synthetic.stored["images"]


def test_dance_equals_dm_with_its_options() -> None:
    shared = {"lr_img": 0.5, "ipm": 2}
    dm = images("dm", augment="color_crop_cutout", calibration=1.0, **shared)
    assert torch.equal(images("dance", **shared), dm)
    assert not torch.equal(images("dance", calibration=0.0, **shared), dm)


@pytest.mark.parametrize("preset", ["default", "quick", "paper"])
def test_presets_use_the_pool_and_the_rate_of_the_authors(preset: str) -> None:
    """Their rate is 0.01 per image of a class for pixels in [0, 1]; the gradient and the image both scale with std."""
    cls = get_method("dance")
    task = Task(10, 10, (3, 32, 32), 0.25)
    settings = settle(cls, preset, {}, task)
    config = cls.Config.build(settings.options)
    assert (config.networks, config.calibration, config.optimiser) == ("pool", 1.0, "form")
    assert config.lr_img == pytest.approx((4 if preset == "quick" else 1) * 0.01 * 10 / 0.25**2)
    assert settings.storage == {"paper": "patches", "quick": "dct", "default": "pixels"}[preset]
    assert (config.pool_size, config.pool_updates) == ((20, 23_400) if preset == "paper" else (10, 300))
    assert preset != "paper" or (config.steps, config.batch_real, config.batch_syn) == (10_000, 128, 200)


def test_calibration_with_fresh_networks_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"calibration=1\.0 needs trained networks, but networks='fresh'"):
        quick_method("dance", networks="fresh").condense(toy_dataset())
    quick_method("dance", networks="fresh", calibration=0.0).condense(toy_dataset(), 1)


@pytest.mark.parametrize("method", ["dance", "ncfm"])
def test_networks_of_the_pool_of_the_papers_learn_at_the_rate_of_the_authors(method: str) -> None:
    cls = get_method(method)
    config = cls.Config.build(settle(cls, "paper", {}, Task(10, 10, (3, 32, 32))).options)
    assert (config.lr_pool, config.batch_pool) == (0.01, 128)
    assert (config.augment_pool, config.cutmix_pool) == ("color_crop", 0.5)
