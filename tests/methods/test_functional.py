"""A network of functions has the maps of its twin of modules: how a convolution is written does not matter."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.helpers import YAMLS, settings
from tests.methods.helpers import samples as images
from tests.methods.nets import Pooled, VGGLike, classifier, photographs
from xaibench.build import locate
from xaibench.methods.attention.attention import OfAttention
from xaibench.methods.context import Context
from xaibench.methods.counterfactual.concept import Concept
from xaibench.methods.counterfactual.counterfactual import Counterfactual
from xaibench.methods.gradients.dnnr_relevance import DNNRRelevance
from xaibench.methods.rules.dtd import FullDTD, TrainFreeDTD
from xaibench.rng import sample_generators

# Those of networks that have no convolution, or run backwards, or read words; and maps that no network makes.
ELSEWHERE = (Concept, Counterfactual, FullDTD, TrainFreeDTD, OfAttention, DNNRRelevance)
NAMES = [
    path.stem
    for path in YAMLS
    if path.stem not in ("precomputed", "region", "iba_inverted", "input_iba_text", "lime_text")
    and not issubclass(locate(settings(path.stem)["_target_"], "method"), ELSEWHERE)
]
# What makes five classes, eight channels and two images enough.
SHORT = {"epochs": 1, "critic_widths": [4], "steps": 2}
CHANGED = {
    "input_iba": SHORT,
    "input_iba_released": SHORT,
    "input_iba_smoothed": {"method": settings("input_iba") | SHORT},
    "pathway_dgr_random": {"learning_rate": 1.0},
    "iba_features": {"loss": "cross_entropy"},
    "iba_multilayer": {"thresholds": [None, None, None]},
}


class SamePadded(nn.Conv2d):
    """As TensorFlow pads, in the way of the networks that were ported from there (efficientnet_pytorch, timm)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sides = []
        for size, kernel, stride, gap in zip(x.size()[-2:], self.kernel_size, self.stride, self.dilation):
            sides.append(max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * gap + 1 - size, 0))
        down, across = sides
        if down > 0 or across > 0:
            x = F.pad(x, [across // 2, across - across // 2, down // 2, down - down // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Normalised(nn.BatchNorm2d):
    """A subclass, as those that have an activation with them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        training = self.training or self.running_mean is None
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps)


def normalised(module: nn.Module) -> nn.Module:
    """With batch normalisation behind the second convolution."""
    norm = nn.BatchNorm2d(8)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    first, second = module.features[3], module.features[5]
    module.features[3], module.features[5] = nn.Sequential(first, norm), nn.Sequential(second)
    return module


def functional(module: nn.Module) -> nn.Module:
    """A copy whose convolutions are F.pad and F.conv2d, and whose batch normalisation is F.batch_norm."""
    found = copy.deepcopy(module)
    for part in found.modules():
        if isinstance(part, nn.Conv2d):
            part.__class__, part.padding = SamePadded, (0, 0)
        if isinstance(part, nn.BatchNorm2d):
            part.__class__ = Normalised
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_method_gives_the_maps_of_the_twin(name, make):
    torch.manual_seed(0)
    module = normalised((Pooled if name == "cam" else VGGLike)())
    inputs, targets, found = photographs(2), torch.tensor([1, 3]), []
    for network in (classifier(module), classifier(functional(module))):
        method = make(name, **CHANGED.get(name, {}))
        method.check(network)
        given = method.fit(network, images(4), torch.Generator().manual_seed(0)) if method.fit else {}
        context = Context(sample_generators(0, "maps", range(2)), given, samples=(0, 1), masks=inputs[:, 0] > 0)
        found.append(method.attribute(network, inputs, targets, context))
    scale = float(found[0].abs().max())
    assert scale > 0 or name == "pathway_random"  # few random neurons make no path
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-9 * scale)
