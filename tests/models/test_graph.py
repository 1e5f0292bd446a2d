"""A network as steps: the same logits and gradients as the network itself, whatever it is made of."""

import copy
import gc
import math
import operator
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models import convnext as convnext_net
from torchvision.models import swin_transformer
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

from tests.methods.nets import VGGLike, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.rules.deeplift import DeepLIFT
from xaibench.methods.rules.guided_backprop import DeconvNet, GuidedBackprop
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rap import RAP
from xaibench.methods.rules.rules import AlphaBeta, Composite, Epsilon, Gamma, passed_on
from xaibench.models.classifier import Classifier
from xaibench.models.resnet_cifar import ResNetCifar
from xaibench.models.tracing.graph import Graph
from xaibench.models.tracing.steps import Affine, Convolution, Other, Product, Rectifier, Scale


class Everything(nn.Module):
    """Functional and in-place ReLUs, one module used twice, residual sum, concatenation, mean, arithmetic, shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.before_activation = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first((x * 0.8 - 0.1) / 2))
        x = F.relu_(x)
        y = self.relu(self.twice(x))
        y = self.twice(y)
        y += x
        y = F.leaky_relu(y, 0.2)
        y = torch.cat([F.max_pool2d(y, 3, 2, 1), self.pool(x)], 1)
        y = F.relu6(self.before_activation(y))
        y = y.mean((2, 3)).view(x.size(0), -1)
        return self.head(F.dropout(y, training=self.training))


def pooled() -> nn.Module:
    """Every kind of window: side by side, overlapping, cut off at the edge, with gaps, of two sides."""
    windows = [nn.MaxPool2d(2), nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True), nn.MaxPool2d(3, 1, 1, dilation=2)]
    return nn.Sequential(nn.Conv2d(3, 6, 3), *windows, nn.Flatten(), nn.Linear(48, 5))


def stirred(module: nn.Module) -> nn.Module:
    """Batch normalisation with statistics, weights and biases of its own."""
    draw = torch.Generator().manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
            for tensor in (part.running_var, part.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return module


TORCHVISION = {
    "vgg11_bn": {},
    "resnet18": {},
    "densenet121": {},
    "mobilenet_v2": {"width_mult": 0.35},
    "googlenet": {"aux_logits": False, "init_weights": False, "transform_input": True},
}


def transformer() -> nn.Module:
    return models.VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16, num_classes=7)


def swin(block=swin_transformer.SwinTransformerBlock, merging=swin_transformer.PatchMerging) -> nn.Module:
    """Windows of 4 on a grid of 8 x 8 (the second block's shifted), then of 4 x 4, too small to be shifted."""
    sizes = ([4, 4], 8, [2, 2], [2, 2], [4, 4])
    return models.SwinTransformer(*sizes, num_classes=7, block=block, downsample_layer=merging)


def convnext() -> nn.Module:
    return models.ConvNeXt(
        [convnext_net.CNBlockConfig(8, 12, 2), convnext_net.CNBlockConfig(12, None, 1)], num_classes=7
    )


def efficientnet() -> nn.Module:
    """Squeeze-and-excite gates and stochastic depth."""
    blocks = [MBConvConfig(*sizes, 2, 1, 1) for sizes in ((1, 3, 1, 8, 8), (4, 5, 2, 8, 16))]
    return models.EfficientNet(blocks, dropout=0.2, stochastic_depth_prob=0.2, num_classes=7)


def mobilenet_v3() -> nn.Module:
    """Gates of hard sigmoids, ReLU and Hardswish."""
    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1),
        InvertedResidualConfig(16, 5, 32, 24, True, "HS", 2, 1, 1),
    ]
    return models.MobileNetV3(blocks, 32, num_classes=7)


def maxvit() -> nn.Module:
    return models.MaxVit((32, 32), 8, 4, [8], [2], 4, 0.2, num_classes=7)


# Transformers and convolutional networks of today, on small inputs.
TODAY = {
    "vit": (transformer, (3, 16, 16)),
    "swin": (swin, (3, 32, 32)),
    "swin_v2": (lambda: swin(swin_transformer.SwinTransformerBlockV2, swin_transformer.PatchMergingV2), (3, 30, 30)),
    "maxvit": (maxvit, (3, 32, 32)),
    "convnext": (convnext, (3, 32, 32)),
    "efficientnet": (efficientnet, (3, 32, 32)),
    "mobilenet_v3": (mobilenet_v3, (3, 32, 32)),
}


