"""Each rule against sums over single contributions, layers unrolled to matrices; what the rules conserve; LRP-z."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.nets import classifier, photographs, seeded
from tests.methods.shapes import rewritten, shaped
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules.lrp import LRP, box, image_box
from xaibench.methods.rules.rules import AlphaBeta, Box, Epsilon, Flat, Gamma, Square
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.resnet_cifar import ResNetCifar
from xaibench.models.tracing.graph import Graph
from xaibench.models.tracing.steps import Affine, Sum


class Twice(nn.Module):
    def forward(self, x):
        return (x + x * 3).flatten(1)


def steps():
    """Every kind of affine step on a few values: (name, step, its inputs, what it computes)."""
    torch.manual_seed(5)
    layers = {
        "dense": nn.Sequential(nn.Flatten(), nn.Linear(32, 5)),
        "convolution": nn.Conv2d(2, 4, 3, padding=1),
        "strided": nn.Conv2d(2, 4, 3, stride=2, padding=(0, 1), bias=False),
        "grouped": nn.Conv2d(2, 4, 2, groups=2, dilation=2),
        "average": nn.AvgPool2d(3, 2, padding=1),
        "global_average": nn.AdaptiveAvgPool2d(1),
        "scale": nn.BatchNorm2d(2),
        "sum": Twice(),
    }
    for name, layer in layers.items():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.copy_(torch.tensor([1.5, -0.7]))
            layer.bias.data.copy_(torch.tensor([0.3, 0.2]))
        network = Classifier(name, nn.Sequential(layer).double(), (2, 4, 4))
        graph = Graph.of(network)
        step = graph.of_kind(Affine)[-1]
        values = graph.run(torch.randn(2, 2, 4, 4, dtype=torch.float64))
        yield pytest.param(step, tuple(values[source] for source in step.sources), id=name)


def unrolled(step, inputs):
    """W [outputs, inputs] and b [outputs] of a step on one sample, from its answers to unit vectors."""
    sizes = [x[0].numel() for x in inputs]
    with torch.no_grad():
        blank = [torch.zeros_like(x[:1]) for x in inputs]
        bias = step(*blank).flatten()
        columns = []
        for which, size in enumerate(sizes):
            for place in range(size):
                units = [x.clone() for x in blank]
                units[which].view(-1)[place] = 1
                columns.append(step(*units).flatten() - bias)
    return torch.stack(columns, 1).numpy(), bias.numpy()


def divided(numbers, total):
    return np.zeros_like(numbers) if total == 0 else numbers / total


def epsilon(w, b, x, w_any, low, high, *, damping, bias):
    z = w @ x + (b if bias == "kept" else 0)
    return divided(w * x, z + (damping if z >= 0 else -damping))


def gamma(w, b, x, w_any, low, high, *, factor, bias):
    """What points where the output does counts 1 + factor times, input by input."""
    output, parts = w @ x + b, w * x
    if output == 0:
        return np.zeros_like(x)
    favoured = parts + factor * (np.maximum(parts, 0) if output > 0 else np.minimum(parts, 0))
    scaled = b + factor * (max(b, 0) if output > 0 else min(b, 0))
    return divided(favoured, favoured.sum() + {"kept": b, "dropped": 0, "scaled": scaled}[bias])


def original_gamma(w, b, x, w_any, low, high, *, factor, bias):
    favoured = w + factor * np.maximum(w, 0)
    b = {"kept": b, "dropped": 0, "scaled": b + factor * max(b, 0)}[bias]
    return divided(favoured * x, favoured @ x + b)


def alpha_beta(w, b, x, w_any, low, high, *, alpha, beta, bias, damping=0):
    parts = w * x
    if np.count_nonzero(w_any) == 1:  # the only contribution gets everything
        return w_any.astype(float)
    up, down = np.maximum(parts, 0), np.minimum(parts, 0)
    b = b if bias == "kept" else 0
    up, down = divided(up, up.sum() + max(b, 0) + damping), divided(down, down.sum() + min(b, 0) - damping)
    return alpha * up - beta * down


def square(w, b, x, w_any, low, high):
    return divided(w**2, (w**2).sum())


def flat(w, b, x, w_any, low, high):
    return divided(w_any.astype(float), w_any.sum())


def z_box(w, b, x, w_any, low, high):
    parts = w * x - np.maximum(w, 0) * low - np.minimum(w, 0) * high
    return divided(parts, parts.sum())


LOW, HIGH = -4.0, 5.0
RULES = [
    (Epsilon(0), epsilon, {"damping": 0, "bias": "kept"}),
    (Epsilon(0.25), epsilon, {"damping": 0.25, "bias": "kept"}),
    (Epsilon(0.1, bias="dropped"), epsilon, {"damping": 0.1, "bias": "dropped"}),
    (Gamma(0.5), gamma, {"factor": 0.5, "bias": "kept"}),
    (Gamma(2, bias="dropped"), gamma, {"factor": 2, "bias": "dropped"}),
    (Gamma(0.25, bias="scaled"), gamma, {"factor": 0.25, "bias": "scaled"}),
    (Gamma(0.5, form="original"), original_gamma, {"factor": 0.5, "bias": "kept"}),
    (Gamma(2, "dropped", "original"), original_gamma, {"factor": 2, "bias": "dropped"}),
    (Gamma(0.25, "scaled", "original"), original_gamma, {"factor": 0.25, "bias": "scaled"}),
    (AlphaBeta(), alpha_beta, {"alpha": 1, "beta": 0, "bias": "dropped"}),
    (AlphaBeta(2, 1), alpha_beta, {"alpha": 2, "beta": 1, "bias": "dropped"}),
    (AlphaBeta(5, 4, bias="kept"), alpha_beta, {"alpha": 5, "beta": 4, "bias": "kept"}),
    (AlphaBeta(0, -1), alpha_beta, {"alpha": 0, "beta": -1, "bias": "dropped"}),
    (AlphaBeta(3, None), alpha_beta, {"alpha": 3, "beta": 2, "bias": "dropped"}),
    (AlphaBeta(0, -1, epsilon=5), alpha_beta, {"alpha": 0, "beta": -1, "bias": "dropped", "damping": 5}),
    (AlphaBeta(2, 1, "kept", 0.5), alpha_beta, {"alpha": 2, "beta": 1, "bias": "kept", "damping": 0.5}),
    (Square(), square, {}),
    (Flat(), flat, {}),
    (Box(torch.tensor(LOW), torch.tensor(HIGH)), z_box, {}),
]


@pytest.mark.parametrize(("rule", "shares", "options"), RULES, ids=lambda v: type(v).__name__ if callable(v) else "")
@pytest.mark.parametrize(("step", "inputs"), [*steps()])
def test_a_rule_shares_out_what_its_formula_says(step, inputs, rule, shares, options):
    """Signed inputs, signed relevance, one contribution at a time."""
    if isinstance(rule, Box):
        rule = Box(rule.low.double(), rule.high.double())
    output = step(*inputs)
    signal = torch.randn(output.shape, dtype=torch.float64)
    found = rule(step, inputs, output, signal)
    weights, biases = unrolled(step, inputs)
    for sample in range(2):
        x = torch.cat([x[sample].flatten() for x in inputs]).numpy()
        expected = np.zeros_like(x)
        for w, b, r in zip(weights, biases, signal[sample].flatten().numpy()):
            expected += shares(w, b, x, w != 0, LOW, HIGH, **options) * r
        ours = torch.cat([part[sample].flatten() for part in found]).numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


CONSERVING = [
    Epsilon(0, bias="dropped"), Gamma(0.3, bias="dropped"), AlphaBeta(), AlphaBeta(2, 1), AlphaBeta(5, 4), Square(),
    Flat(),
]  # fmt: skip


@pytest.mark.parametrize("rule", CONSERVING, ids=lambda rule: f"{type(rule).__name__}{vars(rule)}")
def test_relevance_is_conserved_where_the_bias_is_dropped(rule):
    """Bright inputs and weights of both signs in every sum, so that no output is without contributions of a sign."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(108, 5),
    )  # fmt: skip
    network = classifier(module)
    inputs, targets = photographs(3).abs() + 0.1, torch.arange(3)
    maps = LRP(rule).attribute(network, inputs, targets, Context())
    logits = network.scores(inputs, targets)
    torch.testing.assert_close(maps.flatten(1).sum(1), logits, rtol=1e-9, atol=1e-9)
    one = LRP(rule, start="one").attribute(network, inputs, targets, Context())
    torch.testing.assert_close(one * logits[:, None, None, None], maps)


