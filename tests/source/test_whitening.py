"""ZCA whitening: fitted, undone, learned in and evaluated in."""

import dataclasses

import pytest
import torch

from hf_condense.condensed.loading import load_condensed
from hf_condense.evaluation.evaluate import evaluate
from hf_condense.source.load import load_source
from hf_condense.source.whitening import EPSILON, Whitening, fit_whitening
from hf_condense.testing import quick_method, toy_dataset


@pytest.fixture(scope="module")
def source():
    ds = toy_dataset(rows=120, size=4, names=("cat", "dog", "eel"))
    return load_source(ds, cache=False, progress=False)


def test_whitened_images_have_no_mean_and_known_variances(source) -> None:
    """Each principal variance v becomes v / (v + epsilon), and directions stay where they are."""
    whitening = fit_whitening(source.images)
    plain = source.images.flatten(1).double() / 255
    white = dataclasses.replace(source, whitening=whitening).at(torch.arange(len(source))).flatten(1).double()
    assert float(white.mean(0).abs().max()) < 1e-5
    values, vectors = torch.linalg.eigh(torch.cov(plain.T, correction=0))
    rotated = vectors.T @ torch.cov(white.T, correction=0) @ vectors
    torch.testing.assert_close(rotated, torch.diag(values / (values + EPSILON)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whitening.matrix, whitening.matrix.T)


def test_undoing_gives_back_the_images(source) -> None:
    whitening = fit_whitening(source.images)
    images = source.images[:9].float() / 255
    torch.testing.assert_close(whitening.undo(whitening(images)), images, rtol=1e-4, atol=1e-5)


def test_whitening_two_pixels_equals_the_product_by_hand() -> None:
    whitening = Whitening(torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([1.0, -1.0]))
    images = torch.tensor([3.0, 1.0]).reshape(1, 1, 1, 2)
    assert whitening(images).flatten().tolist() == [4.0, 1.0]
    assert whitening.undo(whitening(images)).flatten().tolist() == [3.0, 1.0]


@pytest.mark.parametrize("method", ["mtt", "tesla", "esp"])
def test_sets_learned_in_whitened_space_carry_the_matrix_and_are_evaluated_in_it(method: str, tmp_path) -> None:
    ds = toy_dataset(rows=30, names=("cat", "dog", "eel"))
    options = {"zca": True, "pixel_range": "free", "lr_img": 1e-9}
    small = quick_method(method, **options).condense(ds, 2)
    tensors = small.synthetic
    whitening = fit_whitening(load_source(ds, cache=False, progress=False).images)
    torch.testing.assert_close(tensors.zca_matrix, whitening.matrix)
    torch.testing.assert_close(tensors.zca_mean, whitening.mean)
    # Images that were not moved are the real rows that they started from, in pixel units.
    plain = quick_method(method, pixel_range="free", lr_img=1e-9).condense(ds, 2)
    torch.testing.assert_close(tensors.images, plain.synthetic.images, rtol=1e-4, atol=1e-4)
    small.save_condensed(tmp_path)
    assert torch.equal(load_condensed(tmp_path).synthetic.zca_matrix, tensors.zca_matrix)
    table = evaluate(
        small, ds, source=ds, networks="convnet-w8-d1", recipe="dc", epochs=3, seeds=1, progress=False, cache=False
    )
    assert [row["set"] for row in table.to_records()] == [small.recipe.config_name, "random"]


def test_whitened_sets_see_whitened_test_images(monkeypatch) -> None:
    """Training and test images, and baselines, all go through the set's own matrix."""
    from hf_condense.evaluation import trials

    ds = toy_dataset(rows=30, names=("cat", "dog", "eel"))
    small = quick_method("esp", zca=True, pixel_range="free").condense(ds, 2)
    trained, tested = [], []
    train, test = trials.train_network, trials.predictions
    monkeypatch.setattr(
        trials, "train_network", lambda net, data, *a, **k: trained.append(data) or train(net, data, *a, **k)
    )
    monkeypatch.setattr(trials, "predictions", lambda net, images: tested.append(images) or test(net, images))
    evaluate(
        small, ds, source=ds, networks="convnet-w8-d1", recipe="dc", epochs=1, seeds=1, progress=False, cache=False
    )
    whitening = Whitening(small.synthetic.zca_matrix, small.synthetic.zca_mean)
    torch.testing.assert_close(trained[0].images, whitening(small.synthetic.images))
    pixels = load_source(ds, cache=False, progress=False).images.float() / 255
    torch.testing.assert_close(tested[0].at(torch.arange(5)), whitening(pixels[:5]), rtol=1e-4, atol=1e-4)
    real = whitening(pixels).flatten(1)  # every random row is one of these
    assert len(trained) == 2
    assert float(torch.cdist(trained[1].images.flatten(1), real).amin(1).max()) < 1e-2


def test_images_that_are_too_large_are_refused() -> None:
    ds = toy_dataset(rows=2, size=65)
    with pytest.raises(
        ValueError, match=r"needs a matrix of 12675 x 12675 for images of \(3, 65, 65\).*smaller image_size"
    ):
        quick_method("esp", zca=True, pixel_range="free", network="convnet-w2-d1").condense(ds, 1)


def test_digest_tells_maps_apart() -> None:
    first, second = Whitening(torch.eye(2), torch.zeros(2)), Whitening(torch.eye(2), torch.ones(2))
    assert first.digest == Whitening(torch.eye(2), torch.zeros(2)).digest != second.digest
