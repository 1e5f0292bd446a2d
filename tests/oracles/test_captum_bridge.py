"""The bridge gives what Captum gives when it is called by hand, whatever the batch, and refuses what it cannot give."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.helpers import samples
from tests.methods.nets import SIZE, Functional, VGGLike, classifier, seeded
from xaibench.errors import Refusal, XaibenchError
from xaibench.methods.bridges.captum import Captum
from xaibench.methods.context import Context
from xaibench.perturb.fills import filled
from xaibench.rng import draw_seeds, sample_generators

attr = pytest.importorskip("captum.attr")

LAYERS = {"last_conv": "features.3"}

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not", "ignore:Setting")


class Separate(nn.Module):
    """Every ReLU a module of its own, as Captum's rules want it."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture
def network():
    return classifier(Separate(), layers=LAYERS, batch_size=4)


@pytest.fixture
def batch():
    return seeded(5), torch.tensor([0, 4, 2, 1, 3])


def generators(ids=range(5)):
    return sample_generators(0, "maps", ids)


def attribute(method, network, batch, **fitted):
    method.check(network)
    return method.attribute(network, *batch, Context(generators(), fitted))


def close(one, two):
    return torch.allclose(one, two, rtol=1e-9, atol=1e-10 * float(two.abs().max()))


def test_deterministic_attributors(network, batch):
    module, (inputs, targets) = network.module, batch
    layer = module.features[3]
    large = dict(size=SIZE[1:], mode="bilinear", align_corners=False)
    black = filled(inputs, "black", network.preprocessing)
    right = {"n_steps": 7, "method": "riemann_right"}
    boxes = {"sliding_window_shapes": [3, 8, 8], "strides": 8, "baselines": 1.5}
    gradcam = attr.LayerGradCam(module, layer).attribute(inputs, targets, relu_attributions=True)
    activation = layer(module.features[:3](inputs)).sum(1, True)
    by_hand = [
        ("IntegratedGradients", right, attr.IntegratedGradients(module).attribute(inputs, target=targets, **right)),
        ("Saliency", {"abs": False}, attr.Saliency(module).attribute(inputs, targets, abs=False)),
        ("DeepLift", {"baselines": "black"}, attr.DeepLift(module).attribute(inputs, black, targets)),
        ("GuidedBackprop", {}, attr.GuidedBackprop(module).attribute(inputs, targets)),
        ("Occlusion", boxes, attr.Occlusion(module).attribute(inputs, (3, 8, 8), 8, 1.5, targets)),
        ("LayerGradCam", {"relu_attributions": True}, nn.functional.interpolate(gradcam, **large)),
        ("LayerActivation", {}, nn.functional.interpolate(activation, **large)),
        (
            "NeuronGradient",
            {"neuron_selector": [2, 1, 1]},
            attr.NeuronGradient(module, layer).attribute(inputs, (2, 1, 1)),
        ),
    ]
    for name, arguments, expected in by_hand:
        maps = attribute(Captum(name, arguments), network, batch)
        assert maps.dtype == inputs.dtype and not maps.requires_grad
        assert close(maps, expected.detach().double()), name  # Captum's Occlusion returns float32


def test_constructor_arguments_and_probability(network, batch):
    inputs, targets = batch
    network.output = "probability"
    module = nn.Sequential(network.module, nn.Softmax(-1))
    expected = attr.IntegratedGradients(module, multiply_by_inputs=False).attribute(inputs, target=targets, n_steps=5)
    method = Captum("IntegratedGradients", {"n_steps": 5}, {"multiply_by_inputs": False})
    assert close(attribute(method, network, batch), expected)


STOCHASTIC = [
    ("GradientShap", {"baselines": ["black", "white", "dataset"], "stdevs": 0.1, "n_samples": 6}, {}),
    ("NoiseTunnel", {"nt_samples": 4, "stdevs": 0.2, "nt_type": "vargrad"}, {"attribution_method": "Saliency"}),
    ("NoiseTunnel", {"nt_samples": 3, "n_steps": 4}, {"attribution_method": "IntegratedGradients"}),
    ("ShapleyValueSampling", {"feature_mask": 8, "n_samples": 3}, {}),
    ("KernelShap", {"feature_mask": 8, "n_samples": 20}, {}),
    ("DeepLiftShap", {"baselines": "dataset"}, {}),
]


@pytest.mark.parametrize(("name", "arguments", "constructor"), STOCHASTIC)
def test_a_map_does_not_depend_on_the_batch_and_global_generators_stay(name, arguments, constructor, batch):
    inputs, targets = batch
    module, method = Separate(), Captum(name, arguments, constructor, references=3)
    fitted = {}
    if method.fit is not None:
        fitted = method.fit(classifier(module, layers=LAYERS), samples(), torch.Generator().manual_seed(0))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    whole = attribute(method, classifier(module, layers=LAYERS, batch_size=64), batch, **fitted)
    order = [3, 0, 4]
    part = method.attribute(
        classifier(module, layers=LAYERS, batch_size=2),
        inputs[order],
        targets[order],
        Context(generators(order), fitted=fitted),
    )
    assert close(part, whole[order])
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == np.random.get_state()[1].tolist()
    assert whole.any() and (whole[0] - whole[1]).abs().max() > 0


