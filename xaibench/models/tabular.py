"""Networks of table rows [B,1,1,d]: a linear one by least squares, and layers of ReLUs."""

from collections import OrderedDict

import torch
from torch import nn


class Linear(nn.Sequential):
    """Inputs [B,1,1,d] -> a value [B,1], linear in the features; `fit` is least squares, of the smallest norm."""

    def __init__(self) -> None:
        super().__init__(OrderedDict(input=nn.Identity(), flatten=nn.Flatten(), output=nn.LazyLinear(1)))
        self.output: nn.Linear

    def fit(self, inputs: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        """The weights and the bias that minimise the squared error, in double precision."""
        features, values = inputs.flatten(1).double(), labels.double()
        centre, mean = features.mean(0), values.mean()
        weights = torch.linalg.pinv(features - centre, rtol=1e-7) @ (values - mean)
        self.output.weight.data.copy_(weights[None])
        self.output.bias.data.fill_(float(mean - weights @ centre))


class MLP(nn.Sequential):
    """Inputs [B,1,1,d] -> outputs [B,outputs], through a ReLU layer of each width of `hidden`; none is linear.

    outputs: 1 for a real value, else one per class. `input` passes the features on, as a layer that can be named.
    """

    def __init__(self, hidden: tuple[int, ...] = (64, 64), outputs: int = 1) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=nn.Identity(), flatten=nn.Flatten())
        for number, width in enumerate(hidden, start=1):
            layers[f"linear{number}"] = nn.LazyLinear(width)
            layers[f"relu{number}"] = nn.ReLU()
        layers["output"] = nn.LazyLinear(outputs)
        super().__init__(layers)
