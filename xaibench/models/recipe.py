"""Recipes: how a network is trained."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..errors import UserError, nearest
from .labelled import Augment
from .losses import OF_VECTORS, Loss

Schedule = Literal["constant", "step", "one_cycle", "milestones", "decay", "plateau"]
# Parameters that came later: recipes that leave them as they are keep the keys of their trainings.
ADDED = (
    "loss", "supervised", "label_smoothing", "max_norm", "milestones", "gamma", "every", "patience", "initial",
    "frozen", "keep",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    epochs, batch_size, lr, weight_decay: as usual; every epoch sees every sample once, in a new order.
    optimizer, momentum: momentum is Adam's beta1.
    schedule: `constant`; `step`, a tenth of lr after half and a hundredth after three quarters of the training (He et
        al. 2016); `one_cycle`, up to lr and down again in cosines (Smith and Topin 2018, PyTorch's OneCycleLR);
        `milestones`, lr times `gamma` from each of the epochs `milestones` on (PyTorch's MultiStepLR); `decay`, times
        `gamma` after every `every` epochs (StepLR); `plateau`, times `gamma` whenever the loss on the validation split
        has not been lower than before for more than `every` epochs (ReduceLROnPlateau).
    augment: `crop_flip` shifts by up to 4 pixels, black at the border, and mirrors half of the images.
    batch_norm: `folded` trains with batch normalisation behind every biased convolution and folds it in at the end, so
        that the trained network is what its class says; `as_is` trains the network as it is.
    select: `last` keeps the weights of the last epoch, `best` those of the epoch with the highest accuracy (of real
        labels R squared) on the validation split, `lowest_loss` those of the one with the lowest loss there, the first
        one of equals.
    patience: the training ends when the loss on the validation split has not been lower for so many epochs; None:
        after `epochs`.
    seed: of the order, the augmentation and the network's own randomness; the initial weights are the caller's.
    loss: `cross_entropy`; `squared_error` of a scalar output; `auto`, the one of the two that the number of outputs
        says; `weighted_mse`, the squared error times how rare the label is among those of the training (Khakzar 2022,
        chapter 9, eq. 2; the rarest counts 1). Of the vector of labels that examples carry: `bce`, the mean binary
        cross-entropy of an output per label; `weighted_bce`, in which what is present counts beta times, the number of
        absent over that of present labels in the batch (chapter 8, eq. 6, and chapter 9); `zones`, levels of severity
        of each zone, see `losses.zone_losses`. `flow`, for an invertible network, the bits per dimension of its
        inputs, to which U(0, 1/255) is added, plus `supervised` times the cross-entropy of its logits (Sixt 2022,
        section 6.3, whose beta it is).
    label_smoothing: this share of every label is spread evenly over the classes, in cross-entropies (the study draws
        this share of the labels anew, which is the same on average).
    max_norm: a longer gradient is shortened to this norm.
    initial: weights to start from, of another task: a file, or torchvision's by name, such as DEFAULT. What the file
        has of a network's layers is taken, by name and shape; the others, such as a new head, start at random.
    frozen: a layer (module path) up to which the network keeps these weights, it included. What lies before runs once
        per image and is kept in memory, so that only what lies behind costs time. It allows no augmentation.
    keep: after which epochs the weights are kept besides, 0 for those that it begins with: what a network learns when.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    augment: Augment = "none"
    batch_norm: Literal["as_is", "folded"] = "as_is"
    select: Literal["last", "best", "lowest_loss"] = "last"
    seed: int = 0
    loss: Loss = "auto"
    supervised: float = 1.0
    label_smoothing: float = 0.0
    max_norm: float | None = None
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    every: int = 2
    patience: int | None = None
    initial: str | None = None
    frozen: str | None = None
    keep: Sequence[int] = ()

    @property
    def validates(self) -> bool:
        """Whether it looks at the validation split, after each epoch."""
        return self.select != "last" or self.schedule == "plateau" or self.patience is not None

    @property
    def reads_vectors(self) -> bool:
        """Whether it is trained on the vectors of labels that examples carry, and not on the explained ones."""
        return self.loss in OF_VECTORS

    @property
    def folds(self) -> bool:
        return self.batch_norm == "folded"

    def __post_init__(self) -> None:
        for name in ("milestones", "keep"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, words in (("schedule", get_args(Schedule)), ("select", ("last", "best", "lowest_loss"))):
            if getattr(self, name) not in words:
                raise UserError(f"model.recipe.{name}={getattr(self, name)}: {nearest(getattr(self, name), words)}")
        for name in ("epochs", "batch_size", "lr", "gamma", "every"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.recipe.{name}={getattr(self, name)}: expected a positive number")
        if self.supervised < 0:
            raise UserError(f"model.recipe.supervised={self.supervised}: expected a number of 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.recipe.label_smoothing={self.label_smoothing}: expected a share from 0 to below 1")
        for name in ("max_norm", "patience"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"model.recipe.{name}={getattr(self, name)}: expected a positive number, or null")
        if self.schedule == "milestones" and not self.milestones:
            raise UserError(
                "model.recipe.schedule=milestones: expected epochs in model.recipe.milestones, such as [30]"
            )
        if self.frozen is not None and (self.augment != "none" or self.folds or self.loss == "flow"):
            raise UserError(
                f"model.recipe.frozen={self.frozen}: what is frozen runs once, so augment=none, batch_norm=as_is and "
                "another loss than flow"
            )
        if not all(0 <= epoch <= self.epochs for epoch in self.keep):
            raise UserError(f"model.recipe.keep={list(self.keep)}: expected epochs from 0 to {self.epochs}")

    def described(self) -> dict[str, Any]:
        """The parameters, as keys have them."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name not in ADDED or value != defaults[name]}

    def rate(self, step: int, steps: int, losses: Sequence[float] = ()) -> float:
        """The learning rate of this step, counted from 0, of so many. losses: on validation, of the epochs so far."""
        if self.schedule == "step":
            return self.lr * 0.1 ** ((step >= steps / 2) + (step >= steps * 3 / 4))
        if self.schedule == "one_cycle":
            top, last = 0.3 * steps - 1, steps - 1
            if step < top:
                return _cosine(self.lr / 25, self.lr, step / top)
            return _cosine(self.lr, self.lr / 25e4, (step - top) / (last - top))
        epoch = step * self.epochs // steps
        if self.schedule == "milestones":
            return self.lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if self.schedule == "decay":
            return self.lr * self.gamma ** (epoch // self.every)
        if self.schedule == "plateau":
            return self.lr * self.gamma ** _plateaus(losses, self.every)
        return self.lr

    def is_over(self, losses: Sequence[float]) -> bool:
        """Whether it ends early. losses: on validation, of the epochs so far."""
        if self.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.patience

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the network's parameters."""
        if self.optimizer == "adam":
            betas = (self.momentum, 0.999)
            return torch.optim.Adam(module.parameters(), lr=self.lr, betas=betas, weight_decay=self.weight_decay)
        return torch.optim.SGD(module.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


def _plateaus(losses: Sequence[float], wait: int) -> int:
    """How often the losses of the epochs so far did not fall below the lowest for more than `wait` epochs."""
    lowest, waited, plateaus = math.inf, 0, 0
    for loss in losses:
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        if waited > wait:
            waited, plateaus = 0, plateaus + 1
    return plateaus


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
