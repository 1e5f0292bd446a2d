"""Semantic attribution: what each unit of a hidden layer contributes to the answer, and where."""

import torch
from torch.nn import functional as F

from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.cut import Cut, feature_shape
from ..base import Method
from ..context import Context
from .integrated_gradients import Quadrature, points

TOP = "top"


class SemanticAttribution(Method):
    """The integrated contribution of one unit of a layer, resized to the input: [B,1,H,W], signed.

    Khakzar 2022, section 9.2, eq. 6, after Aumann and Shapley 1974.

    With a the layer's activations and f the explained output as a function of them,

        s_ki = a_ki * integral over t in [0, 1] of df(t a) / da_ki

    is what unit k contributes at place i. All units are scaled together, so that the contributions sum to f(a) - f(0),
    up to the error of the quadrature; scaling one neuron alone, as the equation is printed, they would not.

    unit: `top`, the unit with the largest sum over places of |s|, in every image its own; or the number of one.
    layer: an alias or module path of feature maps. steps, quadrature: of the integral, see `points`.
    """

    sign_of_logit = False

    def __init__(
        self,
        unit: int | str = TOP,
        layer: str = "last_conv",
        steps: int = 20,
        quadrature: Quadrature = "riemann_middle",
    ) -> None:
        if unit != TOP and not (isinstance(unit, int) and unit >= 0):
            raise ValueError(f"unit={unit}: expected top or the number of a unit, from 0")
        self.unit, self.layer, self.steps, self.points = unit, layer, steps, points(quadrature, steps)

    def check(self, classifier: Classifier) -> None:
        units = feature_shape(classifier, self.layer)[0]
        if isinstance(self.unit, int) and self.unit >= units:
            raise Refusal(f"unit={self.unit}: layer '{self.layer}' of {classifier.name} has units 0 to {units - 1}")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1 + self.steps, self.steps)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        found = contributions(classifier, self.layer, inputs, targets, self.points)
        units = torch.full_like(targets, self.unit) if isinstance(self.unit, int) else sizes(found).argmax(1)
        maps = found[torch.arange(len(found), device=found.device), units][:, None]
        return F.interpolate(maps, size=inputs.shape[2:], mode="bilinear", align_corners=False)


def contributions(
    classifier: Classifier,
    layer: str,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    quadrature: tuple[list[float], list[float]],
) -> torch.Tensor:
    """s [B,K,h,w] of every unit and place of a layer, see `SemanticAttribution`. quadrature: places and weights."""
    cut, found = Cut(classifier, layer, inputs[:1]), []
    places, weights = (inputs.new_tensor(numbers) for numbers in quadrature)
    for part in classifier.chunks(len(inputs)):
        with torch.no_grad():
            features = cut.before(inputs[part])
        values = features.values.detach().clone()
        integral, together = torch.zeros_like(values), max(1, classifier.batch_size // len(values))
        for place, weight in zip(places.split(together), weights.split(together)):
            copies = len(place)
            scaled = torch.einsum("bkhw,s->bskhw", values, place).requires_grad_(True)
            with torch.enable_grad():
                # A copy, since a network may write into what it gets.
                logits = cut.behind(scaled.flatten(0, 1).clone(), features, copies)
                total = classifier.select(logits, targets[part].repeat_interleave(copies)).sum()
            (slopes,) = torch.autograd.grad(total, scaled)
            integral += torch.einsum("bskhw,s->bkhw", slopes, weight)
        found.append(values * integral)
    return torch.cat(found)


@torch.no_grad()
def whole(classifier: Classifier, layer: str, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """f(a) - f(0) [B], what a layer's activations change in the answer: the contributions should sum to it."""
    cut, found = Cut(classifier, layer, inputs[:1]), []
    for part in classifier.chunks(len(inputs)):
        features = cut.before(inputs[part])
        with_it, without = (
            classifier.select(cut.behind(values, features), targets[part])
            for values in (features.values.clone(), torch.zeros_like(features.values))
        )
        found.append(with_it - without)
    return torch.cat(found)


def sizes(found: torch.Tensor) -> torch.Tensor:
    """How much each unit contributes, sign and place aside: [B,K] of [B,K,h,w]."""
    return found.abs().sum((2, 3))
