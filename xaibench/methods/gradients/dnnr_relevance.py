"""What DNNR says of its own answer: by how much each feature moves it from its neighbours."""

import torch

from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.dnnr import DNNR
from ..base import Method
from ..context import Context


class DNNRRelevance(Method):
    """Mean over the k nearest training rows x_m of |(x - x_m) * g_m|, g_m the slope around x_m: [B,C,H,W], never
    negative, in units of the answer.

    Sixt 2022, equation 16, which has it for each neighbour; the thesis shows the values of all neighbours, the mean is
    ours. Like w * x of a linear network, measured from the neighbours. Before the mean the values are those of
    `models.dnnr.DNNR.relevance`.

    Learned scaling draws neighbours together along what has an effect that is not linear, and so shrinks it: as in the
    thesis the network must be unscaled.
    """

    sign_of_logit = False

    def check(self, classifier: Classifier) -> None:
        module = classifier.module
        if not isinstance(module, DNNR) or module.gradients in ("local", "none"):
            how = f" with model.gradients={module.gradients}" if isinstance(module, DNNR) else ""
            raise Refusal(
                f"dnnr_relevance reads the slopes of neighbours, and {classifier.name}{how} has none: use dnnr"
            )
        if module.scaling != "none":
            raise Refusal(
                f"dnnr_relevance: by model.scaling={module.scaling} neighbours are near along the features that "
                "matter, which would count for less\nset model.scaling=none"
            )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        module = classifier.module
        assert isinstance(module, DNNR)
        parts = [module.relevance(inputs[part]).mean(1) for part in classifier.chunks(len(inputs))]
        return torch.cat(parts).view_as(inputs)
