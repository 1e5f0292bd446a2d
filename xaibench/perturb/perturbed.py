"""Images perturbed in many ways each: built in batches on the device, as the network is asked about them."""

from collections.abc import Callable, Iterator, Sequence

import torch

from ..models.classifier import Classifier

# Writes the perturbed images `points` of one sample into `out` [n,C,H,W]: paint(sample, points, out).
Paint = Callable[[int, slice, torch.Tensor], None]
# Writes how much of each pixel the images `points` of one sample lose into `out` [n,1,H,W]: 1.0 all, 0.0 nothing.
Mask = Callable[[int, slice, torch.Tensor], None]
# A run of images of one sample within an inner batch: the sample, which of its points, the rows that they take.
Run = tuple[int, slice, slice]
# Writes an inner batch without the pixels of `masks` [n,1,H,W] into `out` [n,C,H,W]: remove(runs, masks, out).
Remove = Callable[[Sequence[Run], torch.Tensor, torch.Tensor], None]


def perturbed(
    classifier: Classifier,
    like: torch.Tensor,
    points: int,
    paint: Paint,
    targets: torch.Tensor,
    output: str | None = None,
) -> torch.Tensor:
    """The model's scores [B,X] of B images, each perturbed at `points` = X points, which `paint` makes when due.

    like [B,C,H,W]: the images' number, shape, type and device. targets [B], or [B,X] for a target of each point.

    The B * X images are rows of one long call, built into one buffer as the inner batches need them: the model is
    called ceil(B * X / classifier.batch_size) times, and no more than one inner batch exists at a time.
    """

    def build(runs: Sequence[Run], images: torch.Tensor) -> None:
        for sample, part, into in runs:
            paint(sample, part, images[into])

    return _scores(classifier, like, points, build, targets, output)


@torch.no_grad()
def _scores(
    classifier: Classifier,
    like: torch.Tensor,
    points: int,
    build: Callable[[Sequence[Run], torch.Tensor], None],
    targets: torch.Tensor,
    output: str | None,
) -> torch.Tensor:
    """`perturbed` of images that `build(runs, out)` writes an inner batch at a time."""
    samples = len(like)
    row_targets = targets.view(samples, -1).expand(-1, points).reshape(-1)
    scores = like.new_empty(samples * points)
    buffer = like.new_empty((min(classifier.batch_size, samples * points), *like.shape[1:]))
    for rows in classifier.chunks(samples * points):
        images = buffer[: rows.stop - rows.start]
        build(list(_runs(rows, points)), images)
        scores[rows] = classifier.select(classifier.module(images), row_targets[rows], output)
    return scores.view(samples, points)


def masked(
    classifier: Classifier,
    inputs: torch.Tensor,
    remove: Remove,
    mask: Mask,
    points: int,
    targets: torch.Tensor,
    output: str | None = None,
) -> torch.Tensor:
    """The model's scores [B,X] of inputs [B,C,H,W] without the pixels that `mask` names at each of X points."""
    buffer = inputs.new_empty((min(classifier.batch_size, len(inputs) * points), 1, *inputs.shape[2:]))

    def build(runs: Sequence[Run], images: torch.Tensor) -> None:
        removed = buffer[: len(images)]
        for sample, part, into in runs:
            mask(sample, part, removed[into])
        remove(runs, removed, images)

    return _scores(classifier, inputs, points, build, targets, output)


def replacing(inputs: torch.Tensor, fills: torch.Tensor) -> Remove:
    """Removal by replacement: a removed pixel of inputs [B,C,H,W] shows the one of fills [B,C,H,W]."""

    def remove(runs: Sequence[Run], masks: torch.Tensor, out: torch.Tensor) -> None:
        for sample, _, into in runs:
            # At 0.0 and 1.0 lerp is exact: on a CPU ten times as fast as torch.where.
            torch.lerp(inputs[sample], fills[sample], masks[into], out=out[into])

    return remove


def _runs(rows: slice, points: int) -> Iterator[Run]:
    """Rows of the sample-major grid as one run per sample: (sample, its points, where they lie within the rows)."""
    row = rows.start
    while row < rows.stop:
        sample, first = divmod(row, points)
        length = min(points - first, rows.stop - row)
        yield sample, slice(first, first + length), slice(row - rows.start, row - rows.start + length)
        row += length
