"""ROAD beside Quantus', without noise: equal on the first batch of grey images, and where that one goes wrong."""

import numpy as np
import pytest
import torch

from xaibench.metrics.removal import _perturbation
from xaibench.metrics.removal.road import Road

quantus = pytest.importorskip("quantus")

PERCENTAGES = [25, 50, 75]


def theirs(classifier, batch, maps, batch_size):
    """Quantus' accuracy at each percentage, most relevant first."""
    metric = quantus.ROAD(
        percentages=PERCENTAGES, noise=0.0, normalise=False, disable_warnings=True, display_progressbar=False
    )
    scores = metric(
        classifier.module,
        batch.inputs.numpy(),
        batch.targets.numpy(),
        maps[:, None].numpy(),
        device="cpu",
        batch_size=batch_size,
    )
    return [scores[percentage] for percentage in PERCENTAGES]


@pytest.fixture
def case(convnet, batch_for, monkeypatch):
    monkeypatch.setattr(_perturbation, "IMPUTATION_NOISE", 0.0)

    def make(channels):
        classifier = convnet((channels, 12, 12))
        classifier.module.float()
        batch = batch_for(classifier, 24)
        # Half of the images are predicted as their target to begin with, so that accuracies have room to move.
        predicted = classifier.logits(batch.inputs).argmax(1)
        batch.targets[:12] = predicted[:12]
        return classifier, batch, torch.randn(24, 12, 12)

    return make


def test_accuracy_is_equal_when_all_samples_are_one_batch(case, scored):
    classifier, batch, maps = case(1)
    ours = scored(Road(PERCENTAGES, output="accuracy"), classifier, batch, maps)["morf_curve"]
    assert 0 < ours.mean() < 1
    np.testing.assert_allclose(ours.mean(0), theirs(classifier, batch, maps, batch_size=24), atol=1e-6)


def test_theirs_is_the_score_of_the_first_batch(case, scored):
    classifier, batch, maps = case(1)
    ours = scored(Road(PERCENTAGES, output="accuracy"), classifier, batch, maps)["morf_curve"]
    first = theirs(classifier, batch, maps, batch_size=8)
    np.testing.assert_allclose(first, ours[:8].mean(0), atol=1e-6)
    assert not np.allclose(first, ours.mean(0), atol=0.05)


def test_theirs_fails_on_colour_with_one_map_per_image(case, scored):
    classifier, batch, maps = case(3)
    assert scored(Road(PERCENTAGES, output="accuracy"), classifier, batch, maps)["road"].isfinite().all()
    with pytest.raises(IndexError):
        theirs(classifier, batch, maps, batch_size=24)
