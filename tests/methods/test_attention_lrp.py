"""Rules for products, softmax and normalisation against sums over single contributions; whole transformers against
input x gradient of a network with their derivatives; what is conserved."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.nets import classifier, seeded
from tests.methods.transformers import SIZE, Transformer, input_x_gradient
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules._attention import Factors, held, of_softmax
from xaibench.methods.rules.attention_lrp import AttentionLRP
from xaibench.methods.rules.guided_backprop import GuidedBackprop
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rap import RAP
from xaibench.methods.rules.rules import Epsilon, Gamma
from xaibench.models.tracing.graph import Graph
from xaibench.models.tracing.steps import Normalisation, Product, Softmax

TARGETS = torch.tensor([0, 3])


def taken(module: nn.Module, kind: type, size=(2, 3, 4)):
    """A step of a kind of a network, with its inputs, its output and a signal there."""
    graph = Graph.of(classifier(nn.Sequential(module, nn.Flatten()), size))
    values = graph.run(seeded(2, size))
    step = graph.of_kind(kind)[-1]
    output = values[graph.steps.index(step) + 1]
    signal = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return step, tuple(values[source] for source in step.sources), output, signal


class Attention(nn.Module):
    """softmax(x x^T) (x + 1): a matrix product with a gate, behind one without."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.transpose(-2, -1)).softmax(-1) @ (x + 1)


class Gate(nn.Module):
    """A gate for each channel, as squeeze-and-excite has it, in front of a product of equals."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return torch.sigmoid(mean) * x if self.gated else (mean + 1) * x


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_halves_of_a_matrix_product_are_sums_over_single_contributions(epsilon):
    step, inputs, output, signal = taken(Attention(), Product)
    first, second = Factors("attnlrp", epsilon)(step, inputs, output, signal)
    (x, y), z, r = (v.numpy() for v in inputs), output.numpy(), signal.numpy()
    of_x, of_y = np.zeros_like(x), np.zeros_like(y)
    batches, channels, rows, inner = x.shape
    for b, c, j, p, i in itertools.product(*map(range, (batches, channels, rows, y.shape[3], inner))):
        double = 2 * z[b, c, j, p]
        part = x[b, c, j, i] * y[b, c, i, p] / (double + (epsilon if double >= 0 else -epsilon)) * r[b, c, j, p]
        of_x[b, c, j, i] += part
        of_y[b, c, i, p] += part
    np.testing.assert_allclose(first.numpy(), of_x, rtol=1e-9)
    np.testing.assert_allclose(second.numpy(), of_y, rtol=1e-9)


def test_a_gate_that_is_held_is_a_weight():
    step, inputs, output, signal = taken(Attention(), Product)
    attention, values = inputs
    assert step.gate == 0 and not step.divides
    gate, share = Factors("conservative", 0.0)(step, inputs, output, signal)
    assert gate is None
    weights, (x, r) = attention.numpy(), (values.numpy(), signal.numpy())
    expected = np.zeros_like(x)
    for b, c, p in itertools.product(*map(range, (2, 2, x.shape[3]))):
        parts = weights[b, c] * x[b, c, :, p]  # [outputs, inputs]
        expected[b, c, :, p] = (parts / parts.sum(1, keepdims=True) * r[b, c, :, p][:, None]).sum(0)
    np.testing.assert_allclose(share.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("attention", ["attnlrp", "conservative"])
@pytest.mark.parametrize("gated", [True, False])
def test_a_product_of_values_hands_on_what_arrives(attention, gated):
    """Element by element there is one contribution: half to each, or all to what a gate lets through."""
    step, inputs, output, signal = taken(Gate(gated), Product)
    shares = Factors(attention, 0.5)(step, inputs, output, signal)
    halves = attention == "attnlrp" or not gated
    (gate,) = [i for i, x in enumerate(inputs) if x.shape[2:] == (1, 1)]
    torch.testing.assert_close(shares[1 - gate], signal / 2 if halves else signal)
    if halves:
        torch.testing.assert_close(shares[gate], signal.sum((2, 3), keepdim=True) / 2)
    else:
        assert step.gate == gate and shares[gate] is None


@pytest.mark.parametrize(
    "module",
    [
        lambda: RootMeanSquare(),
        lambda: nn.Sequential(Normalised(), nn.Identity()),
    ],
)
def test_what_divides_gets_nothing(module):
    """Normalisations that somebody wrote by hand: what they divide by is held under either choice."""
    step, inputs, output, signal = taken(module(), Product)
    assert step.divides
    for attention in ("attnlrp", "conservative"):
        shares = Factors(attention, 0.0)(step, inputs, output, signal)
        assert shares[step.gate] is None
        torch.testing.assert_close(shares[1 - step.gate], signal)


class RootMeanSquare(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Normalised(nn.Module):
    """ConvNeXt's own layer normalisation of channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-6)


def test_the_softmax_is_expanded_at_its_input():
    step, inputs, output, signal = taken(Attention(), Softmax)
    (found,) = of_softmax(step, inputs, output, signal)
    x, r = inputs[0].reshape(-1, 3), signal.reshape(-1, 3)
    for row, arriving, got in zip(x, r, found.reshape(-1, 3)):
        jacobian = torch.autograd.functional.jacobian(lambda v: v.softmax(0), row)
        # R_i = sum_j J_ji x_i / s_j R_j, eq. 5 of the paper.
        torch.testing.assert_close(got, (jacobian * row / row.softmax(0)[:, None] * arriving[:, None]).sum(0))


