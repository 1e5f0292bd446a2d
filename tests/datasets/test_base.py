"""Batches of any data set: labels are classes or real values."""

import numpy as np
import pytest
import torch

from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.errors import UserError
from xaibench.models.preprocessing import Preprocessing


class Labelled(Dataset):
    """Black images with the given labels."""

    def __init__(self, labels: list) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(torch.zeros(1, 2, 2), self.labels[index])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, True, np.int32(2), torch.tensor(5)], torch.tensor([3, 1, 2, 5])),
        ([0.5, np.float64(-2.25), np.float32(3)], torch.tensor([0.5, -2.25, 3.0])),
        ([2.0, 3.0], torch.tensor([2.0, 3.0])),
    ],
)
def test_labels_are_whole_or_real_as_the_data_set_gives_them(labels, expected):
    batch = Samples(Labelled(labels), Preprocessing(), range(len(labels))).load(range(len(labels)))
    assert batch.labels.dtype == expected.dtype
    assert torch.equal(batch.labels, expected)


def test_a_sample_without_the_mask_that_was_promised_is_named():
    dataset = Labelled([0, 1])
    dataset.has_masks = True
    with pytest.raises(UserError, match=r"Labelled has masks.*sample 1 has none"):
        Samples(dataset, Preprocessing(), (1,)).load((1,))


def test_chosen_samples_have_a_length():
    assert len(Samples(Labelled([0, 1, 2]), Preprocessing(), (2, 0))) == 2
