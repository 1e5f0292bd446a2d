"""The pointing game: does the map's maximum lie on the object?"""

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse, Sign, descending_order


class PointingGame(Metric):
    """A hit is a map whose largest value lies in the ground-truth mask (Zhang et al. 2018); the score is the share.

    Among equal maxima one is drawn at random, seeded by the sample, so a constant map scores the mean share of the
    image that the masks cover, like a random one. An image whose mask is empty is undefined (NaN).

    tolerance: a point at most this far (Euclidean distance, in pixels of the input) from the mask still hits. 0 is
        strict; the original game uses 15, in pixels of the photographs (TorchRay: less than 15, not at most).
    collapse, sign: see `Metric`.

    Columns: hit (0 or 1).
    """

    statistics = (Statistic("pointing_game", "higher", "hit", kind="proportion", low=0, high=1, unit="share of hits"),)
    needs_mask = True

    def __init__(self, tolerance: float = 0.0, collapse: Collapse | None = None, sign: Sign = "signed") -> None:
        if not tolerance >= 0:
            raise ValueError(f"tolerance={tolerance}: expected a number of pixels, 0 or more")
        self.tolerance, self.collapse, self.sign = tolerance, collapse, sign

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        _, height, width = maps.shape
        point = descending_order(maps.flatten(1), context.generators)[:, 0].view(-1, 1, 1)
        down = torch.arange(height, device=maps.device).view(-1, 1) - point // width
        across = torch.arange(width, device=maps.device) - point % width
        near = down**2 + across**2 <= self.tolerance**2
        assert batch.masks is not None  # `needs_mask`
        masks = batch.masks.to(maps.device)
        hit = (near & masks).flatten(1).any(1).to(maps.dtype)
        return {"hit": hit.where(masks.flatten(1).any(1), torch.nan)}
