"""Table 4's readout rows: against the optimum of a single image, and the masks of the method iba_readout."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from tests.methods.helpers import LAYER, samples
from tests.methods.nets import VGGLike, classifier, seeded
from xaibench.datasets.base import Batch, Dataset, Example, Samples
from xaibench.errors import Refusal
from xaibench.methods.bottleneck.iba_readout import IBAReadout
from xaibench.methods.context import Context
from xaibench.metrics.network.bottleneck_capacity import BottleneckCapacity
from xaibench.metrics.network.readout_capacity import ReadoutCapacity
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing

from .helpers import evaluated

READOUTS = [LAYER, "features.5", "logits"]


def batch_of(inputs, labels):
    ids = tuple(range(len(inputs)))
    return Batch(ids, inputs, labels, labels, None, (0,) * len(ids))


class Three(nn.Module):
    """Three channels of one place each; the logits are linear in them."""

    weights = ((1.5, -0.5, 0.2), (-0.5, 0.5, 0.2))

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Identity(), nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor(self.weights)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Copies(Dataset):
    """One image, many times."""

    image = torch.tensor([1.5, 1.0, -1.0]).view(3, 1, 1)

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return Example(self.image, 0)


def optimum(beta):
    """Of CE + beta times mean information for that image, by quadrature and a minimiser of scipy: the information per
    feature and the probability of class 0."""
    direction = np.subtract(*Three.weights)
    image = Copies.image.flatten().double().numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def parts(alpha):
        kept = 1 / (1 + np.exp(-alpha))
        mean, std = direction @ (kept * image), np.sqrt((direction**2 * (1 - kept) ** 2).sum())
        margin = mean + std * nodes
        entropy = weights @ np.log1p(np.exp(-margin)) / weights.sum()
        probability = weights @ (1 / (1 + np.exp(-margin))) / weights.sum()
        information = (0.5 * ((1 - kept) ** 2 + kept**2 * image**2 - 1) - np.log(1 - kept)).mean()
        return entropy, information, probability

    found = minimize(lambda alpha: parts(alpha)[0] + beta * parts(alpha)[1], np.zeros(3), method="Nelder-Mead")
    return parts(found.x)[1:]


def test_a_readout_of_one_image_finds_the_optimum_that_the_per_sample_bottleneck_finds():
    """Trained on one image alone it can say whatever it likes of it."""
    network = Classifier("three", Three().double(), (3, 1, 1), layers={"bottleneck": "features"}, batch_size=500)
    data = Samples(Copies(), Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3), range(64))
    moments = {"bottleneck.mean": torch.zeros(3, 1, 1), "bottleneck.std": torch.ones(3, 1, 1)}
    moments["bottleneck.active"] = torch.ones(3, 1, 1)
    shared = {"beta": 0.2, "betas": [0.2], "smoothing": 0.0, "initial": 0.0, "copies": 300}
    readout = ReadoutCapacity(**shared, readouts=["bottleneck"], epochs=50, batch_size=64, learning_rate=0.03)
    weights = readout.train(network, data, torch.Generator().manual_seed(0), moments)
    fitted = moments | {f"0.2 {name}": tensor for name, tensor in weights.items()}
    batch = batch_of(Copies.image[None].double(), torch.tensor([0]))
    trained = evaluated(readout, network, batch, None, fitted=fitted)
    alone = evaluated(BottleneckCapacity(**shared, steps=60, learning_rate=0.1), network, batch, None, fitted=moments)
    information, probability = optimum(0.2)
    for columns in (trained, alone):
        assert columns["information"].item() == pytest.approx(information, rel=0.1)
        assert columns["probability"].item() == pytest.approx(probability, abs=0.03)
    assert optimum(0.1)[0] > 1.3 * information and optimum(0.4)[0] < 0.7 * information


def test_each_beta_has_the_readout_that_the_method_would_train():
    """The information of a beta is that of iba_readout's maps with it, and less for a larger one."""
    network, inputs = classifier(VGGLike(), batch_size=4), seeded(6)
    batch = batch_of(inputs, torch.arange(6) % 5)
    shared = {"layer": LAYER, "readouts": READOUTS, "epochs": 3, "learning_rate": 1e-2}
    metric = ReadoutCapacity(**shared, betas=[0.0, 10.0], copies=2)
    fitted = metric.fit(network, samples(), torch.Generator().manual_seed(0))
    columns = evaluated(metric, network, batch, None, fitted=fitted)
    for place, beta in enumerate([0.0, 10.0]):
        method = IBAReadout(**shared, beta=beta)
        own = method.fit(network, samples(), torch.Generator().manual_seed(0))
        maps = method.attribute(network, inputs, batch.targets, Context(fitted=own))
        found = columns["information_curve"][:, place] * own[f"{LAYER}.mean"].numel() / math.log(2)
        torch.testing.assert_close(maps.sum((1, 2, 3)), found)
    assert columns["information_curve"].mean(0).diff() < 0
    torch.testing.assert_close(columns["information"], columns["information_curve"][:, 1])


def test_cost_and_refusals():
    network = classifier(VGGLike())
    settings = {"layer": LAYER, "readouts": READOUTS}
    assert ReadoutCapacity(**settings, betas=[0.1, 10.0]).cost(network) == (2 + 3 * 10, 0)
    ReadoutCapacity(**settings).check(network)
    with pytest.raises(Refusal, match="did you mean"):
        ReadoutCapacity(layer=LAYER, readouts=["featurs.5"]).check(network)
    with pytest.raises(Refusal, match=r"set metric\.layer="):
        ReadoutCapacity().check(classifier(VGGLike(), layers={}))
    for wrong in ({"betas": []}, {"copies": 0}, {"epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ReadoutCapacity(**wrong)
