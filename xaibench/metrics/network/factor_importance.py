"""Factor importance: what a network answers when one factor of the scene is changed and nothing else."""

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from ...datasets.base import Batch, Dataset
from ...datasets.two4two_sampler import CIRCULAR, FACTORS
from ...errors import Refusal, nearest
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic

if TYPE_CHECKING:
    from ...datasets.two4two import Two4Two

# What is said of a single factor alone.
OF_ONE = ("r_squared", "angle")


class FactorImportance(Metric):
    """The ground truth of Two4Two about a network (Sixt 2022, section 6.2 and tables 1, 3 and 4): it scores no map.

    Each image x has for every factor a partner x' in which that factor is drawn anew. With f the logit of stretchy
    less that of peeky (of a single output, that), v the factor's value and h the features before the last layer:

    r_squared      of the least-squares line through f(x') - f(x) over v' - v, with an intercept: how much of the
                   answer's change the factor directs. The score that tells what is used from what merely disturbs; the
                   study's answer key calls a factor relevant from 0.1 on. 0 if the answer never changes.
    flip_rate      share of the pairs whose answers have different signs
    logit_change   median of |f(x') - f(x)|
    feature_norm   mean of |h' - h|
    angle          mean angle in degrees between sign(v' - v) (h' - h) and the direction in which f grows: below 90
                   where more of the factor speaks for stretchy, above where it speaks for peeky

    factors: which of the ten; several that change at once are joined by +, as in `shape+color+background` (the study's
        release), and have no line and no angle. features: false leaves out the last two, for a network without linear
        last layer.
    The difference of a circular factor (yaw) is taken the short way round; the thesis does not say.

    Columns, for each factor: delta (v' - v), delta_logit, flip, change (its absolute value), norm, angle. A pair whose
    features or factor do not differ has no angle (NaN).
    """

    reads_maps = False

    def __init__(self, factors: tuple[str, ...] = tuple(FACTORS), features: bool = True) -> None:
        for name in (name for joined in factors for name in joined.split("+")):
            if name not in FACTORS:
                raise ValueError(f"factors: {name} is not one: {nearest(name, FACTORS)}")
        self.factors, self.features = tuple(factors), features
        kinds: list[dict[str, Any]] = [
            dict(name="r_squared", column="delta_logit", kind="r_squared", high=1, unit="share of the variance"),
            dict(name="flip_rate", column="flip", kind="proportion", high=1, unit="share of images"),
            dict(name="logit_change", column="change", kind="median", unit="logit"),
        ]
        if features:
            kinds += [
                dict(name="feature_norm", column="norm", unit="norm of the features"),
                dict(name="angle", column="angle", high=180, unit="degrees"),
            ]
        self.statistics = tuple(
            Statistic(
                **{**kind, "name": f"{kind['name']}_{factor}", "column": f"{kind['column']}_{factor}"},
                # Higher is more important, not better; an angle says more the farther it is from 90.
                direction="lower" if kind["name"] == "angle" else "higher",
                per=f"delta_{factor}" if kind["name"] == "r_squared" else None,
                low=0,
            )
            for kind in kinds
            for factor in self.factors
            if "+" not in factor or kind["name"] not in OF_ONE
        )

    def check(self, classifier: Classifier) -> None:
        if self.features and _last_layer(classifier) is None:
            raise Refusal(
                f"factor_importance looks at the features before a linear last layer, {classifier.name} has none: "
                "metric.features=false leaves them out"
            )

    def check_data(self, dataset: Dataset) -> None:
        if not hasattr(dataset, "intervened"):
            raise Refusal("factor_importance needs images with one factor changed: dataset=two4two has them")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1 + len(self.factors), 0

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        dataset = cast("Two4Two", context.data.dataset)
        head = _last_layer(classifier) if self.features else None
        _, values = dataset.scenes(batch.samples)
        logit, features = _answers(classifier, head, batch.inputs)
        columns: Columns = {}
        for name in self.factors:
            changed = dataset.intervened(batch.samples, name)
            images, _ = dataset.draw(changed)
            partners = context.data.preprocessing.image(images).to(batch.inputs)
            other, other_features = _answers(classifier, head, partners)
            found = {"change": (other - logit).abs(), "flip": ((other > 0) != (logit > 0)).double()}
            delta = None
            if "+" not in name:
                delta = torch.from_numpy(_difference(name, values[name], changed[name])).to(logit)
                found |= {"delta": delta, "delta_logit": other - logit}
            if head is not None:
                assert features is not None and other_features is not None  # as it was hooked
                step = other_features - features
                found["norm"] = step.norm(dim=1)
                if delta is not None:
                    found["angle"] = _angle(delta.sign()[:, None] * step, _contrast(head.weight.double().T))
            columns |= {f"{kind}_{name}": column for kind, column in found.items()}
        return columns


@torch.no_grad()
def _answers(
    classifier: Classifier, head: nn.Linear | None, inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """f of each input [B] and, of a network with this last layer, the features that go into it [B,D]; float64."""
    seen: list[torch.Tensor] = []
    watch = head and head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        logit = _contrast(classifier.logits(inputs).double())
    finally:
        if watch:
            watch.remove()
    return logit, torch.cat(seen).double() if seen else None


def _contrast(columns: torch.Tensor) -> torch.Tensor:
    """[N,K] -> [N]: of stretchy (1) less of peeky (0); of a single column, that."""
    return columns[:, 0] if columns.shape[1] == 1 else columns[:, 1] - columns[:, 0]


def _difference(name: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    difference = after - before
    return (difference + math.pi) % (2 * math.pi) - math.pi if name in CIRCULAR else difference


def _angle(vectors: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Degrees between each vector [B,D] and a direction [D]; NaN for a vector of length 0."""
    cosine = vectors @ direction / (vectors.norm(dim=1) * direction.norm())
    return cosine.clamp(-1, 1).acos().rad2deg()


@torch.no_grad()
def _last_layer(classifier: Classifier) -> nn.Linear | None:
    """The linear layer whose output are the logits; None if there is none."""
    outputs: dict[nn.Linear, torch.Tensor] = {}
    layers = [module for module in classifier.module.modules() if isinstance(module, nn.Linear)]
    watches = [
        layer.register_forward_hook(lambda module, given, output: outputs.update({module: output})) for layer in layers
    ]
    try:
        logits = classifier.module(classifier.blank)
    finally:
        for watch in watches:
            watch.remove()
    return next((layer for layer, output in outputs.items() if output is logits), None)
