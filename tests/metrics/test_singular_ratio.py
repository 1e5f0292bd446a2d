"""The singular values of what a method does, against the Jacobian."""

import functools

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import AlphaBeta
from xaibench.metrics.rules.singular_ratio import SingularRatio
from xaibench.models.classifier import Classifier


def columns_of(metric, classifier, batch, method):
    propagate = functools.partial(method.propagate, classifier, context=Context())
    return metric.evaluate(classifier, batch, None, Context(propagate=propagate))


def test_the_gradients_matrix_is_the_jacobian(convnet, batch_for):
    classifier = convnet()
    batch = batch_for(classifier, 3)
    found = columns_of(SingularRatio(), classifier, batch, Gradient())
    above = classifier.module[2:]
    for row, image in enumerate(batch.inputs.split(1)):
        low = classifier.module[:2](image)
        sigma = np.linalg.svd(jacobian(above, low).reshape(4, -1).numpy(), compute_uv=False)
        assert found["ratio"][row] == pytest.approx(sigma[0] / sigma[1], rel=1e-9)
        assert found["digits"][row] == pytest.approx(np.log10(sigma[0] / sigma[1]), rel=1e-9)


def test_a_long_chain_of_the_z_plus_rule_has_rank_one(batch_for):
    """Theorem 1 again: the ratio goes to infinity, here to the end of float64."""
    layers = [torch.nn.Flatten()]
    for _ in range(20):
        layers += [torch.nn.Linear(36, 36).double(), torch.nn.ReLU()]
        torch.nn.init.uniform_(layers[-2].weight)
    classifier = Classifier("chain", torch.nn.Sequential(*layers[:-1]), (1, 6, 6))
    batch = batch_for(classifier, 2)
    batch.inputs.abs_()
    rule = LRP(AlphaBeta())
    assert (columns_of(SingularRatio(), classifier, batch, rule)["ratio"] > 1e12).all()
    near = columns_of(SingularRatio(layer="37"), classifier, batch, rule)["ratio"]
    assert (near < 1e3).all()


def test_nothing_arriving_is_undefined(convnet, batch_for):
    classifier = convnet()
    classifier.module[-1].weight.data.zero_()
    found = columns_of(SingularRatio(), classifier, batch_for(classifier, 2), Gradient())
    assert found["ratio"].isnan().all() and found["digits"].isnan().all()


def test_layers_and_refusals(convnet, linear):
    classifier = convnet()
    assert SingularRatio().cost(classifier) == (1, 4)
    assert SingularRatio(start="5", layer="3").cost(classifier) == (1, 32)
    SingularRatio().check(classifier)
    with pytest.raises(Refusal, match=r"metric\.start=1 has 1152 values in convnet: expected 2 to 1024"):
        SingularRatio(start="1", layer="0").check(classifier)
    with pytest.raises(Refusal, match="has 1 values"):
        SingularRatio().check(convnet(classes=1))
    with pytest.raises(Refusal, match=r"metric\.layer=7 is not below metric\.start=5 in convnet"):
        SingularRatio(start="5", layer="7").check(classifier)
    with pytest.raises(Refusal, match="no layer of the main path of linear has a name"):
        SingularRatio().check(linear())
