"""What a training lowers, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError

Loss = Literal["auto", "cross_entropy", "squared_error", "weighted_mse", "bce", "weighted_bce", "zones", "flow"]
OF_VECTORS = ("bce", "weighted_bce", "zones")  # what reads the vector of an example's labels, not the explained one
OF_A_SCALAR = ("squared_error", "weighted_mse")
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
    weights: "Weights | None" = None,
    label_smoothing: float = 0.0,
) -> Objective:
    """The loss of a batch of inputs [B,C,H,W] with labels [B] or, for OF_VECTORS, [B,L]; differentiable.

    Names are explained in `recipe.Recipe`. random, supervised: of `flow`, which adds U(0, 1/255) to the inputs.
    weights: of `weighted_mse`. Raises UserError for a network that the loss is not for.
    """
    if loss != "flow":
        logits = module(inputs)
        return Objective(loss_of(logits, labels, loss, "mean", weights, label_smoothing), logits)
    if not isinstance(module, Flow):
        raise UserError(
            f"model.recipe.loss=flow: {type(module).__name__} does not say how likely its inputs are\n"
            "expected a network with `answers_and_bits`, such as model=two4two_inn"
        )
    if inputs.min() < 0 or inputs.max() > 1:
        raise UserError(
            f"model.recipe.loss=flow: inputs from {inputs.min().item():.3g} to {inputs.max().item():.3g}, expected "
            "pixels from 0 to 1, so neither model.mean nor model.std"
        )
    noise = torch.rand(inputs.shape, generator=random).to(inputs) / LEVELS
    logits, bits = module.answers_and_bits(inputs + noise)
    mean = bits.mean()
    answered = loss_of(logits, labels, "cross_entropy", label_smoothing=label_smoothing)
    return Objective(mean + supervised * answered, logits, {"bits_per_dimension": mean.detach()})


def loss_of(
    logits: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss = "auto",
    reduction: str = "mean",
    weights: "Weights | None" = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """What training lowers, given logits [B,K] and labels (see `recipe.Recipe`): its mean, or by `none` its values [B].

    labels: [B]; for OF_VECTORS [B,L]. weights: of `weighted_mse`; None weights all alike.
    Raises UserError where the outputs are not as many as the loss needs, and ValueError for `flow`, which no logits
    tell.
    """
    if loss == "flow":
        raise ValueError("loss=flow is not a function of logits and labels")
    if loss == "auto":
        loss = "squared_error" if logits.shape[1] == 1 else "cross_entropy"
    if loss == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)
    if loss in OF_A_SCALAR:
        if logits.shape[1] != 1:
            raise UserError(f"model.recipe.loss={loss}: the network has {logits.shape[1]} outputs, expected one")
        values = (logits[:, 0] - labels.to(logits)) ** 2
        if loss == "squared_error":
            return F.mse_loss(logits[:, 0], labels.to(logits), reduction=reduction)
        values = values if weights is None else values * weights.of(labels).to(values)
    elif loss == "zones":
        values = zone_losses(logits, labels)
    else:
        values = _binary_losses(logits, labels, weighted=loss == "weighted_bce")
    return values.mean() if reduction == "mean" else values


def _binary_losses(logits: torch.Tensor, labels: torch.Tensor, weighted: bool) -> torch.Tensor:
    """Binary cross-entropies of logits [B,L] with labels [B,L], the mean over an example's labels: [B]."""
    if labels.shape != logits.shape:
        raise UserError(f"model.recipe.loss: {logits.shape[1]} outputs for {labels.shape[1]} labels: expected as many")
    present = labels.to(logits)
    beta = None
    if weighted:
        positives = present.sum()
        # Without a positive there is nothing to weight.
        beta = (present.numel() - positives) / positives.clamp_min(1)
    return F.binary_cross_entropy_with_logits(logits, present, pos_weight=beta, reduction="none").mean(1)


def zone_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each zone's levels plus the distance of the level that they lead to expect: [B].

    logits [B,Z*K]: K levels for each of Z zones, zone by zone. labels [B,Z]: the level of each zone, 0 to K - 1.
    The mean over zones of -log p(label) and of |label - sum_k k p_k| (Khakzar 2022, chapter 9, eqs. 3 and 4). The
    expected level has a gradient, which the likeliest one has not.
    """
    zones = labels.shape[1]
    levels = logits.shape[1] // zones
    if levels < 2 or levels * zones != logits.shape[1]:
        raise UserError(
            f"model.recipe.loss=zones: the network has {logits.shape[1]} outputs, expected two or more for each of "
            f"the {zones} zones, such as {4 * zones}"
        )
    by_zone = logits.view(-1, zones, levels)
    entropy = F.cross_entropy(by_zone.flatten(0, 1), labels.long().flatten(), reduction="none").view(-1, zones)
    expected = (by_zone.softmax(-1) * torch.arange(levels).to(logits)).sum(-1)
    return (entropy + (labels.to(logits) - expected).abs()).mean(1)


@dataclass(frozen=True)
class Weights:
    """What the squared error at each label counts: `values` [K] in rising order and their `weights` [K], 1 at most."""

    values: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def rarity(cls, labels: torch.Tensor) -> "Weights":
        """One over how often each value occurs among labels [N], over that of the rarest."""
        values, counts = labels.unique(return_counts=True)
        return cls(values, counts.min() / counts.double())

    def of(self, labels: torch.Tensor) -> torch.Tensor:
        """The weights [B] of labels [B] that are among the values."""
        return self.weights.to(labels.device)[torch.searchsorted(self.values.to(labels), labels)]


def right(logits: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    """How right answers are, [B] in [0, 1], by logits [B,K] and labels [B] or [B,L].

    The likeliest class, or the nearer one of 0 and 1, is the label; of a scalar that answers real labels, the label is
    within half a unit; of several labels, the share that is answered right.
    """
    if loss == "zones":
        zones = labels.shape[1]
        answers = logits.view(len(logits), zones, logits.shape[1] // zones).argmax(-1)
        return (answers == labels).double().mean(1)
    if loss in OF_VECTORS:
        return ((logits > 0) == (labels > 0.5)).double().mean(1)
    if logits.shape[1] > 1:
        return (logits.argmax(-1) == labels).double()
    if labels.is_floating_point():
        return ((logits[:, 0] - labels).abs() <= 0.5).double()
    return ((logits[:, 0] > 0.5).long() == labels).double()