def drawn(module: nn.Module) -> nn.Module:
    """Without weights that start from 0, such as heads, or 1e-6, such as the scales of ConvNeXt's layers."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=draw)
    return module


def networks() -> list:
    made = [(name, lambda make=make: drawn(make()), size) for name, (make, size) in TODAY.items()]
    made += [("everything", Everything, (3, 16, 16)), ("vgg_like", VGGLike, (3, 16, 16))]
    made.append(("pooled", pooled, (3, 16, 16)))
    made.append(("resnet8", lambda: ResNetCifar(8), (3, 32, 32)))
    for name, options in TORCHVISION.items():
        make = getattr(models, name)
        made.append(
            (name, lambda make=make, options=options: make(weights=None, num_classes=7, **options), (3, 64, 64))
        )
    return [pytest.param(make, size, id=name) for name, make, size in made]


@pytest.mark.parametrize(("make", "size"), networks())
def test_logits_and_gradients_are_those_of_the_network(make, size):
    network = classifier(stirred(make()), size)
    inputs, targets = seeded(2, size), torch.tensor([1, 4])
    before = copy.deepcopy(network.module.state_dict())
    graph = Graph.of(network)
    values = graph.run(inputs)
    torch.testing.assert_close(values[-1], network.logits(inputs))
    hot = F.one_hot(targets, values[-1].shape[1]).double()
    gradient = graph.back(values, hot, Composite())["input"]
    torch.testing.assert_close(gradient, network.gradient(inputs, targets), rtol=1e-8, atol=1e-12)
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_signal_at_a_named_layer_is_the_gradient_there():
    """Started at a layer, read at another one, containers included."""
    network = classifier(stirred(ResNetCifar(8)), (3, 32, 32))
    inputs = seeded(2, (3, 32, 32))
    graph = Graph.of(network)
    values = graph.run(inputs)
    middle = values[graph.place("layer2")]
    signal = torch.randn(middle.shape, dtype=torch.float64)
    found = graph.back(values, signal, Composite(), start="layer2", keep=("input", "layer1", "layer2", "linear"))
    with torch.enable_grad():
        x = inputs.clone().requires_grad_(True)
        net = network.module
        first = net.layer1(net.relu(net.bn1(net.conv1(x))))
        expected = torch.autograd.grad(net.layer2(first), (x, first), signal)
    torch.testing.assert_close(found["input"], expected[0])
    torch.testing.assert_close(found["layer1"], expected[1])
    assert torch.equal(found["layer2"], signal)
    assert torch.equal(found["linear"], torch.zeros_like(values[-1]))


# The same network, its second convolution's output changed in place in many ways, and the same out of place.
IN_PLACE = {
    "torch.relu_": (lambda x: torch.relu_(x), F.relu),
    "F.relu_": (lambda x: F.relu_(x), F.relu),
    "method relu_": (lambda x: x.relu_(), F.relu),
    "F.relu inplace by name": (lambda x: F.relu(x, inplace=True), F.relu),
    "F.relu inplace by place": (lambda x: F.relu(x, True), F.relu),
    "F.relu6 inplace": (lambda x: F.relu6(x, True), F.relu6),
    "F.hardtanh inplace": (lambda x: F.hardtanh(x, 0.0, 2.0, True), lambda x: x.clamp(0, 2)),
    "torch.clamp_": (lambda x: torch.clamp_(x, min=0), F.relu),
    "method clamp_": (lambda x: x.clamp_(0, 1), lambda x: x.clamp(0, 1)),
    "method clamp_min_": (lambda x: x.clamp_min_(0), F.relu),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
    "F.elu inplace": (lambda x: F.elu(x, 1.0, True), F.elu),
    "torch.tanh_": (lambda x: torch.tanh_(x), torch.tanh),
    "method sigmoid_": (lambda x: x.sigmoid_(), torch.sigmoid),
    "silu inplace": (lambda x: F.silu(x, inplace=True), F.silu),
    "add_ of a number": (lambda x: x.add_(1), lambda x: x + 1),
    "mul_ of a number": (lambda x: x.mul_(0.5), lambda x: x * 0.5),
    "sub_ and div_": (lambda x: x.sub_(1).div_(2), lambda x: (x - 1) / 2),
    "operator": (lambda x: operator.imul(operator.iadd(x, 1), 2), lambda x: (x + 1) * 2),
    "add_ of itself": (lambda x: x.add_(x), lambda x: x + x),
    "unsqueeze_ and squeeze_": (lambda x: F.relu_(x.unsqueeze_(1).squeeze_(1)), F.relu),
    "zero_, for which there is no other": (lambda x: x + x.clone().zero_(), lambda x: x),
    "what it returns is not read": (lambda x: (x.relu_(), x)[1], F.relu),
    "what it returns is not read, twice": (lambda x: (x.add_(1), torch.relu_(x), x)[2], lambda x: F.relu(x + 1)),
    "read before and after": (lambda x: (x * 2, x.relu_(), x)[0] + x, lambda x: 2 * x + F.relu(x)),
    "itself and what it returns": (lambda x: F.relu(x, True) + x, lambda x: 2 * F.relu(x)),
    "a view that nobody reads afterwards": (lambda x: torch.relu_(x.flatten(2)).view(-1, 6, 16, 16), F.relu),
    "dropout, which is nothing": (lambda x: F.relu_(F.dropout(x, 0.5, False, True)), F.relu),
}  # fmt: skip


class Changing(nn.Module):
    """Two convolutions with something between them and the head."""

    def __init__(self, change) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head, self.change = nn.Linear(6, 5), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(F.relu(self.first(x)))
        return self.head(F.adaptive_avg_pool2d(self.change(x), 1).flatten(1))


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_network_that_works_in_place_is_the_one_that_does_not(name):
    in_place, plain = (classifier(Changing(change)) for change in IN_PLACE[name])
    inputs, targets = seeded(3), torch.tensor([0, 3, 4])
    torch.testing.assert_close(in_place.logits(inputs), plain.logits(inputs))  # so that the pair is one
    hot = F.one_hot(targets, 5).double()
    found, signals = [], []
    for network in (in_place, plain):
        graph = Graph.of(network)
        values = graph.run(inputs)
        copies = [value.clone() if isinstance(value, torch.Tensor) else None for value in values]
        signals.append(graph.back(values, hot, Composite())["input"])
        # No step has written into the value of another.
        assert all(copy is None or torch.equal(copy, value) for copy, value in zip(copies, values))
        maps = DeepLIFT().attribute(network, inputs, targets, Context()) if name not in NO_RULE else None
        found.append((values[-1], maps))
    torch.testing.assert_close(signals[0], plain.gradient(inputs, targets))
    torch.testing.assert_close(signals[0], signals[1])
    torch.testing.assert_close(found[0][0], found[1][0])
    if name not in NO_RULE:
        torch.testing.assert_close(found[0][1], found[1][1])
        zero = plain.logits(torch.zeros_like(inputs))
        drop = (plain.logits(inputs) - zero).gather(1, targets[:, None])[:, 0]
        error = (found[0][1].sum((1, 2, 3)) - drop).abs() / drop.abs()
        assert error.max() < 1e-6


# x + 0 * x has a step that no rule is for.
NO_RULE = {"zero_, for which there is no other"}


def halves(x: torch.Tensor) -> list[torch.Tensor]:
    first, second = x.chunk(2, 1)
    return [first, second]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: (x[:, :3].relu_(), x)[1],
        lambda x: (torch.relu_(x.view(-1, 6, 256)), x)[1],
        lambda x: (x.flatten(2), x.relu_())[0].view(-1, 6, 16, 16),
        lambda x: x + F.dropout(x, 0.5, False).relu_(),
        lambda x: (lambda parts: torch.cat([parts[0].relu_(), parts[1]], 1))(halves(x)),
    ],
)
def test_a_view_changed_in_place_beside_one_that_is_read_is_refused(change):
    with pytest.raises(Refusal, match=r"works in place on a view, and '.*', a view of the same values, is read"):
        Graph.of(classifier(Changing(change)))


def test_batch_normalisation_is_folded_where_nothing_else_reads_the_layer():
    steps = Graph.of(classifier(stirred(Everything()))).steps
    (first,) = [step for step in steps if isinstance(step, Convolution) and step.options["groups"] == 3]
    assert first.bias is not None and first.name == "first"
    # What is left: arithmetic with constants (three operators), and the normalisation of a concatenation.
    assert [step.name for step in steps if isinstance(step, Scale)] == ["mul", "sub", "truediv", "before_activation"]
    assert sum(isinstance(step, Rectifier) for step in steps) == 3


def test_names_point_at_their_values():
    network = classifier(stirred(Everything()))
    graph = Graph.of(network)
    assert graph.place("first") == graph.place("norm")
    assert graph.place("input") == 0 and graph.place("logits") == len(graph.steps)
    with pytest.raises(Refusal, match="'twice' of Everything runs 2 times"):
        graph.place("twice")
    with pytest.raises(Refusal, match="did you mean 'head'"):
        graph.place("haed")


@pytest.mark.parametrize(
    ("make", "trunk"),
    [
        # The second and the third convolution share a ReLU, so that only their own outputs have a name.
        (VGGLike, ["features.1", "features.3", "features", "head.4"]),
        (lambda: ResNetCifar(8), ["relu", "layer1", "layer2", "layer3"]),
        (
            lambda: models.mobilenet_v2(weights=None, width_mult=0.1, inverted_residual_setting=[[6, 160, 2, 1]]),
            # The two inner layers of the block without a connection around it, and none of that which has one.
            ["features.0", "features.1.conv.0", "features.1.conv.1", "features.1", "features.2", "features"],
        ),
        # The ReLU behind it is a function, and the block that follows ends in one.
        (Everything, ["first"]),
    ],
)
def test_the_trunk_is_what_every_way_leads_through(make, trunk):
    size = (3, 16, 16)
    assert Graph.of(classifier(make(), size)).trunk() == trunk


def test_the_graph_follows_the_weights():
    network = classifier(VGGLike())
    before = Graph.of(network)
    assert Graph.of(network) is before
    with torch.no_grad():
        network.module.features[0].weight.mul_(2)
    after = Graph.of(network)
    assert after is not before
    torch.testing.assert_close(after.run(seeded(2))[-1], network.logits(seeded(2)))


def test_few_networks_are_kept_in_memory():
    first = classifier(VGGLike())
    gone = weakref.ref(first.module)
    Graph.of(first)
    del first
    for _ in range(2):
        Graph.of(classifier(VGGLike()))
    gc.collect()
    assert gone() is None


class Counted(nn.Module):
    """Running sums, beside a gate: what no rule takes apart, but a derivative does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 4, 3, padding="valid"), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(F.relu(x).amax((2, 3)) - 0.5 * x.cumsum(2).mean((2, 3)))


