"""The one place that perturbs: replaces features of images in a given order, on the device, and asks the model."""

from collections.abc import Iterator, Sequence

import torch

from ..models.classifier import Classifier


def counts_of(features: int, steps: int | None) -> list[int]:
    """How many features have been replaced at each point of a path: from 0 to all of them, both ends included.

    steps: the number of equal steps; counts are rounded to whole features and each occurs once, so a path never has
    more points than features + 1. None steps one feature at a time.
    """
    steps = features if steps is None else steps
    return list(dict.fromkeys(round(step * features / steps) for step in range(steps + 1)))


@torch.no_grad()
def curve(
    classifier: Classifier,
    start: torch.Tensor,
    end: torch.Tensor,
    places: torch.Tensor,
    counts: Sequence[int],
    targets: torch.Tensor,
    output: str = "probability",
) -> torch.Tensor:
    """The model's scores [B,X] on the way from `start` to `end`: at counts[x], places 0..counts[x]-1 show `end`.

    start, end [B,C,H,W]: an image and its fill (deletion) or a fill and its image (insertion). places int [B,H,W]:
    each pixel's place in its sample's order (`ranking.places`); channels are replaced together. targets [B].

    The B * X images are rows of one long call, built into one buffer as the inner batches need them: the model is
    called ceil(B * X / classifier.batch_size) times, and no more than one inner batch exists at a time.
    """
    samples, points = len(start), len(counts)
    thresholds = torch.tensor(counts, dtype=places.dtype, device=places.device).view(-1, 1, 1, 1)
    row_targets = targets.repeat_interleave(points)
    scores = start.new_empty(samples * points)
    most, (height, width) = min(classifier.batch_size, samples * points), start.shape[2:]
    buffer, replaced = start.new_empty((most, *start.shape[1:])), start.new_empty((most, 1, height, width))
    for rows in classifier.chunks(samples * points):
        images = buffer[: rows.stop - rows.start]
        for sample, part, into in _runs(rows, points):
            # A mask of 0.0 and 1.0, at which lerp is exact: on a CPU ten times as fast as torch.where.
            mask = torch.lt(places[sample], thresholds[part], out=replaced[into])
            torch.lerp(start[sample], end[sample], mask, out=images[into])
        scores[rows] = classifier.select(classifier.module(images), row_targets[rows], output)
    return scores.view(samples, points)


def _runs(rows: slice, points: int) -> Iterator[tuple[int, slice, slice]]:
    """Rows of the sample-major grid as one run per sample: (sample, its points, where they lie within the rows)."""
    row = rows.start
    while row < rows.stop:
        sample, first = divmod(row, points)
        length = min(points - first, rows.stop - row)
        yield sample, slice(first, first + length), slice(row - rows.start, row - rows.start + length)
        row += length
