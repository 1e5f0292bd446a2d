"""Another class to explain, on the same image: what the metrics share that ask whether a map shows its class."""

from collections.abc import Sequence

import torch

from ...datasets.base import Batch, Dataset
from ...errors import Refusal, nearest
from ...methods.context import Context
from ...models.classifier import Classifier

FIXED = "fixed:"
CHOICES = ("second", "present", "random", "fixed:<k>")


class OtherClass:
    """`second`: the likeliest class besides the explained one; `present`: the likeliest of the others that are in the
    image, by its `labels`; `random`: any other one, drawn by the sample; `fixed:<k>`: class k, which with
    `target=fixed:<j>` makes a pair. Raises ValueError for anything else."""

    def __init__(self, other: str) -> None:
        self.fixed = None
        if other.startswith(FIXED) and other.removeprefix(FIXED).isdigit():
            self.fixed = int(other.removeprefix(FIXED))
        elif other not in CHOICES[:3]:
            raise ValueError(f"other={other}: {nearest(other, CHOICES)}")
        self.other = other

    def check(self, classifier: Classifier) -> None:
        """Raise Refusal where there is no other class."""
        classes = classifier.outputs
        if classes < 2:
            raise Refusal(f"{classifier.name} has one output, there is no other class to explain")
        if classifier.rival is not None:
            raise Refusal("a metric of two classes' maps explains each by itself: set target=fixed:<class>")
        if self.fixed is not None and self.fixed >= classes:
            raise Refusal(f"metric.other={self.other}: {classifier.name} has classes 0 to {classes - 1}")

    def check_data(self, dataset: Dataset) -> None:
        """Raise Refusal where images do not say which classes they show."""
        if self.other == "present" and dataset[0].labels is None:
            raise Refusal(
                "metric.other=present needs images that say which classes they show: dataset=shapes dataset.objects=2"
            )

    def of(self, classifier: Classifier, batch: Batch, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """The class [B] for each sample of a batch; for `fixed`, and where no other is `present`, it may be the
        explained one."""
        if self.fixed is not None:
            return torch.full_like(batch.targets, self.fixed)
        values = classifier.logits(batch.inputs)
        if self.other == "random":
            values = torch.stack([torch.rand(values.shape[1], generator=g) for g in generators]).to(values)
        if self.other == "present":
            assert batch.vectors is not None  # `check_data`
            values = values.masked_fill(batch.vectors < 0.5, -torch.inf)
        values = values.scatter(1, batch.targets[:, None], -torch.inf)
        return values.argmax(1).where(values.isfinite().any(1), batch.targets)

    def maps(self, classifier: Classifier, batch: Batch, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps [B,H,W] of the other class, and for which samples [B] it is the explained one too.

        They draw the noise of the maps of the explained class, so that what differs comes from the class.
        """
        classes = self.of(classifier, batch, context.generators)
        masks = self._masks(batch, classes, context) if self.other == "present" else None
        return context.explain(batch.inputs, classes, "", masks), classes == batch.targets

    def _masks(self, batch: Batch, classes: torch.Tensor, context: Context) -> torch.Tensor | None:
        """Where these classes are [B,H,W], of a data set whose concepts its classes are."""
        if batch.masks is None:
            return None
        names = context.data.dataset.class_names
        if not set(names) <= set(context.data.dataset.concept_names):
            return batch.masks
        found = context.data.concepts(batch.samples, names)
        return found[torch.arange(len(classes)), classes.cpu()].to(batch.masks.device)
