"""The objective of DM against a slow reference and closed forms."""

import pytest
import torch
from torch import nn

from hf_condense.methods import _embeddings, idc
from hf_condense.methods.dm import DistributionMatching, class_means, mean_discrepancy
from hf_condense.networks.augment import Augmentation
from hf_condense.networks.factory import network_factory
from hf_condense.testing import quick_method, toy_dataset
from tests.reference.distribution import distribution_matching
from tests.support.draws import normal
from tests.support.observed_step import augmented_rows, objective_of_step


@pytest.mark.parametrize("augment", ["none", "color_crop_cutout_flip_scale_rotate"])
@pytest.mark.parametrize(("factor", "batch_syn"), [(1, None), (2, None), (1, 2), (2, 5)])
@pytest.mark.parametrize("ipc", [2, {0: 1, 1: 3, 2: 2}])
def test_dm_step_equals_the_textbook(augment: str, factor: int, batch_syn: int | None, ipc: object) -> None:
    t = 2
    options = {"augment": augment, "factor": factor, "batch_syn": batch_syn}
    run, method, value, gradient = objective_of_step(DistributionMatching, options, t, ipc)
    real, synthetic = augmented_rows(run, method, t)
    network = run.network("network", t).double()
    images = run.synthetic.stored["images"]
    expected = distribution_matching(real, synthetic, lambda x: network.embed(x.double()))
    (expected_gradient,) = torch.autograd.grad(expected, images)
    assert value == pytest.approx(expected.item(), rel=1e-4)
    scale = float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-3, atol=1e-5 * scale + 1e-7)


@pytest.mark.parametrize(("module", "options"), [(_embeddings, ("dm",)), (idc, ("idc",))])
def test_each_class_learns_at_the_rate_of_its_own_number_of_images(module, options, monkeypatch) -> None:
    """Presets choose the rate of the largest class, and the gradient of an image is smaller the more there are."""
    budgets = {0: 1, 1: 4, 2: 2}

    def learned(steps: int) -> torch.Tensor:
        settings = {"steps": steps, "pixel_range": "free", "momentum": 0.0, "cache": False}
        return quick_method(*options, **settings).condense(toy_dataset((0, 1, 2), rows=12), budgets).synthetic

    monkeypatch.setattr(module, "scale_by_budgets", lambda run: None)
    plain = learned(1)
    monkeypatch.undo()
    scaled = learned(1)
    monkeypatch.setattr(
        module, "scale_by_budgets", lambda run: [t.grad.zero_() for t in run.synthetic.learned().values()]
    )
    start = learned(1)
    shares = torch.tensor([budgets[c] / 4 for c in plain.labels.tolist()]).view(-1, 1, 1, 1)
    moved = plain.images - start.images
    assert float(moved.abs().max()) > 1e-4
    torch.testing.assert_close(scaled.images - start.images, shares * moved, rtol=1e-4, atol=1e-6)


def test_gradient_of_mean_discrepancy_under_a_linear_embedding_equals_its_closed_form() -> None:
    weight, real = normal(7, 4), normal(9, 7, seed=1)
    synthetic = normal(3, 7, seed=2).requires_grad_()
    mean_discrepancy((real @ weight).mean(0)[None], (synthetic @ weight).mean(0)[None]).backward()
    expected = 2 / 3 * (synthetic.mean(0) - real.mean(0)) @ weight @ weight.T
    torch.testing.assert_close(synthetic.grad, expected.expand(3, 7).contiguous())


def test_mean_discrepancy_passes_gradcheck_and_is_zero_for_equal_means() -> None:
    rows, labels, classes = normal(6, 3).requires_grad_(), torch.tensor([0, 0, 2, 2, 2, 0]), torch.tensor([2, 0])
    target = normal(2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: mean_discrepancy(target, class_means(x, labels, classes)), rows)
    means = class_means(rows, labels, classes)
    torch.testing.assert_close(means[0], rows[2:5].mean(0))
    assert mean_discrepancy(means, means).item() == 0


def test_augmentation_of_dm_is_siamese() -> None:
    """Equal real and synthetic images stay equal under the augmentation, so that a copied set has objective zero."""
    transform = Augmentation.parse("color_crop_cutout_flip_scale_rotate").draw(3, torch.Generator().manual_seed(0))
    rows, labels = normal(3, 3, 8, 8).float(), torch.arange(3)
    factory = network_factory("convnet-w8-d1", channels=3, image_size=(8, 8), num_classes=3)
    network: nn.Module = factory.build(0)
    real_labels = labels.repeat_interleave(4)
    real = network.embed(transform(rows.repeat_interleave(4, 0), real_labels))
    synthetic = network.embed(transform(rows, labels))
    assert mean_discrepancy(class_means(real, real_labels, labels), synthetic).item() < 1e-9


def test_real_batches_change_within_a_network_if_they_are_not_reused() -> None:
    run, method, value, _ = objective_of_step(DistributionMatching, {"ipm": 3, "reuse_real": False}, 4)
    real, synthetic = augmented_rows(run, method, 4)  # batch and augmentation of the step, network of the draw
    network = run.network("network", 3).double()
    expected = distribution_matching(real, synthetic, lambda x: network.embed(x.double()))
    assert value == pytest.approx(expected.item(), rel=1e-4)
