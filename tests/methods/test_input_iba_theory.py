"""Why input IBA's loss is a cross entropy: Proposition 4 and Theorem 5 of Khakzar 2022 (chapter 6), on Gaussians.

I[Y,Z] = E log(Phi(y|z) / p(y)) + E_z KL[p(y|z) || Phi(y|z)]. The first term is H(Y) less the loss that input IBA
computes, on noise that it draws; I[Y,Z] and the divergence are integrals over the densities that Remark 1 gives z.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from xaibench.methods.bottleneck._bottleneck import prediction_losses
from xaibench.methods.bottleneck.input_iba import InputBottleneck
from xaibench.models.classifier import Classifier

# Of two classes: how frequent they are, and the images' brightness, one pixel each, within them.
PRIOR, CENTRES, SPREAD = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), 0.8
# Of the noise, and what the generator lets through of the image.
MEAN, STD, GENERATED = 0.2, 1.3, 0.7
GRID = np.linspace(-12, 12, 20001)


def normal(mean, std):
    """The density on GRID."""
    return np.exp(-(((GRID - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def network(slope, offset):
    """Phi(1|z) = sigmoid(slope z + offset)."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double()
    module[1].weight.data = torch.tensor([[0.0], [slope]]).double()
    module[1].bias.data = torch.tensor([0.0, offset]).double()
    return Classifier("linear", module, (1, 1, 1), batch_size=10**6)


def loss(classifier, images, label, mask):
    """The mean cross entropy of images [n] with a mask, over the noise of the bottleneck on the input."""
    inputs = torch.as_tensor(images).view(-1, 1, 1, 1)
    one = torch.ones(1, 1, 1, 1).double()
    bottleneck = InputBottleneck(inputs, MEAN * one, STD * one, GENERATED * one, through=True)
    draws = [torch.Generator().manual_seed(0)] * len(inputs)
    logits = classifier.module(bottleneck.sample((1 - mask) * torch.ones_like(inputs), 100, draws))
    targets = torch.full((len(logits),), label)
    return float(prediction_losses("cross_entropy", classifier, logits, targets, 0.0).mean())


def parts(slope, offset, mask):
    """I[Y,Z], and the mean divergence of Phi from p(y|z), by integration."""
    kept = GENERATED * mask
    spread = math.hypot(kept * SPREAD, (1 - kept) * STD)
    given = np.array([normal(kept * centre + (1 - kept) * MEAN, spread) for centre in CENTRES])
    z = PRIOR @ given
    posterior = PRIOR[:, None] * given / z
    answers = 1 / (1 + np.exp(np.outer([1, -1], slope * GRID + offset)))
    divergence = (posterior * np.log(posterior / answers)).sum(0)
    step = GRID[1] - GRID[0]
    return (PRIOR @ (given * np.log(given / z))).sum() * step, (z * divergence).sum() * step


def bayes(mask):
    """Slope and offset of the posterior itself, in closed form."""
    kept = GENERATED * mask
    variance = (kept * SPREAD) ** 2 + ((1 - kept) * STD) ** 2
    low, high = kept * CENTRES + (1 - kept) * MEAN
    return (high - low) / variance, (low**2 - high**2) / (2 * variance) + math.log(PRIOR[1] / PRIOR[0])


@pytest.fixture(scope="module")
def images():
    """400 of each class, at the quantiles of their distribution."""
    places = torch.special.ndtri((torch.arange(400).double() + 0.5) / 400).numpy()
    return CENTRES[:, None] + SPREAD * places


@pytest.mark.parametrize("mask", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("best", [False, True])
def test_proposition_4_the_information_is_entropy_less_loss_plus_divergence(images, mask, best):
    """For any network; and for the best one, p(y|z) itself, the divergence is nothing."""
    slope, offset = bayes(mask) if best else (1.2, -0.4)
    classifier = network(slope, offset)
    cross_entropy = PRIOR @ [loss(classifier, images[label], label, mask) for label in (0, 1)]
    information, divergence = parts(slope, offset, mask)
    assert (divergence < 1e-9) if best else (divergence > 0.005)
    entropy = -(PRIOR @ np.log(PRIOR))
    assert entropy - cross_entropy + divergence == pytest.approx(information, abs=0.004)


def test_theorem_5_in_a_local_set_the_least_loss_is_the_least_divergence():
    """All neighbours of an image have its label and its z: p(y|z) is 1 for it, what z could tell of it is -log p(y)
    whatever the mask, and the loss is all that the network misses of that."""
    classifier, image, label = network(1.2, -0.4), 0.9, 1
    found = []
    for mask in (0.1, 0.4, 0.7, 0.95):
        kept = GENERATED * mask
        density = normal(kept * image + (1 - kept) * MEAN, (1 - kept) * STD)
        answer = 1 / (1 + np.exp(-(1.2 * GRID - 0.4)))
        divergence = -(density * np.log(answer)).sum() * (GRID[1] - GRID[0])
        first = -loss(classifier, np.full(400, image), label, mask) - math.log(PRIOR[label])
        assert first + divergence == pytest.approx(-math.log(PRIOR[label]), abs=0.01)
        found.append((first, divergence))
    firsts, divergences = np.array(found).T
    assert (np.diff(firsts) > 0).all() and (np.diff(divergences) < 0).all()