def test_the_seed_is_the_samples(network, batch):
    """By hand: the global generators seeded as the bridge does, one sample at a time."""
    inputs, targets = batch
    method = Captum("GradientShap", {"baselines": ["black", "white"], "stdevs": 0.1, "n_samples": 6})
    maps = attribute(method, network, batch)
    words = ("black", "white")
    for sample, seed in enumerate(draw_seeds(generators()).tolist()):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        x = inputs[sample : sample + 1]
        baselines = torch.cat([filled(x, word, network.preprocessing) for word in words])
        expected = attr.GradientShap(network.module).attribute(x, baselines, 6, 0.1, targets[sample : sample + 1])
        assert close(maps[sample : sample + 1], expected)


def test_nominal_costs(network):
    assert Captum("IntegratedGradients").cost(network) == (50, 50)
    assert Captum("Saliency").cost(network) == (1, 1)
    assert Captum(*STOCHASTIC[1]).cost(network) == (4, 4)
    assert Captum(*STOCHASTIC[2]).cost(network) == (12, 12)
    assert Captum("Occlusion", {"sliding_window_shapes": [3, 8, 8], "strides": 4}).cost(network) == (10, 0)
    assert Captum("ShapleyValueSampling", {"feature_mask": 4, "n_samples": 3}).cost(network) == (49, 0)


def test_captum_is_called_within_the_batch_size(batch):
    network = classifier(Separate(), layers=LAYERS, batch_size=4)
    calls = []
    network.module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    for name, arguments, constructor in STOCHASTIC[1:5]:
        attribute(Captum(name, arguments, constructor), network, batch)
        assert 1 < max(calls) <= 4, name
        calls.clear()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (("IntegratedGradient",), "attributor=IntegratedGradient: did you mean 'IntegratedGradients'"),
        (("LLMAttribution",), "attributor=LLMAttribution: "),
        (("FeaturePermutation",), "mixes the samples of a batch"),
        (("IntegratedGradients", {"n_step": 5}), "arguments.n_step is no argument of .*: did you mean 'n_steps'"),
        (("IntegratedGradients", {"target": 5}), "arguments.target is set by xaibench"),
        (("IntegratedGradients", {"multiply_by_inputs": False}), "it belongs to method.constructor"),
        (("IntegratedGradients", {}, {"n_steps": 5}), "it belongs to method.arguments"),
        (("IntegratedGradients", {"baselines": "grey"}), "baseline=grey: "),
        (("IntegratedGradients", {"baselines": ["black", "white"]}), "takes one baseline for each input"),
        (("NoiseTunnel",), "NoiseTunnel needs constructor={attribution_method"),
        (("NoiseTunnel", {}, {"attribution_method": "Salience"}), "did you mean 'Saliency'"),
        (("NoiseTunnel", {"n_steps": 3}, {"attribution_method": "Saliency"}), "arguments.n_steps is no argument"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        Captum(*parameters)


def test_refusals(network, batch, monkeypatch):
    with pytest.raises(Refusal, match="did you mean 'last_conv'"):
        Captum("LayerGradCam", layer="last_cnov").check(network)
    relu6 = classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(784, 5)))
    functional = classifier(Functional(torch.relu))
    for name in ("GuidedBackprop", "Deconvolution", "DeepLift"):
        with pytest.raises(Refusal, match="1 modules are nn"):
            Captum(name).check(relu6)
        with pytest.raises(Refusal, match="1 of 2 are calls"):
            Captum(name).check(functional)
    with pytest.raises(Refusal, match="goes through all orders of 16 features"):
        Captum("ShapleyValues", {"feature_mask": 4}).check(network)
    with pytest.raises(Refusal, match=r"returns \[4, 5\], which is no map"):
        attribute(Captum("LayerActivation", layer="head"), network, batch)
    with pytest.raises(XaibenchError, match="Captum's DeepLift failed: "):
        attribute(Captum("DeepLift"), classifier(VGGLike()), batch)  # a ReLU that runs twice
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(Refusal, match="needs the package captum, which is not installed"):
        Captum()


def test_on_the_command_line(xaibench, here):
    quick = ("dataset.limit=2", "metric.steps=2", "method=captum")
    code, _, said = xaibench("run", *quick, "method.arguments={n_steps: 3, method: riemann_right}")
    assert code == 0, said
    assert len(list(here.glob("results/scores/*/*/degradation/captum-*.csv"))) == 1
    (spec,) = here.glob("cache/maps/*/*/captum/*/spec.json")
    assert '"n_steps": 3' in spec.read_text() and "captum 0" in spec.read_text()
    code, _, said = xaibench("run", *quick, "method.attributor=Salience")
    assert code == 2 and "did you mean 'Saliency'" in said
    code, _, said = xaibench("run", *quick, "method.attributor=LayerGradCam", "method.layer=last_cnov")
    assert code == 2 and "did you mean 'last_conv'" in said
