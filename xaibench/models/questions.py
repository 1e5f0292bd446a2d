"""Networks that are asked something about their picture: how a question is bound, so that one input is left."""

import copy
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import UserError


@runtime_checkable
class ReadsQuestions(Protocol):
    """A network `forward(images, questions=None)` -> logits [B,K] of images [B,C,H,W] and a question for each, [B,Q];
    without any it answers its buffer `question`, [Q], which is no part of its state, for every image."""

    question: torch.Tensor


def asked(module: nn.Module, question: torch.Tensor, name: str) -> nn.Module:
    """The network, its layers and parameters shared, as one of images alone: it answers this question [Q].

    Raises UserError for a network that reads no questions, or those of another length. name: of it, for messages.
    """
    if not isinstance(module, ReadsQuestions):
        raise UserError(
            f"the data set asks a question of each image, and {name} reads none: choose model=relation_network"
        )
    if module.question.shape != question.shape:
        raise UserError(
            f"the data set's questions are {len(question)} numbers long, {name} reads {len(module.question)}: "
            f"set model.questions={len(question)}"
        )
    bound = copy.copy(module)
    bound._buffers = {**module._buffers, "question": question.to(module.question)}
    return bound


class OfPainted(nn.Module):
    """A network that reads questions, as a function of one tensor: images with the questions behind them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, painted: torch.Tensor) -> torch.Tensor:
        """Logits [B,K] of what `paint` returned."""
        length = len(self.network.question)  # type: ignore[arg-type]
        return self.network(painted[:, :-length], painted[:, -length:, 0, 0])


def paint(images: torch.Tensor, questions: torch.Tensor) -> torch.Tensor:
    """Images [B,C,H,W] with each number of the questions [B,Q] as a channel of its own: [B,C+Q,H,W]."""
    return torch.cat([images, questions.to(images)[:, :, None, None].expand(-1, -1, *images.shape[2:])], 1)
