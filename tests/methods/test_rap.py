"""Relative attributing propagation: a slow reference of its formulas, conservation, and signs."""

import functools

import pytest
import torch
from torch import nn

from tests.methods import dense, shapes
from tests.methods.nets import classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules.rap import RAP
from xaibench.models.classifier import Classifier

TARGETS = torch.tensor([4, 1, 0])
shaped = functools.cache(lambda name: classifier(shapes.shaped(name), shapes.SIZE))
FIRSTS = ["image_box", "square", "same"]


def slow(first, found, x, target, start):
    """Relevance of one sample's values, neuron by neuron. Layers are the network's matrices."""
    values = dense.forward(found, x)
    relevance = torch.zeros_like(values[-1])
    relevance[target] = values[-1][target] if start == "logit" else 1
    for level in range(len(found) - 1, -1, -1):
        (kind, *parts), x = found[level], values[level]
        got = torch.zeros_like(x)
        if kind == "relu":
            got = relevance
        elif kind == "max":
            for k, window in enumerate(parts[0]):
                got[window[x[window].argmax()]] += relevance[k]
        elif level == len(found) - 1:
            for k, w in enumerate(parts[0]):
                got += w * x / (w * x).sum() * relevance[k]
            got = got.abs() / got.abs().sum() * got.sum()
        elif level == 0 and first != "same":
            for k, w in enumerate(parts[0]):
                z = w**2 if first == "square" else x * w - x.min() * w.clamp(min=0) - x.max() * w.clamp(max=0)
                got += z / z.sum() * relevance[k]
        else:
            for k, w in enumerate(parts[0]):
                up, down = (w * x).clamp(min=0), -(w * x).clamp(max=0)
                if up.sum() > 0:
                    got += up / up.sum() * relevance[k]
                if down.sum() > 0:
                    got += down / down.sum() * relevance[k] * down.sum() / (up.sum() + down.sum())
            reached = got != 0
            got[reached] -= (got.sum() - relevance.sum()) / reached.sum()
        relevance = got
    return relevance


@pytest.mark.parametrize("start", ["logit", "one"])
@pytest.mark.parametrize("first", FIRSTS)
def test_equals_the_slow_reference(first, start):
    """Inputs of both signs."""
    network = classifier(dense.network(), dense.SHAPE)
    found, inputs = dense.layers(network.module), seeded(3, dense.SHAPE)
    maps = RAP(first, start).attribute(network, inputs, TARGETS, Context())
    for one, x, target in zip(maps, inputs, TARGETS):
        torch.testing.assert_close(one.flatten(), slow(first, found, x, int(target), start))


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet"])
def test_a_map_sums_to_the_logit_and_has_both_signs(name, first):
    """Shapes of real networks, signed inputs; a sample alone as among others."""
    network = shaped(name)
    inputs, targets = seeded(2, shapes.SIZE), torch.tensor([3, 1])
    maps = RAP(first).attribute(network, inputs, targets, Context())
    torch.testing.assert_close(maps.sum((1, 2, 3)), network.scores(inputs, targets), rtol=1e-8, atol=1e-8)
    assert ((maps > 0).flatten(1).any(1) & (maps < 0).flatten(1).any(1)).all()
    alone = RAP(first).attribute(network, inputs[1:], targets[1:], Context())
    torch.testing.assert_close(alone, maps[1:], rtol=1e-9, atol=1e-12)


def test_refusals():
    with pytest.raises(Refusal, match="flat has neither"):
        RAP().check(Classifier("flat", nn.Flatten(), (1, 2, 2)))
    with pytest.raises(ValueError, match="first=box"):
        RAP("box")
