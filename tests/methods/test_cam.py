"""The CAM family and FullGrad: by hand, on networks of three shapes, and however a ReLU is written."""

import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods import shapes
from tests.methods.nets import classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.cam.gradcam import CAM, GradCAM, GradCAMPlusPlus, GuidedGradCAM, HiResCAM, LayerCAM, XGradCAM
from xaibench.methods.cam.without_gradients import AblationCAM, EigenCAM, ScoreCAM
from xaibench.methods.context import Context
from xaibench.methods.gradients.expected_gradients import ExpectedGradients
from xaibench.methods.gradients.fullgrad import FullGrad, spread_out
from xaibench.methods.gradients.gradient import Gradient
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.gradients.smoothgrad import SmoothGrad
from xaibench.methods.rules.guided_backprop import GuidedBackprop
from xaibench.rng import sample_generators

NETS = ["vgg", "resnet", "mobilenet"]


@pytest.fixture(params=NETS)
def name(request):
    return request.param


@pytest.fixture
def batch():
    return seeded(3, shapes.SIZE), torch.tensor([0, 4, 2])


@functools.cache
def of_shape(name, how=None):
    module = shapes.shaped(name)
    module = shapes.rewritten(module, how) if how else module
    return classifier(module, shapes.SIZE, layers={"last_conv": shapes.LAST_CONV[name]}, batch_size=2)


def attribute(method, network, batch):
    method.check(network)
    return method.attribute(network, *batch, Context(sample_generators(0, "maps", range(len(batch[0])))))


def halves(name, module):
    """A network as the part up to the last feature maps, and the part behind them, from torchvision's own forward."""
    if name == "vgg":
        return module.features, lambda f: module.classifier(torch.flatten(module.avgpool(f), 1))
    if name == "mobilenet":
        return module.features, lambda f: module.classifier(f.mean((2, 3)))
    stem = nn.Sequential(module.conv1, module.bn1, nn.ReLU(), module.maxpool)
    return (
        nn.Sequential(stem, module.layer1, module.layer2, module.layer3, module.layer4),
        lambda f: module.fc(torch.flatten(module.avgpool(f), 1)),
    )


def by_hand(name, module, inputs, targets):
    """Feature maps and their gradients of the targets' logits."""
    before, behind = halves(name, module)
    features = before(inputs).detach().requires_grad_(True)
    logits = behind(features)
    return features.detach(), torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features)[0]


def enlarged(cam):
    return F.interpolate(cam, size=shapes.SIZE[1:], mode="bilinear", align_corners=False)


def close(one, two):
    return torch.allclose(one, two, rtol=1e-9, atol=1e-10 * float(two.abs().max()))


# ---- class activation maps -------------------------------------------------------------------------------------------


def test_gradcam(name, batch):
    network = of_shape(name)
    features, gradients = by_hand(name, network.module, *batch)
    cam = (gradients.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)
    for relu in (True, False):
        assert close(attribute(GradCAM(relu=relu), network, batch), enlarged(cam.relu() if relu else cam))


