"""Labelled inputs, as trainings and accuracies ask for them."""

from typing import Literal, Protocol

import torch

Augment = Literal["none", "crop_flip"]


class LabelledBatch(Protocol):
    """Network inputs [B,C,H,W] and their labels [B], where they have several, all of them [B,L], and where the same
    question is asked of each, that [B,Q]."""

    @property
    def inputs(self) -> torch.Tensor: ...

    @property
    def labels(self) -> torch.Tensor: ...

    @property
    def vectors(self) -> torch.Tensor | None: ...

    @property
    def questions(self) -> torch.Tensor | None: ...


class ImageSource(Protocol):
    """What is trained on, as `xaibench.datasets.images.Images` has it: labelled images, asked for by position.

    identity: of the images and what is made of them, for the checkpoint of a training. labels: of all of them, [N], or
    [N,L] where each has a vector of labels.
    """

    identity: str

    @property
    def labels(self) -> torch.Tensor: ...

    def __len__(self) -> int:
        """The number of images."""

    def batch(
        self,
        positions: torch.Tensor,
        like: torch.Tensor,
        augment: Augment = "none",
        random: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Network inputs [B,C,H,W] of the type and on the device of `like`, augmented by draws of `random`; labels."""
