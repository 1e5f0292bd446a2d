"""Sparseness and complexity beside Quantus', which normalise nothing here."""

import numpy as np
import pytest
import torch

from xaibench.metrics.properties.complexity import Complexity
from xaibench.metrics.properties.sparseness import Sparseness
from xaibench.metrics.ranking import collapse

quantus = pytest.importorskip("quantus")


@pytest.mark.parametrize("metric, name", [(Sparseness(), "Sparseness"), (Complexity(), "Complexity")])
def test_equal(convnet, batch_for, scored, metric, name):
    classifier = convnet((1, 12, 12))
    classifier.module.float()
    batch = batch_for(classifier, 5)
    maps = torch.randn(5, 1, 12, 12)
    maps[1] = 1.0
    maps[2, :, :6] = 0.0
    theirs = getattr(quantus, name)(normalise=False, abs=True, disable_warnings=True, display_progressbar=False)
    expected = theirs(classifier.module, batch.inputs.numpy(), batch.targets.numpy(), maps.numpy(), device="cpu")
    ours = scored(metric, classifier, batch, collapse(maps, "sum", metric.sign))[name.lower()]
    np.testing.assert_allclose(ours, expected, atol=2e-6)