def test_a_clipped_residual_sum_hands_down_nothing_below_zero():
    """3 and -1 under alpha 2, beta 1 get 2 and -1 of what arrives; of the relevance -1 they get -2 and 1."""
    network, inputs = classifier(shaped("resnet"), (3, 64, 64)), seeded(1, (3, 64, 64))
    step = Sum("sum", (1, 2), torch.ones(()), None)
    pair, output = (torch.tensor([3.0, 3.0]), torch.tensor([-1.0, -1.0])), torch.tensor([2.0, 2.0])
    for residual, expected in (("rule", [[2.0, -2.0], [-1.0, 1.0]]), ("clipped", [[2.0, 0.0], [0.0, 1.0]])):
        rule = LRP(AlphaBeta(2, 1), residual=residual).rules(network, inputs, Context())(step)
        found = torch.stack(rule(step, pair, output, torch.tensor([1.0, -1.0])))
        torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_lrp_z_is_gradient_times_input_where_the_bias_is_kept(name):
    """On ReLU networks with max pooling, batch normalisation and residual connections, biases and signed inputs."""
    network = classifier(shaped(name), (3, 64, 64))
    inputs, targets = seeded(2, (3, 64, 64)), torch.tensor([1, 3])
    expected = inputs * network.gradient(inputs, targets)
    maps = LRP(Epsilon(0)).attribute(network, inputs, targets, Context())
    scale = expected.abs().max()
    assert (maps - expected).abs().max() < 1e-9 * scale
    dropped = LRP(Epsilon(0, bias="dropped")).attribute(network, inputs, targets, Context())
    assert (dropped - expected).abs().max() > 0.01 * scale


