"""Concepts: directions in the channels of a layer, from a factorisation of its activations."""

from typing import Literal, get_args

import torch
from torch.nn import functional as F

from ...datasets.base import Samples
from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...models.cut import Cut, activations, feature_shape
from ..base import Fitted
from ..context import Context

Factorisation = Literal["mf", "pca", "nmf", "random"]
NMF_STEPS = 200


class Concept(Fitted):
    """Where a concept is: S_k = sum_c z_c P_kc over the channels of a layer, resized to the image, [B,1,H,W], signed
    (Sixt 2022, section 6.3, after Zhang et al. 2021).

    P [K,C] is fitted to activations at `places` random places of the layer, drawn from the images of the fit split.
    Concepts are in the order of how much they go with the answer: |correlation|, over these images, of their
    contribution (sum over places of S_k) I_k with f = f_a - f_b, the difference of the logits of two `classes`, where
    I_k is the derivative of f along P_k at all places together.

    component: k, from 0.
    concepts: K. layer: an alias or module path of feature maps.
    factorisation: `mf`, of signed activations as they are, by least squares (the thesis's, as these have both signs);
        `pca`, the same less their mean; `nmf`, without negative factors, of the positive and the negative parts side
        by side, whose difference is P (Lee and Seung 2001, multiplicative updates); `random`, the control, directions
        drawn from a Gaussian. Each P_k has length 1; of `mf` and `pca` it is defined up to its sign, which is set so
        that the correlation is positive.
    places: to fit to.
    """

    sign_of_logit = False
    fit_parameters = ("concepts", "layer", "factorisation", "places", "classes")

    def __init__(
        self,
        component: int = 0,
        concepts: int = 10,
        layer: str = "last_conv",
        factorisation: Factorisation = "mf",
        places: int = 5000,
        classes: tuple[int, int] = (1, 0),
    ) -> None:
        one_of("factorisation", factorisation, get_args(Factorisation))
        if not 1 <= concepts <= places:
            raise ValueError(f"concepts={concepts}: expected from 1 to places={places}")
        if not 0 <= component < concepts:
            raise ValueError(f"component={component}: there are concepts={concepts}, expected 0 to {concepts - 1}")
        self.component, self.concepts, self.layer = component, concepts, layer
        self.factorisation, self.places, self.classes = factorisation, places, classes

    def check(self, classifier: Classifier) -> None:
        name, channels, last = classifier.name, feature_shape(classifier, self.layer)[0], classifier.outputs - 1
        if self.concepts > channels:
            raise Refusal(f"concepts={self.concepts}: layer '{self.layer}' of {name} has {channels} channels")
        if len(set(self.classes)) != 2 or not all(0 <= k <= last for k in self.classes):
            raise Refusal(f"classes={list(self.classes)}: expected two of {name}'s 0 to {last}")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 0)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`directions` P [K,C], and `correlations` [K] of their contributions with f, in descending order."""
        values = self._places(classifier, samples, generator)
        directions = factorised(values.double(), self.concepts, self.factorisation, generator)
        found = [contributions(classifier, self.layer, directions, batch.inputs, self.classes) for batch in samples]
        contribution, total, answer = (torch.cat(column) for column in zip(*found))
        sign = correlations(total, answer).sign()
        correlation = correlations(contribution, answer)
        order = correlation.abs().argsort(descending=True, stable=True)
        directions = torch.where(sign < 0, -1.0, 1.0)[:, None] * directions
        return {"directions": directions[order], "correlations": correlation[order]}

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        direction = context.fitted["directions"][self.component].to(inputs)
        maps = []
        for part in classifier.chunks(len(inputs)):
            values = activations(classifier, [self.layer], inputs[part])[self.layer]
            maps.append(torch.einsum("bchw,c->bhw", values, direction)[:, None])
        return F.interpolate(torch.cat(maps), size=inputs.shape[2:], mode="bilinear", align_corners=False)

    def _places(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> torch.Tensor:
        """Activations [n,C] at random places, equally many of each sample."""
        each = -(-self.places // len(samples))
        found = []
        for batch in samples:
            for part in classifier.chunks(len(batch.inputs)):
                values = activations(classifier, [self.layer], batch.inputs[part].to(classifier.dtype))[self.layer]
                rows = values.flatten(2).transpose(1, 2).cpu()
                at = torch.rand(rows.shape[:2], generator=generator).argsort(1)[:, :each]
                found.append(rows.gather(1, at[:, :, None].expand(-1, -1, rows.shape[2])).flatten(0, 1))
        return torch.cat(found)[: self.places]


def factorised(values: torch.Tensor, count: int, how: str, generator: torch.Generator) -> torch.Tensor:
    """`count` directions [K,C] of length 1 from values [n,C], see `Concept`."""
    if how == "random":
        found = torch.randn(count, values.shape[1], generator=generator, dtype=values.dtype)
    elif how == "nmf":
        found = _nmf(torch.cat([values.clamp_min(0), (-values).clamp_min(0)], 1), count, generator)
        found = found[:, : values.shape[1]] - found[:, values.shape[1] :]
    else:
        centred = values - values.mean(0) if how == "pca" else values
        found = torch.linalg.svd(centred, full_matrices=False).Vh[:count]
    return found / found.norm(dim=1, keepdim=True).clamp_min(torch.finfo(found.dtype).tiny)


def contributions(
    classifier: Classifier, layer: str, directions: torch.Tensor, inputs: torch.Tensor, classes: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum of S_k) I_k [B,K], the sum of S_k [B,K], and f [B], of inputs [B,C,H,W]; float64, on the CPU."""
    inputs = inputs.to(classifier.dtype)
    cut, found = Cut(classifier, layer, inputs[:1]), []
    for part in classifier.chunks(len(inputs)):
        with torch.no_grad():
            features = cut.before(inputs[part])
        values = features.values.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            # A copy, since a network may write into what it gets.
            logits = cut.behind(values.clone(), features)
            answer = logits[:, classes[0]] - logits[:, classes[1]]
        (slope,) = torch.autograd.grad(answer.sum(), values)
        total, along = (
            torch.einsum("bchw,kc->bk", tensor.detach().double().cpu(), directions) for tensor in (values, slope)
        )
        found.append((total * along, total, answer.detach().double().cpu()))
    products, totals, answers = (torch.cat(column) for column in zip(*found))
    return products, totals, answers


def correlations(columns: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of each column of [n,K] with an answer [n]; 0 where one of the two does not vary."""
    columns, answer = columns - columns.mean(0), answer - answer.mean()
    lengths = columns.norm(dim=0) * answer.norm()
    return torch.where(lengths > 0, (answer @ columns) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny), 0.0)


def _nmf(values: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """H [K,N] of values [n,N] ~ W H, none negative, with the least squared error (Lee and Seung 2001, theorem 1)."""
    tiny = torch.finfo(values.dtype).eps
    left, right = (
        torch.rand(shape, generator=generator, dtype=values.dtype) + tiny
        for shape in ((len(values), count), (count, values.shape[1]))
    )
    for _ in range(NMF_STEPS):
        right *= (left.T @ values) / (left.T @ left @ right + tiny)
        left *= (values @ right.T) / (left @ (right @ right.T) + tiny)
    return right
