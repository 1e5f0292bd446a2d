"""The neurons of a network, which are its ReLU outputs: seen, gated and differentiated while it runs."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.rectifiers import RELUS, count_rectifiers

# One tensor [B,...] for each call of a ReLU module, in the order in which a forward pass makes them.
Neurons = list[torch.Tensor]


@contextmanager
def altered(network: nn.Module, alter: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within, what the k-th call of a ReLU module returns is replaced by alter(k, output), in every forward pass.

    Calls are counted, not modules, so that a module which a residual block uses twice has two layers of neurons.
    In-place ReLUs write to a new tensor meanwhile: who changed their output would change what else reads it.
    """
    relus = [module for module in network.modules() if isinstance(module, RELUS)]
    in_place = [relu.inplace for relu in relus]
    calls = 0

    def restart(*_: Any) -> None:
        nonlocal calls
        calls = 0

    def change(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return alter(calls - 1, output)

    handles = [network.register_forward_pre_hook(restart), *(relu.register_forward_hook(change) for relu in relus)]
    try:
        for relu in relus:
            relu.inplace = False
        yield
    finally:
        for handle in handles:
            handle.remove()
        for relu, before in zip(relus, in_place):
            relu.inplace = before


@contextmanager
def watched(network: nn.Module, see: Callable[[nn.Module, torch.Tensor], None]) -> Iterator[None]:
    """Within, see(module, z) is called before each call of a ReLU module, in the order of `Neurons`; z is its input."""
    relus = [module for module in network.modules() if isinstance(module, RELUS)]
    handles = [relu.register_forward_pre_hook(lambda module, arguments: see(module, arguments[0])) for relu in relus]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def ceilings(classifier: Classifier) -> list[float]:
    """The value at which the neurons of each call of a ReLU saturate: 6 for ReLU6, infinity for ReLU."""
    found: list[float] = []
    with watched(classifier.module, lambda relu, _: found.append(6.0 if isinstance(relu, nn.ReLU6) else math.inf)):
        classifier.module(classifier.blank)
    return found


def require_neurons(classifier: Classifier) -> None:
    """Refuse a network whose neurons cannot all be reached, or cannot be changed without changing something else."""
    classifier.refuse_torchscript()
    reached, missed = count_rectifiers(classifier)
    if missed:
        raise Refusal(
            f"pathway methods cannot reach {missed} of the {reached + missed} ReLUs of {classifier.name}: they are "
            "calls such as F.relu instead of nn.ReLU or nn.ReLU6 modules, or work in place on a slice"
        )
    if not reached:
        raise Refusal(f"pathway methods need ReLU modules: {classifier.name} has none in its forward pass")
    probe = classifier.probe(2)
    with torch.no_grad():
        expected = classifier.module(probe)
    logits, neurons = observe(classifier, probe)
    if any(len(layer) != len(probe) for layer in neurons):
        raise Refusal(f"pathway methods: a ReLU of {classifier.name} returns a tensor whose rows are not the samples")
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise Refusal(
            f"pathway methods: an in-place ReLU of {classifier.name} changes a tensor that other layers read: "
            "give it inplace=False, or let those layers read what it returns"
        )


@torch.no_grad()
def observe(classifier: Classifier, inputs: torch.Tensor) -> tuple[torch.Tensor, Neurons]:
    """Logits [B,K] and the neurons' outputs of at most `batch_size` inputs, without gradients."""
    neurons: Neurons = []

    def keep(layer: int, output: torch.Tensor) -> torch.Tensor:
        neurons.append(output)
        # The network goes on with a clone: it may write into what it gets.
        return output.clone()

    with altered(classifier.module, keep):
        return classifier.module(inputs), neurons


def contributions(
    classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, gates: Neurons | None = None
) -> Neurons:
    """a * df/da of every neuron a, f the explained output, in one forward and one backward pass; signed.

    First-order Taylor estimate of what setting the neuron to 0 takes from f. With gates, of the network whose neurons
    are multiplied by them. At most `batch_size` inputs.
    """
    neurons: Neurons = []

    def keep(layer: int, output: torch.Tensor) -> torch.Tensor:
        neurons.append(output if gates is None else output * gates[layer])
        return neurons[-1].clone()

    with torch.enable_grad(), altered(classifier.module, keep):
        total = classifier.select(classifier.module(inputs.detach().requires_grad_(True)), targets).sum()
    gradients = torch.autograd.grad(total, neurons, materialize_grads=True)
    return [neuron.detach() * gradient for neuron, gradient in zip(neurons, gradients)]


def integrated_contributions(
    classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, places: list[float], weights: list[float]
) -> Neurons:
    """a * integral over t of df(t a; x)/da, the whole layer of the neuron scaled by t, what is before it left alone.

    places, weights: the quadrature's, in [0, 1]. One pass per layer and place, as many places together as
    `batch_size` allows. The sum over a layer is f(x) - f(x with that layer 0), up to the quadrature's error.
    At most `batch_size` inputs.
    """
    _, neurons = observe(classifier, inputs)
    together = classifier.batch_size // len(inputs)
    found = []
    for layer, outputs in enumerate(neurons):
        integral = torch.zeros_like(outputs)
        for start in range(0, len(places), together):
            block = slice(start, start + together)
            gradients = _scaled_gradients(classifier, inputs, targets, layer, outputs, places[block])
            integral += torch.tensordot(outputs.new_tensor(weights[block]), gradients, dims=1)
        found.append(outputs * integral)
    return found


def _scaled_gradients(
    classifier: Classifier,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    layer: int,
    outputs: torch.Tensor,
    scales: list[float],
) -> torch.Tensor:
    """Derivatives [scales,B,...] of the explained output where a layer's outputs [B,...] are scaled."""
    # The graph starts here: nothing below the layer is differentiated.
    scaled = torch.stack([scale * outputs for scale in scales]).requires_grad_(True)

    def replace(index: int, output: torch.Tensor) -> torch.Tensor:
        return scaled.flatten(0, 1).clone() if index == layer else output

    copies = len(scales)
    with torch.enable_grad(), altered(classifier.module, replace):
        total = classifier.select(classifier.module(inputs.repeat(copies, 1, 1, 1)), targets.repeat(copies)).sum()
    # A layer that the logits do not read starts no graph.
    return torch.autograd.grad(total, scaled)[0] if total.requires_grad else torch.zeros_like(scaled)