def test_gradients_place_by_place(name, batch):
    network = of_shape(name)
    features, gradients = by_hand(name, network.module, *batch)
    for method, weighted in ((HiResCAM(), gradients * features), (LayerCAM(), gradients.clamp(min=0) * features)):
        assert close(attribute(method, network, batch), enlarged(weighted.sum(1, keepdim=True).relu()))


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_behind_one_linear_layer_hirescam_and_xgradcam_add_up_to_the_logit(name, batch):
    """The first because it is gradient times value of something linear; the second keeps each feature map's share."""
    network = of_shape(name)
    linear = network.module.fc if name == "resnet" else network.module.classifier[1]
    features, gradients = by_hand(name, network.module, *batch)
    logits = network.scores(*batch) - linear.bias[batch[1]]
    for method in (HiResCAM(relu=False), XGradCAM(relu=False)):
        weights = method.weights(features, gradients)
        assert torch.allclose((weights * features).sum((1, 2, 3)), logits, rtol=1e-9)
        cam = (weights * features).sum(1, keepdim=True)
        assert close(attribute(method, network, batch), enlarged(cam))


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_scorecam_one_feature_map_at_a_time(name, batch, passes):
    """Their algorithm 1 without batches: enlarge, scale, multiply, ask, softmax."""
    network, (inputs, targets) = of_shape(name), batch
    features, _ = by_hand(name, network.module, *batch)
    cams = []
    for image, maps, target in zip(inputs, features, targets):
        scores = []
        for feature_map in maps:
            shown = enlarged(feature_map[None, None])[0]
            span = shown.max() - shown.min()
            shown = (shown - shown.min()) / span if span > 0 else torch.zeros_like(shown)
            scores.append(network.module((image * shown)[None])[0, target])
        cams.append((torch.stack(scores).softmax(0)[:, None, None] * maps).sum(0))
    expected = enlarged(torch.stack(cams)[:, None].relu())
    cost, calls = ScoreCAM().cost(network), passes(network)
    assert close(attribute(ScoreCAM(), network, batch), expected)
    assert cost == (1 + features.shape[1], 0)
    assert sum(calls) <= 3 * cost[0] + 1 and max(calls) <= network.batch_size  # and one to see whether it fits


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_ablationcam_one_feature_map_at_a_time(name, batch):
    network, (inputs, targets) = of_shape(name), batch
    before, behind = halves(name, network.module)
    features = before(inputs).detach()
    cams = []
    for maps, target in zip(features, targets):
        lost = [behind(maps[None])[0, target] - behind(maps[None] * others)[0, target] for others in without_one(maps)]
        cams.append((torch.stack(lost)[:, None, None] * maps).sum(0))
    for relu in (True, False):
        cam = torch.stack(cams)[:, None]
        assert close(attribute(AblationCAM(relu=relu), network, batch), enlarged(cam.relu() if relu else cam))


def without_one(maps):
    """Factors [1,k,1,1] for feature maps, each of which takes one away."""
    return [(torch.arange(len(maps)) != k).to(maps).view(1, -1, 1, 1) for k in range(len(maps))]


def test_eigencam_finds_the_one_thing_that_varies():
    """Feature maps that are a picture times their channel's share, plus what is the same everywhere, are that picture
    less its mean, times the length of the shares: a direction of rank one in closed form."""
    torch.manual_seed(0)
    share, picture, same = torch.randn(4), torch.rand(2, 1, 6, 6) ** 3, torch.randn(1, 4, 1, 1)
    network = classifier(
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(144, 5)), (1, 6, 6), layers={"l": "0"}
    )
    network.module[0].weight.data[:], network.module[0].bias.data[:] = share.view(4, 1, 1, 1), same.flatten()
    maps = EigenCAM("l", relu=False).attribute(network, picture.double(), torch.tensor([0, 1]), Context())
    expected = (picture - picture.mean((2, 3), keepdim=True)).double() * network.module[0].weight.norm()
    assert torch.allclose(maps, expected, atol=1e-12)
    assert not EigenCAM("l").attribute(network, torch.ones(1, 1, 6, 6).double(), torch.tensor([0]), Context()).any()


def higher_derivatives(behind, features, target):
    """Second and third derivatives of exp(S) by each place of the features [1,k,h,w], one place at a time."""
    second, third = torch.zeros_like(features), torch.zeros_like(features)
    for place in range(features.numel()):
        moved = features.clone().requires_grad_(True)
        derivative = behind(moved)[0, target].exp()
        for order in (1, 2, 3):
            (gradient,) = torch.autograd.grad(derivative, moved, create_graph=True)
            derivative = gradient.flatten()[place]
            if order > 1:
                (second, third)[order - 2].view(-1)[place] = derivative.detach()
    return second, third


