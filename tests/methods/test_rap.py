"""Relative attributing propagation: a slow reference of its formulas, conservation, and signs."""

import functools

import pytest
import torch
from torch import nn

from tests.methods import dense, shapes
from tests.methods.nets import classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules.rap import RAP, Relative
from xaibench.models.classifier import Classifier
from xaibench.models.tracing.steps import Convolution

TARGETS = torch.tensor([4, 1, 0])
shaped = functools.cache(lambda name: classifier(shapes.shaped(name), shapes.SIZE))
FIRSTS = ["image_box", "square", "same"]


CONVOLUTIONS = (0, 3)  # of dense.network()


def slow(first, found, x, target, start, negative):
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
                by_negative = negative == "by_negative" and level in CONVOLUTIONS and relevance[k] < 0
                along = down if by_negative else up
                if along.sum() > 0:
                    got += along / along.sum() * relevance[k]
                if down.sum() > 0:
                    got += down / down.sum() * relevance[k] * down.sum() / (up.sum() + down.sum())
            reached = got != 0
            got[reached] -= (got.sum() - relevance.sum()) / reached.sum()
        relevance = got
    return relevance


@pytest.mark.parametrize("negative", ["alike", "by_negative"])
@pytest.mark.parametrize("start", ["logit", "one"])
@pytest.mark.parametrize("first", FIRSTS)
def test_equals_the_slow_reference(first, start, negative):
    """Inputs of both signs."""
    network = classifier(dense.network(), dense.SHAPE)
    found, inputs = dense.layers(network.module), seeded(3, dense.SHAPE)
    maps = RAP(first, start, negative).attribute(network, inputs, TARGETS, Context())
    for one, x, target in zip(maps, inputs, TARGETS):
        torch.testing.assert_close(one.flatten(), slow(first, found, x, int(target), start, negative))


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


def test_the_released_codes_convolutions_are_its_option():
    """Behind ReLUs, one convolution by hand: negative relevance goes through |x w-| once in full and once in the share
    of the negative contributions, and what that adds to the total is taken off all that got something."""
    weight = torch.tensor([[2.0, -1.0, -3.0]], dtype=torch.float64)
    step = Convolution("conv", (1,), weight[..., None, None], None, {
        "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1})  # fmt: skip
    x = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    output, signal = step(x), torch.full((1, 1, 1, 1), -7.0, dtype=torch.float64)
    # z+ = 2, |z-| = 2 + 3 = 5, so -7 (1 + 5 / 7) = -12 in proportion to (0, 2, 3), then 5 back in halves.
    (found,) = Relative(by_negative=True)(step, (x,), output, signal)
    expected = torch.tensor([0.0, -12 * 2 / 5 + 2.5, -12 * 3 / 5 + 2.5], dtype=torch.float64)
    torch.testing.assert_close(found.flatten(), expected)
    # As the paper: -7 to the positive one, -7 * 5 / 7 to the negative ones, then 5 back in thirds.
    (found,) = Relative()(step, (x,), output, signal)
    expected = torch.tensor([-7 + 5 / 3, -2 + 5 / 3, -3 + 5 / 3], dtype=torch.float64)
    torch.testing.assert_close(found.flatten(), expected)


def test_refusals():
    with pytest.raises(Refusal, match="flat has neither"):
        RAP().check(Classifier("flat", nn.Flatten(), (1, 2, 2)))
    with pytest.raises(ValueError, match="first=box"):
        RAP("box")
