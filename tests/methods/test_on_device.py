"""Every method on a device that is not the CPU: nothing mixed, the CPU's numbers, few copies and few waits."""

import pytest
import torch

from tests import text
from tests.methods.helpers import Noise
from tests.methods.nets import classifier, photographs
from tests.methods.test_counterfactual import network as flow
from tests.methods.test_method_contract import NAMES, Halves, net_for
from xaibench.datasets.base import Samples
from xaibench.methods.context import Context
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators

# What the small networks need, and few steps where they are many.
ADVERSARY = {"epochs": 1, "target_samples": 8, "feature_steps": 2, "copies": 2, "critic_widths": [4]}
OVERRIDES = {
    "concept": {"concepts": 4},
    "iba_features": {"loss": "cross_entropy"},
    "iba_inverted": {"layer": "flow.7"},
    **dict.fromkeys(("input_iba", "input_iba_released"), ADVERSARY),
}
# The critic of the first is an LSTM, for which torch calls a kernel of GPUs that CPUs do not have; its class is that of
# input_iba. The second smooths maps of input_iba, as gradient_smoothed those of the gradient.
ELSEWHERE = {"input_iba_text", "input_iba_smoothed"}
# Whose samples come one after the other: a network is trained for each, each is taken apart, has players of its own, or
# Captum has its own way.
ONE_BY_ONE = {"captum", "dasp", "dtd_full", "input_iba", "input_iba_released"}
LINES = ("a b c a k", "b b a c k", "c a b k b", "k a a b c")


def case(name):
    """A network that the method serves, in float64, four inputs of it, and data to fit to."""
    if name == "lime_text":
        network = text.classifier(text.network(dtype=torch.float64))
        module = network.module
        # Without its LSTM, see ELSEWHERE.
        module.forward = lambda inputs: module.head(torch.cat([inputs, inputs[:, :1]], 1).square().sum((2, 3)))
        ((_, batch),) = text.batch(network.module, *LINES).alike()
        data = Samples(text.Lines(*LINES), network.preprocessing, range(4))
        return network.sized(batch.inputs), batch.inputs.double(), data
    if name == "iba_inverted":
        network = flow(batch_size=64)
        images = Samples(Noise(10, network.input_size), Preprocessing(), range(10))
        return network, torch.randn(4, *network.input_size, dtype=torch.float64), images
    network = classifier(net_for(name), batch_size=64)
    return network, photographs(4), Samples(Noise(10), network.preprocessing, range(10))


def explained(method, network, inputs, data):
    """A method's maps of inputs, with everything that it may ask for, on the device of the inputs."""
    device = inputs.device
    fitted = method.fit(network, data, torch.Generator().manual_seed(0)) if method.fit else {}
    fitted = {key: value if value.dtype == torch.int64 else value.to(inputs) for key, value in fitted.items()}
    classes = network.outputs
    halves = Samples(Halves(), Preprocessing(), range(64), device)

    def maps(count):
        ids = range(count)
        context = Context(
            sample_generators(0, "maps", ids), fitted, samples=tuple(ids), masks=inputs[:count, 0] > 0, data=halves
        )
        targets = torch.tensor([i % classes for i in ids], device=device)
        return method.attribute(network, inputs[:count], targets, context)

    return maps


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE | {"precomputed"}])
def test_a_method_keeps_to_its_device(name, make, fakegpu):
    method, (network, inputs, data) = make(name, **OVERRIDES.get(name, {})), case(name)
    expected = explained(method, network, inputs, data)(4)

    network.module = network.module.to(fakegpu.DEVICE)
    for parameter in network.module.parameters():
        parameter.requires_grad_(False)
    data.device = fakegpu.DEVICE
    maps, counts = explained(method, network, inputs.to(fakegpu.DEVICE), data), []
    for count in (2, 4):
        before = dict(fakegpu.COUNT)
        found = maps(count)
        spent = {kind: fakegpu.COUNT[kind] - before[kind] for kind in before}
        counts.append((spent["to_gpu"] + spent["to_cpu"], spent["sync"]))
    assert found.device == fakegpu.DEVICE
    # The kernels are the CPU's: what differs is the order of some sums.
    assert (found.cpu() - expected).abs().max() <= 1e-9 * expected.abs().max()
    (copies, waits), more = counts
    if name not in ONE_BY_ONE:
        assert copies <= 16 + sum(method.cost(network)) and waits <= 20, counts
        assert more[0] <= copies and more[1] <= waits + 1, counts
