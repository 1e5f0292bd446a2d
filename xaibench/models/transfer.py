"""Transfer learning: the frozen beginning of a network runs once per image, the rest is trained on what it answers."""

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UserError
from .classifier import Classifier
from .cut import Cut
from .labelled import ImageSource


class Features:
    """What the frozen beginning of a network answers to images, in their place: computed once and kept in memory."""

    def __init__(self, cut: Cut, images: ImageSource, like: torch.Tensor, batch_size: int = 32) -> None:
        self.images, self.identity = images, images.identity
        with torch.no_grad():
            parts = torch.arange(len(images)).split(batch_size)
            self._kept = torch.cat([cut.before(images.batch(part, like)[0]).values for part in parts])

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> torch.Tensor:
        """Those of all images."""
        return self.images.labels

    def batch(
        self,
        positions: torch.Tensor,
        like: torch.Tensor,
        augment: str = "none",
        random: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [B,...] of the images at these positions, and their labels; nothing can be augmented."""
        return self._kept[positions.to(self._kept.device)], self.labels[positions].to(like.device)


def frozen(module: nn.Module, layer: str, sources: Sequence[ImageSource]) -> tuple[nn.Module, list[Features]]:
    """The part of a network behind a layer, which shares its parameters, and what the part up to the layer answers.

    The network is in evaluation mode and without gradients afterwards. Raises UserError (a Refusal, for a layer that it
    does not have) if there is no one place to cut it at.
    """
    like = next(module.parameters())
    probe = sources[0].batch(torch.zeros(1, dtype=torch.int64), like)[0]
    _, channels, height, width = probe.shape
    cut = Cut(Classifier(type(module).__name__, module, (channels, height, width)), layer, probe)
    if cut.parts is None or cut.before(probe).context:
        raise UserError(
            f"model.recipe.frozen={layer}: the network cannot be cut there, it runs past this layer or more than once "
            "through it: name one that everything goes through"
        )
    return cut.parts[1], [Features(cut, source, like) for source in sources]
