"""Contrastive LRP and contrastive excitation backpropagation: slow references, and what they are made to do."""

import pytest
import torch
from torch import nn

from tests.methods import dense, shapes
from tests.methods.nets import classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules.contrastive import ContrastiveEBP, ContrastiveLRP
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import AlphaBeta, Epsilon
from xaibench.models.classifier import Classifier
from xaibench.models.cut import INPUT, LOGITS

TARGETS = torch.tensor([4, 1, 0])


def slow_zplus(found, values, relevance, last=None):
    """Relevance of the input by (w x)+ / sum (w x)+ in every affine layer, or by `last` in the uppermost one."""
    for level in range(len(found) - 1, -1, -1):
        (kind, *parts), x = found[level], values[level]
        if kind == "affine":
            shares = last if last is not None and level == len(found) - 1 else share(parts[0] * x)
            relevance = shares.T @ relevance
        elif kind == "max":
            below = torch.zeros_like(x)
            for k, window in enumerate(parts[0]):
                below[window[x[window].argmax()]] += relevance[k]
            relevance = below
    return relevance


def share(products):
    positive = products.clamp(min=0)
    return positive / positive.sum(1, keepdim=True).clamp(min=1e-300)


@pytest.fixture(scope="module")
def network():
    return classifier(dense.network(), dense.SHAPE)


def test_contrastive_lrp_equals_the_slow_reference(network):
    found, inputs = dense.layers(network.module), seeded(3, dense.SHAPE)
    signed = ContrastiveLRP(positive=False).attribute(network, inputs, TARGETS, Context())
    for one, x, target in zip(signed, inputs, TARGETS):
        values = dense.forward(found, x)
        chosen = nn.functional.one_hot(target, 5) * values[-1]
        own, others = (slow_zplus(found, values, r) for r in (chosen, values[-1] - chosen))
        torch.testing.assert_close(one.flatten(), own / own.sum() - others / others.sum())
    maps = ContrastiveLRP().attribute(network, inputs, TARGETS, Context())
    assert torch.equal(maps, signed.clamp(min=0))


def test_contrastive_ebp_equals_the_slow_reference(network):
    found, inputs = dense.layers(network.module), seeded(3, dense.SHAPE)
    maps = ContrastiveEBP().attribute(network, inputs, TARGETS, Context())
    for one, x, target in zip(maps, inputs, TARGETS):
        values = dense.forward(found, x)
        products = found[-1][1] * values[-2]
        last = share(products) - share(-products)
        hot = nn.functional.one_hot(target, 5).double()
        torch.testing.assert_close(one.flatten(), slow_zplus(found, values, hot, last))
        # What the last layer hands down arrives whole: 1 - 1, where its contributions have both signs.
        torch.testing.assert_close(one.sum(), last.sum(1)[target])


def test_maps_of_two_classes_differ_more_than_those_of_excitation_backpropagation():
    """What the subtraction is for: the map of plain z+ hardly depends on the class."""
    network = classifier(shapes.shaped("vgg"), shapes.SIZE)
    inputs, targets = seeded(2, shapes.SIZE), torch.tensor([0, 3])

    def similarity(method):
        first, second = (method.attribute(network, inputs, t, Context()) for t in (targets, (targets + 1) % 5))
        return nn.functional.cosine_similarity(first.flatten(1), second.flatten(1)).abs().max()

    assert similarity(LRP(AlphaBeta(), start="one")) > 0.99
    assert similarity(ContrastiveLRP(positive=False)) < 0.99
    assert similarity(ContrastiveEBP()) < 0.99


def test_the_rule_is_a_choice(network):
    inputs = seeded(2, dense.SHAPE)
    rule = Epsilon(0.0, bias="dropped")
    given = [torch.eye(5, dtype=torch.float64)[:2]], LOGITS, [INPUT], Context()
    (found,) = ContrastiveLRP(rule).propagate(network, inputs, *given)
    (expected,) = LRP(rule).propagate(network, inputs, *given)
    assert torch.equal(found["input"], expected["input"])


def test_refusals():
    flat = Classifier("flat", nn.Flatten(), (1, 2, 2))
    with pytest.raises(Refusal, match="flat has neither"):
        ContrastiveEBP().check(flat)
    for method in (ContrastiveEBP(), ContrastiveLRP()):
        with pytest.raises(Refusal, match="set output=logit"):
            method.check(classifier(dense.network(), dense.SHAPE, output="probability"))