@pytest.mark.parametrize("seed", range(3))
def test_gradcam_pp_from_its_definition(seed):
    """Their eq. 5 and 10 with derivatives of exp(S) by automatic differentiation; S is linear in the features."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 3, 5, stride=4), nn.Flatten(), nn.Linear(3 * 9, 5))
    network = classifier(module, layers={"last_conv": "0"})
    inputs = seeded(2)
    maps = GradCAMPlusPlus(relu=False).attribute(network, inputs, torch.tensor([1, 1]), Context())
    for sample in range(2):
        features = module[0](inputs[sample : sample + 1]).detach()
        second, third = higher_derivatives(module[1:], features, 1)
        alpha = second / (2 * second + features.sum((2, 3), keepdim=True) * third)
        moved = features.clone().requires_grad_(True)
        score = module[1:](moved)[0, 1].exp()
        (first,) = torch.autograd.grad(score, moved)
        cam = ((alpha * first.relu()).sum((2, 3), keepdim=True) * features).sum(1, keepdim=True) / score
        expected = F.interpolate(cam, size=(16, 16), mode="bilinear", align_corners=False)
        assert torch.allclose(maps[sample : sample + 1], expected.detach(), rtol=1e-8, atol=1e-12)


def test_gradcam_pp_of_dead_features_is_zero(batch):
    """Maps without gradient get no weight, where the formula divides nothing by nothing."""
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    nn.init.zeros_(module[3].weight)
    network = classifier(module, shapes.SIZE, layers={"last_conv": "0"})
    assert not attribute(GradCAMPlusPlus(), network, batch).any()


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_cam_is_the_linear_layer_on_each_place(name, batch):
    network = of_shape(name)
    features, _ = by_hand(name, network.module, *batch)
    linear = network.module.fc if name == "resnet" else network.module.classifier[1]
    cam = torch.einsum("bk,bkhw->bhw", linear.weight[batch[1]], features)[:, None]
    assert torch.allclose(cam.mean((1, 2, 3)), network.scores(*batch) - linear.bias[batch[1]], rtol=1e-9)
    maps = attribute(CAM(), network, batch)
    assert close(maps, enlarged(cam))
    assert close(attribute(CAM(relu=True), network, batch), enlarged(cam.relu()))
    assert close(maps, attribute(GradCAM(relu=False), network, batch) * features[0, 0].numel())


class Head(nn.Module):
    """Feature maps, then whatever a test puts behind them."""

    def __init__(self, behind):
        super().__init__()
        self.conv, self.fc, self.behind = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(4, 5), behind

    def forward(self, x):
        return self.behind(self, self.conv(x), x)


@pytest.mark.parametrize(
    ("behind", "why"),
    [
        (lambda net, f, x: net.fc(f.amax((2, 3))), "does not take the mean over places"),
        (lambda net, f, x: net.fc(f[:, :, :-1].mean((2, 3))), "does not take the mean over places"),
        (lambda net, f, x: net.fc(f.relu().mean((2, 3))), "does not take the mean over places"),
        (lambda net, f, x: net.fc(f.mean((2, 3)).relu()), "is not linear there"),
        (lambda net, f, x: net.fc(f.mean((2, 3))).tanh(), "is not linear there"),
        (lambda net, f, x: net.fc(f.mean((2, 3)) + x.mean()), "reads the input past that layer"),
    ],
    ids=["max", "partial", "relu_before", "relu_behind", "odd", "skip"],
)
def test_cam_refuses_other_heads(behind, why):
    with pytest.raises(Refusal, match=f"{why}; gradcam serves any network"):
        CAM("conv").check(classifier(Head(behind), shapes.SIZE))


def test_cam_refuses_vgg_and_probabilities():
    with pytest.raises(Refusal, match="does not take the mean over places"):
        CAM().check(of_shape("vgg"))
    with pytest.raises(Refusal, match="cam explains a logit"):
        CAM().check(dataclasses.replace(of_shape("resnet"), output="probability"))
    CAM("conv").check(classifier(Head(lambda net, f, x: net.fc(f.mean((2, 3)))), shapes.SIZE))


@pytest.mark.parametrize("kind", ["gradcam", "gradcam_pp"])
def test_guided_gradcam_is_the_product(name, kind, batch, passes):
    network = of_shape(name)
    cam = {"gradcam": GradCAM, "gradcam_pp": GradCAMPlusPlus}[kind]()
    expected = attribute(cam, network, batch) * attribute(GuidedBackprop(), network, batch)
    assert expected.abs().amax((1, 2, 3)).max() > 0
    method, calls = GuidedGradCAM(cam=kind), passes(network)
    assert close(method.attribute(network, *batch, Context()), expected)
    assert sum(calls) == 3 * method.cost(network)[0] and max(calls) <= network.batch_size
    with pytest.raises(ValueError, match="cam=gradcampp: did you mean 'gradcam_pp'"):
        GuidedGradCAM(cam="gradcampp")


def test_any_named_layer(batch):
    """A layer within a block, a ReLU in place among them: the same as the network rewritten without it."""
    for layer in ("layer2.0.conv1", "layer2.0.bn1", "layer3.0", "bn1"):
        for method in (GradCAM(layer), GradCAMPlusPlus(layer), GuidedGradCAM(layer)):
            maps = [attribute(method, of_shape("resnet", how), batch) for how in ("separate", "inplace")]
            assert maps[0].shape[2:] == shapes.SIZE[1:] and maps[0].any()
            assert close(*maps)


# ---- however a ReLU is written ---------------------------------------------------------------------------------------


METHODS = {
    "gradient": Gradient(),
    "smoothgrad": SmoothGrad(3),
    "integrated_gradients": IntegratedGradients(3),
    "expected_gradients": ExpectedGradients(3, "black"),
    "gradcam": GradCAM(),
    "gradcam_pp": GradCAMPlusPlus(),
    "cam": CAM(),
    "xgradcam": XGradCAM(),
    "hirescam": HiResCAM(),
    "layercam": LayerCAM(),
    "scorecam": ScoreCAM(),
    "ablationcam": AblationCAM(),
    "eigencam": EigenCAM(),
    "fullgrad": FullGrad(),
    "guided_backprop": GuidedBackprop(),
    "guided_gradcam": GuidedGradCAM(),
    "guided_gradcam_pp": GuidedGradCAM(cam="gradcam_pp"),
}


@pytest.mark.parametrize("how", ["inplace", "shared", "functional", "functional_inplace"])
def test_ways_to_write_a_relu_change_nothing_or_are_refused(name, how, batch):
    for title, method in METHODS.items():
        if (title == "cam" and name == "vgg") or (title in ("scorecam", "ablationcam") and name == "mobilenet"):
            continue  # which has 1280 feature maps to try out
        expected = attribute(method, of_shape(name, "separate"), batch)
        network = of_shape(name, how)
        # A functional ReLU6 cuts at 6, which fullgrad cannot see; a functional ReLU adds nothing.
        refused = "functional" in how and title == "fullgrad" and name == "mobilenet"
        if refused:
            with pytest.raises(Refusal):
                method.check(network)
        else:
            assert close(attribute(method, network, batch), expected), title


# ---- fullgrad --------------------------------------------------------------------------------------------------------


def test_fullgrad_is_complete(name, batch):
    network = of_shape(name)
    maps = attribute(FullGrad("signed"), network, batch)
    assert torch.allclose(maps.sum((1, 2, 3)), network.scores(*batch), rtol=1e-8)


class Plain(nn.Module):
    """Convolution, batch normalisation, ReLU, convolution, pooling, linear: with every bias a tensor of its own."""

    def __init__(self, module, batch):
        super().__init__()
        conv, norm, _, second, *_, linear = module
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        self.module, self.scale = module, scale[:, None, None]
        self.biases = [
            conv.bias[:, None, None].expand(batch, 4, 16, 16),
            shift[:, None, None].expand(batch, 4, 16, 16),
            second.bias[:, None, None].expand(batch, 6, 8, 8),
            linear.bias.expand(batch, 5),
        ]
        self.biases = [bias.detach().clone().requires_grad_(True) for bias in self.biases]

    def forward(self, x):
        conv, _, _, second, *_, linear = self.module
        x = F.conv2d(x, conv.weight, padding=1) + self.biases[0]
        x = (x * self.scale + self.biases[1]).relu()
        x = F.conv2d(x, second.weight, stride=2, padding=1) + self.biases[2]
        return F.linear(x.amax((2, 3)), linear.weight) + self.biases[3]


def test_fullgrad_from_its_definition():
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    network = classifier(module)
    inputs, targets = seeded(4), torch.arange(4)
    plain, x = Plain(module, 4), inputs.clone().requires_grad_(True)
    logits = plain(x)
    assert torch.allclose(logits, network.logits(inputs), rtol=1e-9)
    tensors = [x, *plain.biases]
    gradients = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), tensors)
    parts = [(tensor * gradient).detach() for tensor, gradient in zip(tensors, gradients)]

    def psi(part):
        part = part.abs() - part.abs().amin((2, 3), keepdim=True)
        return part / part.amax((2, 3), keepdim=True).clamp(min=1e-300)

    def resized(part):
        return F.interpolate(part.sum(1, keepdim=True), size=(16, 16), mode="bilinear", align_corners=False)

    def released(part):
        """As `_postProcess` of the authors' code: the extremes of all channels of a sample."""
        part = part.abs().flatten(1)
        part = part - part.min(1, keepdim=True).values
        return part / (part.max(1, keepdim=True).values + 1e-6)

    def aligned(part):
        part = released(part).view_as(part).sum(1, keepdim=True)
        return F.interpolate(part, size=(16, 16), mode="bilinear", align_corners=True)

    expected = {
        "released": sum(aligned(part) for part in parts[:4]),
        "rescaled": sum(resized(psi(part)) for part in parts[:4]),
        "absolute": sum(resized(part.abs()) for part in parts[:4]),
        "signed": sum(resized(part) * part[0, 0].numel() / 256 for part in parts[:4])
        + parts[4].sum(1).view(4, 1, 1, 1) / 256,
    }
    for word, maps in expected.items():
        assert torch.allclose(attribute(FullGrad(word), network, (inputs, targets)), maps, rtol=1e-9, atol=1e-12), word


