"""NCFM is M3D with characteristic functions under a pool of networks, with a calibration and AdamW."""

import pytest
import torch

from hf_condense import evaluate
from hf_condense.api import condense_dataset
from hf_condense.demo_data import load_demo
from hf_condense.engine.registry import get_method
from hf_condense.engine.settings import settle
from hf_condense.engine.task import Task
from hf_condense.testing import quick_method, toy_dataset

POOL = {"networks": "pool", "pool_size": 2, "pool_updates": 4}


def images(method: str, **options: object) -> torch.Tensor:
    return quick_method(method, **POOL, cache=False, **options).condense(toy_dataset()).synthetic.stored["images"]


def test_ncfm_equals_m3d_with_its_options() -> None:
    parts = {"kernel": "characteristic", "normalise": True, "scales": "0.5_1_2_4", "optimiser": "adamw"}
    shared = {"lr_img": 0.02, "ipm": 2, "decay": False}
    m3d = images("m3d", calibration=1 / 300, **parts, **shared)
    assert torch.equal(images("ncfm", **shared), m3d)
    for changes in ({"calibration": 0.0}, {"scales": "1"}, {"normalise": False}, {"kernel": "gaussian"}):
        assert not torch.equal(images("ncfm", **shared, **changes), m3d), changes


@pytest.mark.parametrize(
    ("classes", "ipc", "optimiser", "rate"),
    [(10, 10, "adamw", 0.001 / 0.25), (100, 1, "adamw", 0.001 / 0.25), (100, 10, "form", 300 * 0.01 / 0.25**2)],
)
def test_paper_preset_has_the_settings_of_the_authors_in_normalised_units(
    classes: int, ipc: int, optimiser: str, rate: float
) -> None:
    cls = get_method("ncfm")
    settings = settle(cls, "paper", {}, Task(ipc, classes, (3, 32, 32), 0.25))
    config = cls.Config.build(settings.options)
    assert (settings.storage, settings.expand) == ("patches", 4)
    assert (config.steps, config.batch_real, config.frequencies, config.scales) == (20_000, 1024, 4096, "1")
    assert (config.pool_size, config.cutmix_pool, config.ipm) == (20, 0.5, 1)
    assert config.optimiser == optimiser
    assert config.lr_img == pytest.approx(rate)


@pytest.mark.slow
def test_ncfm_beats_random_rows_on_digits() -> None:
    ds = load_demo()
    cheap = {"network": "convnet-w8-d2", "steps": 40, "batch_real": 64, "frequencies": 256}
    pool = {"pool_size": 2, "pool_updates": 80}
    small = condense_dataset(ds["train"], "ncfm", 10, preset="quick", compile=False, progress=False, **cheap, **pool)
    evaluation = evaluate(
        small, ds["test"], networks="convnet-w8-d2", recipe="dc", max_updates=150, seeds=3, progress=False
    )
    means = dict(zip(evaluation.to_pandas()["set"], evaluation.to_pandas()["mean"], strict=True))
    (learned,) = (mean for name, mean in means.items() if not name.startswith("random"))
    (random,) = (mean for name, mean in means.items() if name.startswith("random"))
    assert learned > random + 0.01, means
