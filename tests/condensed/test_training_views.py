"""A condensed set as training data: rows, views, labels, batches."""

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from hf_condense import TrainingViews
from hf_condense.condensed.views import view
from tests.condensed.test_views import viewed_set
from tests.support.condensed_sets import formed_set, make_set


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - 0.5) / 0.25


def test_item_is_one_of_the_views_of_a_row_with_its_label() -> None:
    small = viewed_set(views=3)
    labels, images = small.synthetic.view_labels, small.synthetic.decoded()[0]
    data = TrainingViews(small)
    assert (len(data), data.temperature, data.num_classes) == (10, 20.0, 5)
    drawn = set()
    torch.manual_seed(0)
    for _ in range(20):
        item = data[7]
        views = normalised(view(images[[7] * 3], labels.crops[7]))
        (which,) = (v for v in range(3) if torch.allclose(item["pixel_values"], views[v], atol=1e-6))
        expected = (labels.logits(torch.tensor([7]), torch.tensor([which]))[0] / 20).softmax(0)
        torch.testing.assert_close(item["labels"], expected)
        drawn.add(which)
    assert drawn == {0, 1, 2}


def test_loader_gives_every_row_once_in_an_epoch() -> None:
    small = make_set()
    loader = DataLoader(TrainingViews(small, normalise=False), batch_size=3)
    batches = list(loader)
    images, labels = small.synthetic.decoded()
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), images)
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]).argmax(1), labels)


def test_dense_soft_labels_are_probabilities_at_their_temperature() -> None:
    small = make_set(soft=True, temperature=4.0)
    expected = (small.synthetic.soft_labels[2] / 4).softmax(0)
    torch.testing.assert_close(TrainingViews(small)[2]["labels"], expected)


def test_hard_labels_are_one_hot_for_whole_rows() -> None:
    small = viewed_set()
    item = TrainingViews(small, soft=False)[-1]
    torch.testing.assert_close(item["pixel_values"], normalised(small.synthetic.decoded()[0][9]))
    assert item["labels"].tolist() == [0, 0, 0, 0, 1]


def test_row_beyond_the_end_raises_index_error() -> None:
    with pytest.raises(IndexError, match=r"row should be in -4\.\.3; got 4"):
        TrainingViews(make_set())[4]


def test_rows_are_counted_from_the_end_in_batches_too() -> None:
    views = TrainingViews(formed_set("dct", 4))
    last, first = torch.utils.data.Subset(views, [-1, 0]).__getitems__([0, 1])
    assert torch.equal(last["pixel_values"], views[len(views) - 1]["pixel_values"])
    assert torch.equal(first["pixel_values"], views[0]["pixel_values"])
    with pytest.raises(IndexError, match=r"row should be in .*; got -99"):
        views.__getitems__([0, -99])


def test_plain_dataset_raises_type_error() -> None:
    with pytest.raises(TypeError, match="small should be a CondensedDataset"):
        TrainingViews(datasets.Dataset.from_dict({"a": [1]}))


def test_whitened_set_raises_value_error() -> None:
    with pytest.raises(ValueError, match="made in whitened space"):
        TrainingViews(make_set(zca=True))


def test_views_follow_the_global_generator() -> None:
    data = TrainingViews(viewed_set(views=3), normalise=False)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(torch.stack([data[row]["pixel_values"] for row in range(10)]))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert float(draws[0].min()) >= 0
    assert float(draws[0].max()) <= 1
