"""Sensitivity-n beside Quantus' metric of that name, which measures something else."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.metrics.helpers import responded
from xaibench.datasets.base import Batch
from xaibench.methods.context import Context
from xaibench.metrics.removal.sensitivity_n import SensitivityN
from xaibench.models.classifier import Classifier

quantus = pytest.importorskip("quantus")


def test_quantus_gives_an_exact_map_less_than_one():
    """It walks pixels in order of relevance and correlates, over the samples, the drop so far with the last step's
    sum: an exact map of a linear model, whose score is 1 by the definition, gets far less."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    classifier = Classifier("linear", module, (1, 8, 8))
    inputs, targets = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    maps = module[1].weight[targets].view_as(inputs) * inputs
    metric = quantus.SensitivityN(
        n_max_percentage=0.8,
        normalise=False,
        abs=False,
        perturb_baseline=0.0,
        return_aggregate=False,
        disable_warnings=True,
        display_progressbar=False,
    )
    theirs = np.array(metric(module, inputs.numpy(), targets.numpy(), maps.numpy(), device="cpu", softmax=False))
    assert theirs[0] == pytest.approx(1, abs=1e-4)  # after one step, drop and sum are of the same pixel
    assert theirs.mean() < 0.8

    batch = Batch(tuple(range(8)), inputs, targets, targets, None, ())
    ours = SensitivityN(sets=20)
    responses = responded(ours, classifier, batch)
    columns = ours.evaluate(classifier, batch, maps[:, 0], Context(responses=responses))
    assert columns["sensitivity_n"].min() > 0.9999
