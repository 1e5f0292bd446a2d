"""A method's maps, smoothed: how much of its score is smoothness alone?"""

import torch

from ...models.classifier import Classifier
from ...perturb.fills import blurred
from ..base import Method
from ..context import Context


class Smoothed(Method):
    """The maps of a method under a Gaussian: shaped and collapsed as its maps.

    What is removed in patches takes more from a network than what is removed in specks, so that a smooth map may lead
    for its smoothness (Khakzar 2022, sections 5.4 and 6.4, where smoothed maps, marked *, stand beside the others under
    ROAR). The thesis states no kernel.

    method: whose maps. sigma: of the Gaussian, in pixels of the input; cut at 3 sigma, border pixels repeated outwards.
    Raises ValueError unless sigma is positive.
    """

    fit_parameters = ("method",)

    def __init__(self, method: Method, sigma: float = 3.0) -> None:
        if not sigma > 0:
            raise ValueError(f"sigma={sigma}: expected a positive number of pixels")
        self.method, self.sigma = method, sigma
        self.collapse, self.needs_mask, self.fit = method.collapse, method.needs_mask, method.fit
        self.own_samples_only, self.sign_of_logit = method.own_samples_only, method.sign_of_logit

    def check(self, classifier: Classifier) -> None:
        classifier.require_pictures("smoothed maps are of neighbouring pixels")
        self.method.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return self.method.cost(classifier)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        return blurred(self.method.attribute(classifier, inputs, targets, context), self.sigma)
