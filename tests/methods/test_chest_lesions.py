"""One lesion or two in generated lungs, and a detector of them that is written down: what IBA and its inverse keep."""

import pytest
import torch
from torch import nn

from xaibench.datasets.base import Samples
from xaibench.datasets.chest import FINDINGS, Chest
from xaibench.methods.bottleneck.iba import IBA
from xaibench.methods.bottleneck.iba_inverse import IBAInverse
from xaibench.methods.context import Context
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators

MASS = list(FINDINGS).index("mass")
COUNT = 12


def detector() -> Classifier:
    """Logits (0, f): f is above 0 where a disc is bright and the ring around it dark, and one such place is enough."""
    axis = torch.arange(-10.0, 11.0)
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    disc, ring = (radius <= 5).float(), ((radius > 7.5) & (radius <= 8.5)).float()
    contrast, pick, head = nn.Conv2d(3, 1, 21, padding=10, padding_mode="replicate"), nn.MaxPool2d(64), nn.Linear(1, 2)
    contrast.weight.data = (disc / disc.sum() - 2 * ring / ring.sum()).expand(1, 3, 21, 21) / 3
    contrast.bias.data = torch.tensor([0.03])
    head.weight.data, head.bias.data = torch.tensor([[0.0], [200.0]]), torch.tensor([0.0, -4.0])
    module = nn.Sequential(contrast, nn.ReLU(), pick, nn.Flatten(), head)
    return Classifier("detector", module, (3, 64, 64), layers={"bottleneck": "1"})


@pytest.fixture(scope="module", params=["none", "or"])
def world(request):
    """The redundancy, the detector, the statistics of its layer, and a batch of pictures with masses alone."""
    alone, network = tuple(float(k == MASS) for k in range(8)), detector()
    data = Chest(prevalence=alone, redundancy=request.param)
    half = Chest("train", prevalence=tuple(0.5 * share for share in alone), redundancy=request.param)
    fitted = IBA().fit(network, Samples(half, Preprocessing(), range(200)), torch.Generator())
    batch = Samples(data, Preprocessing(), range(COUNT)).load(range(COUNT))
    for samples in (batch, Samples(half, Preprocessing(), range(100)).load(range(100))):
        assert ((network.logits(samples.inputs)[:, 1] > 0) == (samples.vectors[:, MASS] > 0)).all()
    return request.param, network, fitted, data, batch


def shares(world, method) -> torch.Tensor:
    """Of each image's bits, the share in the neighbourhood of each copy of the mass: [B,copies], least first."""
    _, network, fitted, data, batch = world
    context = Context(sample_generators(0, "maps", batch.samples), fitted, samples=batch.samples)
    maps = method.attribute(network, batch.inputs, torch.ones(COUNT, dtype=torch.int64), context)[:, 0]
    found = []
    for one, sample in zip(maps, batch.samples):
        copies = torch.stack([torch.from_numpy(copy) for copy in data.draw(data.image_of(sample)).copies[MASS]])
        near = nn.functional.max_pool2d(copies.float()[:, None], 5, 1, 2)[:, 0] > 0  # two pixels around
        found.append(((one * near).flatten(1).sum(1) / one.sum()).sort().values)
    return torch.stack(found)


def test_one_lesion_holds_the_bits_and_of_two_the_inverse_keeps_both_more_often(world):
    redundancy, *_ = world
    iba, inverse = (shares(world, method) for method in (IBA(beta=1.0), IBAInverse(beta=1.0)))
    if redundancy == "none":
        # The neighbourhood is a twentieth of the picture.
        assert iba.median() > 0.95 and iba.min() > 0.6
        return
    lesser, lesser_inverse = (found[:, 0] / found.sum(1) for found in (iba, inverse))
    alone, alone_inverse = lesser < 0.25, lesser_inverse < 0.25
    # IBA keeps one copy of the two in half of the pictures; the inverse has both in some of these, and never the
    # other way round.
    assert (
        COUNT / 2 <= alone.sum() < COUNT and (alone & ~alone_inverse).sum() >= 2 and not (alone_inverse & ~alone).any()
    )
    assert lesser_inverse[alone].mean() > 2 * lesser[alone].mean()
