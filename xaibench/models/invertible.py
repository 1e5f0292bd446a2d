"""Networks that run backwards: the step in their latent that changes a logit and nothing else, and the image of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import Refusal
from .classifier import Classifier
from .preprocessing import Preprocessing


@runtime_checkable
class Invertible(Protocol):
    """A network whose logits are linear in a latent from which the input can be had back, such as `glow.Glow`.

    head: from the flattened latent to the logits.
    """

    head: nn.Linear

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor], torch.Tensor]:
        """The latent z [B,...] of inputs [B,C,H,W], what left on the way, and the log-determinants [B]."""

    def decode(self, z: torch.Tensor, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inputs [B,C,H,W] with this latent, given what left."""


def invertible(classifier: Classifier, what: str) -> Invertible:
    """The network, to be run backwards. Raises Refusal, in the name of `what`, for one that cannot."""
    module = classifier.module
    if not isinstance(module, Invertible) or module.head.out_features < 2:
        raise Refusal(
            f"{what} runs the network backwards, and {classifier.name} has no inverse\n"
            "expected `encode`, `decode` and a linear `head` of two or more logits, such as model=two4two_inn has"
        )
    return module


def rivals(logits: torch.Tensor, targets: torch.Tensor, rival: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest other logit's class [B] than the target's, and by how much the target's is larger [B]; of [B,K].

    rival: instead of the largest, where it is not the target itself.
    """
    others = logits.scatter(1, targets[:, None], -torch.inf).argmax(1)
    if rival is not None:
        others = torch.where(targets == rival, others, rival)
    return others, (logits.gather(1, targets[:, None]) - logits.gather(1, others[:, None]))[:, 0]


@dataclass(frozen=True)
class Line:
    """The lines in the latent along which one class gains on another, everything else as it is (Sixt 2022, 6.3).

    z [B,...], kept: of the images. direction [B,...]: w = w_a - w_b of the head. others [B]: b. value [B]: their
    f = f_a - f_b. A step a w is the shortest one that changes f by a |w|^2; what left the flow stays.
    """

    classifier: Classifier
    network: Invertible
    z: torch.Tensor
    kept: tuple[torch.Tensor, ...]
    direction: torch.Tensor
    others: torch.Tensor
    value: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor | None, what: str) -> "Line":
        """Of images [B,C,H,W], from each target (None: the prediction) to the classifier's rival, or without one to
        the strongest. Raises Refusal as `invertible` does."""
        network = invertible(classifier, what)
        parts = [network.encode(inputs[part])[:2] for part in classifier.chunks(len(inputs))]
        z = torch.cat([part[0] for part in parts])
        kept = tuple(torch.cat(columns) for columns in zip(*(part[1] for part in parts)))
        logits, weight = network.head(z.flatten(1)), network.head.weight
        targets = logits.argmax(1) if targets is None else targets
        others, value = rivals(logits, targets, classifier.rival)
        return cls(classifier, network, z, kept, (weight[targets] - weight[others]).view_as(z), others, value)

    def step(self, wanted: torch.Tensor) -> torch.Tensor:
        """The change of z [B,...] after which f is as wanted [B]."""
        share = (wanted - self.value) / self.direction.flatten(1).square().sum(1)
        return share.view(-1, *[1] * (self.z.ndim - 1)) * self.direction

    def at(self, wanted: torch.Tensor) -> torch.Tensor:
        """The images [B,C,H,W] whose f is as wanted [B]; not clipped."""
        return self.moved(self.step(wanted))

    @torch.no_grad()
    def moved(self, change: torch.Tensor) -> torch.Tensor:
        """The images [B,C,H,W] after a change of z [B,...]; not clipped."""
        z = self.z + change
        return torch.cat(
            [
                self.network.decode(z[part], [tensor[part] for tensor in self.kept])
                for part in self.classifier.chunks(len(z))
            ]
        )

    def randomly(self, change: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """A change of z [B,...] as long as this one, in a direction drawn from each generator: a control."""
        drawn = torch.stack([torch.randn(self.z.shape[1:], generator=g) for g in generators]).to(self.z)
        lengths = change.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
        return lengths.view(-1, *[1] * (self.z.ndim - 1)) * drawn


def clipped(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Inputs [B,C,H,W] as inputs of pixels from 0 to 1."""
    return preprocessing.normalise(preprocessing.denormalise(images).clamp(0, 1))


def reached(classifier: Classifier, images: torch.Tensor, targets: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """f = f_target - f_other [B] of images [B,C,H,W]."""
    logits = classifier.logits(images)
    return (logits.gather(1, targets[:, None]) - logits.gather(1, others[:, None]))[:, 0]
