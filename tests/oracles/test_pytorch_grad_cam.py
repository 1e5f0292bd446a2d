"""Grad-CAM, Grad-CAM++ and FullGrad beside pytorch-grad-cam, which returns maps scaled to 0..1 in single precision."""

import functools
import warnings

import pytest
import torch

from tests.methods import shapes
from tests.methods.nets import SIZE, classifier, seeded, transformer
from xaibench.methods.cam.gradcam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from xaibench.methods.cam.without_gradients import AblationCAM, EigenCAM, ScoreCAM
from xaibench.methods.context import Context
from xaibench.methods.gradients.fullgrad import FullGrad

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    grad_cam = pytest.importorskip("pytorch_grad_cam")

TARGETS = [3, 0, 4]
# Of a map scaled to 0..1: single precision, 1e-7 added to each maximum, 1e-6 to each denominator of Grad-CAM++.
TOLERANCE = 1e-4
STEEP = 300


def last_layer(module):
    return module.fc if hasattr(module, "fc") else module.classifier[-1]


@pytest.fixture(params=["vgg", "resnet", "mobilenet"])
def network(request):
    """With a last layer so steep that gradients are far above the 1e-6 that Grad-CAM++ is given there."""
    module = shapes.shaped(request.param)
    last_layer(module).weight.data *= STEEP
    layers = {"last_conv": shapes.LAST_CONV[request.param]}
    return classifier(module, shapes.SIZE, torch.float32, layers=layers, batch_size=3)


def theirs(kind, network, inputs, layers, **options):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network.module.requires_grad_(True)
    with getattr(grad_cam, kind)(model=network.module, target_layers=layers, **options) as oracle:
        maps = oracle(inputs.clone(), [ClassifierOutputTarget(target) for target in TARGETS])
    network.module.requires_grad_(False)
    return torch.as_tensor(maps)[:, None]


def scaled(maps):
    """Each map shifted and scaled to 0..1, as that library does with whatever it has."""
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-30)


KINDS = {
    "GradCAM": GradCAM,
    "GradCAMPlusPlus": GradCAMPlusPlus,
    "XGradCAM": XGradCAM,
    "HiResCAM": HiResCAM,
    "LayerCAM": LayerCAM,
}


@pytest.mark.parametrize("kind", KINDS)
def test_class_activation_maps(network, kind):
    """Theirs are scaled before they are enlarged and once more behind, which of ours leaves the same."""
    inputs = seeded(3, shapes.SIZE, torch.float32)
    maps = KINDS[kind]().attribute(network, inputs, torch.tensor(TARGETS), Context())
    assert maps.any()
    expected = theirs(kind, network, inputs, [network.layer("last_conv")])
    assert (scaled(maps) - expected).abs().max() <= TOLERANCE


def enlarged(cams, size=shapes.SIZE):
    large = torch.nn.functional.interpolate(cams, size=size[1:], mode="bilinear", align_corners=False)
    return scaled(large)


