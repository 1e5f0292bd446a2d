"""Agreement with counterfactuals against scipy, loops over pixels, and maps that are the reference itself."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.methods.test_counterfactual import SIDE, images, network
from tests.metrics.helpers import evaluated
from xaibench.datasets.base import Samples
from xaibench.datasets.two4two import Two4Two
from xaibench.errors import Refusal, UserError
from xaibench.metrics.network.counterfactual_agreement import CounterfactualAgreement, agreement, difference
from xaibench.models.invertible import Line
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators


class Small(Two4Two):
    """Two4Two at the smallest size, cut to the test's."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return type(example)(example.image[:, 4:12, 4:12], example.label)


@pytest.fixture
def data() -> Samples:
    Small.has_masks = False
    return Samples(Small(side=16), Preprocessing(), range(20))


def draws(count: int) -> list[torch.Generator]:
    return sample_generators(0, "metric", range(count))


def test_statistics_equal_scipy_and_a_loop_over_pixels():
    maps = torch.rand(4, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round(decimals=1)
    reference = torch.rand(4, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = agreement(maps, reference, 0.1, draws(4))
    for row in range(4):
        one, other = maps[row].numpy(), reference[row].numpy()
        assert found["spearman"][row].item() == pytest.approx(stats.spearmanr(one, other).statistic)
        best = set(np.argsort(-other)[:6])
        assert found["mass"][row].item() == pytest.approx(sum(one[pixel] for pixel in best) / one.sum())
        # Ties are broken at random: the overlap is one of those that an order of them gives.
        edge = np.sort(one)[-6]
        sure, tied = set(np.flatnonzero(one > edge)), set(np.flatnonzero(one == edge))
        least = len(best & sure) + max(0, 6 - len(sure) - len(tied - best))
        most = len(best & sure) + min(len(tied & best), 6 - len(sure))
        assert least <= round(6 * found["overlap"][row].item()) <= most
    flat = agreement(torch.ones(1, 60), reference[:1], 0.1, draws(1))
    assert all(values.isnan().all() for values in flat.values())


def test_the_reference_agrees_with_itself_and_gains_over_both_controls(data):
    net, metric = network(classes=2), CounterfactualAgreement(quantile=0.5, top=0.25)
    batch = data.load(range(6))
    batch = type(batch)(batch.samples, batch.inputs.double(), batch.labels, batch.labels, None, batch.crc)
    fitted = metric.fit(net, data, None)
    logits = torch.cat([net.logits(part.inputs) for part in data])
    torch.testing.assert_close(fitted["margins"], (logits[:, 1] - logits[:, 0]).abs())
    line = Line.of(net, batch.inputs, batch.targets, "test")
    sure = fitted["margins"].quantile(0.5)
    reference = difference(line.at(sure.expand(6)), line.at(-sure.expand(6)))
    columns = evaluated(metric, net, batch, reference, data=data, fitted=fitted)
    assert {statistic.column for statistic in metric.statistics} == set(columns)
    torch.testing.assert_close(columns["spearman"], torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(columns["overlap"], torch.ones(6, dtype=torch.float64))
    for name in ("spearman", "overlap", "mass"):
        controls = torch.maximum(columns[f"{name}_random"], columns[f"{name}_other"])
        assert (controls <= columns[name]).all() and controls.mean() < columns[name].mean()
        torch.testing.assert_close(columns[f"{name}_gain"], columns[name] - controls)


def test_the_other_image_is_the_next_sample(data):
    """A map that is the next sample's reference agrees wholly with that control."""
    net, metric = network(classes=2), CounterfactualAgreement(quantile=0.5)
    batch, following = data.load([0, 7]), data.load([1, 8])
    fitted = metric.fit(net, data, None)
    line = Line.of(net, following.inputs.double(), batch.targets, "test")
    sure = fitted["margins"].quantile(0.5).expand(2)
    maps = difference(line.at(sure), line.at(-sure))
    columns = evaluated(metric, net, _double(batch), maps, data=_Double(data), fitted=fitted)
    torch.testing.assert_close(columns["spearman_other"], torch.ones(2, dtype=torch.float64))
    assert (columns["spearman"] < 1).all() and (columns["spearman_gain"] < 0).all()


def _double(batch):
    return type(batch)(batch.samples, batch.inputs.double(), batch.labels, batch.targets, None, batch.crc)


class _Double:
    """Samples whose inputs are float64."""

    def __init__(self, samples: Samples) -> None:
        self.samples, self.dataset = samples, samples.dataset

    def load(self, ids):
        return _double(self.samples.load(ids))


def test_what_cannot_be_is_refused(linear):
    with pytest.raises(Refusal, match="metric=counterfactual_agreement runs the network backwards, and linear has no"):
        CounterfactualAgreement().check(linear())
    with pytest.raises(ValueError, match=r"quantile=1\.0: expected a share between 0 and 1"):
        CounterfactualAgreement(quantile=1.0)
    assert images(1).shape[2] == SIDE and issubclass(Refusal, UserError)


def test_a_run_from_the_command_line(xaibench):
    cell = ("model=two4two_inn", "dataset=two4two", "method=counterfactual", "metric=counterfactual_agreement")
    code, out, err = xaibench("run", *cell, "model.weights=random", "dataset.limit=2", "fit.limit=4")
    assert code == 0, err
    assert "spearman_gain" in out
