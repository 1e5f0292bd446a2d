"""What a training lowers, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError

Loss = Literal["auto", "cross_entropy", "squared_error", "flow"]
LEVELS = 255  # steps from black to white in an image of 8 bits


@runtime_checkable
class Flow(Protocol):
    """A network that knows how likely its inputs are, such as `models.glow.Glow`."""

    def answers_and_bits(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B,K] and bits per dimension [B] of inputs [B,C,H,W] in [0, 1] without steps between their values."""


@dataclass(frozen=True)
class Objective:
    """What a batch of a training says: the loss to lower, the logits [B,K], and what else is reported, by name."""

    loss: torch.Tensor
    logits: torch.Tensor
    reported: Mapping[str, torch.Tensor] = field(default_factory=dict)


def objective(
    loss: Loss,
    module: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    random: torch.Generator | None = None,
    supervised: float = 1.0,
) -> Objective:
    """The loss of a batch of inputs [B,C,H,W] with labels [B]; differentiable. Names are explained in `recipe.Recipe`.

    random, supervised: of `flow`, which adds U(0, 1/255) to the inputs. Raises UserError for a network that the loss
    is not for.
    """
    if loss != "flow":
        logits = module(inputs)
        return Objective(loss_of(logits, labels, loss), logits)
    if not isinstance(module, Flow):
        raise UserError(
            f"model.recipe.loss=flow: {type(module).__name__} does not say how likely its inputs are\n"
            "expected a network with `answers_and_bits`, such as model=two4two_inn"
        )
    noise = torch.rand(inputs.shape, generator=random).to(inputs) / LEVELS
    logits, bits = module.answers_and_bits(inputs + noise)
    mean = bits.mean()
    return Objective(mean + supervised * loss_of(logits, labels), logits, {"bits_per_dimension": mean.detach()})


def loss_of(logits: torch.Tensor, labels: torch.Tensor, loss: Loss = "auto", reduction: str = "mean") -> torch.Tensor:
    """What training lowers, given logits [B,K] and labels [B] (see `recipe.Recipe`): its mean, or by `none` its values.

    Raises UserError for a squared error of several outputs, and ValueError for `flow`, which no logits tell.
    """
    if loss == "flow":
        raise ValueError("loss=flow is not a function of logits and labels")
    if loss == "auto":
        loss = "squared_error" if logits.shape[1] == 1 else "cross_entropy"
    if loss == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction=reduction)
    if logits.shape[1] != 1:
        raise UserError(f"model.recipe.loss=squared_error: the network has {logits.shape[1]} outputs, expected one")
    return F.mse_loss(logits[:, 0], labels.to(logits), reduction=reduction)
