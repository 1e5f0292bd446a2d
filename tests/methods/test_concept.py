"""Concepts: planted ones are found, contributions against finite differences, maps against loops."""

import pytest
import torch
from scipy.linalg import subspace_angles
from torch import nn

from tests.methods.helpers import Noise
from tests.methods.nets import SIZE, VGGLike, classifier, seeded
from xaibench.datasets.base import Samples
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.counterfactual.concept import Concept, contributions, correlations, factorised
from xaibench.metrics.network.concept_correlation import ConceptCorrelation
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import generator

CHANNELS, RANK = 6, 2


class Planted(nn.Module):
    """Feature maps of 6 channels that lie in a plane: 2 of 3 colours, mixed; logits that read the first alone."""

    def __init__(self, mixing: torch.Tensor) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, CHANNELS, 1, bias=False)
        self.features.weight.data = (mixing.T @ torch.eye(RANK, 3).double()).view(CHANNELS, 3, 1, 1)
        self.head = nn.Linear(CHANNELS, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).tanh().mean((2, 3)))


def planted(signed: bool) -> tuple[Classifier, torch.Tensor]:
    mixing = torch.randn(RANK, CHANNELS, generator=generator("planted")).double()
    mixing = mixing if signed else mixing.abs() * torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    return Classifier("planted", Planted(mixing).double(), (3, 8, 8)), mixing


def data(count: int = 30, size=(3, 8, 8)) -> Samples:
    return Samples(Noise(count, size), Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3), range(count))


@pytest.mark.parametrize(("how", "signed"), [("mf", True), ("pca", True), ("nmf", False)])
def test_a_planted_plane_is_found(how, signed):
    net, mixing = planted(signed)
    samples = data()
    if how == "nmf":  # the plane's axes are not negative, so that its places must be
        samples = Samples(samples.dataset, Preprocessing(), range(30))
    found = Concept(0, RANK, "features", how, 500).fit(net, samples, generator(0))["directions"]
    assert subspace_angles(found.numpy().T, mixing.numpy().T).max() < 1e-3
    other = Concept(0, RANK, "features", "random", 500).fit(net, samples, generator(0))["directions"]
    assert subspace_angles(other.numpy().T, mixing.numpy().T).max() > 0.1
    torch.testing.assert_close(found.norm(dim=1), torch.ones(RANK, dtype=torch.float64))


def test_factors_without_negative_values_are_found_one_by_one():
    """Two parts that share no channel: NMF finds each, where the other factorisations find any basis of the plane."""
    mixing = torch.tensor([[2.0, 1, 0, 0], [0, 0, 1, -3]], dtype=torch.float64)
    places = torch.rand(400, 2, generator=generator(1), dtype=torch.float64)
    places[::2, 0], places[1::2, 1] = 0, 0
    found = factorised(places @ mixing, 2, "nmf", generator(2))
    wanted = mixing / mixing.norm(dim=1, keepdim=True)
    assert (found @ wanted.T).abs().amax(1).min() > 1 - 1e-6


def test_a_contribution_is_the_sum_times_the_slope_along_the_direction():
    net, x = classifier(VGGLike(), batch_size=2), seeded(3)
    channels = net.layer("features.3")
    seen = []
    hook = channels.register_forward_hook(lambda module, given, output: seen.append(output.detach()))
    net.module(x)
    hook.remove()
    values = seen[0]
    directions = torch.randn(4, values.shape[1], generator=generator(3)).double()
    products, totals, answer = contributions(net, "features.3", directions, x, (2, 4))
    logits = net.logits(x)
    torch.testing.assert_close(answer, logits[:, 2] - logits[:, 4])
    for k, direction in enumerate(directions):
        along = []
        for step in (1e-5, -1e-5):
            hook = channels.register_forward_hook(lambda m, g, out, move=step * direction: out + move[:, None, None])
            moved = net.module(x)
            hook.remove()
            along.append(moved[:, 2] - moved[:, 4])
        slope = (along[0] - along[1]) / 2e-5
        total = torch.einsum("bchw,c->b", values, direction)
        torch.testing.assert_close(totals[:, k], total)
        torch.testing.assert_close(products[:, k], total * slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("how", ["mf", "pca", "nmf", "random"])
def test_concepts_come_in_the_order_of_their_correlation_and_point_up(how):
    net, samples = classifier(VGGLike()), data(20, SIZE)
    samples.preprocessing = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    method = Concept(1, 3, "features.3", how, 200)
    fitted = method.fit(net, samples, generator(0))
    x = torch.cat([batch.inputs for batch in samples]).double()
    products, totals, answer = contributions(net, "features.3", fitted["directions"], x, (1, 0))
    expected = torch.stack([torch.corrcoef(torch.stack([column, answer]))[0, 1] for column in products.T])
    torch.testing.assert_close(fitted["correlations"], expected, rtol=1e-4, atol=1e-6)
    assert (expected.abs().diff() <= 1e-9).all()
    assert (correlations(totals, answer) >= 0).all()
    context = Context(fitted={name: tensor.double() for name, tensor in fitted.items()})
    maps = method.attribute(net, x[:2], torch.zeros(2, dtype=torch.int64), context)
    seen = []
    hook = net.layer("features.3").register_forward_hook(lambda module, given, output: seen.append(output))
    net.module(x[:2])
    hook.remove()
    small = (seen[0] * fitted["directions"][1][:, None, None]).sum(1, keepdim=True)
    resized = nn.functional.interpolate(small, size=SIZE[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps, resized)


def test_the_metric_counts_the_concepts_that_clear_a_correlation():
    net, samples = classifier(VGGLike()), data(20, SIZE)
    metric = ConceptCorrelation(concepts=4, layer="features.3", places=200, clear=0.3)
    fitted = metric.fit(net, samples, generator(0))
    batch = samples.load(range(5))
    batch = type(batch)(batch.samples, batch.inputs.double(), batch.labels, batch.labels, None, batch.crc)
    columns = metric.evaluate(net, batch, None, Context(fitted=fitted))
    assert set(columns) == {"clearing", "answer", *(f"contribution_{k}" for k in range(4))}
    assert columns["clearing"].tolist() == [sum(abs(r) >= 0.3 for r in fitted["correlations"].tolist())] * 5
    assert [s.name for s in metric.statistics] == ["clearing", *(f"r_squared_{k}" for k in range(4))]
    products, _, answer = contributions(net, "features.3", fitted["directions"], batch.inputs, (1, 0))
    torch.testing.assert_close(torch.stack([columns[f"contribution_{k}"] for k in range(4)], 1), products)
    torch.testing.assert_close(columns["answer"], answer)


def test_a_column_that_does_not_vary_correlates_with_nothing():
    assert correlations(torch.ones(5, 1).double(), torch.arange(5).double()).tolist() == [0.0]


def test_what_cannot_be_is_refused():
    net = classifier(VGGLike())
    with pytest.raises(Refusal, match=r"concepts=100: layer 'features\.3' of VGGLike has"):
        Concept(concepts=100, layer="features.3").check(net)
    with pytest.raises(Refusal, match=r"classes=\[1, 9\]: expected two of VGGLike's 0 to 4"):
        Concept(concepts=2, layer="features.3", classes=(1, 9)).check(net)
    with pytest.raises(ValueError, match="component=10: there are concepts=10, expected 0 to 9"):
        Concept(component=10)
    with pytest.raises(ValueError, match="did you mean 'pca'"):
        Concept(factorisation="pc")
    with pytest.raises(ValueError, match="clear=2: expected a correlation"):
        ConceptCorrelation(clear=2)
