"""NCFM is M3D with characteristic functions under a pool of networks, with a calibration and AdamW."""

import pytest
import torch

from hf_condense import evaluate
from hf_condense.api import condense_dataset
from hf_condense.demo_data import load_demo
from hf_condense.engine.registry import get_method
from hf_condense.engine.settings import settle
from hf_condense.engine.task import Task
from hf_condense.methods.ncfm import CharacteristicMatchingConfig
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
    ("classes", "ipc", "side", "optimiser", "rate"),
    [
        (10, 10, 32, "adamw", 20**0.5 * 0.001 / 0.25),
        (100, 1, 32, "adamw", 200**0.5 * 0.001 / 0.25),
        (100, 10, 32, "form", 300 * 0.01 / 0.25**2),
        (200, 10, 64, "adamw", 400**0.5 * 0.001 / 0.25),
    ],
)
def test_paper_preset_has_the_settings_of_the_authors_in_normalised_units(
    classes: int, ipc: int, side: int, optimiser: str, rate: float
) -> None:
    cls = get_method("ncfm")
    settings = settle(cls, "paper", {}, Task(ipc, classes, (3, side, side), 0.25))
    config = cls.Config.build(settings.options)
    assert (settings.storage, settings.expand) == ("patches", 4)
    assert (config.steps, config.batch_real, config.frequencies, config.scales) == (20_000, 1024, 4096, "1")
    assert (config.pool_size, config.cutmix_pool, config.ipm) == (20, 0.5, 1)
    assert (config.pool_updates, config.batch_pool, config.augment_pool) == (23_400, 128, "color_crop")
    assert (config.calibration, config.decay, config.optimiser) == (1 / 300, True, optimiser)
    assert config.lr_img == pytest.approx(rate)


def test_a_step_of_the_paper_preset_goes_about_as_far_as_an_iteration_of_the_authors() -> None:
    """Theirs has two steps of AdamW per class, on one tensor; images of the other classes have no gradient there."""
    classes, iterations = 10, 1000
    settings = settle(get_method("ncfm"), "paper", {}, Task(10, classes, (3, 32, 32), 1.0))
    config = CharacteristicMatchingConfig.build(settings.options)
    gradients = torch.randn(2, iterations, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def path(rate: float, steps: list[tuple[int, torch.Tensor | None]]) -> float:
        """Return the root mean square of where numbers end that begin at zero."""
        numbers = torch.zeros(200, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.AdamW([numbers], lr=rate, weight_decay=0.0)
        for count, gradient in steps:
            for _ in range(count):
                numbers.grad = torch.zeros_like(numbers) if gradient is None else gradient.clone()
                optimiser.step()
        return float(numbers.detach().square().mean().sqrt())

    alone = (classes - 1, None)
    theirs = [step for g in gradients.unbind(1) for step in ((1, g[0]), alone, (1, g[1]), alone)]
    ours = [(1, g.sum(0)) for g in gradients.unbind(1)]
    assert path(config.lr_img, ours) == pytest.approx(path(0.001, theirs), rel=0.1)


@pytest.mark.parametrize("classes", [10, 200])
def test_a_step_of_the_paper_preset_decays_as_much_as_an_iteration_of_the_authors(classes: int) -> None:
    """Each of their two steps per class takes away the rate times 5e-4 of a number."""
    task = Task(10, classes, (3, 64, 64), 0.25)
    config = CharacteristicMatchingConfig.build(settle(get_method("ncfm"), "paper", {}, task).options)
    assert config.lr_img * config.weight_decay == pytest.approx(2 * classes * 0.001 * 5e-4)


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
    assert learned > means["random"] + 0.01, means


def test_paper_preset_has_momentum_where_the_authors_use_sgd() -> None:
    cls = get_method("ncfm")
    config = cls.Config.build(settle(cls, "paper", {}, Task(10, 100, (3, 32, 32), 0.25)).options)
    assert (config.optimiser, config.momentum) == ("form", 0.5)
