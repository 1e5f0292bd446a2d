"""Many perturbed copies of each sample through the network, streamed so that memory is bounded by the batch size."""

from collections.abc import Callable, Iterator

import torch

from ..models.classifier import Classifier

# One copy of the samples in a slice.
Piece = tuple[int, slice]


def over_copies(
    classifier: Classifier,
    targets: torch.Tensor,
    copies: int,
    make: Callable[[int, slice], torch.Tensor],
    evaluate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Evaluate `copies` perturbed copies of each of B samples in ceil(B * copies / batch_size) calls of the network.

    targets [B]. `make(copy, part)` gives that copy of the samples in the slice `part`, [n,C,H,W]; it is called once
    for each copy of each sample, and for one sample in the order of the copies. `evaluate(rows, targets)` is
    `classifier.gradient` or `classifier.scores`. Yields (copy, part, values of these rows).

    Whoever adds up the values as they come adds them, for each sample, in the order of its copies: the sum is the
    same to the last bit whatever the batch size and the neighbours, as long as the network's answers are.
    """
    for pieces in rows_of_copies(classifier, len(targets), copies):
        values = evaluate(torch.cat([make(copy, part) for copy, part in pieces]), repeated(targets, pieces))
        yield from pieces_of(values, pieces)


def rows_of_copies(classifier: Classifier, batch: int, copies: int) -> Iterator[list[Piece]]:
    """The calls of the network in which `over_copies` evaluates its rows: for each the pieces (copy, part) it holds."""
    # Rows are ordered by copy, then by sample, so that a call holds few and long slices of samples.
    for rows in classifier.chunks(batch * copies):
        yield [
            (copy, slice(max(rows.start - copy * batch, 0), min(rows.stop - copy * batch, batch)))
            for copy in range(rows.start // batch, (rows.stop - 1) // batch + 1)
        ]


def repeated(rows: torch.Tensor, pieces: list[Piece]) -> torch.Tensor:
    """What the samples of each piece have in common with all their copies, such as targets: of rows [B,...]."""
    return torch.cat([rows[part] for _, part in pieces])


def pieces_of(values: torch.Tensor, pieces: list[Piece]) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """(copy, part, values of its rows) for the pieces of one call."""
    for (copy, part), piece in zip(pieces, values.split([part.stop - part.start for _, part in pieces])):
        yield copy, part, piece
