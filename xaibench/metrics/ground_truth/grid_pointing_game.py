"""The grid pointing game: in a mosaic of images, does the map of one image's class stay in its cell?"""

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional

from ...datasets.base import Batch, Dataset, Samples
from ...errors import Refusal, XaibenchError
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse, descending_order

# How often to draw again where an image of another class is wanted. One class in a thousand images still fails.
TRIES = 100


class GridPointingGame(Metric):
    """The share of the positive attribution that lies in the image's own cell of a mosaic (Boehle et al. 2021).

    grid x grid images of the data set make one, the sample's own image in a random cell, the others of classes other
    than the explained one, and its target is explained in the mosaic. Any data set has this ground truth, no boxes
    are needed. A map that knows nothing of the class has 1 / grid^2 in each cell on average.

    Each image is shrunk to its cell, so that the mosaic has the network's input size: every network takes it, and
    what a method has fitted (feature statistics, masks of a layer) keeps its shape. (The original puts images of full
    size side by side, for networks that take inputs of any size, and keeps those that the network is surest of.)
    Objects shrink too, so look at `probability`: where it is no better than chance, the network does not find the
    class in the mosaic, and no map can show where it is.

    A mosaic without positive attribution is undefined (NaN).

    grid: cells on a side; where it does not divide the input's side, cells differ by a pixel.
    collapse: see `Metric`. The sign is that of the definition, positive.

    The mosaic belongs to the sample: cell and other images are drawn from the whole split with its own generator,
    the same for every method, whatever `limit` selects.

    Columns: share; hit, whether the largest value lies in the cell (0 or 1, equal ones in the sample's own random
    order); probability, of the target in the mosaic.
    """

    sign = "positive"

    statistics = (
        Statistic("grid_pointing_game", "higher", "share", low=0, high=1, unit="share of the attribution"),
        Statistic("grid_pointing_game_hit", "higher", "hit", kind="proportion", low=0, high=1, unit="share of hits"),
    )

    def __init__(self, grid: int = 2, collapse: Collapse | None = None) -> None:
        if grid < 2:
            raise ValueError(f"grid={grid}: expected at least 2 cells on a side")
        self.grid, self.collapse = grid, collapse

    def check(self, classifier: Classifier) -> None:
        if not classifier.has_classes:
            raise Refusal(f"grid_pointing_game: {classifier.name} has no classes to find in a mosaic")
        if min(classifier.input_size[1:]) < self.grid:
            raise Refusal(f"grid={self.grid}: more cells than pixels on a side of {classifier.name}'s input")

    def check_data(self, dataset: Dataset) -> None:
        if len(dataset.class_names) == 1:
            raise Refusal("grid_pointing_game needs images of at least two classes, this data set has one")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1, 0

    def explanations(self, classifier: Classifier) -> int:
        return 1

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        mosaics, cells = self.mosaics(batch, context.generators, context.data)
        found = context.explain(mosaics, batch.targets, "mosaic", cells)
        total = found.flatten(1).double().sum(1)
        inside = (found * cells).flatten(1).double().sum(1)
        largest = descending_order(found.flatten(1), context.generators)[:, :1]
        hit = cells.flatten(1).gather(1, largest)[:, 0].to(total)
        return {
            "share": (inside / total).where(total > 0, torch.nan),
            "hit": hit.where(total > 0, torch.nan),
            "probability": classifier.scores(mosaics, batch.targets, "probability"),
        }

    def mosaics(
        self, batch: Batch, generators: Sequence[torch.Generator], data: Samples
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mosaics [B,C,H,W] of each image among others of the data set, and where it is: bool [B,H,W]."""
        cells = self.grid**2
        own = [int(torch.randint(cells, (), generator=g)) for g in generators]
        others = _images_of_other_classes(batch, generators, data, cells - 1)
        height, width = batch.inputs.shape[2:]
        rows, columns = (_edges(side, self.grid) for side in (height, width))
        mosaics = torch.empty_like(batch.inputs)
        masks = torch.zeros(len(own), height, width, dtype=torch.bool, device=mosaics.device)
        for b, place in enumerate(own):
            images = others[b].to(mosaics)
            images = torch.cat([images[:place], batch.inputs[b : b + 1], images[place:]])
            for cell, image in enumerate(images):
                down, across = divmod(cell, self.grid)
                at = rows[down], columns[across]
                size = [part.stop - part.start for part in at]
                mosaics[b, :, *at] = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
                masks[b, *at] = cell == place
        return mosaics, masks


def _edges(side: int, parts: int) -> list[slice]:
    """A side cut into parts that differ by at most a pixel."""
    edges = [round(part * side / parts) for part in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _images_of_other_classes(
    batch: Batch, generators: Sequence[torch.Generator], data: Samples, count: int
) -> list[torch.Tensor]:
    """For each sample `count` random images [count,C,H,W] of the data set, neither of its target nor of its label."""
    found: list[list[torch.Tensor]] = [[] for _ in generators]
    avoided = [{int(label), int(target)} for label, target in zip(batch.labels, batch.targets)]
    for _ in range(TRIES):
        # Each sample proposes as many as it lacks, from its own generator: who else is in the batch changes nothing.
        lacking = [b for b, images in enumerate(found) for _ in range(count - len(images))]
        if not lacking:
            return [torch.stack(images) for images in found]
        ids = [int(torch.randint(len(data.dataset), (), generator=generators[b])) for b in lacking]
        proposed = data.load(ids)
        for b, image, label in zip(lacking, proposed.inputs, proposed.labels.tolist()):
            if label not in avoided[b]:
                found[b].append(image)
    raise XaibenchError("grid_pointing_game: hardly any image of this data set is of another class than the target")
