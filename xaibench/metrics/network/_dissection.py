"""What network dissection counts: how high each unit of a layer goes, and which pixels it then marks."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch.nn import functional as F

from ...datasets.base import Batch, Dataset, Samples
from ...errors import Refusal, nearest
from ...models.classifier import Classifier
from ...models.cut import activations, feature_shape
from ...models.randomise import Randomisation, layers, randomised

# First the feature maps grow to the size of the input, then they are compared with the threshold; or the other way.
Order = Literal["upsample", "threshold"]
# The values that are kept of all units together on the way to their thresholds, and pixels of units at a time.
KEPT, AT_ONCE = 2**24, 2**24
# A table of so many concepts is a few megabytes per image for a wide layer.
MOST_CONCEPTS = 64


def chosen(dataset: Dataset, concepts: Sequence[str] | None) -> tuple[str, ...]:
    """The concepts that are looked for: those of the data set, or those of it that are named.

    Raises Refusal if there are none, for one that there is not, and for too many to count.
    """
    known = dataset.concept_names
    if not known:
        raise Refusal("units are compared with concepts, of which this data set has none: shapes, two4two, broden have")
    for concept in concepts or ():
        if concept not in known:
            raise Refusal(f"metric.concepts: {concept} is not one: {nearest(concept, known)}")
    names = tuple(known if concepts is None else dict.fromkeys(concepts))
    if len(names) > MOST_CONCEPTS:
        raise Refusal(f"{len(names)} concepts: expected at most {MOST_CONCEPTS}; metric.concepts chooses some of them")
    return names


def made_new(classifier: Classifier, seed: int) -> Classifier:
    """The network with all weights drawn anew."""
    return randomised(classifier, Randomisation("cascade", layers(classifier)[0], seed))


class Tops:
    """The images in which each of K units is highest, of those seen so far, and its feature maps there.

    images: int64 [count,K], the highest first. maps: [count,K,h,w].
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.images = torch.empty(0)
        self.maps = torch.empty(0)

    def see(self, values: torch.Tensor, images: Sequence[int]) -> None:
        """values [B,K,h,w] of the layer in some images."""
        ids = torch.tensor(images, device=values.device)[:, None].expand(-1, values.shape[1])
        held = (self.maps.to(values), self.images.to(ids)) if len(self.maps) else (values[:0], ids[:0])
        values, ids = torch.cat([held[0], values]), torch.cat([held[1], ids])
        place = values.amax((2, 3)).topk(min(self.count, len(values)), dim=0).indices
        self.images = ids.gather(0, place)
        self.maps = values.gather(0, place[:, :, None, None].expand(-1, -1, *values.shape[2:]))


def thresholds(
    classifier: Classifier, layer: str, samples: Samples, quantile: float, tops: Tops | None = None
) -> torch.Tensor:
    """T [K]: each unit of a layer is above it at no more than this share of all places of all samples.

    Of n places it is the value of rank floor(quantile * n) + 1 from the top, so that no larger share can be had
    without ties. tops: is shown every image once. Raises Refusal for a network that answers NaN.
    """
    _, height, width = feature_shape(classifier, layer)

    shows = iter([tops])  # in the first pass alone

    def blocks() -> Iterator[torch.Tensor]:
        watching = next(shows, None)
        for batch in samples:
            for part in classifier.chunks(len(batch.inputs)):
                values = activations(classifier, [layer], batch.inputs[part].to(classifier.dtype))[layer]
                if watching is not None:
                    watching.see(values, batch.samples[part])
                yield values.transpose(0, 1).flatten(1)

    found = ranked(blocks, math.floor(round(quantile * len(samples) * height * width, 6)) + 1)
    if found.isnan().any():
        raise Refusal(f"layer '{layer}' of {classifier.name} answers NaN to samples of the fit split")
    return found


def ranked(blocks: Callable[[], Iterable[torch.Tensor]], rank: int, most: int = KEPT) -> torch.Tensor:
    """The value of this rank (1 is the largest) in each of the rows [K,n] whose parts the blocks are, exactly.

    At most `most` values are kept, of all rows together, however many there are: where that is too few, the blocks are
    asked for again, and what is below those of the pass before is kept. One pass does for rank * K up to `most`.
    """
    bound: torch.Tensor | None = None
    while True:
        kept, above = _largest(blocks(), bound, rank, most)
        place = rank - 1 - above
        inside = place.clamp(0, kept.shape[1] - 1)
        found = kept.gather(1, inside[:, None])[:, 0]
        if bound is not None:  # no rank below as many as are there or above
            found = torch.where(place < 0, bound, found)
        done = place < kept.shape[1]
        if bool(done.all()):
            return found
        # At least `rank` values of a row that is done are not below what was found, so that it stays.
        bound = torch.where(done, found, kept[:, -1])


