"""What the metrics of paths share: neurons of all layers in one row, and shares of them."""

import torch

from ...methods.pathways._pathway_neurons import Neurons


def joined(neurons: Neurons) -> torch.Tensor:
    """All neurons of each sample in a row: [B,N]."""
    return torch.cat([layer.flatten(1) for layer in neurons], 1)


def share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """part / whole in float64, NaN where whole is 0."""
    return part.double() / whole.double().where(whole > 0, torch.nan)


def counts(neurons: Neurons) -> torch.Tensor:
    """How many neurons of each layer are True: [B,L]."""
    return torch.stack([layer.flatten(1).sum(1) for layer in neurons], 1)