def test_other_steps_have_a_derivative_and_no_rule():
    network = classifier(Counted())
    inputs, targets = seeded(2), torch.tensor([0, 3])
    graph = Graph.of(network)
    assert [step.name for step in graph.of_kind(Other)] == ["cumsum"]
    assert [(step.name, step.gate) for step in graph.of_kind(Product)] == [("mul", 1)]
    values = graph.run(inputs)
    found = graph.back(values, F.one_hot(targets, 5).double(), Composite())["input"]
    torch.testing.assert_close(found, network.gradient(inputs, targets))
    with pytest.raises(Refusal, match="no rule for 'cumsum' of Counted, which is a call of cumsum\n"):
        LRP(AlphaBeta()).check(network)


# What stands behind two convolutions, and the same in other operations.
TWINS = {
    "window of a traced size": (
        lambda x: F.avg_pool2d(x, x.size()[3]).expand(-1, -1, 4, 4),
        lambda x: F.adaptive_avg_pool2d(x, 1).expand(-1, -1, 4, 4),
    ),
    "maximum over a traced size": (lambda x: F.max_pool2d(x, x.shape[-1] // 2), lambda x: F.max_pool2d(x, 8)),
    "divided by a traced size": (lambda x: x / x.size(2), lambda x: x / 16),
    "chunk": (lambda x: torch.cat(halves(x)[::-1], 1), lambda x: torch.cat([x[:, 3:], x[:, :3]], 1)),
    "chunk as a whole": (lambda x: torch.cat(x.chunk(2, 1), 1), lambda x: x),
    "a part of split": (lambda x: x.split([2, 4], dim=1)[1].repeat(1, 2, 1, 1)[:, :6], lambda x: x[:, LAST_FOUR]),
    "unbind and stack": (lambda x: torch.stack(torch.unbind(x, 1)[::-1], 1), lambda x: x.flip(1)),
    "parts added": (
        lambda x: sum(halves(x)).repeat(1, 2, 1, 1),
        lambda x: (0 + x[:, :3] + x[:, 3:]).repeat(1, 2, 1, 1),
    ),
    "zeros like": (
        lambda x: torch.cat([x[:, :3], torch.zeros_like(x[:, :3])], 1),
        lambda x: F.pad(x[:, :3], (0, 0, 0, 0, 0, 3)),
    ),
    "new zeros": (
        lambda x: torch.cat([x[:, :4], x.new_zeros(x.size(0), 2, 16, 16)], 1),
        lambda x: F.pad(x[:, :4], (0, 0, 0, 0, 0, 2)),
    ),
}
LAST_FOUR = [2, 3, 4, 5, 2, 3]


@pytest.mark.parametrize("name", TWINS)
def test_a_network_and_its_twin_have_one_map(name):
    networks = [classifier(Changing(change)) for change in TWINS[name]]
    inputs, targets = seeded(3), torch.tensor([0, 3, 4])
    torch.testing.assert_close(networks[0].logits(inputs), networks[1].logits(inputs))
    hot = F.one_hot(targets, 5).double()
    graph = Graph.of(networks[0])
    values = graph.run(inputs)
    gradient = graph.back(values, hot, Composite())["input"]
    torch.testing.assert_close(gradient, networks[1].gradient(inputs, targets))
    rule_based = [LRP(Epsilon()), LRP(AlphaBeta()), LRP(Gamma()), DeepLIFT(), GuidedBackprop(), DeconvNet(), RAP()]
    for method in rule_based:
        for network in networks:
            method.check(network)
        one, other = (method.attribute(network, inputs, targets, Context()) for network in networks)
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, msg=type(method).__name__)


class Standardised(nn.Conv2d):
    """A convolution of weights without mean and with deviation 1."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.flatten(1).std(1).view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Convolved(nn.Module):
    """A convolution in the first and one in the second place, padded in a way of their own, and a functional head."""

    def __init__(self, kind=nn.Conv2d, pad=None, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = kind(3, 6, (3, 4), **options), kind(6, 6, 3, **options)
        self.weight, self.pad = nn.Parameter(torch.randn(5, 6)), pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.pad or (lambda x: x, lambda x: x)
        x = F.relu(self.second(second(F.relu(self.first(first(x))))))
        return F.linear(x.mean((2, 3)), self.weight)


def plain(network: nn.Module) -> nn.Module:
    """The same with the standardised weights in ordinary convolutions."""
    found = Convolved().double()
    for name in ("first", "second"):
        ours, theirs = getattr(found, name), getattr(network, name)
        ours.weight.data = theirs.weight - theirs.weight.mean((1, 2, 3), keepdim=True)
        ours.weight.data /= ours.weight.data.flatten(1).std(1).view(-1, 1, 1, 1)
        ours.bias.data = theirs.bias.data
    return found


def around(mode: str):
    """Padding by 1 on every side, as modules of its own."""
    return (lambda x: F.pad(x, (1, 1, 1, 1), mode=mode), lambda x: F.pad(x, (1, 1, 1, 1), mode=mode))


def zeros(*sides: int):
    return lambda x: F.pad(x, sides)


CONVOLUTIONS = {
    # Of four columns the fourth has one more behind it than before it.
    "same": (lambda: Convolved(padding="same"), lambda: Convolved(pad=(zeros(1, 2, 1, 1), zeros(1, 1, 1, 1)))),
    "same, with gaps": (
        lambda: Convolved(padding="same", dilation=2),
        lambda: Convolved(pad=(zeros(3, 3, 2, 2), zeros(2, 2, 2, 2)), dilation=2),
    ),
    "reflect": (lambda: Convolved(padding=1, padding_mode="reflect"), lambda: Convolved(pad=around("reflect"))),
    "circular": (lambda: Convolved(padding=1, padding_mode="circular"), lambda: Convolved(pad=around("circular"))),
    "replicate": (lambda: Convolved(padding=1, padding_mode="replicate"), lambda: Convolved(pad=around("replicate"))),
    "standardised": (lambda: Convolved(Standardised), lambda: plain(Convolved(Standardised).double())),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_any_convolution_by_fixed_weights_is_the_ordinary_one_behind_its_padding(name):
    networks = [classifier(make()) for make in CONVOLUTIONS[name]]
    inputs, targets = seeded(2).abs(), torch.tensor([0, 3])
    torch.testing.assert_close(networks[0].logits(inputs), networks[1].logits(inputs))
    hot = F.one_hot(targets, 5).double()
    graph = Graph.of(networks[0])
    gradient = graph.back(graph.run(inputs), hot, Composite())["input"]
    torch.testing.assert_close(gradient, networks[1].gradient(inputs, targets))
    assert len(graph.of_kind(Convolution)) == 2
    for method in (LRP(Epsilon()), LRP(AlphaBeta()), LRP(AlphaBeta(2, 1)), LRP(Gamma()), DeepLIFT()):
        one, other = (method.attribute(network, inputs, targets, Context()) for network in networks)
        torch.testing.assert_close(one, other, msg=f"{name} {type(method).__name__}")


class Sorted(nn.Module):
    """A block that sorts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cummax(2)[0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (nn.MaxPool3d(1), "a module MaxPool3d"),
        (Sorted(), "a call of cummax in 'change'"),
        (lambda x: F.conv2d(x, x.mean((0, 2, 3)).view(1, 6, 1, 1).expand(6, 6, 1, 1)), "a conv2d whose weights depend"),
        (lambda x: F.relu(x.sigmoid()), "an activation that is not 0 at 0"),
        (lambda x: x * (x - 1), "a product of two values"),
        (lambda x: x.softmax(1), "a softmax"),
        (nn.GroupNorm(2, 6), "a normalisation by the values themselves"),
    ],
)  # fmt: skip
def test_what_has_no_rule_is_called_what_it_is(change, what):
    network = classifier(Changing(change))
    if "depend" in what:
        network.probe = lambda count: seeded(1).expand(count, -1, -1, -1)  # one that does not see that it mixes samples
    with pytest.raises(Refusal, match=f"there is no rule for '.*' of Changing, which is {what}"):
        RAP().check(network)


