"""Attention as an explanation: of the last layer, rolled out over all layers, and weighted by its gradient."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ...errors import Refusal
from ...models.attention import Attention, watched
from ...models.classifier import Classifier
from ...models.tokens import Grid, token_grid
from ..base import Method
from ..context import Context


class OfAttention(Method):
    """What these methods have in common: how much each patch counts for the token that the network reads.

    That is the first one, the class token, or in a network whose tokens are all patches their mean. The values of the
    patches, on their grid, are enlarged bilinearly (align_corners false) to the input's size. Serves networks whose
    attentions are torch.nn.MultiheadAttention of the tokens to each other; refused for others.
    """

    sign_of_logit = False

    def check(self, classifier: Classifier) -> None:
        with torch.no_grad(), watched(classifier) as seen:
            classifier.module(classifier.blank)
        if not seen:
            raise Refusal(
                f"{classifier.name} has no attention (torch.nn.MultiheadAttention) to be read: gradcam and iba serve "
                "networks without"
            )
        self.refuse_others(classifier, {attention.tokens.shape[1] for attention in seen})

    @staticmethod
    def refuse_others(classifier: Classifier, counts: set[int]) -> None:
        """Raises Refusal if these numbers of tokens are not one, or not that of an image's patches."""
        if len(counts) > 1 or token_grid(min(counts), classifier.input_size[1:]) is None:
            height, width = classifier.input_size[1:]
            raise Refusal(
                f"{classifier.name} attends to {_listed(counts)} tokens, expected in all layers the patches of an "
                f"image of {height}x{width} and a few others"
            )

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = []
        for part in classifier.chunks(len(inputs)):
            patches = self.patches(classifier, inputs[part], targets[part])
            maps.append(F.interpolate(patches, size=inputs.shape[2:], mode="bilinear", align_corners=False))
        return torch.cat(maps)

    @abstractmethod
    def patches(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The value of each patch [B,1,h,w]."""


class OfNoClass(OfAttention):
    """Those that read attention alone: what lies behind it plays no part, and one pass is enough."""

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 0)

    def watched(self, classifier: Classifier, inputs: torch.Tensor) -> tuple[Sequence[Attention], Grid, torch.Tensor]:
        """The attentions of a pass, and the grid and the row of `read`."""
        with torch.no_grad(), watched(classifier) as seen:
            classifier.module(inputs)
        return seen, *read(seen[-1].tokens.shape[1], inputs)


class RawAttention(OfNoClass):
    """How much the token that is read takes in of each patch in the last layer, mean over heads: [B,1,H,W], >= 0.

    Of no class: the network behind the attention plays no part.
    """

    def patches(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen, grid, row = self.watched(classifier, inputs)
        return on_grid(row @ seen[-1].map().mean(1), grid)


class AttentionRollout(OfNoClass):
    """Attention followed through all layers, half of each token staying where it is: [B,1,H,W], >= 0.

    Abnar and Zuidema 2020, eq. 1: the product over layers of (A + I) / 2, A the mean over heads. Of no class.
    """

    def patches(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen, grid, row = self.watched(classifier, inputs)
        for attention in reversed(seen):
            row = (row @ attention.map().mean(1) + row) / 2
        return on_grid(row, grid)


class AttentionGradient(OfAttention):
    """Attention times its gradient, what is negative left out, followed through all layers: [B,1,H,W], >= 0.

    Chefer et al. 2021 ("Generic Attention-model Explainability", ICCV), eq. 5 and 6 for self-attention: the product
    over layers of I + E_h[(dy/dA * A)^+], y the explained output.
    """

    def patches(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad(), watched(classifier) as seen:
            answers = classifier.module(inputs.detach().requires_grad_(True))
            total = classifier.select(answers, targets).sum()
        gradients = torch.autograd.grad(total, [attention.output for attention in seen], materialize_grads=True)
        grid, row = read(seen[-1].tokens.shape[1], inputs)
        with torch.no_grad():
            for attention, gradient in zip(reversed(seen), reversed(gradients)):
                row = row + row @ (attention.gradient(gradient) * attention.map()).relu().mean(1)
        return on_grid(row, grid)


def read(count: int, inputs: torch.Tensor) -> tuple[Grid, torch.Tensor]:
    """The grid of the patches of inputs [B,C,H,W], and as a row [B,1,n] what is read of so many tokens in the end."""
    grid = token_grid(count, inputs.shape[2:])
    assert grid is not None  # `check` has refused such networks
    row = inputs.new_zeros(len(inputs), 1, count)
    row[:, :, : 1 if grid.others else count] = 1 if grid.others else 1 / count
    return grid, row


def on_grid(row: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The patches' values of rows [B,1,n] as [B,1,h,w]."""
    return grid.maps(row.transpose(1, 2))


def _listed(counts: set[int]) -> str:
    return " and ".join(str(count) for count in sorted(counts))
