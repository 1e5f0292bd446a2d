"""The rules of LRP equal zennit's on whole networks, in double precision, signed inputs included.

Each definition of the bias is stated. zennit adds 1e-6 to every denominator; given a stabiliser that leaves all but 0
alone, what remains is rounding. Batch normalisation is folded by us, and for zennit by torch: zennit's own canonizer
leaves every normalisation behind with its epsilon, a factor of 1 / sqrt(1 + 1e-5) each, 4e-4 of the logits. zennit's
rules for signs take a sum for a layer with negative weights too, so that sums are compared under the proportional
rule; `tests/methods/test_rules.py` has the other one.
"""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2

from tests.methods.nets import classifier, photographs, seeded
from tests.methods.shapes import rewritten, shaped
from xaibench.methods.context import Context
from xaibench.methods.rules.guided_backprop import GuidedBackprop
from xaibench.methods.rules.lrp import LRP, box
from xaibench.methods.rules.rules import AlphaBeta, Epsilon, Flat, Gamma, Square

zennit = pytest.importorskip("zennit")
from zennit import rules, types  # noqa: E402
from zennit.attribution import Gradient  # noqa: E402
from zennit.composites import GuidedBackprop as ZennitGuided  # noqa: E402
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite  # noqa: E402
from zennit.layer import Sum  # noqa: E402
from zennit.torchvision import ResNetBasicBlockCanonizer  # noqa: E402

SIZE = (3, 64, 64)


def exact(z):
    """A denominator as it is; 0 becomes 1, so that its share is 0."""
    return torch.where(z == 0, 1, z)


class SummedResidual(nn.Module):
    """An inverted residual block whose sum is zennit's module."""

    def __init__(self, block):
        super().__init__()
        self.conv, self.sum = block.conv, Sum()

    def forward(self, x):
        return self.sum(torch.stack([x, self.conv(x)], dim=-1))


def for_zennit(module):
    """A copy that zennit can be attached to: ReLUs, sums and pooling as modules, no batch normalisation."""
    module = rewritten(module, "separate").eval()
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (name, child), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(child, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(child, norm))
                setattr(parent, norm_name, nn.Identity())
        for name, child in children:
            if isinstance(child, InvertedResidual) and child.use_res_connect:
                setattr(parent, name, SummedResidual(child))
    if isinstance(module, MobileNetV2):
        return nn.Sequential(module.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), module.classifier)
    return module


def theirs(name, module, inputs, targets, rule, first=None):
    """zennit's map, with the same rule for every convolution and linear layer."""
    by_weights = isinstance(rule, rules.WSquare | rules.Flat)
    layers = [
        (types.Activation, rules.Pass()),
        (types.AvgPool, rules.Flat(exact) if by_weights else rules.Norm(exact)),
        (Sum, rules.Norm(exact)),
        ((types.Convolution, types.Linear), rule),
    ]
    canonizers = [ResNetBasicBlockCanonizer()] if name == "resnet" else []
    if first is None:
        composite = LayerMapComposite(layers, canonizers=canonizers)
    else:
        composite = SpecialFirstLayerMapComposite(layers, [(types.Convolution, first)], canonizers=canonizers)
    hot = nn.functional.one_hot(targets, 5).double()
    with Gradient(for_zennit(module), composite) as attributor:
        return attributor(inputs.clone(), lambda output: output * hot)[1].detach()


# Ours, zennit's, and whether they agree on inputs of both signs.
PAIRS = {
    "epsilon": (Epsilon(0.25), rules.Epsilon(0.25)),
    "epsilon_dropped": (Epsilon(0.25, bias="dropped"), rules.Epsilon(0.25, zero_params="bias")),
    "zero": (Epsilon(0), rules.Epsilon(exact)),
    "zplus": (AlphaBeta(), rules.ZPlus(exact, zero_params="bias")),
    "zplus_kept": (AlphaBeta(bias="kept"), rules.ZPlus(exact)),
    "alpha2_beta1": (AlphaBeta(2, 1), rules.AlphaBeta(2, 1, exact, zero_params="bias")),
    "alpha5_beta4_kept": (AlphaBeta(5, 4, bias="kept"), rules.AlphaBeta(5, 4, exact)),
    "wsquare": (Square(), rules.WSquare(exact, zero_params="bias")),
    "flat": (Flat(), rules.Flat(exact)),
}


