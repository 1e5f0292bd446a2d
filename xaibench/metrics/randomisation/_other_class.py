"""Another class to explain, on the same image: what the metrics share that ask whether a map shows its class."""

from collections.abc import Sequence

import torch

from ...datasets.base import Batch
from ...errors import Refusal, nearest
from ...methods.context import Context
from ...models.classifier import Classifier

FIXED = "fixed:"
CHOICES = ("second", "random", "fixed:<k>")


class OtherClass:
    """`second`: the likeliest class besides the explained one; `random`: any other one, drawn by the sample;
    `fixed:<k>`: class k, which with `target=fixed:<j>` makes a pair. Raises ValueError for anything else."""

    def __init__(self, other: str) -> None:
        self.fixed = None
        if other.startswith(FIXED) and other.removeprefix(FIXED).isdigit():
            self.fixed = int(other.removeprefix(FIXED))
        elif other not in CHOICES[:2]:
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

    def of(self, classifier: Classifier, batch: Batch, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """The class [B] for each sample of a batch; for `fixed` it may be the explained one."""
        if self.fixed is not None:
            return torch.full_like(batch.targets, self.fixed)
        logits = classifier.logits(batch.inputs)
        values = logits
        if self.other == "random":
            values = torch.stack([torch.rand(logits.shape[1], generator=g) for g in generators]).to(logits)
        return values.scatter(1, batch.targets[:, None], -torch.inf).argmax(1)

    def maps(self, classifier: Classifier, batch: Batch, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps [B,H,W] of the other class, and for which samples [B] it is the explained one too.

        They draw the noise of the maps of the explained class, so that what differs comes from the class.
        """
        classes = self.of(classifier, batch, context.generators)
        return context.explain(batch.inputs, classes, ""), classes == batch.targets