def test_lrp_z_is_not_gradient_times_input_where_an_activation_saturates():
    """ReLU6 has slope 0 above 6 and still passes its relevance on."""
    network = classifier(shaped("mobilenet"), (3, 64, 64))
    inputs, targets = 4 * seeded(2, (3, 64, 64)), torch.tensor([1, 3])
    maps = LRP(Epsilon(0)).attribute(network, inputs, targets, Context())
    expected = inputs * network.gradient(inputs, targets)
    assert (maps - expected).abs().max() > 0.01 * expected.abs().max()


def test_generalised_gamma_does_not_explode_on_a_residual_network():
    """Sums and normalised images have both signs: the original rule's denominators cancel there."""
    torch.manual_seed(0)
    network = classifier(ResNetCifar(20), (3, 32, 32))
    inputs = seeded(4, (3, 32, 32))
    targets = network.logits(inputs).argmax(1)
    largest = {
        form: float(LRP(Gamma(form=form)).attribute(network, inputs, targets, Context()).abs().max())
        for form in ("generalised", "original")
    }
    assert largest["generalised"] < float(network.scores(inputs, targets).abs().max())
    assert largest["original"] > 100 * largest["generalised"]


@pytest.mark.parametrize("rule", [Square(), Flat()])
def test_padded_channels_of_a_shortcut_take_their_share_by_weights(rule):
    """Option A: half of the channels of two sums are constants, zeros, and rules by weights alone pay them too."""
    network = classifier(ResNetCifar(8), (3, 32, 32))
    inputs = seeded(2, (3, 32, 32))
    logits = network.scores(inputs, torch.tensor([1, 4]))
    shares = LRP(rule).attribute(network, inputs, torch.tensor([1, 4]), Context()).sum((1, 2, 3)) / logits
    assert ((shares > 0.3) & (shares < 0.9)).all()
    conserved = LRP(AlphaBeta()).attribute(network, inputs, torch.tensor([1, 4]), Context()).sum((1, 2, 3)) / logits
    torch.testing.assert_close(conserved, torch.ones_like(conserved))


def test_gamma_goes_to_z_plus():
    """On inputs that are not negative, at the rate 1 / gamma."""
    torch.manual_seed(2)
    layer = nn.Linear(12, 7).double()
    network = Classifier("layer", nn.Sequential(nn.Flatten(), layer), (1, 3, 4))
    inputs, targets = torch.rand(4, 1, 3, 4, dtype=torch.float64), torch.arange(4)
    limit = LRP(AlphaBeta()).attribute(network, inputs, targets, Context())
    errors = [
        float(
            (LRP(Gamma(g, bias="dropped", form="original")).attribute(network, inputs, targets, Context()) - limit)
            .abs()
            .max()
        )
        for g in (1e4, 1e5, 1e6)
    ]
    assert errors[2] < 1e-4 * float(limit.abs().max())
    np.testing.assert_allclose(np.array(errors[:2]) / np.array(errors[1:]), 10, rtol=0.05)


def test_relevance_of_the_non_negative_rules_has_one_sign():
    """z+, w-squared and z-box hand a positive logit down as nothing but positive relevance."""
    network = classifier(shaped("vgg"), (3, 64, 64))
    inputs = photographs(2).repeat(1, 1, 4, 4)
    targets = network.logits(inputs).argmax(1)
    assert (network.scores(inputs, targets) > 0).all()
    for first in ("same", "square", "flat", "box"):
        maps = LRP(AlphaBeta(), first=first).attribute(network, inputs, targets, Context())
        assert (maps >= 0).all() and (maps.flatten(1).sum(1) > 0).all(), first


