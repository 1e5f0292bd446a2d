"""What metrics remove from images: along the order of a map or as masks say, and what removed pixels show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...datasets.base import Batch, Samples
from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.preprocessing import Preprocessing
from ...perturb.background import BACKGROUND, REFERENCES, check_background, draw_references
from ...perturb.fills import check_fill, filled
from ...perturb.imputer import Imputer
from ...perturb.perturbed import Remove, Run, masked, replacing
from ...rng import draw_seeds, from_seeds
from ..base import Metric
from ..ranking import Collapse, Sign

# What a fill that is not random is drawn.
NONE: Mapping[str, torch.Tensor] = {}

# What a removed pixel shows: the words of `fills`, which do not depend on what else is removed; `noise`, uniform pixel
# values; `linear`, the noisy linear imputer of ROAD, which infers the removed pixels from those that are left; and
# `background`, what 20 samples of the fit split have there, over which the network's answers are averaged.
Fill = Literal["zero", "black", "white", "channel_mean", "blur", "noise", "linear", "unknown", "background"]

# Of `linear`: the standard deviation of what ROAD adds to every imputed pixel, in units of pixel values from 0 to 1.
IMPUTATION_NOISE = 0.01

# Below so many times the spacing of numbers, outputs of a network differ by rounding. (An output is the end of a sum of
# thousands of rounded products, and is itself off by a few.)
ROUNDING = 16


def counts_of(features: int, steps: int | None) -> list[int]:
    """How many features have been replaced at each point of a path: from 0 to all of them, both ends included.

    steps: the number of equal steps; counts are rounded to whole features and each occurs once, so a path never has
    more points than features + 1. None steps one feature at a time.
    """
    steps = features if steps is None else steps
    return list(dict.fromkeys(round(step * features / steps) for step in range(steps + 1)))


def curve(
    classifier: Classifier,
    inputs: torch.Tensor,
    remove: Remove,
    places: torch.Tensor,
    counts: Sequence[int],
    targets: torch.Tensor,
    output: str | None = "probability",
    keep: bool = False,
) -> torch.Tensor:
    """The model's scores [B,X] along an order of features: without the first counts[x] of them, or with only these.

    inputs [B,C,H,W]. places int [B,H,W]: each pixel's place in its sample's order (`ranking.places`); channels are
    removed together. keep: places 0..counts[x]-1 are what is left, instead of what is removed. targets [B].
    """
    thresholds = torch.tensor(counts, dtype=places.dtype, device=places.device).view(-1, 1, 1, 1)
    compare = torch.ge if keep else torch.lt

    def mask(sample: int, part: slice, out: torch.Tensor) -> None:
        compare(places[sample], thresholds[part], out=out)

    return masked(classifier, inputs, remove, mask, len(counts), targets, output)


def imputing(inputs: torch.Tensor, noises: torch.Tensor) -> Remove:
    """Removal by imputation: a removed pixel of inputs [B,C,H,W] is inferred from those left, plus its noise.

    noises [B,C,H,W]: one field for each image, whatever is removed from it.
    """
    impute = Imputer()

    def remove(runs: Sequence[Run], masks: torch.Tensor, out: torch.Tensor) -> None:
        for sample, _, into in runs:
            out[into] = inputs[sample]
        imputed = impute(out, masks)
        for sample, _, into in runs:
            torch.addcmul(imputed[into], masks[into], noises[sample], out=out[into])

    return remove


class Removal:
    """What a metric's parameters `fill` and `sigma` say about removed pixels, and the randomness that this takes.

    fill: see `Fill`. sigma: of the blur, in pixels. Raises ValueError for a sigma that is not positive.

    A random fill belongs to the sample, not to the method under test: its seed is drawn when the model's responses
    are computed (`draw`) and kept among them, so that every method meets the same fill.
    """

    def __init__(self, fill: Fill, sigma: float = 5.0) -> None:
        if not sigma > 0:
            raise ValueError(f"sigma={sigma}: expected a positive number of pixels")
        self.fill, self.sigma = fill, sigma

    @property
    def passes(self) -> int:
        """How many inputs the network is asked about for one from which something is removed."""
        return REFERENCES if self.fill == BACKGROUND else 1

    def check(self, classifier: Classifier, parameter: str = "metric.fill") -> None:
        """Raise Refusal for a fill that means nothing for the inputs of a network. parameter: where it was set."""
        check_fill(self.fill, classifier, parameter)
        if self.fill == BACKGROUND:
            check_background(classifier, parameter)

    def spec(self) -> dict[str, object]:
        """What the fill depends on, for `Metric.responses_spec`."""
        return {"fill": self.fill} | ({"sigma": self.sigma} if self.fill == "blur" else {})

    def draw(self, generators: Sequence[torch.Generator]) -> dict[str, torch.Tensor]:
        """The seeds [B] of a random fill, as a column of the responses; nothing for the others."""
        if self.fill not in ("noise", "linear"):
            return {}
        return {"fill_seed": draw_seeds(generators)}

    def versions(self, fitted: Mapping[str, torch.Tensor]) -> list["Removal"]:
        """The removals over which the network's answers are averaged: this one, of a `background` one for each sample.

        fitted: what the metric's `fit` returned.
        """
        return [_Shown(one) for one in fitted["references"]] if self.fill == BACKGROUND else [self]

    def emptied(
        self,
        classifier: Classifier,
        batch: Batch,
        draws: Mapping[str, torch.Tensor],
        fitted: Mapping[str, torch.Tensor],
        output: str | None = None,
    ) -> torch.Tensor:
        """The network's scores [B] of the images with all pixels removed."""
        images = [one.everything(classifier, batch, draws) for one in self.versions(fitted)]
        return torch.stack([classifier.scores(image, batch.targets, output) for image in images]).mean(0)

    def everything(
        self, classifier: Classifier, batch: Batch, draws: Mapping[str, torch.Tensor] = NONE
    ) -> torch.Tensor:
        """The images [B,C,H,W] with all pixels removed; `linear` has nothing to infer from: noisy channel means."""
        if self.fill == "noise":
            pixels = [torch.rand(batch.inputs.shape[1:], generator=g) for g in from_seeds(draws["fill_seed"])]
            return classifier.preprocessing.normalise(torch.stack(pixels).to(batch.inputs))
        if self.fill == "linear":
            means = filled(batch.inputs, "channel_mean", classifier.preprocessing)
            return means + _imputation_noise(batch.inputs, classifier.preprocessing, draws)
        return filled(batch.inputs, self.fill, classifier.preprocessing, self.sigma)

    def of(self, classifier: Classifier, batch: Batch, draws: Mapping[str, torch.Tensor] = NONE) -> Remove:
        """The removal for the images of a batch. draws: what `draw` returned, or responses that contain it."""
        if self.fill == "linear":
            return imputing(batch.inputs, _imputation_noise(batch.inputs, classifier.preprocessing, draws))
        return replacing(batch.inputs, self.everything(classifier, batch, draws))


