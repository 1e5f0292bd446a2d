"""DeepLIFT by the rescale rule and DeepSHAP equal Captum's, on networks that Captum can serve.

In float64, within 1e-9 of the largest value, on networks in the shapes of VGG, ResNet and MobileNet. What Captum 0.9
cannot do, our own tests check without it: a ReLU that is used twice (refused), ReLU6 (its gradient is taken), pooling
windows that overlap (values of all windows but one are lost), and pooling right behind a ReLU, whose hooks on one
tensor run in the wrong order, so that the ReLU gets the gradient of the pooling. `served` takes all of these out.
"""

import operator

import pytest
import torch
from torch import fx, nn

from tests.methods import shapes
from tests.methods.helpers import Noise
from tests.methods.nets import classifier, seeded
from xaibench.datasets.base import Samples
from xaibench.methods.context import Context
from xaibench.methods.rules.deeplift import DeepLIFT
from xaibench.rng import sample_generators

captum = pytest.importorskip("captum.attr")

BATCH, TOLERANCE = 3, 1e-9

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not", "ignore:Setting forward, backward hooks")


def served(module: nn.Module) -> nn.Module:
    """The network with a ReLU module for each call, none a ReLU6, and pooling of its own tensors without overlap."""
    traced = fx.symbolic_trace(module)
    for number, node in enumerate(list(traced.graph.nodes)):
        layer = traced.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(layer, nn.ReLU | nn.ReLU6):
            node.target = f"relu_{number}"
            traced.add_submodule(node.target, nn.ReLU())
        if isinstance(layer, nn.MaxPool2d):
            traced.add_submodule(node.target, nn.MaxPool2d(2))
            with traced.graph.inserting_before(node):
                node.args = (traced.graph.call_function(operator.add, (node.args[0], 0.0)),)
    traced.recompile()
    return traced


@pytest.fixture(scope="module", params=["vgg", "resnet", "mobilenet"])
def network(request):
    return classifier(served(shapes.shaped(request.param)), shapes.SIZE)


@pytest.fixture
def batch():
    return seeded(BATCH, shapes.SIZE), torch.tensor([3, 0, 4])


def generators():
    return sample_generators(0, "maps", range(BATCH))


def assert_equal(maps, expected):
    error = (maps - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"relative difference {error:.2g}"


@pytest.mark.parametrize("baseline", ["blur", "noise"])
def test_rescale(network, batch, baseline):
    """From references without ties in pooling windows: of a constant image, rounding says where a maximum is."""
    inputs, targets = batch
    method = DeepLIFT(baseline=baseline)
    (start,) = method.baselines.of(network, inputs, Context(generators()))
    expected = captum.DeepLift(network.module).attribute(inputs, start, targets)
    assert_equal(method.attribute(network, inputs, targets, Context(generators())), expected.detach())


def test_deepshap(network, batch):
    inputs, targets = batch
    method = DeepLIFT(baseline="dataset", references=4)
    images = Samples(Noise(6, shapes.SIZE), network.preprocessing, range(6))
    fitted = method.fit(network, images, torch.Generator().manual_seed(0))
    fitted = {name: tensor.double() for name, tensor in fitted.items()}
    expected = captum.DeepLiftShap(network.module).attribute(inputs, fitted["references"], targets)
    assert_equal(method.attribute(network, inputs, targets, Context(fitted=fitted)), expected.detach())


@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet"])
def test_where_captum_does_not_reach_the_difference_we_do(name, batch):
    """A ReLU for each call, everything else as it was: pooling behind ReLUs, overlapping pooling, ReLU6."""
    inputs, targets = batch
    traced = fx.symbolic_trace(shapes.shaped(name))
    for number, node in enumerate(list(traced.graph.nodes)):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.ReLU):
            node.target = f"relu_{number}"
            traced.add_submodule(node.target, nn.ReLU())
    traced.recompile()
    network, method = classifier(traced, shapes.SIZE), DeepLIFT(baseline="blur")
    (start,) = method.baselines.of(network, inputs, Context())
    difference = network.scores(inputs, targets) - network.scores(start, targets)

    def missed(maps):
        return float(((maps.detach().sum((1, 2, 3)) - difference) / difference).abs().max())

    assert missed(method.attribute(network, inputs, targets, Context())) < 1e-12
    assert missed(captum.DeepLift(network.module).attribute(inputs, start, targets)) > 1e-2