def _largest(
    blocks: Iterable[torch.Tensor], bound: torch.Tensor | None, rank: int, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row the largest values below its bound, in order [K,m], and how many are not below it [K]."""
    kept: torch.Tensor | None = None
    above: torch.Tensor | None = None
    for block in blocks:
        size = min(rank, max(1, most // len(block)))
        if bound is not None:
            high = block >= bound[:, None]
            above = high.sum(1) if above is None else above + high.sum(1)
            block = block.masked_fill(high, -torch.inf)
        held = block if kept is None else torch.cat([kept, block], 1)
        kept = held.topk(min(size, held.shape[1]), dim=1).values
    assert kept is not None  # there are samples
    return kept, torch.zeros(len(kept), dtype=torch.int64, device=kept.device) if above is None else above


def counts(
    values: torch.Tensor, threshold: torch.Tensor, masks: Sequence[torch.Tensor], order: Order
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """How many pixels each unit marks, and how many of them lie in each concept.

    values: [B,K,h,w], of the layer. threshold: [K]; a unit marks where it is above. masks: some bool [B,C,H,W].
    Returns the pixels marked [B,K], and for each of the masks those inside [B,C,K].
    """
    size, flat = masks[0].shape[2:], [mask.flatten(2).float() for mask in masks]
    step = max(1, AT_ONCE // (len(values) * size.numel()))
    marked, inside = [], []
    for start in range(0, values.shape[1], step):
        shown = marks(values[:, start : start + step], threshold[start : start + step], size, order).flatten(2).float()
        marked.append(shown.sum(2))
        inside.append([torch.bmm(mask, shown.transpose(1, 2)) for mask in flat])
    return torch.cat(marked, 1), [torch.cat(parts, 2) for parts in zip(*inside)]


def marks(values: torch.Tensor, threshold: torch.Tensor, size: Sequence[int], order: Order) -> torch.Tensor:
    """Which pixels units mark: bool [B,K,H,W] of [B,K,h,w]. By `upsample` feature maps are enlarged linearly and then
    compared with the threshold; by `threshold` they are compared, and each place stands for the pixels nearest to it.
    """
    level = threshold.to(values)[:, None, None]
    if order == "upsample":
        return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False) > level
    return F.interpolate((values > level).float(), size=tuple(size), mode="nearest-exact") > 0.5


def dissected(
    classifier: Classifier,
    layer: str,
    threshold: torch.Tensor,
    batch: Batch,
    masks: Sequence[torch.Tensor],
    order: Order,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As `counts`, of a layer's answers to a batch."""
    found = []
    for part in classifier.chunks(len(batch.inputs)):
        values = activations(classifier, [layer], batch.inputs[part].to(classifier.dtype))[layer]
        found.append(counts(values, threshold, [mask[part] for mask in masks], order))
    marked, inside = zip(*found)
    return torch.cat(marked), [torch.cat(parts) for parts in zip(*inside)]


def unions(inside: torch.Tensor, marked: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Pixels that a unit marks or a concept has [B,C,K], in the images that show the concept; 0 in the others."""
    return torch.where(area[:, :, None] > 0, marked[:, None, :] + area[:, :, None] - inside, 0.0)


def detected(iou: torch.Tensor, level: float) -> torch.Tensor:
    """The concept with which the IoU of each unit is largest, if above the level, else -1: [K] of IoUs [C,K]."""
    best, concept = iou.max(dim=0)
    return torch.where(best > level, concept, -1)


def others(samples: Sequence[int], count: int, generators: Sequence[torch.Generator]) -> list[int]:
    """For each sample another of so many, drawn by its own generator; itself if it is the only one."""
    steps = [int(torch.randint(1, max(count, 2), (1,), generator=generator)) for generator in generators]
    return [(sample + step) % count for sample, step in zip(samples, steps)]