class Recurrent(nn.Module):
    """A module that returns a tensor and a tuple, of which one is read."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(32, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        values, (last, _) = self.cells(x.flatten(2))
        return self.head(values[:, -1] + last[0])


def test_a_step_that_returns_several_tensors_has_a_derivative():
    network = classifier(Recurrent(), (4, 4, 8))
    inputs, targets = seeded(2, (4, 4, 8)), torch.tensor([0, 3])
    graph = Graph.of(network)
    hot = F.one_hot(targets, 5).double()
    found = graph.back(graph.run(inputs), hot, Composite())["input"]
    torch.testing.assert_close(found, network.gradient(inputs, targets))
    with pytest.raises(Refusal, match="which is a module LSTM"):
        LRP(Epsilon()).check(network)


class Transposed(nn.Module):
    """Axes in another order by an attribute, which is no size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(x[:, 0]).mT.mean(1) * x.shape[1])


def test_a_transposed_tensor_is_no_size():
    network = classifier(Transposed(), (4, 8, 6))
    inputs, targets = seeded(2, (4, 8, 6)), torch.tensor([0, 3])
    graph, hot = Graph.of(network), F.one_hot(targets, 5).double()
    found = graph.back(graph.run(inputs), hot, Composite())["input"]
    torch.testing.assert_close(found, network.gradient(inputs, targets))
    assert found.any()


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class OneByOne(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[i : i + 1].flatten(1) for i in range(x.shape[0])])


