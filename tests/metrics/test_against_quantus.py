"""Deletion beside Quantus' PixelFlipping: equal where it is right (one channel), and where it parts from ours."""

import numpy as np
import pytest
import torch

from xaibench.metrics.ranking import places
from xaibench.metrics.removal._perturbation import curve
from xaibench.metrics.removal.insertion_deletion import InsertionDeletion
from xaibench.perturb.perturbed import replacing
from xaibench.rng import sample_generators

quantus = pytest.importorskip("quantus")


def pixel_flipping(classifier, batch, maps, step):
    """Quantus' curves [B,X], which start after the first step."""
    metric = quantus.PixelFlipping(
        features_in_step=step, normalise=False, perturb_baseline=0.0, disable_warnings=True, display_progressbar=False
    )
    scores = metric(
        classifier.module,
        batch.inputs.numpy(),
        batch.targets.numpy(),
        maps[:, None].numpy(),
        device="cpu",
        softmax=True,
    )
    return np.array(scores)


def test_one_channel_is_equal(convnet, batch_for, scored):
    classifier = convnet((1, 12, 12))
    classifier.module.float()
    batch = batch_for(classifier, 4)
    maps = torch.randn(4, 12, 12)
    ours = scored(InsertionDeletion(steps=12), classifier, batch, maps)["deletion_curve"]
    np.testing.assert_allclose(pixel_flipping(classifier, batch, maps, step=12), ours[:, 1:], atol=1e-5)


def test_in_colour_quantus_flips_single_channels(convnet, batch_for):
    """It takes three times the steps, and after its first ones pixels are left with some channels replaced."""
    classifier = convnet((3, 12, 12))
    classifier.module.float()
    batch = batch_for(classifier, 4)
    maps = torch.randn(4, 12, 12)
    theirs = pixel_flipping(classifier, batch, maps, step=1)
    assert theirs.shape == (4, 3 * 144)
    order = places(maps, sample_generators(0, "test", batch.samples))
    ours = curve(
        classifier,
        batch.inputs,
        replacing(batch.inputs, torch.zeros_like(batch.inputs)),
        order,
        range(1, 145),
        batch.targets,
    )
    # After three flips each, the same pixel is gone, whichever order its channels went in; not so in between.
    np.testing.assert_allclose(theirs[:, 2::3], ours, atol=1e-5)
    assert np.abs(theirs[:, ::3] - ours.numpy()).max() > 1e-3
