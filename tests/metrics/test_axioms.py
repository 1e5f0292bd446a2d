"""The metric of axioms on maps and networks for which each share is known by hand."""

import pytest
import torch
from torch import nn

from tests.methods.nets import VGGLike
from tests.methods.nets import classifier as vgg_like
from xaibench.datasets.base import Batch
from xaibench.errors import Refusal
from xaibench.methods.cam.gradcam import GradCAM
from xaibench.methods.context import Context
from xaibench.methods.controls.controls import Constant, Input
from xaibench.methods.gradients.gradient import Gradient, InputXGradient
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import AlphaBeta
from xaibench.metrics.properties._networks import rewritten
from xaibench.metrics.properties.axioms import Axioms
from xaibench.models.classifier import Classifier
from xaibench.rng import generator, sample_generators

SIZE = (2, 3, 8)


def linear(outputs: int = 3) -> Classifier:
    torch.manual_seed(0)
    return Classifier("linear", nn.Sequential(nn.Flatten(), nn.Linear(48, outputs)).double(), SIZE)


def batch_of(classifier: Classifier, count: int = 3, seed: int = 1) -> Batch:
    torch.manual_seed(seed)
    inputs = torch.randn(count, *classifier.input_size, dtype=torch.float64)
    targets = torch.arange(count) % classifier.outputs
    return Batch(tuple(range(count)), inputs, targets, targets, None, (0,) * count)


def scored(method, classifier: Classifier, batch: Batch) -> dict[str, torch.Tensor]:
    def explain(inputs, targets, purpose, masks=None, network=classifier):
        method.check(network)
        context = Context(sample_generators(0, "method", batch.samples))
        return method.attribute(network, inputs, targets, context)

    maps = explain(batch.inputs, batch.targets, "")
    return Axioms().evaluate(classifier, batch, maps, Context(explain=explain))


def test_a_map_that_asks_no_network_has_shares_by_hand():
    """A = c: the sum's map is c and not 2 c - 0.7 c, so that 0.3 c is missing of c, 2 c and 0.7 c."""
    network = linear()
    batch = batch_of(network)
    for method in (Constant(), Input()):
        found = scored(method, network, batch)
        assert found["linearity"].tolist() == pytest.approx([0.3 / 3.7] * 3)
        assert found["invariance"].tolist() == [0, 0, 0] and found["sensitivity"].tolist() == [1, 1, 1]
        sizes = batch.inputs.abs().flatten(1, 2) if isinstance(method, Input) else torch.ones(3, 1, 8)
        assert found["dummy"].tolist() == pytest.approx((sizes[..., :2].amax((1, 2)) / sizes.amax((1, 2))).tolist())


@pytest.mark.parametrize("make", [linear, lambda: vgg_like(VGGLike().double(), batch_size=64)])
def test_what_is_known_of_methods(make):
    """Gradients keep all but sensitivity, integrated gradients all four (Sundararajan et al. 2017)."""
    network = make()
    batch = batch_of(network)
    for method, sensitive in ((Gradient(), 0), (InputXGradient(), 0), (IntegratedGradients(steps=5), 1)):
        found = scored(method, network, batch)
        assert found["dummy"].tolist() == [0, 0, 0]
        assert found["linearity"].max() < 1e-12 and found["invariance"].max() < 1e-8
        assert found["sensitivity"].tolist() == [sensitive] * 3