class Tupled(nn.Module):
    """Logits and those of an auxiliary head."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), x.mean((2, 3))


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x.flatten(1)}


class OfTwo(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y).flatten(1)


class Counting(nn.Module):
    """Its steps say nothing of what its hook does."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.flat.register_forward_hook(lambda module, arguments, output: output * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(x)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            Deciding(),
            r"Deciding cannot be traced by torch.fx: it decides by the values of the input.*\nwrite .* torch.where",
        ),
        (
            nn.Sequential(nn.ReLU(), Deciding()),
            "Sequential cannot be traced by torch.fx at '1': it decides by the values",
        ),
        (OneByOne(), r"it uses the batch size as a number of Python's\ngive sizes to tensors as x.shape\[0\] or -1"),
        (Tupled(), "Tupled returns a tuple, a backward pass by rules starts from a tensor of logits"),
        (Named(), "Named returns a dict, a backward pass by rules starts from a tensor of logits"),
        (OfTwo(), "OfTwo takes 2 inputs"),
        (Counting(), "do not give its logits"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(module, said):
    with pytest.raises(Refusal, match=said):
        Graph.of(Classifier(type(module).__name__, module, (4, 8, 8)))


class Remembering(nn.Module):
    """Keeps what it computed from its weights, as LeViT its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept, self.last = nn.Linear(8, 5), {}, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "weight" not in self.kept:
            self.kept["weight"] = self.last = self.layer.weight * 2
        return F.linear(x.mean((1, 2)), self.kept["weight"], self.layer.bias)


def test_a_trace_leaves_nothing_in_the_network():
    network = classifier(Remembering(), (4, 8, 8))
    inputs = seeded(2, (4, 8, 8))
    found = Graph.of(network).run(inputs)[-1]
    assert isinstance(network.module.last, torch.Tensor)  # from the run that the trace is compared with
    torch.testing.assert_close(found, network.logits(inputs))


class Doubled(torch.autograd.Function):
    """x sigmoid(x) with a backward pass of its own, as efficientnet_pytorch's swish."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, signal):
        (x,) = ctx.saved_tensors
        return signal * torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))


