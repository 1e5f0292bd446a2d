"""Cosine similarity convergence where it is known: by hand, by theory, and against autograd."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import AlphaBeta
from xaibench.metrics.rules.csc import EDGES, CosineConvergence, cosines, random_baseline
from xaibench.models.classifier import Classifier
from xaibench.rng import sample_generators

from .helpers import evaluated

WIDTH = 64


def columns_of(metric, classifier, batch, method=None):
    """The columns of a method, the gradient unless one is given."""
    propagate = functools.partial((method or Gradient()).propagate, classifier, context=Context())
    return evaluated(metric, classifier, batch, None, propagate=propagate)


def chain(weights, rectified: bool) -> Classifier:
    """Linear layers of the given weights, the colours of 8x8 pixels first, with ReLUs between them or without."""
    layers: list[nn.Module] = [nn.Flatten()]
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
        layer.weight.data.copy_(weight)
        layers += [layer, nn.ReLU()] if rectified else [layer]
    return Classifier("chain", nn.Sequential(*layers[: -1 if rectified else None]), (1, 8, 8))


def test_a_chain_of_non_negative_layers_converges(batch_for):
    """Theorem 1: what the z+ rule hands down is one vector, above 1 - 1e-6, whatever it was handed."""
    weights = [torch.randn(WIDTH, WIDTH).double() for _ in range(12)]
    classifier = chain(weights, rectified=True)
    batch = batch_for(classifier, 4)
    batch.inputs.abs_()
    found = columns_of(CosineConvergence(), classifier, batch, LRP(AlphaBeta()))
    assert (found["cosine"] > 1 - 1e-6).all()
    # It gets closer with each layer, by every start, and the worst pairs do too.
    for start in CosineConvergence().paths(classifier):
        assert (found[f"median_from_{start}"].diff(dim=1) < 1e-12).all(), start
    assert (found["low_from_logits"][:, 0] > 1 - 1e-6).all()
    # Not so the gradient of the same network, at the same places.
    assert (columns_of(CosineConvergence(), classifier, batch)["cosine"] < 0.9).all()


def test_orthogonal_layers_leave_the_cosine_as_it_was(batch_for):
    weights = [nn.init.orthogonal_(torch.empty(WIDTH, WIDTH).double()) for _ in range(8)]
    classifier = chain(weights, rectified=False)
    found = columns_of(CosineConvergence(vectors=30), classifier, batch_for(classifier, 10))
    curve = found["median_from_logits"]
    torch.testing.assert_close(curve, curve[:, :1].expand_as(curve), rtol=1e-9, atol=0)
    # 435 pairs each, of which 10 images have the median: it is random_baseline(64) = 0.085.
    assert found["above_random"].mean().abs() < 0.01 and (found["above_random"].abs() < 0.05).all()


def test_what_goes_through_one_number_is_one_vector(batch_for):
    """A matrix of rank 1: exactly 1, by the gradient too, and only below it."""
    narrow = [(WIDTH, WIDTH), (1, WIDTH), (WIDTH, 1), (10, WIDTH)]
    classifier = chain([torch.randn(shape).double() for shape in narrow], rectified=False)
    found = columns_of(CosineConvergence(start=["logits"]), classifier, batch_for(classifier, 3))
    torch.testing.assert_close(found["median_from_logits"][:, :2], torch.ones(3, 2).double(), rtol=1e-12, atol=0)
    assert (found["median_from_logits"][:, 2] < 0.9).all()


def test_cosines_are_those_of_autograd_place_by_place(convnet, batch_for):
    classifier = convnet()
    batch, module = batch_for(classifier, 3), classifier.module
    # Behind the first convolution's ReLU, from the second one's: the names of their modules.
    metric = CosineConvergence(vectors=4, start=["4"], layers=["0", "1"])
    found = columns_of(metric, classifier, batch)
    for row, generator in enumerate(sample_generators(0, "metric", batch.samples)):
        with torch.enable_grad():
            low = module[0](batch.inputs[row : row + 1]).requires_grad_()
            middle = module[1](low)
            high = module[4](module[3](module[2](middle)))
            vectors = torch.randn(4, *high.shape[1:], generator=generator).double()
            arrived = [torch.autograd.grad(high, (low, middle), v[None], retain_graph=True) for v in vectors]
        for place, layer in enumerate(("0", "1")):
            expected = []
            for one in range(4):
                for other in range(one):
                    pair = arrived[one][place][0], arrived[other][place][0]
                    expected.append(F.cosine_similarity(*pair, dim=0, eps=0).abs().flatten())
            expected = torch.cat(expected)
            for name, level in (("low", 0.05), ("median", 0.5), ("high", 0.95)):
                value = found[f"{name}_from_4"][row, place]
                assert value == pytest.approx(np.nanquantile(expected.numpy(), level), rel=1e-9), (layer, name)
            assert found["undefined_from_4"][row, place] == expected.isnan().double().mean()
            if layer == "0":
                counts, _ = np.histogram(expected[~expected.isnan()].numpy(), EDGES)
                np.testing.assert_allclose(found["histogram"][row], counts / counts.sum(), rtol=1e-12)
    assert torch.equal(found["cosine"], found["median_from_4"][:, 0])
    # The maximum pooling leaves places without a signal, and closed ReLUs more.
    assert (found["undefined"] == found["undefined_from_4"][:, 0]).all() and (found["undefined"] > 0.05).all()


def test_cosines_by_hand():
    """The pairs of (3,4), (6,8), (-4,3) and (0,0), tiny or huge, at one place and at two."""
    vectors = torch.tensor([[3.0, 4], [6, 8], [-4, 3], [0, 0]]).double()
    expected = torch.tensor([[1.0, 0, torch.nan, 0, torch.nan, torch.nan]]).double()
    for scale in (1.0, 1e-200, 1e200):
        torch.testing.assert_close(cosines(vectors[:, None] * scale), expected, equal_nan=True)
    at_two_places = torch.stack([vectors, -vectors.flip(1)], dim=2)[:, None, :, :, None]
    found = cosines(at_two_places).view(1, 6, 2)
    torch.testing.assert_close(found, expected[..., None].expand(1, 6, 2), equal_nan=True)


@pytest.mark.parametrize("channels", [1, 2, 3, 16, 512])
def test_the_baseline_is_the_median_of_random_vectors(channels):
    known = {1: 1.0, 2: 0.5**0.5, 3: 0.5, 512: 0.030}
    if channels in known:
        assert random_baseline(channels) == pytest.approx(known[channels], abs=5e-4)
    drawn = torch.randn(2, 5000, channels)
    assert F.cosine_similarity(*drawn, dim=1).abs().median() == pytest.approx(random_baseline(channels), abs=0.02)


def test_a_layer_that_nothing_reaches_is_undefined_and_not_a_score(batch_for):
    weights = [torch.randn(WIDTH, WIDTH).double(), torch.zeros(10, WIDTH).double()]
    classifier = chain(weights, rectified=False)
    found = columns_of(CosineConvergence(), classifier, batch_for(classifier, 2))
    assert found["cosine"].isnan().all() and found["above_random"].isnan().all() and (found["undefined"] == 1).all()
    assert found["histogram"].isnan().all()


def test_samples_and_inner_batches_do_not_matter(convnet, batch_for, take):
    classifier = convnet()
    batch, metric = batch_for(classifier, 6), CosineConvergence()
    whole = columns_of(metric, classifier, batch)
    classifier.batch_size = 7
    parts = [columns_of(metric, classifier, take(batch, rows)) for rows in ([3, 1], [5, 0, 4, 2])]
    for name, column in whole.items():
        together = torch.cat([part[name] for part in parts])[[3, 1, 5, 0, 4, 2]]
        torch.testing.assert_close(column, together, rtol=1e-9, atol=1e-12)


def test_layers_are_found_named_or_refused(convnet):
    classifier = convnet(layers={"last": "4"})
    # Of the main path the ReLUs behind the two convolutions: too few for starts between them.
    assert CosineConvergence().paths(classifier) == {"logits": ["1", "4"]}
    named = CosineConvergence(start=["last", "logits"], layers=["3", "0"])
    assert named.paths(classifier) == {"logits": ["0", "3"], "last": ["0", "3"]}
    assert set(named.axes(classifier)) == {"histogram"} | {
        f"{name}_from_{start}"
        for start in ("logits", "last")
        for name in ("median", "low", "high", "undefined", "baseline")
    }
    assert named.cost(classifier) == (2, 10)
    with pytest.raises(Refusal, match="did you mean 'last'"):
        CosineConvergence(start=["lats"]).check(classifier)
    with pytest.raises(Refusal, match=r"metric\.layers \(4\): none lies below the start 1 in convnet"):
        CosineConvergence(start=["1"], layers=["4"]).check(classifier)
    for wrong in ({"vectors": 1}, {"start": []}, {"layers": []}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CosineConvergence(**wrong)
