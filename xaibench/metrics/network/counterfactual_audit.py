"""Counterfactual audit: which factors of the scene move when the network's logit is moved."""

from typing import TYPE_CHECKING, Any, cast

import torch

from ...datasets.base import Batch, Dataset
from ...datasets.two4two_sampler import FACTORS
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ...models.invertible import Line, clipped, invertible
from ..base import Columns, Metric, Statistic
from ._observer import Observer, encoded, observed, places

if TYPE_CHECKING:
    from ...datasets.two4two import Two4Two

WAYS = ("moved", "random", "pixels")
TARGETS = 9
PIXEL_STEPS = 5


class CounterfactualAudit(Metric):
    """How far every factor of Two4Two moves along an image's counterfactuals, seen by an observer (Sixt 2022, section
    6.4 and tables 6 and 7): it scores no map.

    f = f_1 - f_0 is brought to nine values, evenly spread between its quantiles `tail` and 1 - `tail` on the fit split.
    The observer, a network of the metric's own that was trained to read the ten factors off unbiased scenes, looks at
    the nine images, clipped; what is scored of a factor is its largest less its smallest value:

    moved_<factor>    along the counterfactuals
    random_<factor>   along a random direction of the latent, by steps of the same lengths
    pixels_<factor>   along gradient steps in pixels to the same f (five of Newton's): what moves the logit without
                      being seen
    error_<factor>    the observer's squared error on the image itself, whose factors are known

    All in units of the factor's range; of yaw, which is circular, the larger of its sine's and cosine's, over 2. The
    thesis's table 6 is in units of its own and 128 pixels: compare the order.

    logit_error       mean |f - wanted| of the nine images before clipping, float32's error alone
    logit_clipped     the same once they are clipped and rounded to 8 bits

    tail: see above. images, epochs: of the observer's training.

    A metric's second model is what its `fit` returns: the weights are an artefact of the cache, made once.
    """

    reads_maps = False
    fit_parameters = ("tail", "images", "epochs")

    def __init__(self, tail: float = 0.005, images: int = 10_000, epochs: int = 8) -> None:
        if not 0 < tail < 0.5:
            raise ValueError(f"tail={tail}: expected a share between 0 and 0.5")
        for name, value in (("images", images), ("epochs", epochs)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self.tail, self.images, self.epochs = tail, images, epochs
        kinds = {way: "share of the range" for way in WAYS} | {"error": "squared share of the range"}
        self.statistics = (
            *(
                # More moved is more used, not better; what moves under a control, the observer only sees.
                Statistic(
                    f"{kind}_{factor}", "higher" if kind == "moved" else "lower", f"{kind}_{factor}", low=0, unit=unit
                )
                for kind, unit in kinds.items()
                for factor in FACTORS
            ),
            *(Statistic(name, "lower", name, low=0, unit="logit") for name in ("logit_error", "logit_clipped")),
        )

    def check(self, classifier: Classifier) -> None:
        invertible(classifier, "metric=counterfactual_audit")
        if classifier.outputs != 2:
            raise Refusal(f"counterfactual_audit is about two classes, {classifier.name} has {classifier.outputs}")

    def check_data(self, dataset: Dataset) -> None:
        if not hasattr(dataset, "scenes"):
            raise Refusal("counterfactual_audit needs scenes whose factors are known: dataset=two4two has them")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        # Encoding; nine images decoded on two lines, looked at before and after clipping; steps in pixels.
        return (1 + 4 * TARGETS + PIXEL_STEPS * TARGETS, PIXEL_STEPS * TARGETS)

    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`range` [2], the quantiles of f on the fit split, and the observer's weights."""
        answers = torch.cat([_answer(classifier, batch.inputs) for batch in samples])
        ends = answers.quantile(torch.tensor([self.tail, 1 - self.tail], dtype=answers.dtype, device=answers.device))
        seed = int(torch.randint(2**31, (), generator=generator))
        weights = observed(classifier.input_size[1], self.images, self.epochs, seed)
        return {"range": ends.cpu(), **{f"observer.{name}": tensor for name, tensor in weights.items()}}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        inputs = batch.inputs
        observer = _observer(classifier, context)
        line = Line.of(classifier, inputs, torch.ones_like(batch.labels, dtype=torch.int64), "counterfactual_audit")
        low, high = (float(end) for end in context.fitted["range"])
        length = line.direction.flatten(1).norm(dim=1)
        unit = line.randomly(line.direction / length.view(-1, *[1] * (line.z.ndim - 1)), context.generators)
        seen: dict[str, list[torch.Tensor]] = {way: [] for way in WAYS}
        errors: dict[str, list[torch.Tensor]] = {"logit_error": [], "logit_clipped": []}
        for goal in torch.linspace(low, high, TARGETS).tolist():
            wanted = torch.full_like(line.value, goal)
            images = line.at(wanted)
            pixels = _eight_bits(classifier, images)
            errors["logit_error"].append((_answer(classifier, images) - wanted).abs())
            errors["logit_clipped"].append((_answer(classifier, pixels) - wanted).abs())
            signed = ((wanted - line.value) / length).view(-1, *[1] * (line.z.ndim - 1))
            for way, found in (
                ("moved", images),
                ("random", line.moved(signed * unit)),
                ("pixels", _gradient_steps(classifier, inputs, wanted)),
            ):
                seen[way].append(_look(observer, classifier, found))
        columns: Columns = {name: torch.stack(values).mean(0).double() for name, values in errors.items()}
        _, factors = cast("Two4Two", context.data.dataset).scenes(batch.samples)
        squared = (_look(observer, classifier, inputs) - encoded(factors).to(inputs)).square()
        for name, where in places().items():
            for way in WAYS:
                values = torch.stack([look[:, where] for look in seen[way]])
                columns[f"{way}_{name}"] = (values.amax(0) - values.amin(0)).amax(1).double()
            columns[f"error_{name}"] = squared[:, where].mean(1).double()
        return columns


def _observer(classifier: Classifier, context: Context) -> Observer:
    observer = Observer(classifier.input_size[1]).to(classifier.device)
    prefix = "observer."
    state = {name.removeprefix(prefix): t for name, t in context.fitted.items() if name.startswith(prefix)}
    observer.load_state_dict(state)
    return observer.to(classifier.dtype).eval()


@torch.no_grad()
def _look(observer: Observer, classifier: Classifier, inputs: torch.Tensor) -> torch.Tensor:
    """What the observer says of inputs [B,C,H,W] as clipped pixels, [B,11]."""
    return observer(classifier.preprocessing.denormalise(inputs).clamp(0, 1))


def _answer(classifier: Classifier, inputs: torch.Tensor) -> torch.Tensor:
    """f [B], the logit of class 1 less that of class 0."""
    logits = classifier.logits(inputs)
    return logits[:, 1] - logits[:, 0]


def _eight_bits(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Inputs as inputs of 8-bit pixels."""
    preprocessing = classifier.preprocessing
    pixels = preprocessing.denormalise(clipped(images, preprocessing))
    return preprocessing.normalise((pixels * 255).round() / 255)


def _gradient_steps(classifier: Classifier, inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Inputs moved along the gradient of f until f is as wanted [B], by Newton's steps in pixels."""
    found = []
    for part in classifier.chunks(len(inputs)):
        x = inputs[part].detach()
        for _ in range(PIXEL_STEPS):
            x = x.requires_grad_(True)
            with torch.enable_grad():
                logits = classifier.module(x)
                value = logits[:, 1] - logits[:, 0]
            (slope,) = torch.autograd.grad(value.sum(), x)
            share = (wanted[part] - value) / slope.flatten(1).square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)
            x = (x + share.view(-1, 1, 1, 1) * slope).detach()
        found.append(x)
    return torch.cat(found)
