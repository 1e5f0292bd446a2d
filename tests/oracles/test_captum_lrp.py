"""LRP, DeconvNet and guided backpropagation equal Captum's, on networks that Captum can serve."""

import pytest
import torch

from tests.methods.nets import classifier, seeded
from tests.methods.shapes import rewritten, shaped
from xaibench.methods.context import Context
from xaibench.methods.rules.guided_backprop import DeconvNet, GuidedBackprop
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import AlphaBeta, Epsilon, Gamma

captum = pytest.importorskip("captum.attr")
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0 did not already")
SIZE = (3, 64, 64)


def lrp(module, inputs, targets, rule):
    """Captum's map. Its rules are gone after one call, so that they are set anew."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.rule = rule()
    return captum.LRP(module).attribute(inputs.clone(), target=targets).detach()


def close(found, expected, tolerance=1e-6):
    """Captum adds 1e-9 to every denominator, which is felt where one is small."""
    assert expected.abs().max() > 0
    return bool((found - expected).abs().max() < tolerance * expected.abs().max())


@pytest.fixture
def vgg():
    return rewritten(shaped("vgg").double(), "separate").eval()


def test_epsilon(vgg):
    inputs, targets = seeded(2, SIZE), torch.tensor([1, 4])
    for epsilon, tolerance in ((0.25, 1e-8), (1e-6, 1e-5)):
        expected = lrp(vgg, inputs, targets, lambda e=epsilon: EpsilonRule(e))
        assert close(
            LRP(Epsilon(epsilon)).attribute(classifier(vgg, SIZE), inputs, targets, Context()), expected, tolerance
        )


def test_gamma_with_the_bias_as_it_is(vgg):
    inputs, targets = seeded(2, SIZE).abs(), torch.tensor([1, 4])
    expected = lrp(vgg, inputs, targets, lambda: GammaRule(0.25))
    assert close(
        LRP(Gamma(0.25, form="original")).attribute(classifier(vgg, SIZE), inputs, targets, Context()), expected
    )


def test_z_plus_on_inputs_that_are_not_negative(vgg):
    """With signed ones Captum multiplies w+ with x of either sign: another rule."""
    targets = torch.tensor([1, 4])
    for inputs, same in ((seeded(2, SIZE).abs(), True), (seeded(2, SIZE), False)):
        expected = lrp(vgg, inputs, targets, lambda: Alpha1_Beta0_Rule(set_bias_to_zero=True))
        found = LRP(AlphaBeta()).attribute(classifier(vgg, SIZE), inputs, targets, Context())
        assert close(found, expected) == same


@pytest.mark.parametrize("name", ["vgg", "resnet"])
@pytest.mark.parametrize(
    ("method", "peer"), [(DeconvNet(), "Deconvolution"), (GuidedBackprop(), "GuidedBackprop")], ids=["deconv", "guided"]
)
def test_rules_at_the_relu(name, method, peer):
    module = rewritten(shaped(name).double(), "separate").eval()
    inputs, targets = seeded(2, SIZE), torch.tensor([1, 4])
    found = method.attribute(classifier(module, SIZE), inputs, targets, Context())
    expected = getattr(captum, peer)(module).attribute(inputs.clone(), target=targets)
    assert close(found, expected.detach())
