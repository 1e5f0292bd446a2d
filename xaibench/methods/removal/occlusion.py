"""Occlusion: the drop of the explained output when a patch of the input is replaced."""

import torch

from ...errors import Refusal
from ...models.classifier import Classifier
from ..context import Context
from ..copies import over_copies
from ._absent import Absent, AbsentFill


class Occlusion(Absent):
    """f(x) - f(x with a patch replaced), averaged at each pixel over the patches that cover it: [B,1,H,W], signed.

    Zeiler & Fergus 2014, section 4.2, in the form of Ancona et al. 2018. In units of the explained output.

    patch: side of the square window, in pixels; all channels are replaced together.
    stride: pixels between windows, by default `patch` (no overlap). The last window of a row or column is cut at the
        edge, so that every pixel is covered.
    fill, sigma: what replaces the patch, see `Absent`; by `background` f(x with a patch replaced) is a mean.
    Raises ValueError for another word, sizes below one and a stride that would leave gaps.
    """

    sign_of_logit = False

    def __init__(
        self, patch: int = 8, stride: int | None = None, fill: AbsentFill = "zero", sigma: float = 5.0
    ) -> None:
        if patch < 1:
            raise ValueError(f"patch={patch}: expected at least 1 pixel")
        if stride is not None and not 1 <= stride <= patch:
            raise ValueError(f"stride={stride}: expected 1 to {patch} pixels (patch), or null")
        self.patch, self.stride, self.fill, self.sigma = patch, patch if stride is None else stride, fill, sigma
        self.prepare_fill()

    def check(self, classifier: Classifier) -> None:
        self.check_fill(classifier)
        _, height, width = classifier.input_size
        if self.patch > min(height, width):
            raise Refusal(f"occlusion: patch={self.patch} does not fit into the input of {height}x{width} pixels")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        _, height, width = classifier.input_size
        return (1 + self.versions * len(self._windows(height, width)), 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        batch, _, height, width = inputs.shape
        windows = self._windows(height, width)
        fills = self.fills(classifier, inputs, context)
        # Copy 0 is the input itself, copy k the one without the k-th of these.
        replaced = [(fill, window) for fill in fills for window in windows]

        def occluded(copy: int, part: slice) -> torch.Tensor:
            rows = inputs[part].clone()
            if copy > 0:
                fill, (down, across) = replaced[copy - 1]
                rows[:, :, down, across] = fill[part, :, down, across]
            return rows

        whole = inputs.new_zeros(batch)
        drops = inputs.new_zeros(batch, 1, height, width)
        covered = inputs.new_zeros(height, width)
        for down, across in windows:
            covered[down, across] += 1
        for copy, part, scores in over_copies(classifier, targets, 1 + len(replaced), occluded, classifier.scores):
            if copy == 0:
                whole[part] = scores
            else:
                _, (down, across) = replaced[copy - 1]
                drops[part, :, down, across] += (whole[part] - scores).view(-1, 1, 1, 1)
        return drops / covered / len(fills)

    def _windows(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns of each window."""
        down, across = self._places(height), self._places(width)
        return [(rows, columns) for rows in down for columns in across]

    def _places(self, size: int) -> list[slice]:
        """Windows along one side; the last one reaches the edge."""
        starts = range(0, max(size - self.patch, 0) + self.stride, self.stride)
        return [slice(start, min(start + self.patch, size)) for start in starts]