def test_places_that_a_mask_has_closed_get_nothing():
    class Causal(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    step, inputs, output, signal = taken(Causal(), Softmax)
    (found,) = of_softmax(step, inputs, output, signal * output)
    assert (inputs[0] == -torch.inf).sum() == 2 * 2 * 3 and torch.isfinite(found).all()
    assert (found[inputs[0] == -torch.inf] == 0).all()


PLACES = np.arange(24).reshape(2, 3, 4)
# A normalisation, the places that it takes together, and whether their mean is taken off.
NORMS = {
    "layer": (lambda: nn.LayerNorm(4), PLACES.reshape(6, 4), True),
    "layer of all": (lambda: nn.LayerNorm((2, 3, 4)), PLACES.reshape(1, 24), True),
    "root mean square": (lambda: nn.RMSNorm(4, eps=1e-3), PLACES.reshape(6, 4), False),
    "groups": (lambda: nn.GroupNorm(1, 2), PLACES.reshape(1, 24), True),
    "instance": (lambda: nn.InstanceNorm2d(2, affine=True), PLACES.reshape(2, 12), True),
}


@pytest.mark.parametrize("bias", ["kept", "dropped"])
@pytest.mark.parametrize("name", NORMS)
def test_a_normalisation_is_the_matrix_that_it_is_with_its_deviation_held(name, bias):
    make, groups, centred = NORMS[name]
    norm = make()
    with torch.no_grad():
        for weight in norm.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    step, inputs, output, signal = taken(norm, Normalisation)
    (found,) = held(Epsilon(0.1, bias))(step, inputs, output, signal)
    zero = step.bias if step.bias is not None else torch.zeros(())
    for b in range(2):
        x, y, r, got = (v[b].flatten().numpy() for v in (inputs[0], output, signal, found))
        shift = zero.expand(2, 3, 4).detach().flatten().numpy()
        for at in groups:
            values, count = x[at], len(at)
            centre = np.eye(count) - (np.ones((count, count)) / count if centred else 0)
            deviation = np.sqrt((centre @ values).dot(centre @ values) / count + norm.eps)
            scale = (y[at] - shift[at]) / (centre @ values) * deviation  # the weights
            matrix = scale[:, None] * centre / deviation
            z = y[at] - (shift[at] if bias == "dropped" else 0)
            shares = matrix * values / (z + np.where(z >= 0, 0.1, -0.1))[:, None] * r[at][:, None]
            np.testing.assert_allclose(got[at], shares.sum(0), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("attention", ["attnlrp", "conservative"])
def test_without_epsilon_it_is_input_x_gradient_of_a_network_with_these_derivatives(attention):
    module = Transformer()
    network, inputs = classifier(module, SIZE), seeded(2, SIZE)
    method = AttentionLRP(Epsilon(0), attention=attention)
    method.check(network)
    maps = method.attribute(network, inputs, TARGETS, Context())
    expected = input_x_gradient(module, inputs, TARGETS, attention)
    assert (maps - expected).abs().max() < 1e-8 * expected.abs().max()
    plain = inputs * network.gradient(inputs, TARGETS)
    assert (maps - plain).abs().max() > 0.1 * plain.abs().max()


def test_conservative_propagation_conserves_and_attnlrp_does_not_at_a_softmax():
    """Without biases, positions and a class token, which take relevance with them."""
    network, inputs = classifier(Transformer(bias=False, embedded=False), SIZE), seeded(2, SIZE)
    logits = network.scores(inputs, TARGETS)
    sums = {
        attention: AttentionLRP(Epsilon(0), attention=attention)
        .attribute(network, inputs, TARGETS, Context())
        .sum((1, 2, 3))
        for attention in ("attnlrp", "conservative")
    }
    torch.testing.assert_close(sums["conservative"], logits)
    assert ((sums["attnlrp"] - logits).abs() > 1e-3 * logits.abs()).all()
    other = LRP(Gamma(0.25, "dropped")).attribute(network, inputs, TARGETS, Context()).sum((1, 2, 3))
    torch.testing.assert_close(other, logits, rtol=1e-4, atol=0)  # but for the epsilon of products


class Squeezed(nn.Module):
    """A convolutional network with squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.down, self.up, self.head = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 2, 1),
            nn.Conv2d(2, 6, 1),
            nn.Linear(6, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.conv(x))
        x = x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("attention", ["attnlrp", "conservative"])
@pytest.mark.parametrize("rule", [Epsilon(0, "dropped"), Gamma(0.25, "dropped")])
def test_gates_conserve_relevance_under_either_choice(rule, attention):
    network, inputs = classifier(Squeezed()), seeded(2)
    method = AttentionLRP(rule, attention=attention)
    method.check(network)
    maps = method.attribute(network, inputs, TARGETS, Context())
    logits = network.scores(inputs, TARGETS)
    torch.testing.assert_close(maps.sum((1, 2, 3)), logits, rtol=1e-6, atol=1e-9)
    plain = LRP(rule).attribute(network, inputs, TARGETS, Context())
    assert torch.equal(plain, maps) is (attention == "conservative")


def test_methods_without_such_rules_say_so():
    network = classifier(Transformer(), SIZE)
    with pytest.raises(
        Refusal, match=r"no rule for .* of Transformer, which is a normalisation by the values themselves"
    ):
        RAP().check(network)
    with pytest.raises(Refusal, match="needs ReLUs: Transformer has none"):
        GuidedBackprop().check(network)
    with pytest.raises(ValueError, match="attention=attnlrq: did you mean 'attnlrp'"):
        AttentionLRP(Epsilon(), attention="attnlrq")
