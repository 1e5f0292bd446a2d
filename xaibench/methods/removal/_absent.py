"""What is shown in the place of what is absent: a fill word, or what samples of the fit split have there."""

from typing import Literal, get_args

import torch

from ...datasets.base import Samples
from ...errors import one_of
from ...models.classifier import Classifier
from ...perturb.background import BACKGROUND, REFERENCES, check_background, draw_references
from ...perturb.fills import check_fill, filled
from ..base import Method
from ..context import Context

AbsentFill = Literal["zero", "black", "white", "value", "channel_mean", "blur", "unknown", "background"]


class Absent(Method):
    """Base of the methods with a parameter `fill`, one of the fill words; `blur` is the input under a Gaussian of
    `sigma` pixels.

    By `background` it is what 20 samples of the fit split have there, and what the network answers is averaged over
    them: in as many times the passes, what is absent is drawn from the data, independently of what is there (the
    interventional values of Lundberg & Lee 2017). Of a network that is linear in its features, a feature that is absent
    then takes w * (x - mean) with it.
    """

    fit_parameters = ()
    fill: AbsentFill
    sigma: float

    def prepare_fill(self) -> None:
        """Check the parameters; a constructor calls it. Raises ValueError for another word, and for a sigma that is
        not positive."""
        one_of("fill", self.fill, get_args(AbsentFill))
        if not self.sigma > 0:
            raise ValueError(f"sigma={self.sigma}: expected a positive number of pixels")
        self.fit = self._draw if self.fill == BACKGROUND else None

    @property
    def versions(self) -> int:
        """How many fills there are of each input."""
        return REFERENCES if self.fill == BACKGROUND else 1

    def check_fill(self, classifier: Classifier) -> None:
        """Raise Refusal for a fill that means nothing for the inputs of a network."""
        check_fill(self.fill, classifier, "method.fill")
        if self.fill == BACKGROUND:
            check_background(classifier, "method.fill")

    def fills(self, classifier: Classifier, inputs: torch.Tensor, context: Context) -> list[torch.Tensor]:
        """Inputs [B,C,H,W] with everything absent, in each version."""
        if self.fill == BACKGROUND:
            return [one.expand_as(inputs) for one in context.fitted["references"].to(inputs)]
        return [filled(inputs, self.fill, classifier.preprocessing, self.sigma)]

    def _draw(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`references` [20,C,H,W], drawn among the samples."""
        return {"references": draw_references(samples, REFERENCES, generator)}
