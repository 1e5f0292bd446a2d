import math

import numpy as np
import pytest
import torch

from xaibench.metrics.ground_truth.mask_correlation import MaskCorrelation


def test_equals_numpy(linear, batch_for, scored):
    classifier = linear((1, 7, 8))
    batch = batch_for(classifier, 20, masks=torch.rand(20, 7, 8) < 0.3)
    maps = torch.randn(20, 7, 8) * 1e-6 + batch.masks * torch.linspace(-1e-6, 1e-6, 20).view(-1, 1, 1)
    ours = scored(MaskCorrelation(), classifier, batch, maps)["mask_correlation"]
    numpy = [np.corrcoef(m.flatten().double(), mask.flatten())[0, 1] for m, mask in zip(maps, batch.masks)]
    assert ours.tolist() == pytest.approx(numpy, abs=1e-9)
    assert ours.min() < -0.2 and ours.max() > 0.2


def test_graded_masks_count_by_how_much_each_pixel_matters(linear, batch_for, scored):
    classifier, masks = linear((1, 7, 8)), torch.rand(4, 7, 8).round(decimals=1)
    masks[3] = 0.5  # of one value
    batch, maps = batch_for(classifier, 4, masks=masks), torch.randn(4, 7, 8) + masks
    ours = scored(MaskCorrelation(), classifier, batch, maps)["mask_correlation"]
    numpy = [np.corrcoef(m.flatten().double(), mask.flatten())[0, 1] for m, mask in zip(maps[:3], masks)]
    assert ours[:3].tolist() == pytest.approx(numpy, abs=1e-6) and math.isnan(ours[3])


def test_a_constant_map_has_no_correlation(linear, batch_for, scored):
    classifier = linear((1, 5, 5))
    batch = batch_for(classifier, 1, masks=torch.eye(5, dtype=torch.bool)[None])
    assert math.isnan(scored(MaskCorrelation(), classifier, batch, torch.full((1, 5, 5), 0.1))["mask_correlation"])


def test_a_negated_map_is_as_wrong_as_the_map_is_right(linear, batch_for, scored):
    classifier = linear((1, 5, 5))
    batch = batch_for(classifier, 2, masks=torch.eye(5, dtype=torch.bool).expand(2, -1, -1))
    maps = torch.stack([batch.masks[0] * 3.0 + 1, -batch.masks[0].float()])
    assert scored(MaskCorrelation(), classifier, batch, maps)["mask_correlation"].tolist() == pytest.approx([1, -1])