@pytest.mark.parametrize("network", ["vgg", "resnet"], indirect=True)
def test_scorecam(network, monkeypatch):
    """Theirs aligns corners when it enlarges what the image is multiplied by, which neither its authors' code nor the
    rest of theirs does. Logits as steep as the others' would leave the softmax one feature map."""
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", functools.partial(torch.nn.Upsample, mode="bilinear"))
    last_layer(network.module).weight.data /= STEEP
    inputs = seeded(3, shapes.SIZE, torch.float32)
    maps = ScoreCAM().attribute(network, inputs, torch.tensor(TARGETS), Context())
    assert maps.any()
    expected = theirs("ScoreCAM", network, inputs, [network.layer("last_conv")])
    assert (scaled(maps) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("network", ["vgg", "resnet"], indirect=True)
def test_ablationcam(network):
    """Theirs divides by the output, whose sign may turn the map."""
    inputs, targets = seeded(3, shapes.SIZE, torch.float32), torch.tensor(TARGETS)
    cams = AblationCAM().combined(network, inputs, targets) / network.scores(inputs, targets).view(-1, 1, 1, 1)
    assert (cams > 0).any()
    expected = theirs("AblationCAM", network, inputs, [network.layer("last_conv")])
    assert (enlarged(cams.relu()) - expected).abs().max() <= TOLERANCE


def test_eigencam(network):
    """Theirs has the sign that the decomposition happens to give."""
    inputs = seeded(3, shapes.SIZE, torch.float32)
    cams = EigenCAM().combined(network, inputs, torch.tensor(TARGETS))
    expected = theirs("EigenCAM", network, inputs, [network.layer("last_conv")])
    for cam, other in zip(cams, expected):
        differences = [(enlarged((sign * cam[None]).relu())[0] - other).abs().max() for sign in (1, -1)]
        assert min(differences) <= TOLERANCE


def patches(tokens):
    """What that library is given for transformers: tokens without the class token as 4x4 feature maps."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))


@pytest.fixture
def vision_transformer():
    """Before its last attention; steeper, since negative features let a denominator of Grad-CAM++ come near 0."""
    module = transformer()
    module.head.weight.data *= 100 * STEEP
    layers = {"last_conv": "blocks.1.norm1"}
    return classifier(module, SIZE, torch.float32, layers=layers, batch_size=3)


@pytest.mark.parametrize("kind", KINDS)
def test_class_activation_maps_of_tokens(vision_transformer, kind):
    inputs = seeded(3, SIZE, torch.float32)
    maps = KINDS[kind]().attribute(vision_transformer, inputs, torch.tensor(TARGETS), Context())
    assert maps.any()
    layers = [vision_transformer.layer("last_conv")]
    expected = theirs(kind, vision_transformer, inputs, layers, reshape_transform=patches)
    assert (scaled(maps) - expected).abs().max() <= TOLERANCE


def test_maps_of_tokens_without_gradients(vision_transformer, monkeypatch):
    """As for feature maps: Score-CAM aligned, Ablation-CAM not divided, Eigen-CAM with either sign. Theirs of
    Ablation-CAM takes the class token's number away too, by a layer of its own for transformers; where features have
    both signs it puts ten million below the least of them in place of the paper's 0, which is given back to it."""
    from pytorch_grad_cam.ablation_layer import AblationLayerVit

    class Zeroed(AblationLayerVit):
        def __call__(self, x):
            self.activations[torch.arange(len(self.activations)), :, list(self.indices)] = 0
            return self.activations

    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", functools.partial(torch.nn.Upsample, mode="bilinear"))
    inputs, targets, network = seeded(3, SIZE, torch.float32), torch.tensor(TARGETS), vision_transformer
    for method in (AblationCAM(), EigenCAM(), ScoreCAM()):
        if isinstance(method, ScoreCAM):
            network.module.head.weight.data /= 100 * STEEP
        kind = type(method).__name__
        options = {"ablation_layer": Zeroed()} if kind == "AblationCAM" else {}
        expected = theirs(kind, network, inputs, [network.layer("last_conv")], reshape_transform=patches, **options)
        cams = method.combined(network, inputs, targets)
        if kind == "AblationCAM":
            cams = cams / network.scores(inputs, targets).view(-1, 1, 1, 1)
        assert (cams > 0).any()
        for cam, other in zip(cams, expected):
            signs = (1, -1) if kind == "EigenCAM" else (1,)
            found = [enlarged((sign * cam[None]).relu(), SIZE)[0] for sign in signs]
            assert min((one - other).abs().max() for one in found) <= TOLERANCE, kind


def test_fullgrad(network):
    """The paper's psi, channel by channel, is theirs. Two things differ: they leave out intercepts of ReLU6, which the
    decomposition needs (so MobileNet differs), and count only biases of 2d convolutions and batch normalisations."""
    inputs = seeded(3, shapes.SIZE, torch.float32)
    maps = FullGrad().attribute(network, inputs, torch.tensor(TARGETS), Context())
    difference = (scaled(maps) - theirs("FullGrad", network, inputs, [])).abs().max()
    sixes = any(isinstance(module, torch.nn.ReLU6) for module in network.module.modules())
    assert difference > 1e-3 if sixes else difference <= 1e-3
