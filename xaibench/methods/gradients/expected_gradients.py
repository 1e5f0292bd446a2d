"""Expected gradients and GradientSHAP: gradients at random points between an input and random baselines."""

from typing import get_args

import torch

from ...errors import one_of
from ...models.classifier import Classifier
from ..base import Method
from ..baselines import Baselines
from ..context import Context
from ..copies import pieces_of, repeated, rows_of_copies
from .smoothgrad import Unit, spread


class ExpectedGradients(Method):
    """Mean of (x - x') times the gradient at x' + a (x - x') over random x' and a ~ U(0, 1): [B,C,H,W], signed.

    Erion et al. 2021, eq. 4: integrated gradients whose baseline is a distribution and whose integral is a Monte Carlo
    mean, in units of the explained output; in expectation a map sums to f(x) - E f(x'). With noise it is GradientSHAP
    (Lundberg & Lee 2017's library, and Captum's GradientShap): x is replaced by x + N(0, s^2), anew in each draw.

    samples: draws of (x', a) for each input, each one gradient.
    baseline: what x' is drawn from, one or a list of the words of `baselines`; `dataset` stands for `references`
        images of the fit split. sigma, value: of the words `blur` and `value`.
    noise, unit: s, as for `SmoothGrad`; 0 draws none.
    Raises ValueError for another word, no draws, negative noise and figures out of range.
    """

    sign_of_logit = False

    fit_parameters = ("references",)

    def __init__(
        self,
        samples: int = 50,
        baseline: list[str] | str = "dataset",
        references: int = 50,
        noise: float = 0.0,
        unit: Unit = "range",
        sigma: float = 5.0,
        value: float = 0.5,
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples}: expected at least 1")
        if noise < 0:
            raise ValueError(f"noise={noise}: expected 0 or more")
        one_of("unit", unit, get_args(Unit))
        self.samples, self.noise, self.unit = samples, noise, unit
        self.baselines = Baselines(baseline, sigma, value, references)
        self.fit = self.baselines.fit if self.baselines.from_data else None

    def check(self, classifier: Classifier) -> None:
        self.baselines.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.samples + self.baselines.passes, self.samples)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        starts = self.baselines.of(classifier, inputs, context)
        std = spread(inputs, self.noise, self.unit)

        def draw(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            """The point x' + a (x - x') of one draw for each sample of a slice, and the way x - x'."""
            drawn, along, noise = [], [], []
            for sample, generator in enumerate(context.generators[part], part.start):
                drawn.append(starts[int(torch.randint(len(starts), (), generator=generator))][sample])
                along.append(torch.rand((), generator=generator, dtype=torch.float64))
                if self.noise:
                    noise.append(torch.randn(inputs.shape[1:], generator=generator))
            start, end = torch.stack(drawn), inputs[part]
            if self.noise:
                end = end + std[part] * torch.stack(noise).to(inputs)
            way = end - start
            return start + torch.stack(along).to(inputs).view(-1, 1, 1, 1) * way, way

        total = torch.zeros_like(inputs)
        for pieces in rows_of_copies(classifier, len(inputs), self.samples):
            points, ways = (torch.cat(rows) for rows in zip(*(draw(part) for _, part in pieces)))
            gradients = classifier.gradient(points, repeated(targets, pieces))
            for _, part, product in pieces_of(ways * gradients, pieces):
                total[part] += product
        return total / self.samples