class _Shown(Removal):
    """Removed pixels show those of one sample [C,H,W]."""

    def __init__(self, sample: torch.Tensor) -> None:
        super().__init__(BACKGROUND)
        self.sample = sample

    def everything(
        self, classifier: Classifier, batch: Batch, draws: Mapping[str, torch.Tensor] = NONE
    ) -> torch.Tensor:
        return self.sample.to(batch.inputs).expand_as(batch.inputs)


class RemovalMetric(Metric):
    """Base class of the metrics that have a `Removal`: a `background` is drawn once per network and data set."""

    fit_parameters = ()

    def remove_by(self, *removals: Removal) -> None:
        """Say what is removed how; a constructor calls it."""
        if any(removal.fill == BACKGROUND for removal in removals):
            self.fit, self.responses_read_fit = _draw_background, True


def _draw_background(classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"references": draw_references(samples, REFERENCES, generator)}


def drops(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """before [B] - after [B,X], outputs of a network; exactly 0 for a sample of which all X differ by rounding alone.

    Rounding is what is at most ROUNDING times the spacing of numbers (eps) of the outputs' type, at the size of the
    largest of them. What divides by such differences is then 0 / 0, undefined, instead of a ratio of accidents.
    """
    found = before[:, None] - after
    size = torch.maximum(before.abs(), after.abs().amax(1))
    same = found.abs().amax(1) <= ROUNDING * torch.finfo(before.dtype).eps * size
    return found.masked_fill(same[:, None], 0)


@dataclass(kw_only=True, eq=False)
class PathMetric(RemovalMetric):
    """Base class: the target's output while pixels are removed in a map's order, all channels of a pixel together.

    The parameters are keyword-only, so that a subclass (`@dataclass(eq=False)`) has its own before them:
    fill: what a removed pixel shows. sigma: of the blur, for `fill: blur`, in pixels.
    output: `probability` (softmax, the definition) or `logit`.
    collapse, sign: see `Metric`. Ties are broken at random, seeded by the sample.
    """

    fill: Fill = "zero"
    sigma: float = 5.0
    output: Literal["probability", "logit"] = "probability"
    collapse: Collapse | None = None
    sign: Sign = "signed"

    def __post_init__(self) -> None:
        self.removal = Removal(self.fill, self.sigma)
        self.remove_by(self.removal)

    def check(self, classifier: Classifier) -> None:
        check_output(self.output, classifier)
        self.removal.check(classifier)

    def responses_spec(self) -> dict[str, Any]:
        return {**self.removal.spec(), "output": self.output}


def check_tile(tile: int, classifier: Classifier) -> None:
    """Raise Refusal for tiles of words or columns: these lie in a row, and a short sentence would be a single tile."""
    if tile > 1:
        classifier.require_pictures(f"metric.tile={tile} is a square of pixels (metric.tile=1 is a place)")


def check_output(output: str, classifier: Classifier) -> None:
    """Raise Refusal where a network has no classes, of which the output is one's probability or the like."""
    if output != "logit" and not classifier.has_classes:
        said = f"metric.output={output}: {classifier.name} has no classes, hence no {output}: set metric.output=logit"
        hint = ", or for the logit of two classes output=logit" if classifier.output == "raw" else ""
        raise Refusal(said + hint)


def _imputation_noise(
    inputs: torch.Tensor, preprocessing: Preprocessing, draws: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    seeded = from_seeds(draws["fill_seed"])
    fields = torch.stack([torch.randn(inputs.shape[1:], generator=g) for g in seeded]).to(inputs)
    return preprocessing.normalise(IMPUTATION_NOISE * fields) - preprocessing.normalise(torch.zeros_like(fields))