@pytest.mark.parametrize(
    ("small", "large"), [((4, 4), (16, 16)), ((7, 5), (64, 31)), ((1, 1), (9, 9)), ((8, 8), (8, 8))]
)
def test_spreading_keeps_sums(small, large):
    values = torch.randn(2, 1, *small, dtype=torch.float64)
    wide = spread_out(values, large)
    assert wide.shape[2:] == large
    assert torch.allclose(wide.sum((2, 3)), values.sum((2, 3)), rtol=1e-10)


class Constant(Head):
    def __init__(self, bend):
        super().__init__(lambda net, f, x: bend(net.fc(f.mean((2, 3)))))


@pytest.mark.parametrize(
    "bend", [lambda x: x + 1, torch.sigmoid, lambda x: x * x, F.gelu, lambda x: F.layer_norm(x, (5,))]
)
def test_fullgrad_refuses_what_it_cannot_account_for(bend):
    with pytest.raises(Refusal, match=r"fullgrad finds contributions of .* in a logit of .* of Constant"):
        FullGrad().check(classifier(Constant(bend), shapes.SIZE))
    network = classifier(Constant(lambda x: x), shapes.SIZE)
    FullGrad().check(network)
    network.output = "probability"
    with pytest.raises(Refusal, match="set output=logit"):
        FullGrad().check(network)


