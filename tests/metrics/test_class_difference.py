"""The difference of the maps of two classes, by hand and by numpy."""

import numpy as np
import pytest
import torch

from xaibench.errors import Refusal
from xaibench.metrics.randomisation.class_difference import ClassDifference

from .helpers import evaluated

SIZE = (1, 12, 12)


def columns_of(metric, classifier, batch, attribute):
    """The columns: attribute(targets) -> maps."""

    def explain(inputs, targets, purpose, masks=None):
        assert inputs is batch.inputs and purpose == ""
        return attribute(targets)

    return evaluated(metric, classifier, batch, attribute(batch.targets), explain=explain)


def test_differences_are_numpys(linear, batch_for):
    classifier = linear(SIZE)
    batch = batch_for(classifier, 5)
    maps = torch.randn(4, 5, 12, 12).double() ** 3
    metric = ClassDifference(percentile=90.0, sign="signed")
    found = columns_of(metric, classifier, batch, lambda targets: maps[targets, range(5)])
    classes = metric.other.of(classifier, batch, [])
    for row in range(5):
        pair = [maps[k, row].numpy() for k in (int(batch.targets[row]), int(classes[row]))]
        first, second = (np.clip(m / np.percentile(np.abs(m), 90), -1, 1) for m in pair)
        assert found["difference"][row] == pytest.approx(np.abs(first - second).mean(), rel=1e-12)
        # Two independent draws of the first map's pixels differ by this much on average.
        apart = np.abs(first.reshape(-1, 1) - first.reshape(1, -1)).mean()
        assert found["shuffled"][row] == pytest.approx(apart, rel=0.15)
    torch.testing.assert_close(found["relative"], found["difference"] / found["shuffled"])


def test_a_map_without_the_class_differs_by_nothing_and_its_size_does_not_matter(linear, batch_for):
    classifier = linear(SIZE)
    batch = batch_for(classifier, 3)
    image = batch.inputs[:, 0].abs()
    found = columns_of(ClassDifference(), classifier, batch, lambda targets: image * (targets + 1.0)[:, None, None])
    assert (found["difference"] < 1e-15).all() and (found["shuffled"] > 0.1).all()
    flat = columns_of(ClassDifference(), classifier, batch, lambda targets: torch.zeros_like(image))
    assert (flat["difference"] == 0).all() and flat["relative"].isnan().all()


def test_a_few_pixels_on_zeros_are_scaled_by_the_largest(linear, batch_for):
    """The percentile of nearly empty maps is 0: one pixel each, at different places, of 144."""
    classifier = linear(SIZE, classes=2)
    batch = batch_for(classifier, 2)
    maps = torch.zeros(2, 2, 12, 12).double()
    maps[0, :, 0, 0], maps[1, :, 5, 5] = 7.0, 0.1
    found = columns_of(ClassDifference(percentile=99.0), classifier, batch, lambda targets: maps[targets, range(2)])
    torch.testing.assert_close(found["difference"], torch.full((2,), 2 / 144).double())


def test_a_fixed_pair_and_mistakes(linear, batch_for):
    classifier = linear(SIZE)
    batch = batch_for(classifier, 12)
    fixed = ClassDifference(other="fixed:2")
    fixed.check(classifier)
    found = columns_of(fixed, classifier, batch, lambda targets: batch.inputs[:, 0])
    assert torch.equal(found["difference"].isnan(), batch.targets == 2) and (batch.targets == 2).any()
    with pytest.raises(Refusal, match=r"metric\.other=fixed:4: linear has classes 0 to 3"):
        ClassDifference(other="fixed:4").check(classifier)
    with pytest.raises(Refusal, match="no other class"):
        ClassDifference().check(linear(SIZE, classes=1))
    for wrong, message in ((("secnd", 50.0), "did you mean 'second'"), (("second", 0.0), "percentile=0")):
        with pytest.raises(ValueError, match=message):
            ClassDifference(*wrong)
