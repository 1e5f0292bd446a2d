"""Agreement of maps with the network's own counterfactuals, beyond that with two controls."""

from typing import Any

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...methods.counterfactual.goals import margins
from ...models.classifier import Classifier
from ...models.invertible import Line, invertible
from ..base import Columns, Metric, Statistic
from ..ranking import mid_ranks, most_relevant

CONTROLS = ("random", "other")
UNITS = {
    "spearman": "rank correlation",
    "overlap": "share of the best tenth of the pixels",
    "mass": "share of the map",
}


class CounterfactualAgreement(Metric):
    """Does a map mark what changes in the image when the network's logit alone is changed? (Heurich 2021, section 4.1,
    which looks at pictures; the numbers are ours.)

    The reference is D = |x+ - x-| summed over channels, where x+ and x- are the images that an invertible network has
    for the image's latent moved along w = w_a - w_b of its head until f = f_a - f_b is t and -t. t is what |f| is at
    most for the share `quantile` of the fit split. The map is read without its sign.

    spearman   rank correlation of map and D over the pixels, from -1 to 1
    overlap    share of the best `top` of the map's pixels that are among the best `top` of D; `top` by chance
    mass       share of the map's sum that lies in the best `top` of D

    The background counts as right where the counterfactual changes it. D is one shortest step in the latent, with the
    channels kept that left the flow: what this network would change, and no ground truth. Edges and contrast alone
    agree with it, so each statistic stands beside that with two controls, `_random`, the difference along a random
    direction of the latent, as long a step both ways, and `_other`, the counterfactual of the next sample; its `_gain`
    is what it has over the larger of the two, image by image.

    quantile: of |f|. top: share of the pixels.

    Columns: those, for each of the three. Undefined (NaN) where map or D is constant.
    """

    statistics = tuple(
        Statistic(
            f"{name}{suffix}",
            "higher",
            f"{name}{suffix}",
            low=-1 if name == "spearman" or suffix == "_gain" else 0,
            high=2 if suffix == "_gain" and name == "spearman" else 1,
            unit=unit,
        )
        for name, unit in UNITS.items()
        for suffix in ("_gain", "", *(f"_{control}" for control in CONTROLS))
    )
    sign = "absolute"
    fit_parameters = ()

    def __init__(self, quantile: float = 0.9, top: float = 0.1) -> None:
        for name, value in (("quantile", quantile), ("top", top)):
            if not 0 < value < 1:
                raise ValueError(f"{name}={value}: expected a share between 0 and 1")
        self.quantile, self.top = quantile, top

    def check(self, classifier: Classifier) -> None:
        invertible(classifier, "metric=counterfactual_agreement")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        # Two images encoded, and two decoded along each of three lines.
        return (8, 0)

    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`margins` [n], |f| of the samples of the fit split."""
        return {"margins": margins(classifier, samples)}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        sure = context.fitted["margins"].quantile(self.quantile)
        line = Line.of(classifier, batch.inputs, batch.targets, "metric=counterfactual_agreement")
        count = len(context.data.dataset)
        neighbours = context.data.load([(sample + 1) % count for sample in batch.samples])
        other = Line.of(classifier, neighbours.inputs, batch.targets, "metric=counterfactual_agreement")
        wanted = torch.full_like(line.value, float(sure))
        steps = line.step(wanted), line.step(-wanted)
        randomly = line.randomly(steps[0] - steps[1], context.generators)
        references = {
            "": difference(line.at(wanted), line.at(-wanted)),
            "_random": difference(line.moved(randomly / 2), line.moved(-randomly / 2)),
            "_other": difference(other.at(wanted), other.at(-wanted)),
        }
        pixels = maps.flatten(1).double()
        columns: Columns = {}
        for suffix, reference in references.items():
            found = agreement(pixels, reference.flatten(1).double(), self.top, context.generators)
            columns |= {f"{name}{suffix}": values for name, values in found.items()}
        for name in UNITS:
            controls = torch.stack([columns[f"{name}_{control}"] for control in CONTROLS])
            columns[f"{name}_gain"] = columns[name] - controls.amax(0)
        return columns


def difference(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """|x+ - x-| of images [B,C,H,W], summed over channels: [B,H,W]."""
    return (above - below).abs().sum(1)


def agreement(maps: torch.Tensor, reference: torch.Tensor, top: float, generators: Any) -> dict[str, torch.Tensor]:
    """`spearman`, `overlap` and `mass` [B] of maps [B,N] with a reference [B,N], neither negative; NaN where one of the
    two is constant. Ties among the best pixels are broken by each sample's generator."""
    count = torch.full((len(maps),), max(1, round(top * maps.shape[1])), device=maps.device)
    best = most_relevant(reference, count, generators)
    ranks = [mid_ranks(values) - (maps.shape[1] + 1) / 2 for values in (maps, reference)]
    product, lengths = (ranks[0] * ranks[1]).sum(1), [r.norm(dim=1) for r in ranks]
    found = {
        "spearman": product / (lengths[0] * lengths[1]),
        "overlap": (most_relevant(maps, count, generators) & best).sum(1) / count,
        "mass": (maps * best).sum(1) / maps.sum(1),
    }
    constant = (maps == maps[:, :1]).all(1) | (reference == reference[:, :1]).all(1)
    return {name: values.double().where(~constant, torch.nan) for name, values in found.items()}
