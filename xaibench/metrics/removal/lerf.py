"""LeRF: how much the target's probability changes while the least relevant pixels are removed."""

from dataclasses import dataclass

import torch

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ..ranking import places
from ._perturbation import PathMetric, curve


@dataclass(eq=False)
class LeRF(PathMetric):
    """The first tenth of the pixels, least relevant first: they should not matter.

    The score of an image is the area under y = |p(x) - p(x without them)| / p(x) over the fraction x of pixels
    removed, by trapezoids from (0, 0) to x = `largest`, as in the evaluation of neural pathways (Khakzar et al.
    2021): with y <= 1 it is at most `largest`. Lower is better, 0 is perfect. It asks nothing of the pixels above
    `largest`: a map only has to find a tenth of the image that the model ignores.

    y is relative to the image's own probability and has no bound where that is small: from p = 1e-6, a probability
    that rises to 0.1 gives y = 1e5, and such an image decides the mean. The published numbers explain the
    `predicted` class (target=predicted), where p is at least 1 / classes. With other targets, read lerf_median. An
    image with p = 0 is undefined.

    largest: the fraction of pixels removed at the end. steps: equal steps to it, rounded to whole pixels.
    The others: see `PathMetric`. The released code ranks signed values.

    Columns: lerf (the area); clean (p on the original); change_curve (y) and output_curve (p), over x.
    """

    x_label = "share of pixels removed"
    statistics = (
        Statistic("lerf", "lower", "lerf", low=0, unit="relative change x fraction removed"),
        Statistic("lerf_median", "lower", "lerf", kind="median", low=0, unit="relative change x fraction removed"),
    )

    largest: float = 0.1
    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.largest <= 1:
            raise ValueError(f"largest={self.largest}: expected a fraction of the pixels, up to 1")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected a positive number of steps")

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        if len(self._counts(classifier)) < 2:
            height, width = classifier.input_size[1:]
            raise Refusal(f"largest={self.largest}: of {height}x{width} pixels, none would be removed")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1 + (len(self._counts(classifier)) - 1) * self.removal.passes, 0

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """clean: the target's output on the original."""
        draws = self.removal.draw(context.generators)
        return {**draws, "clean": classifier.scores(batch.inputs, batch.targets, self.output)}

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        _, height, width = classifier.input_size
        counts = torch.tensor(self._counts(classifier), dtype=torch.float64)
        return dict.fromkeys(("change_curve", "output_curve"), counts / (height * width))

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        inputs = batch.inputs
        removes = [one.of(classifier, batch, context.responses) for one in self.removal.versions(context.fitted)]
        order = places(maps.to(inputs.device), context.generators)
        # Without the k least relevant pixels, the first ones of the order are kept.
        kept = [inputs[0, 0].numel() - count for count in self._counts(classifier)[1:]]
        clean = context.responses["clean"].to(inputs)[:, None]
        scores = torch.stack(
            [curve(classifier, inputs, one, order, kept, batch.targets, self.output, keep=True) for one in removes]
        ).mean(0)
        # Double: the ratio to a tiny probability is beyond single precision.
        output_curve = torch.cat([clean, scores], dim=1).double()
        change_curve = ((output_curve - clean) / clean).abs().where(clean != 0, torch.nan)
        x = self.axes(classifier)["change_curve"].to(inputs.device)
        return {
            "lerf": torch.trapezoid(change_curve, x),
            "clean": clean[:, 0],
            "change_curve": change_curve,
            "output_curve": output_curve,
        }

    def _counts(self, classifier: Classifier) -> list[int]:
        """How many pixels have been removed at each point, from 0."""
        _, height, width = classifier.input_size
        pixels = height * width
        return list(dict.fromkeys(round(self.largest * pixels * step / self.steps) for step in range(self.steps + 1)))
