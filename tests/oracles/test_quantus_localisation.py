"""Localisation metrics beside Quantus': equal where definitions agree, and where they part, by how much."""

import numpy as np
import pytest
import torch

from tests.metrics.helpers import evaluated
from xaibench.datasets.base import Batch
from xaibench.metrics.ground_truth.mass_accuracy import MassAccuracy
from xaibench.metrics.ground_truth.pointing_game import PointingGame
from xaibench.metrics.ground_truth.rank_accuracy import RankAccuracy
from xaibench.metrics.ground_truth.roc_auc import RocAuc
from xaibench.metrics.ranking import collapse

quantus = pytest.importorskip("quantus")

pytestmark = pytest.mark.filterwarnings("ignore:.*segmentation")


def both(metric, oracle, maps, masks):
    """(ours, theirs): arrays of the scores of maps [B,H,W] against masks [B,H,W], both without abs or rescaling."""
    inputs, targets = torch.randn_like(maps)[:, None], torch.zeros(len(maps), dtype=torch.int64)
    batch = Batch(tuple(range(len(maps))), inputs, targets, targets, masks, (0,) * len(maps))
    read = collapse(maps[:, None], "sum", metric.sign)
    (ours,) = evaluated(metric, None, batch, read).values()
    theirs = oracle(abs=False, normalise=False, disable_warnings=True)(
        torch.nn.Flatten(),
        inputs.numpy(),
        targets.numpy(),
        maps[:, None].numpy(),
        masks[:, None].numpy(),
        device="cpu",
    )
    return ours.numpy(), np.asarray(theirs, dtype=float)


@pytest.fixture
def untied():
    return torch.randn(40, 9, 11), torch.rand(40, 9, 11) < 0.3


@pytest.mark.parametrize(
    "metric, oracle",
    [(PointingGame(), "PointingGame"), (RankAccuracy(), "RelevanceRankAccuracy"), (RocAuc(), "AUC")],
)
def test_equal_without_ties(untied, metric, oracle):
    ours, theirs = both(metric, getattr(quantus, oracle), *untied)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert len(set(ours)) > 1


def test_roc_auc_is_equal_with_ties():
    maps, masks = torch.randint(-1, 3, (30, 9, 11)).float(), torch.rand(30, 9, 11) < 0.3
    np.testing.assert_allclose(*both(RocAuc(), quantus.AUC, maps, masks), rtol=0, atol=1e-12)


def test_mass_accuracy_is_their_ratio_when_signed(untied):
    ours, theirs = both(MassAccuracy(sign="signed"), quantus.RelevanceMassAccuracy, *untied)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)  # theirs adds up in single precision
    maps, masks = untied
    np.testing.assert_allclose(*both(MassAccuracy(), quantus.RelevanceMassAccuracy, maps.abs(), masks), rtol=1e-5)


def test_their_mass_accuracy_leaves_zero_to_one_on_signed_maps(untied):
    """Their README takes positive attributions only, as ours does by default; their code takes the signed ratio."""
    ours, theirs = both(MassAccuracy(), quantus.RelevanceMassAccuracy, *untied)
    assert (ours > 0).all() and (ours < 1).all()
    assert (theirs < 0).any() and (theirs > 1).any() and np.abs(ours - theirs).max() > 1


def test_ties_are_hits_for_them_and_luck_for_us():
    """One tied maximum on the object is enough for their pointing game; their rank accuracy takes argsort's order."""
    maps, masks = torch.ones(400, 5, 5), torch.zeros(400, 5, 5, dtype=torch.bool)
    maps[:, 4, 4], masks[:, 0] = 0, True
    chance = 5 / 24
    ours, theirs = both(PointingGame(), quantus.PointingGame, maps, masks)
    assert theirs.all() and abs(ours.mean() - chance) < 4 * (chance * (1 - chance) / 400) ** 0.5
    ours, theirs = both(RankAccuracy(), quantus.RelevanceRankAccuracy, maps, masks)
    assert len(set(theirs)) == 1 and len(set(ours)) > 3 and abs(ours.mean() - chance) < 4 * ours.std() / 20


def test_an_empty_mask_hits_in_theirs_and_is_undefined_in_ours():
    """They write NaN into an array of booleans, where it is True."""
    ours, theirs = both(
        PointingGame(), quantus.PointingGame, torch.randn(3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.bool)
    )
    assert np.isnan(ours).all() and theirs.tolist() == [1, 1, 1]