def test_the_composite_has_its_dense_rule_in_linear_layers_alone():
    """Two classes' maps of LRP_CMP agree up to scale within a place of the last convolution, where one place is all."""
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 16), nn.ReLU(), nn.Flatten(), nn.Linear(1, 5),
    )  # fmt: skip
    with torch.no_grad():
        module[2].weight.abs_()
    network = classifier(module)
    maps = [
        LRP(AlphaBeta(), dense=Epsilon(1e-10)).attribute(network, photographs(2), torch.full((2,), k), Context())
        for k in (0, 1)
    ]
    first, second = (m / m.abs().sum((1, 2, 3), keepdim=True) for m in maps)
    torch.testing.assert_close(first.abs(), second.abs())


def test_how_a_relu_is_written_does_not_matter():
    inputs, targets = photographs(2).repeat(1, 1, 4, 4), torch.tensor([0, 4])
    for name in ("vgg", "resnet", "mobilenet"):
        module = shaped(name)
        expected = LRP(AlphaBeta(2, 1)).attribute(classifier(module, (3, 64, 64)), inputs, targets, Context())
        for how in ("inplace", "shared", "functional", "functional_inplace"):
            network = classifier(rewritten(module, how), (3, 64, 64))
            torch.testing.assert_close(LRP(AlphaBeta(2, 1)).attribute(network, inputs, targets, Context()), expected)


def test_the_box_is_black_to_white():
    network = classifier(shaped("vgg"), (3, 64, 64))
    found = box(network, photographs(1))
    mean, std = (torch.tensor(getattr(network.preprocessing, name)).double() for name in ("mean", "std"))
    torch.testing.assert_close(found.low.flatten(), -mean / std)
    torch.testing.assert_close(found.high.flatten(), (1 - mean) / std)
    with pytest.raises(Refusal, match=r"first=box needs inputs between black and white .* one is 9"):
        LRP(AlphaBeta(), first="box").attribute(
            network, torch.full((1, 3, 64, 64), 9.0).double(), torch.zeros(1).long(), Context()
        )
    # The image's own range, of each by itself.
    pair = torch.cat([photographs(1), photographs(1) / 2])
    own = image_box(pair)
    assert own.low.flatten().tolist() == [float(one.min()) for one in pair]
    assert own.high.flatten().tolist() == [float(one.max()) for one in pair]
    method, targets = LRP(AlphaBeta(), first="image_box"), torch.zeros(2).long()
    whole = method.attribute(network, pair, targets, Context())
    assert isinstance(method.rules(network, pair, Context()).first, Box)
    alone = torch.cat([method.attribute(network, one[None], targets[:1], Context()) for one in pair])
    torch.testing.assert_close(whole, alone)
    plain = classifier(shaped("vgg"), (3, 64, 64), preprocessing=Preprocessing())
    assert float(box(plain, torch.rand(1, 3, 64, 64).double()).high.max()) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Epsilon(-1), "epsilon=-1: expected 0 or more"),
        (lambda: Gamma(-0.1), "gamma=-0.1: expected 0 or more"),
        (lambda: Gamma(1, bias="keep"), "bias=keep: did you mean 'kept'"),
        (lambda: AlphaBeta(2, 0), "alpha=2 beta=0: expected alpha - beta = 1"),
        (lambda: AlphaBeta(-1, -2), "alpha=-1"),
        (lambda: AlphaBeta(2, 1, epsilon=-1), "epsilon=-1: expected 0 or more"),
        (lambda: LRP(Flat(), first="boxed"), "first=boxed: did you mean 'box'"),
        (lambda: LRP(Flat(), start="logits"), "start=logits: did you mean 'logit'"),
    ],
)
def test_impossible_parameters_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_probability_has_no_relevance():
    network = classifier(shaped("vgg"), (3, 64, 64), output="probability")
    with pytest.raises(Refusal, match="set output=logit"):
        LRP(Flat()).check(network)


def test_a_dead_output_passes_nothing_on():
    """No positive contribution: nothing for z+ to share out, and no NaN."""
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.fill_(-1)
    network = Classifier("dead", nn.Sequential(nn.Flatten(), layer).double(), (1, 2, 2))
    maps = LRP(AlphaBeta()).attribute(network, torch.ones(1, 1, 2, 2).double(), torch.zeros(1).long(), Context())
    assert torch.equal(maps, torch.zeros_like(maps))