@pytest.fixture(scope="module", params=["vgg", "resnet", "mobilenet"])
def case(request):
    inputs = seeded(2, SIZE)
    return request.param, shaped(request.param).double(), inputs, torch.tensor([1, 4])


def close(found, expected):
    assert expected.abs().max() > 0
    return bool((found - expected).abs().max() < 1e-8 * expected.abs().max())


@pytest.mark.parametrize("pair", PAIRS)
def test_rules_on_signed_inputs(case, pair):
    name, module, inputs, targets = case
    ours, rule = PAIRS[pair]
    found = LRP(ours, residual="proportional").attribute(
        classifier(copy.deepcopy(module), SIZE), inputs, targets, Context()
    )
    assert close(found, theirs(name, module, inputs, targets, rule))


def test_z_box_and_the_other_rules_at_the_input(case):
    name, module, _, targets = case
    network, inputs = classifier(copy.deepcopy(module), SIZE), photographs(2).repeat(1, 1, 4, 4)
    bounds = box(network, inputs)
    inner = rules.ZPlus(exact, zero_params="bias")
    for first, rule in {
        "box": rules.ZBox(bounds.low[None], bounds.high[None], exact, zero_params="bias"),
        "square": rules.WSquare(exact, zero_params="bias"),
        "flat": rules.Flat(exact),
    }.items():
        found = LRP(AlphaBeta(), residual="proportional", first=first).attribute(network, inputs, targets, Context())
        assert close(found, theirs(name, module, inputs, targets, inner, rule)), first


@pytest.mark.parametrize("options", [{}, {"zero_params": "bias"}])
def test_gamma_on_signed_inputs(case, options):
    """Whole networks, their sums under the proportional rule; zennit scales the bias too."""
    name, module, inputs, targets = case
    expected = theirs(name, module, inputs, targets, rules.Gamma(0.25, exact, **options))
    rule = Gamma(0.25, bias="dropped" if options else "scaled")
    network = classifier(copy.deepcopy(module), SIZE)
    assert close(LRP(rule, residual="proportional").attribute(network, inputs, targets, Context()), expected)


def test_original_gamma_where_nothing_is_negative():
    """zennit has another rule for negative values and outputs: without them the two agree."""
    module = shaped("vgg").double()
    network, inputs = classifier(copy.deepcopy(module), SIZE), seeded(4, SIZE).abs()
    targets = network.logits(inputs).argmax(1)
    assert (network.scores(inputs, targets) > 0).all()
    expected = theirs("vgg", module, inputs, targets, rules.Gamma(0.25, exact))
    assert close(LRP(Gamma(0.25, "scaled", "original")).attribute(network, inputs, targets, Context()), expected)
    assert not close(LRP(Gamma(0.25, form="original")).attribute(network, inputs, targets, Context()), expected)
    dropped = theirs("vgg", module, inputs, targets, rules.Gamma(0.25, exact, zero_params="bias"))
    assert close(LRP(Gamma(0.25, "dropped", "original")).attribute(network, inputs, targets, Context()), dropped)


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_guided_backpropagation(name):
    """Not on MobileNet: zennit's rule, like Captum's, leaves ReLU6 alone, which there is the plain gradient."""
    module, inputs, targets = shaped(name).double(), seeded(2, SIZE), torch.tensor([1, 4])
    hot = nn.functional.one_hot(targets, 5).double()
    with Gradient(rewritten(module, "separate").eval(), ZennitGuided()) as attributor:
        expected = attributor(inputs.clone(), lambda output: hot)[1]
    assert close(
        GuidedBackprop().attribute(classifier(copy.deepcopy(module), SIZE), inputs, targets, Context()), expected
    )
