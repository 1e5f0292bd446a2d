"""What the three BAM metrics share: data sets of objects in scenes, and how much a map gives to an object's place."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch

from ...datasets.base import Dataset, Samples
from ...errors import Refusal
from ...job import Job, classes_of
from ...models.classifier import Classifier
from ..base import Metric
from ..ranking import Collapse, Sign

if TYPE_CHECKING:
    from ...datasets.shapes import Shapes


@dataclass(kw_only=True, eq=False)
class BAM(Metric):
    """Relative feature importance (Yang & Kim 2019): images of an object in a scene have two labels, and where the
    object is nothing of the scene is left. What matters to a network trained on objects matters less to one trained
    on scenes, so two maps are compared where neither has a ground truth of its own.

    g is the mean of a map over the object's pixels. Two maps have two scales, so each is first clipped at a
    percentile of its values and stretched from its smallest value to that one, to [0, 1], as in the authors' code;
    a map without a range (constant, or zero but for less than a hundredth of its pixels) has no g (NaN).

    task: which of the two labels the data set must be about. percentile: see above; null takes the maps as they are.
    collapse, sign: see `Metric`. The authors keep each channel's positive values and add them up; here channels are
    collapsed as everywhere, and then the positive values are kept.
    """

    task: ClassVar[str]

    percentile: float | None = 99.0
    collapse: Collapse | None = None
    sign: Sign = "positive"

    def __post_init__(self) -> None:
        if self.percentile is not None and not 0 < self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile}: expected more than 0 and up to 100, or null")

    @property
    def name(self) -> str:
        return self.statistics[0].name

    def check(self, classifier: Classifier) -> None:
        if not classifier.has_classes:
            raise Refusal(f"{self.name} needs classes that the network may get right, {classifier.name} has none")

    def check_data(self, dataset: Dataset) -> None:
        if not all(hasattr(dataset, name) for name in ("object_mask", "background", "scene_label")):
            raise Refusal(f"{self.name} needs objects in scenes, with masks and empty scenes: dataset=shapes has them")
        if getattr(dataset, "task", None) != self.task:
            raise Refusal(f"{self.name} is about the network that sees {self.task}s: set dataset.task={self.task}")

    def needs(self, job: Job, classifier: Classifier) -> dict[str, Job]:
        if classes_of(job.target):
            raise Refusal(f"{self.name} explains the class that a network gets right: target=label, not {job.target}")
        return {}

    def attribution(self, maps: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
        """g [B] of maps [B,H,W] and objects bool [B,H,W], in float64."""
        values = maps.double()
        if self.percentile is not None:
            ordered = values.flatten(1).sort(1).values
            place = (ordered.shape[1] - 1) * self.percentile / 100
            below, above = ordered[:, int(place)], ordered[:, min(int(place) + 1, ordered.shape[1] - 1)]
            low, high = ordered[:, 0].view(-1, 1, 1), torch.lerp(below, above, place % 1).view(-1, 1, 1)
            values = ((values - low) / (high - low)).clamp(0, 1).where(high > low, torch.nan)
        return (values * objects).sum((1, 2)) / objects.sum((1, 2))


def objects_of(samples: tuple[int, ...], data: Samples, like: torch.Tensor) -> torch.Tensor:
    """Where the objects are, in input geometry: bool [B,H,W]."""
    dataset = cast("Shapes", data.dataset)  # or what is like it, see `check_data`
    masks = [data.preprocessing.mask(dataset.object_mask(sample)) for sample in samples]
    return torch.stack(masks).to(like.device)


def backgrounds_of(samples: tuple[int, ...], data: Samples, like: torch.Tensor) -> torch.Tensor:
    """The scenes without their objects, as inputs [B,C,H,W]."""
    dataset = cast("Shapes", data.dataset)
    return torch.stack([data.preprocessing.image(dataset.background(sample)) for sample in samples]).to(like)


def recognised(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which of the samples are classified as labelled: bool [B]."""
    return logits.argmax(-1) == labels
