"""What LIME and the Shapley methods share: an image as players, and what the network answers to coalitions of them."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ...errors import one_of
from ...models.classifier import Classifier
from ...models.preprocessing import Preprocessing
from ...perturb.perturbed import masked, replacing
from ..context import Context
from ._absent import Absent, AbsentFill

Segments = Literal["grid", "slic"]


@dataclass(kw_only=True, eq=False)
class Coalitions(Absent):
    """Base of the methods that cut an image into players and ask the network about coalitions of them.

    A coalition is shown as the image with the pixels of all other players replaced, in all channels: v(S) is the
    explained output of it, v(all) that of the image itself, v(none) that of the fill. A method estimates one value
    per player, in units of the explained output. A map gives each pixel its share, the value over the player's
    pixels, so that sums of the map over players are their values.

    players: how many there are at most. segments: what they are. `grid`: rectangles of nearly equal size, in as many
        rows and columns as make them nearly square; `slic`: superpixels of similar colour, by scikit-image's SLIC
        (Achanta et al. 2012) at its default settings, which often finds fewer than asked for.
    fill, sigma: what the pixels of absent players show, see `Absent`. By `background` v(S) is a mean, and Shapley
        values of a network that is linear in its features are w * (x - the mean of the background).
    Raises ValueError for no players, another word and a sigma that is not positive.
    """

    sign_of_logit = False

    players: int = 49
    segments: Segments = "grid"
    fill: AbsentFill = "zero"
    sigma: float = 5.0

    def __post_init__(self) -> None:
        if self.players < 1:
            raise ValueError(f"players={self.players}: expected at least 1")
        one_of("segments", self.segments, get_args(Segments))
        self.prepare_fill()

    def check(self, classifier: Classifier) -> None:
        self.check_fill(classifier)
        if self.segments == "slic":
            classifier.require_pictures("method.segments=slic finds superpixels (grid makes players of places)")

    def most_players(self, classifier: Classifier) -> int:
        """The number of players M: that of a grid, and for superpixels the most there can be."""
        _, height, width = classifier.input_size
        if self.segments == "slic":
            return min(self.players, height * width)
        return math.prod(grid_shape(self.players, height, width))

    def labels(self, classifier: Classifier, inputs: torch.Tensor) -> torch.Tensor:
        """The player that each pixel belongs to: int64 [B,H,W], from 0 on without gaps."""
        height, width = inputs.shape[2:]
        if self.segments == "slic":
            pixels = _pixels(inputs, classifier.preprocessing)
            return torch.stack([superpixels(image, self.players) for image in pixels]).to(inputs.device)
        rows, columns = grid_shape(self.players, height, width)
        down = torch.arange(height, device=inputs.device) * rows // height
        across = torch.arange(width, device=inputs.device) * columns // width
        return (down[:, None] * columns + across).expand(len(inputs), -1, -1)

    def answers(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor,
        coalitions: torch.Tensor,
        context: Context,
        output: str | None = None,
    ) -> torch.Tensor:
        """v of each coalition, float64 [B,X] on the CPU. coalitions bool [B,X,M], or [1,X,M] for all: who is in.
        output: in the place of the explained one, as for `Classifier.select`."""
        absent = (~coalitions).to(inputs.device).expand(len(inputs), -1, -1)

        def mask(sample: int, part: slice, out: torch.Tensor) -> None:
            out.copy_(absent[sample, part][:, labels[sample]][:, None])

        fills = self.fills(classifier, inputs, context)
        count = coalitions.shape[1]
        found = [
            masked(classifier, inputs, replacing(inputs, one), mask, count, targets, output).double() for one in fills
        ]
        return torch.stack(found).mean(0).cpu()


def shares(values: torch.Tensor, labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values of players [B,M] and their labels [B,H,W] -> a map [B,1,H,W]: each pixel's equal share; type as `like`."""
    places = labels.flatten(1)
    sizes = torch.zeros(len(labels), values.shape[1], dtype=torch.float64, device=labels.device)
    sizes.scatter_add_(1, places, torch.ones_like(places, dtype=torch.float64))
    # A player without pixels (fewer superpixels than asked for) has no place in the map.
    densities = values.to(sizes) / sizes.clamp(min=1)
    return densities.gather(1, places).view(len(labels), 1, *labels.shape[1:]).to(like)


def grid_shape(players: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of at most `players` nearly square cells, none without a pixel."""
    rows = max(1, min(height, players, math.isqrt(players * height // width)))
    return rows, min(width, players // rows)


def superpixels(image: torch.Tensor, players: int) -> torch.Tensor:
    """At most `players` superpixels of an image [C,H,W] of pixel values from 0 to 1: int64 [H,W]."""
    # Slow to import, and only this needs it.
    from skimage.segmentation import slic

    # One channel is taken as grey, so that distances between colours are those of Lab, which SLIC's defaults are for.
    colours = (image.expand(3, -1, -1) if len(image) == 1 else image).permute(1, 2, 0).numpy()
    # SLIC takes the number as a wish, and may overdo it.
    for wish in range(players, 0, -1):
        found = slic(colours, n_segments=wish, start_label=0, channel_axis=-1)
        if found.max() < players:
            break
    return torch.from_numpy(found).long()


def counts_of(labels: torch.Tensor) -> list[int]:
    """The number of players of each image: labels [B,H,W]."""
    return (labels.flatten(1).amax(1) + 1).tolist()


def every_coalition(players: int) -> torch.Tensor:
    """All coalitions of M players, bool [2^M,M]: player i is present where bit i of the row's number is set."""
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) % 2 == 1


def _pixels(inputs: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Normalised inputs -> pixel values, float64 on the CPU."""
    inputs = inputs.double().cpu()
    if not preprocessing.mean:
        return inputs
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return inputs * std + mean
