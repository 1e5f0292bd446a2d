"""Networks of which it is known what a map must do: blind in part, a sum, the same differently computed, saturated."""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from ...models.classifier import Classifier

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Blind(nn.Module):
    """A network that does not see the first `width` columns of places: it gets 0 in their place."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.width = network, width

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(F.pad(inputs[..., self.width :], (self.width, 0)))


class Sum(nn.Module):
    """a times the answer of one network plus b times that of another."""

    def __init__(self, first: nn.Module, second: nn.Module, a: float, b: float) -> None:
        super().__init__()
        self.first, self.second, self.a, self.b = first, second, a, b

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.a * self.first(inputs) + self.b * self.second(inputs)


def parameter(layer: nn.Module, name: str) -> torch.Tensor:
    """A parameter of a layer that has it."""
    found = layer._parameters[name]
    assert found is not None
    return found


class Split(nn.Module):
    """A layer as the sum of two, of weights W + V and -V. Who reads its weight, as attention does, finds W."""

    def __init__(self, layer: Layer, generator: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = copy.deepcopy(layer), copy.deepcopy(layer)
        weight = parameter(layer, "weight")
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        change = drawn * weight.abs().mean()
        parameter(self.first, "weight").data.add_(change)
        parameter(self.second, "weight").data.copy_(-change)
        if self.bias is not None:
            parameter(self.second, "bias").data.zero_()

    @property
    def weight(self) -> torch.Tensor:
        return parameter(self.first, "weight") + parameter(self.second, "weight")

    @property
    def bias(self) -> torch.Tensor | None:
        return self.first._parameters["bias"]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.first(inputs) + self.second(inputs)


class Saturated(nn.Module):
    """1 - relu(1 - x) of the value x at one place, the mean of its channels: flat from 1 on.

    The first of its `outputs`; the others are 0.
    """

    def __init__(self, place: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.place, self.outputs = place, outputs
        self.one = nn.Parameter(torch.ones(()))  # a network without parameters has neither device nor type

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        row, column = self.place
        answer = self.one - F.relu(self.one - inputs[:, :, row, column].mean(1, keepdim=True))
        return F.pad(answer, (0, self.outputs - 1))


def within(classifier: Classifier, module: nn.Module, path: str) -> Classifier:
    """The classifier of a module that has the network at `path`, where its layers are found by the names they had."""
    named = {layer: layer for layer, _ in classifier.module.named_modules() if layer} | dict(classifier.layers)
    layers = {name: f"{path}.{layer}" for name, layer in named.items()}
    return replace(classifier, module=module, layers=layers)


def rewritten(classifier: Classifier, generator: torch.Generator) -> Classifier | None:
    """The same function, differently computed: every linear layer and convolution is a `Split`. Layers keep their
    paths and what they return. None if the network has no such layer."""
    module = copy.deepcopy(classifier.module)
    parts = [(path, part) for path, part in module.named_modules() if isinstance(part, Layer) and path]
    for path, part in parts:
        outer, _, name = path.rpartition(".")
        setattr(module.get_submodule(outer), name, Split(part, generator))
    return replace(classifier, module=module) if parts else None