def test_the_z_plus_rule_is_no_function_of_what_the_network_computes():
    """On f = w x the map is the positive contributions, scaled to f; with two layers each gets its share of f."""
    network = linear(1)
    batch = batch_of(network)
    found = scored(LRP(AlphaBeta(1.0, 0.0, "dropped")), network, batch)
    other = rewritten(network, generator("axioms", 0))
    x = batch.inputs.flatten(1)

    def positive(weight, bias=0.0):
        contributions = (weight[0] * x).clamp(min=0)
        return contributions / contributions.sum(1, keepdim=True), x @ weight[0] + bias

    layer, split = network.module[1], other.module[1]
    alone, f = positive(layer.weight, layer.bias)
    first, f1 = positive(split.first.weight, split.first.bias)
    second, f2 = positive(split.second.weight)
    assert torch.allclose(f, f1 + f2) and not torch.allclose(f, f1)
    # Where neither layer's part is positive nothing is handed on.
    shares = [(part.clamp(min=0) / (f1.clamp(min=0) + f2.clamp(min=0))).nan_to_num() for part in (f1, f2)]
    one, two = alone * f[:, None], (shares[0][:, None] * first + shares[1][:, None] * second) * f[:, None]
    expected = (one - two).norm(dim=1) / (one.norm(dim=1) + two.norm(dim=1))
    assert found["invariance"].tolist() == pytest.approx(expected.tolist(), rel=1e-9) and expected.min() > 0.05


def test_a_rewritten_network_is_the_same_function_whoever_reads_its_weights():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Flatten(1, 2), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(48, 2)
    )
    network = Classifier("attention", module.double(), SIZE)
    other = rewritten(network, generator("axioms", 0))
    inputs = batch_of(network).inputs
    torch.testing.assert_close(other.logits(inputs), network.logits(inputs), rtol=0, atol=1e-10)
    split = [path.removesuffix(".first") for path, _ in other.module.named_modules() if path.endswith(".first")]
    assert split == ["1.self_attn.out_proj", "1.linear1", "1.linear2", "3"]
    assert rewritten(Classifier("none", nn.Flatten(), (1, 1, 4)), generator()) is None


def test_an_axiom_whose_network_is_refused_is_undefined_alone():
    """Grad-CAM has no layer to read in 1 - relu(1 - x)."""
    network = vgg_like(VGGLike().double(), batch_size=64)
    found = scored(GradCAM(layer="features.3"), network, batch_of(network))
    assert found["sensitivity"].isnan().all()
    assert all(found[name].isfinite().all() for name in ("dummy", "linearity", "invariance"))


def test_a_sample_is_scored_without_its_neighbours():
    network = linear()
    batch = batch_of(network)
    together = scored(LRP(AlphaBeta(1.0, 0.0, "dropped")), network, batch)
    for row in range(3):
        part = Batch((row,), batch.inputs[[row]], batch.labels[[row]], batch.targets[[row]], None, (0,))
        alone = scored(LRP(AlphaBeta(1.0, 0.0, "dropped")), network, part)
        assert all(torch.allclose(alone[name], together[name][[row]]) for name in together)


def test_what_cannot_be_asked_is_refused(xaibench):
    with pytest.raises(Refusal, match="one place wide"):
        Axioms().check(Classifier("narrow", nn.Flatten(), (1, 4, 1)))
    code, _, said = xaibench("run", "method=iba", "metric=axioms", "dataset.limit=2")
    assert code == 2 and "explains networks of its own, to which nothing was fitted, as method=iba needs it" in said


def test_a_run(xaibench):
    assert xaibench("run", "-m", "method=integrated_gradients,constant", "metric=axioms", "dataset.limit=2")[0] == 0
    code, out, _ = xaibench("leaderboard", "--csv")
    assert code == 0
    rows = [line.split(",") for line in out.splitlines()]
    head = rows[0]
    values = {
        (row[head.index("method")], row[head.index("statistic")]): float(row[head.index("value")]) for row in rows[1:]
        if row[head.index("metric")] == "axioms"
    }  # fmt: skip
    assert values["constant", "linearity"] == pytest.approx(0.3 / 3.7, rel=1e-5)
    assert values["integrated_gradients", "dummy"] == 0 and values["integrated_gradients", "sensitivity"] == 1
    assert values["integrated_gradients", "linearity"] < 1e-4 and values["integrated_gradients", "invariance"] < 0.01
