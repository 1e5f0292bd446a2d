"""Insertion and deletion: the target's probability while the most relevant pixels are shown, or taken away, first."""

from dataclasses import replace
from typing import Any, Literal

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ..ranking import Collapse, Sign, places
from ._perturbation import Fill, Removal, RemovalMetric, check_output, counts_of, curve


class InsertionDeletion(RemovalMetric):
    """Pixels, all channels of a place together, are removed from the image or revealed in a fill by relevance.

    The score of a path is the area under the output's curve (Petsiuk et al. 2018): deletion should fall at once
    (low is good), insertion rise at once (high is good). The x axis is the true fraction of pixels changed, from 0
    to 1 with both ends, and areas are trapezoids on it. (Released codes leave out the unperturbed or the last point
    and take 1 / len(points) for the width of a step.) A random map's areas are not 0.

    The headline is insertion. Deletion, and with it the difference, also rewards maps that confuse the model early:
    a fill of one colour that takes exactly the object away leaves its silhouette, which some models still read, so
    that a true mask can lose to scattered pixels.

    steps: number of equal steps along a path, rounded to whole pixels; None changes one pixel at a time.
    deletion_fill: what a deleted pixel shows. insertion_fill: what insertion starts from; a blurred image keeps the
        first pixels shown from being an unnatural pattern.
    sigma: of the blur in pixels, for whichever fill is `blur`; 5 is RISE's and InputIBA's.
    output: `probability` (softmax, the definition) or `logit`.
    collapse, sign: see `Metric`. Ties are broken at random, seeded by the sample.

    Columns: deletion, insertion (areas, in units of the output), difference = insertion - deletion; deletion_curve
    (from the original to its fill) and insertion_curve (from the fill to the original).
    """

    x_label = "share of pixels changed"
    statistics: tuple[Statistic, ...] = (
        Statistic("insertion", "higher", "insertion", low=0, high=1, unit="output x fraction of pixels"),
        Statistic("deletion", "lower", "deletion", low=0, high=1, unit="output x fraction of pixels"),
        Statistic("difference", "higher", "difference", low=-1, high=1, unit="output x fraction of pixels"),
    )

    def __init__(
        self,
        steps: int | None = 64,
        deletion_fill: Fill = "zero",
        insertion_fill: Fill = "blur",
        sigma: float = 5.0,
        output: Literal["probability", "logit"] = "probability",
        collapse: Collapse | None = None,
        sign: Sign = "signed",
    ) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps={steps}: expected a positive number of steps, or null for one pixel at a time")
        self.steps, self.output = steps, output
        self.deletion, self.insertion = Removal(deletion_fill, sigma), Removal(insertion_fill, sigma)
        self.remove_by(self.deletion, self.insertion)
        self.collapse, self.sign = collapse, sign
        if output == "logit":
            self.statistics = tuple(replace(s, low=None, high=None) for s in self.statistics)

    def check(self, classifier: Classifier) -> None:
        check_output(self.output, classifier)
        self.deletion.check(classifier, "metric.deletion_fill")
        self.insertion.check(classifier, "metric.insertion_fill")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        # The original ends both paths; each has its own fill.
        path = len(self._counts(classifier)) - 1
        return 1 + path * (self.deletion.passes + self.insertion.passes), 0

    def responses_spec(self) -> dict[str, Any]:
        return {"deletion": self.deletion.spec(), "insertion": self.insertion.spec(), "output": self.output}

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """The target's output on the original (clean), on the deletion's end and on the insertion's start."""
        # One draw serves both paths.
        draws = self.deletion.draw(context.generators) or self.insertion.draw(context.generators)
        return {
            **draws,
            "clean": classifier.scores(batch.inputs, batch.targets, self.output),
            "deletion_end": self.deletion.emptied(classifier, batch, draws, context.fitted, self.output),
            "insertion_start": self.insertion.emptied(classifier, batch, draws, context.fitted, self.output),
        }

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        counts = torch.tensor(self._counts(classifier), dtype=torch.float64)
        return dict.fromkeys(("deletion_curve", "insertion_curve"), counts / counts[-1])

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        inputs = batch.inputs
        inner = self._counts(classifier)[1:-1]
        order = places(maps.to(inputs.device), context.generators)
        names = "clean", "deletion_end", "insertion_start"
        clean, deletion_end, insertion_start = (context.responses[name].to(inputs)[:, None] for name in names)

        def path(removal: Removal, keep: bool) -> torch.Tensor:
            removes = [one.of(classifier, batch, context.responses) for one in removal.versions(context.fitted)]
            scores = [
                curve(classifier, inputs, remove, order, inner, batch.targets, self.output, keep) for remove in removes
            ]
            return torch.stack(scores).mean(0)

        deleting, inserting = path(self.deletion, keep=False), path(self.insertion, keep=True)
        deletion_curve = torch.cat([clean, deleting, deletion_end], dim=1)
        insertion_curve = torch.cat([insertion_start, inserting, clean], dim=1)
        x = self.axes(classifier)["deletion_curve"].to(inputs)
        deletion, insertion = torch.trapezoid(deletion_curve, x), torch.trapezoid(insertion_curve, x)
        return {
            "deletion": deletion,
            "insertion": insertion,
            "difference": insertion - deletion,
            "deletion_curve": deletion_curve,
            "insertion_curve": insertion_curve,
        }

    def _counts(self, classifier: Classifier) -> list[int]:
        _, height, width = classifier.input_size
        return counts_of(height * width, self.steps)
