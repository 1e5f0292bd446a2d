"""The network's own counterfactual: what changes in the image when its logit alone is changed."""

import logging

import torch

from ...datasets.base import Samples
from ...models.classifier import Classifier
from ...models.invertible import Line, clipped, invertible, reached
from ..base import Method
from ..context import Context
from .goals import Goal, margins

log = logging.getLogger(__name__)

# As an image of pixels from 0 to 1, it must have gone at least this share of the way to the f that is wanted.
ARRIVED = 0.5


class Counterfactual(Method):
    """x~ - x: [B,C,H,W], signed, in normalised units, where x~ is the image that an invertible network has for its
    latent moved along the weights of its head until the logit is as wanted (Sixt 2022, section 6.3).

    With z the latent, f = f_a - f_b the explained class's logit less that of its strongest rival, and w = w_a - w_b:
    x~ = decode(z + (t - f) / |w|^2 w), the shortest step in z that makes f equal to t; the channels that left the flow
    on the way to z stay. It is one such step, in this network's own coordinates, and no ground truth. x~ is not clipped
    to the range of images.

    goal: t, see `goals.Goal`: `flip`, `logit:VALUE` or `quantile:SHARE`. Any t is reached before clipping; where the
        clipped x~ has not come half of the way, t is out of reach and there is no map (NaN), which the log says with
        the best that was reached.
    Refused for networks without inverse.
    """

    sign_of_logit = False
    fit_parameters = ()

    def __init__(self, goal: str = "flip") -> None:
        self.words, self.goal = goal, Goal(goal)
        self.fit = self._fit if self.goal.from_data else None

    def check(self, classifier: Classifier) -> None:
        invertible(classifier, "method=counterfactual")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        # Encoding, decoding, and a look at where it led.
        return (3, 0)

    def _fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"margins": margins(classifier, samples)}

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        line = Line.of(classifier, inputs, targets, "method=counterfactual")
        wanted = self.goal.wanted(line.value, context.fitted.get("margins"))
        images = line.at(wanted)
        found = reached(classifier, clipped(images, classifier.preprocessing), targets, line.others)
        way = wanted - line.value
        arrived = (found - line.value) * way.sign() >= ARRIVED * way.abs()
        if not arrived.all():
            missed = found[~arrived].nan_to_num(torch.inf)
            best = missed[(missed - wanted[~arrived]).abs().argmin()].item()
            log.warning(
                "method.goal=%s: out of reach for %d of %d images, the best reached is %.3g",
                self.words, int((~arrived).sum()), len(arrived), best,
            )  # fmt: skip
        return torch.where(arrived.view(-1, 1, 1, 1), images - inputs, torch.nan)
