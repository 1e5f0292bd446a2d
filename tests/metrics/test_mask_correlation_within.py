import math

import numpy as np
import pytest
import torch

from xaibench.datasets.base import Samples
from xaibench.datasets.chest import Chest
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.controls.controls import Centre, Region, Row
from xaibench.metrics.ground_truth.mask_correlation_within import MaskCorrelationWithin
from xaibench.models.preprocessing import Preprocessing

DATA = Chest(task="global")
IDS = [k for k in range(20) if len(set(DATA[k].labels.tolist())) > 1][:6]  # images whose zones differ
SAMPLES = Samples(DATA, Preprocessing(), IDS)


def scores(maps: torch.Tensor) -> list[float]:
    columns = MaskCorrelationWithin().evaluate(None, SAMPLES.load(IDS), maps, Context(data=SAMPLES))
    return columns["mask_correlation_within"].tolist()


def control(method) -> torch.Tensor:
    batch = SAMPLES.load(IDS)
    return method.attribute(None, batch.inputs, batch.targets, Context(samples=IDS, data=SAMPLES))[:, 0]


def test_equals_numpy_over_the_pixels_of_the_lungs():
    maps, lungs = torch.randn(6, 64, 64) + 1, DATA.regions(IDS)["lungs"]
    masks = [DATA[k].mask for k in IDS]
    expected = [np.corrcoef(m[inside].double(), mask[inside].double())[0, 1]
                for m, mask, inside in zip(maps, masks, lungs)]  # fmt: skip
    assert scores(maps) == pytest.approx(expected, abs=1e-9)
    # What lies outside, however large, counts nothing, and neither does the scale.
    assert scores(7 * maps + 1000 * ~lungs - 3) == pytest.approx(expected, abs=1e-4)


def test_the_truth_is_right_and_the_bare_lungs_know_nothing():
    assert scores(torch.stack([DATA[k].mask for k in IDS])) == pytest.approx([1] * 6)
    assert all(math.isnan(score) for score in scores(control(Region())))
    alike = [next(k for k in range(99) if set(DATA[k].labels.tolist()) == {3.0})]
    batch, context = SAMPLES.load(alike), Context(data=SAMPLES)
    columns = MaskCorrelationWithin().evaluate(None, batch, torch.randn(1, 64, 64), context)
    assert math.isnan(columns["mask_correlation_within"])


def test_controls_by_hand():
    assert control(Row())[0, :3, 0].tolist() == [0, 1, 2]
    assert torch.equal(control(Region("C")).bool(), DATA.regions(IDS)["C"])
    blob = control(Centre(width=0.5))
    # A quarter of the side from the middle both ways: exp(-(0.5^2 + 0.5^2) / 2), half a pixel further out.
    offset = (16.5 / 64 / 0.5) ** 2
    assert blob[3, 15, 48].item() == pytest.approx(math.exp(-offset), abs=1e-6) and blob.argmax() % 4096 // 64 in (
        31,
        32,
    )


def test_a_region_that_is_none_is_refused():
    with pytest.raises(Refusal, match="did you mean 'lungs'"):
        MaskCorrelationWithin("lung").check_data(DATA)
    with pytest.raises(Refusal, match="did you mean 'lungs'"):
        control(Region("lung"))
    with pytest.raises(Refusal, match="it has none"):
        Region().attribute(None, torch.zeros(1, 3, 4, 4), torch.zeros(1), Context())