def batched(x: torch.Tensor) -> torch.Tensor:
    """Sizes as torch's factories, Python and a loop take them."""
    batch, channels, height, width = x.shape
    mask = torch.zeros(height, width, dtype=x.dtype)
    for row in range(0, height, math.ceil(height / 3)):
        mask[row, : width // 2] = 1
    x = torch.cat([x, torch.ones(batch, 1, height, width, dtype=x.dtype)], 1)[:, :channels] * (1 + mask)
    return x.view(len(x.shape) * batch // 4, *x.shape[1:])


def placed(x: torch.Tensor) -> torch.Tensor:
    """x[place] = value, of a tensor that depends on the input and of one that depends on the size of the batch."""
    scales = x.new_ones(x.shape[0], 1, 6, 1, 1)
    scales[:, :, 4:] = 3
    x = x * scales[:, 0]
    x[:, :2] = 2 * x[:, 2:4]
    return x


# Networks that do what torch.fx's own tracer stops at, and the same in other operations.
SIZED = {
    "a backward pass of its own": (Doubled.apply, F.silu),
    "sizes": (batched, lambda x: x * (1 + rows(x))),
    "glu": (lambda x: F.glu(torch.cat([x, x], 1), 1), lambda x: x * torch.sigmoid(x)),
    "root mean square": (nn.RMSNorm(16, eps=1e-5), lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        lambda x: (x @ x.mT / 4).masked_fill(torch.ones(16, 16).triu(1) == 1, -math.inf).softmax(-1) @ x,
    ),
    "einsum": (lambda x: torch.einsum("bchw,bcvw->bchv", x, x), lambda x: x @ x.transpose(2, 3)),
    "roll": (
        lambda x: torch.roll(x, (1, 2), (2, 3)),
        lambda x: torch.cat([x[:, :, -1:], x[:, :, :-1]], 2)[..., ROLLED],
    ),
    "transposed": (nn.ConvTranspose2d(6, 6, 1), None),
    # As ConvNeXt V2 and VOLO have them.
    "response normalisation": (
        lambda x: torch.addcmul(x, x, x.norm(p=2, dim=(2, 3), keepdim=True), value=0.1),
        lambda x: x + x * x.pow(2).sum((2, 3), keepdim=True).sqrt() * 0.1,
    ),
    "maximum along a dimension": (lambda x: x.max(2, True)[0] + x, lambda x: x.amax(2, True) + x),
    "values put in their place": (placed, lambda x: torch.cat([2 * x[:, 2:4], x[:, 2:4], 3 * x[:, 4:]], 1)),
    "norm of nothing": (lambda x: x + (0 * x).norm(dim=1, keepdim=True), lambda x: x + 0),
}
ROLLED = [14, 15, *range(14)]


def test_steps_that_compute_with_sizes_are_for_these_alone():
    fixed, free = (classifier(Changing(change)) for change in (batched, F.relu))
    larger = seeded(2, (3, 20, 20))
    torch.testing.assert_close(Graph.of(free).run(larger)[-1], free.logits(larger))
    with pytest.raises(
        Refusal, match="Changing computes with the size of its inputs: expected 3x16x16, one is 3x20x20"
    ):
        Graph.of(fixed).run(larger)


def rows(x: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(16, 16, dtype=x.dtype)
    found[::6, :8] = 1
    return found


@pytest.mark.parametrize("name", SIZED)
def test_what_computes_with_sizes_or_has_functions_of_its_own_is_traced(name):
    change, other = SIZED[name]
    if other is None:  # a transposed convolution of one place is a convolution with the weight transposed
        twin = nn.Conv2d(6, 6, 1)
        twin.weight.data, twin.bias.data = change.weight.data.transpose(0, 1), change.bias.data
        other = twin
    networks = [classifier(Changing(one)) for one in (change, other)]
    inputs, targets = seeded(3), torch.tensor([0, 3, 4])
    torch.testing.assert_close(networks[0].logits(inputs), networks[1].logits(inputs))
    hot, gradients = F.one_hot(targets, 5).double(), []
    for network in networks:
        graph = Graph.of(network)
        values = graph.run(inputs)
        gradients.append(graph.back(values, hot, Composite())["input"])
        torch.testing.assert_close(gradients[-1], network.gradient(inputs, targets))
        LRP(Epsilon()).check(network)
    one, two = (LRP(Epsilon(1e-9)).attribute(network, inputs, targets, Context()) for network in networks)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrappers_are_looked_into(wrap, monkeypatch):
    """Around a network and around a part of it."""
    # DataParallel moves what it wraps to the first device it finds, the tests' own fakegpu among them.
    monkeypatch.setitem(nn.DataParallel.__init__.__globals__, "_get_available_device_type", lambda: None)
    plain, inputs, targets = VGGLike().double(), seeded(2), torch.tensor([0, 3])
    expected = LRP(Gamma()).attribute(classifier(plain), inputs, targets, Context())
    parts = copy.deepcopy(plain)
    parts.features = wrap(parts.features)
    for module in (wrap(copy.deepcopy(plain)), parts):
        network = Classifier("wrapped", module, (3, 16, 16))
        graph = Graph.of(network)
        start = F.one_hot(targets, 5) * graph.run(inputs)[-1]
        found = graph.back(graph.run(inputs), start, LRP(Gamma()).rules(network, inputs, Context()))["input"]
        torch.testing.assert_close(found, expected)


def test_relevance_is_conserved_by_the_z_plus_rule_on_real_shapes():
    """Dropped biases and inputs above 0 behind ReLUs: what the logit has, the input has."""
    network = classifier(stirred(models.resnet18(weights=None, num_classes=7)), (3, 64, 64))
    graph = Graph.of(network)
    values = graph.run(seeded(2, (3, 64, 64)).abs())
    start = torch.zeros_like(values[-1])
    start[:, 2] = values[-1][:, 2]
    affine = [step for step in graph.steps if isinstance(step, Affine)]
    assert len(affine) == 20 + 8 + 1 + 1  # convolutions, sums, average pooling, linear layer
    found = graph.back(values, start, Composite(AlphaBeta(), passed_on))["input"]
    torch.testing.assert_close(found.flatten(1).sum(1), start.sum(1), rtol=1e-6, atol=0)