def lopsided():
    return nn.Hardtanh(-3.0, 0.5)


@pytest.mark.parametrize(
    "kind",
    [
        nn.ReLU6, nn.Hardtanh, lopsided, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh,
        nn.PReLU, nn.Softplus,
    ],
)  # fmt: skip
def test_fullgrad_counts_the_intercepts_of_activations(kind):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), kind(), nn.Conv2d(4, 4, 3), kind(), nn.Flatten(), nn.Linear(576, 5))
    network = classifier(module)
    batch = 5 * seeded(3), torch.arange(3)
    maps = attribute(FullGrad("signed"), network, batch)
    assert torch.allclose(maps.sum((1, 2, 3)), network.scores(*batch), rtol=1e-8)


def test_fullgrad_of_shared_layers_and_hooks_removed():
    """A convolution that runs twice contributes twice; afterwards nothing is left on the network."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(3, 5)

        def forward(self, x):
            return self.fc(self.relu(self.conv(self.relu(self.conv(x)))).mean((2, 3)))

    network = classifier(Twice())
    batch = seeded(3), torch.arange(3)
    maps = attribute(FullGrad("signed"), network, batch)
    assert torch.allclose(maps.sum((1, 2, 3)), network.scores(*batch), rtol=1e-8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.module.modules())
    with pytest.raises(ValueError, match="psi=raw: choose from: rescaled, released, absolute, signed"):
        FullGrad("raw")


class Sequence(nn.Module):
    """Places in a row behind the pixels, with biases there: a convolution over them, and a linear layer at each."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.row, self.each = nn.Conv2d(3, 4, 3), nn.Conv1d(4, 5, 3), nn.Linear(5, 6)
        self.relu, self.head = nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row = self.relu(self.row(self.relu(self.image(x)).flatten(2)))
        return self.head(self.relu(self.each(row.transpose(1, 2))).mean(1))


def test_fullgrad_counts_biases_of_rows():
    torch.manual_seed(4)
    network, inputs = classifier(Sequence(), (3, 8, 8)), seeded(2, (3, 8, 8))
    targets = torch.tensor([0, 2])
    maps = FullGrad("signed").attribute(network, inputs, targets, Context())
    assert maps.shape == (2, 1, 8, 8)
    torch.testing.assert_close(maps.sum((1, 2, 3)), network.scores(inputs, targets, "logit"))
