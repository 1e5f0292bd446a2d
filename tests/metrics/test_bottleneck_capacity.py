"""Table 4's quantities, on a network small enough to know them."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.methods.nets import SIZE
from xaibench.datasets.base import Batch, Samples
from xaibench.datasets.shapes import Shapes
from xaibench.errors import Refusal
from xaibench.methods.bottleneck.iba import IBA
from xaibench.methods.context import Context
from xaibench.metrics.network.bottleneck_capacity import BottleneckCapacity
from xaibench.models import checkpoint, smallcnn
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators

from .helpers import evaluated


class Quadrants(nn.Module):
    """Class k is the brightness of quadrant k."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        nn.init.constant_(self.features.weight, 1.0)

    def forward(self, x):
        return 4 * self.pool(self.features(x)).mean(1).flatten(1)


@pytest.fixture
def network():
    return Classifier("quadrants", Quadrants().double(), SIZE, layers={"bottleneck": "features"}, batch_size=64)


@pytest.fixture
def batch():
    inputs, labels = torch.randn(6, *SIZE).double() * 0.3, torch.arange(6) % 4
    for image, k in zip(inputs, labels.tolist()):
        image[:, 8 * (k // 2) :, 8 * (k % 2) :][:, :8, :8] += 2
    return Batch(tuple(range(6)), inputs, labels, labels, None, (0,) * 6)


FITTED = {
    "bottleneck.mean": torch.zeros(4, 16, 16),
    "bottleneck.std": torch.full((4, 16, 16), 1.5),
    "bottleneck.active": torch.ones(4, 16, 16),
}


def evaluate(metric, network, batch, ids=range(6)):
    ids = list(ids)
    part = Batch(tuple(ids), batch.inputs[ids], batch.labels[ids], batch.targets[ids], None, (0,) * len(ids))
    return evaluated(metric, network, part, None, fitted=FITTED)


def test_information_falls_with_beta_and_accuracy_with_it(network, batch):
    metric = BottleneckCapacity(betas=[0.01, 0.1, 1.0, 10.0, 1e4])
    columns = evaluate(metric, network, batch)
    curves = {name: columns[name].mean(0) for name in metric.axes(network)}
    assert (curves["information_curve"].diff() < 0).all()
    assert curves["top1_curve"][0] == 1 and columns["clean_top1"].mean() == 1
    assert curves["top1_curve"][-1] < 0.9 and curves["information_curve"][-1] < 0.01
    assert (columns["top5_curve"] == 1).all()  # four classes
    assert torch.equal(metric.axes(network)["top1_curve"], torch.tensor([0.01, 0.1, 1, 10, 1e4], dtype=torch.float64))
    for statistic in metric.statistics:
        assert columns[statistic.column].shape == (6,)


def test_values_are_those_of_iba_and_of_the_closed_form(network, batch):
    columns = evaluate(BottleneckCapacity(betas=[1.0], beta=3.0, smoothing=0.0), network, batch)
    standardised = (network.module.features(batch.inputs) / 1.5).square().flatten(1).mean(1)
    share = 1 - 1 / (1 + math.exp(-5))
    expected = 0.5 * (share**2 + (1 - share) ** 2 * standardised - 1) - math.log(share)
    torch.testing.assert_close(columns["initial_information"], expected)
    seeds = [torch.randint(2**62, (1,), generator=g) for g in sample_generators(0, "metric", range(6))]
    draws = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    maps = IBA(beta=3.0, smoothing=0.0).attribute(network, batch.inputs, batch.targets, Context(draws, fitted=FITTED))
    torch.testing.assert_close(columns["information"], maps.sum((1, 2, 3)) * math.log(2) / (4 * 16 * 16))


def test_the_start_and_probabilities_are_those_of_the_noise_by_hand(network, batch):
    """Copies of features with the noise that alpha = 5 and the found masks leave, drawn in the metric's order."""
    metric = BottleneckCapacity(betas=[1.0], beta=1.0, smoothing=0.0, copies=7)
    columns = evaluate(metric, network, batch)
    features = network.module.features(batch.inputs)

    def noisy(shares):
        """Probabilities [6,7,4] of features with a share of noise each."""
        seeds = [torch.randint(2**62, (1,), generator=g) for g in sample_generators(0, "metric", range(6))]
        draws = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        drawn = torch.stack([torch.randn(7, 4, 16, 16, generator=g) for g in draws]).double() * 1.5
        z = (1 - shares) * features[:, None] + shares * drawn
        return (4 * network.module.pool(z.flatten(0, 1)).mean(1).flatten(1)).softmax(-1).view(6, 7, 4)

    share = torch.tensor(1 / (1 + math.exp(5)), dtype=torch.float64)
    answers = noisy(share)
    own = answers.gather(2, batch.targets.view(-1, 1, 1).expand(-1, 7, 1))[..., 0]
    torch.testing.assert_close(columns["initial_probability"], own.mean(1), rtol=1e-6, atol=1e-9)
    hits = (answers.argmax(2) == batch.targets[:, None]).double().mean(1)
    assert columns["initial_top1"].tolist() == pytest.approx(hits.tolist())
    clean = (4 * network.module.pool(features).mean(1).flatten(1)).softmax(-1)
    torch.testing.assert_close(columns["clean_probability"], clean[range(6), batch.targets])
    torch.testing.assert_close(columns["probability_curve"][:, 0], columns["probability"])


def test_a_real_network_keeps_less_with_beta_and_its_predictions_down_to_the_theses_choice():
    """The order of Table 4 on the bundled network: accuracy holds up to beta 10 and is gone at 100."""
    weights = Path(smallcnn.__file__).parent / "checkpoints" / "smallcnn_object.safetensors"
    module = smallcnn.SmallCNN()
    module.load_state_dict(checkpoint.read(weights, "weights"))
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)
    network = Classifier("smallcnn", module, (3, 64, 64), preprocessing, layers={"bottleneck": "features.6"})
    batch = Samples(Shapes(split="test"), preprocessing, range(5)).load(range(5))
    metric = BottleneckCapacity(betas=[1.0, 10.0, 100.0])
    fitted = metric.fit(network, Samples(Shapes(split="train"), preprocessing, range(64)), torch.Generator())
    columns = evaluated(metric, network, batch, None, fitted=fitted)
    assert (columns["information_curve"].mean(0).diff() < 0).all()
    accuracy = columns["top1_curve"].mean(0)
    assert accuracy[0] > 0.95 and accuracy[1] > 0.75 and accuracy[2] < 0.5
    assert 4 < columns["initial_information"].mean() < 6  # nats; the thesis prints 2.500


def test_samples_and_betas_do_not_depend_on_each_other(network, batch):
    whole = evaluate(BottleneckCapacity(betas=[0.1, 1.0]), network, batch)
    network.batch_size = 7
    parts = [evaluate(BottleneckCapacity(betas=[1.0, 0.1]), network, batch, ids) for ids in ([3, 1], [5, 0, 4, 2])]
    together = {name: torch.cat([part[name] for part in parts])[[3, 1, 5, 0, 4, 2]] for name in whole}
    for name, column in whole.items():
        expected = together[name].flip(1) if name.endswith("_curve") else together[name]
        torch.testing.assert_close(column, expected, rtol=1e-8, atol=1e-8)


def test_cost_and_refusals(network):
    assert BottleneckCapacity(betas=[0.1, 1.0]).cost(network) == (11 + 3 * 111, 300)
    assert BottleneckCapacity(betas=[0.1, 10.0]).cost(network) == (11 + 2 * 111, 200)
    BottleneckCapacity().check(network)
    network.layers = {}
    with pytest.raises(Refusal, match=r"set metric\.layer="):
        BottleneckCapacity().check(network)
    for wrong in ({"betas": []}, {"betas": [-1.0]}, {"copies": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BottleneckCapacity(**wrong)
