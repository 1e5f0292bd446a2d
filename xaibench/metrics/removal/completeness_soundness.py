"""Completeness and soundness: do a map's pixels show its label, and only as much of it as the image does?"""

from typing import Any

import torch

from ...datasets.base import Batch, Dataset
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ..ranking import Collapse, Sign, places
from ._perturbation import Fill, Removal, RemovalMetric, counts_of, curve

# With more classes than this a map and a path for each would cost too much: LIKELIEST of them are taken.
MOST_LABELS, LIKELIEST = 10, 5


class CompletenessSoundness(RemovalMetric):
    """Every label has a map, and a map may neither hide its label's evidence nor make some up (Gupta et al. 2022).

    For label a, f is the probability of a on the image, and g the area under its probability while the most relevant
    pixels of the map for a are put, first to last, on an image without any (x axis from 0 to 1, trapezoids). Then

        alpha = min(max(g, eps1) / f, 1)      complete: the pixels of the map still show a
        beta  = min(max(f, eps2) / g, 1)      sound: they show no more of a than the image does

    and the image's completeness and soundness are the smallest alpha and beta over its labels. Both near 1 are good,
    and only together: a map of adversarial pixels for each label is complete, one that hides everything is sound.
    The paper's wording is that of Loreth 2023; eps1, eps2 and what an absent pixel shows are not given there.

    labels: null takes all labels up to 10 classes, and 5 of more. A number takes the explained label and the
        likeliest others on the original, so many in all; then the statistics are called `completeness_top5` and so
        on, since a minimum over fewer labels is another quantity.
    steps: equal steps along the path, rounded to whole pixels; null puts one pixel at a time. Ties are broken at
        random, seeded by the sample.
    eps1, eps2: floors under g and f. A label with f <= eps1 is complete, one with g <= eps2 sound, whatever the map.
    fill: what an absent pixel shows. sigma: of the blur, for `fill: blur`, in pixels.
    collapse, sign: see `Metric`.

    Columns: completeness, soundness, in (0, 1].
    """

    def __init__(
        self,
        labels: int | None = None,
        steps: int | None = 32,
        eps1: float = 0.05,
        eps2: float = 0.05,
        fill: Fill = "zero",
        sigma: float = 5.0,
        collapse: Collapse | None = None,
        sign: Sign = "signed",
    ) -> None:
        if labels is not None and labels < 1:
            raise ValueError(f"labels={labels}: expected a positive number of labels, or null for all of them")
        if steps is not None and steps < 1:
            raise ValueError(f"steps={steps}: expected a positive number of steps, or null for one pixel at a time")
        for name, eps in (("eps1", eps1), ("eps2", eps2)):
            if not 0 < eps < 1:
                raise ValueError(f"{name}={eps}: expected a probability between 0 and 1")
        self.labels, self.steps, self.eps1, self.eps2 = labels, steps, eps1, eps2
        self.removal = Removal(fill, sigma)
        self.remove_by(self.removal)
        self.collapse, self.sign = collapse, sign
        self.statistics = self._statistics(labels)

    def check(self, classifier: Classifier) -> None:
        if not classifier.has_classes:
            raise Refusal(f"completeness_soundness: {classifier.name} has no classes, hence no probabilities")
        self.removal.check(classifier)
        classes = classifier.outputs
        if self.labels is not None and self.labels > classes:
            raise Refusal(f"metric.labels={self.labels}: {classifier.name} has {classes} classes; null takes them all")

    def statistics_on(self, dataset: Dataset, classifier: Classifier) -> tuple[Statistic, ...]:
        takes_all = self.labels is None and classifier.outputs <= MOST_LABELS
        return self._statistics(None if takes_all else self._labels(classifier))

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        # The ends of the paths, the original and the image without pixels, are shared by all labels.
        return 1 + (self._labels(classifier) * (len(self._counts(classifier)) - 2) + 1) * self.removal.passes, 0

    def explanations(self, classifier: Classifier) -> int:
        return self._labels(classifier) - 1

    def responses_spec(self) -> dict[str, Any]:
        return self.removal.spec()

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """clean, empty [B,K]: the probabilities of all labels on the original and on the image without pixels."""
        draws = self.removal.draw(context.generators)
        empty = [one.everything(classifier, batch, draws) for one in self.removal.versions(context.fitted)]
        return {
            **draws,
            "clean": classifier.probabilities(classifier.logits(batch.inputs)),
            "empty": torch.stack([classifier.probabilities(classifier.logits(one)) for one in empty]).mean(0),
        }

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        clean, empty = (context.responses[name].to(batch.inputs) for name in ("clean", "empty"))
        first = clean.scatter(1, batch.targets[:, None], torch.inf)
        order = first.argsort(dim=1, descending=True, stable=True)  # the explained label comes first
        labels = order[:, : self._labels(classifier)]
        removes = [one.of(classifier, batch, context.responses) for one in self.removal.versions(context.fitted)]
        counts = self._counts(classifier)
        x = torch.tensor(counts, dtype=torch.float64).to(clean) / counts[-1]
        areas = []
        for rank, label in enumerate(labels.T):
            of_label = maps if rank == 0 else context.explain(batch.inputs, label, f"label {rank}")
            pixels = places(of_label, context.generators)
            curves = [
                curve(classifier, batch.inputs, remove, pixels, counts[1:-1], label, "probability", keep=True)
                for remove in removes
            ]
            inner = torch.stack(curves).mean(0)
            start, end = (scores.gather(1, label[:, None]) for scores in (empty, clean))
            path = torch.cat([start, inner, end], dim=1)
            finite = of_label.flatten(1).isfinite().all(1)
            areas.append(torch.trapezoid(path, x).where(finite, torch.nan))
        f, g = clean.gather(1, labels), torch.stack(areas, dim=1)
        alpha = (g.clamp(min=self.eps1) / f).clamp(max=1)
        beta = (f.clamp(min=self.eps2) / g).clamp(max=1)
        return {"completeness": alpha.amin(1), "soundness": beta.amin(1)}

    def _labels(self, classifier: Classifier) -> int:
        if self.labels is not None:
            return self.labels
        classes = classifier.outputs
        return classes if classes <= MOST_LABELS else LIKELIEST

    def _statistics(self, labels: int | None) -> tuple[Statistic, ...]:
        ending, unit = ("", "all labels") if labels is None else (f"_top{labels}", f"{labels} labels")
        return tuple(
            Statistic(name + ending, "higher", name, low=0, high=1, unit=f"smallest share over {unit}")
            for name in ("completeness", "soundness")
        )

    def _counts(self, classifier: Classifier) -> list[int]:
        height, width = classifier.input_size[1:]
        return counts_of(height * width, self.steps)
