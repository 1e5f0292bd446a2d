"""Linear probe: what a linear classifier can tell from the features of a layer."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...datasets.base import Batch, Dataset, Samples
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ...models.cut import activations, output_shape
from ...models.tokens import feature_maps
from ..base import Columns, Metric, Statistic
from .quality import slugs

LAYERS = ("bottleneck_early", "bottleneck", "bottleneck_late", "last_conv", "logits")


class LinearProbe(Metric):
    """How well a linear classifier tells the labels from a layer's features (Alain and Bengio 2016); it scores no map.

    A probe is a logistic regression of a layer's features that is fitted to the labels of the fit split; the network
    stays as it is. Its accuracy on the samples that are scored, which it has not seen, says what the layer holds in a
    linear form, not whether the network uses it. With `model.weights=random`: what the same layers hold untrained.

    layers: aliases or module paths; `input` and `logits` are the network's own. grid: feature maps, and a
    transformer's tokens of patches, are averaged over grid x grid parts of the image; other outputs are taken as they
    are. l2: of the penalty l2/2 |W|^2 beside the mean cross entropy, of standardised features, the biases left out
    (scikit-learn's C is 1 / (n l2) for n samples).

    Columns: correct_<layer>, 1 or 0.
    """

    reads_maps = False
    fit_parameters = ("layers", "grid", "l2")

    def __init__(self, layers: tuple[str, ...] = LAYERS, grid: int = 1, l2: float = 1e-3) -> None:
        if not layers:
            raise ValueError("layers=[]: expected at least one layer")
        if grid < 1:
            raise ValueError(f"grid={grid}: expected 1 or more parts a side")
        if not l2 > 0:
            raise ValueError(f"l2={l2}: expected a positive number, without which a probe may have no best weights")
        self.layers, self.grid, self.l2 = tuple(layers), grid, l2
        self.names = dict(zip(self.layers, slugs(self.layers)))
        share: dict[str, Any] = {"kind": "proportion", "low": 0, "high": 1, "unit": "share of samples"}
        self.statistics = tuple(
            Statistic(f"accuracy_{name}", "higher", f"correct_{name}", **share) for name in self.names.values()
        )

    def check(self, classifier: Classifier) -> None:
        for layer in self.layers:
            output_shape(classifier, layer)

    def check_data(self, dataset: Dataset) -> None:
        if dataset.multi_label or len(dataset.class_names) < 2:
            raise Refusal("linear_probe tells classes apart: expected a data set whose samples have one class each")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 0)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The probes: `<layer>.weight` [classes,D] and `<layer>.bias` [classes], of features [D] as they are."""
        features: dict[str, list[torch.Tensor]] = {layer: [] for layer in self.layers}
        labels = []
        for batch in samples:
            labels.append(batch.labels.cpu())
            for layer, values in self._features(classifier, batch.inputs).items():
                features[layer].append(values.cpu())
        truth, classes = torch.cat(labels).numpy(), len(samples.dataset.class_names)
        fitted: dict[str, torch.Tensor] = {}
        for layer, parts in features.items():
            weight, bias = logistic_regression(torch.cat(parts).numpy(), truth, classes, self.l2)
            fitted |= {f"{layer}.weight": torch.from_numpy(weight), f"{layer}.bias": torch.from_numpy(bias)}
        return fitted

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        columns = {}
        for layer, features in self._features(classifier, batch.inputs).items():
            weight, bias = (context.fitted[f"{layer}.{part}"].to(features) for part in ("weight", "bias"))
            called = F.linear(features, weight, bias).argmax(1)
            columns[f"correct_{self.names[layer]}"] = (called == batch.labels).double()
        return columns

    def _features(self, classifier: Classifier, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of each layer [B,D], in float64."""
        parts: dict[str, list[torch.Tensor]] = {layer: [] for layer in self.layers}
        for rows in classifier.chunks(len(inputs)):
            found = activations(classifier, self.layers, inputs[rows].to(classifier.dtype))
            for layer in self.layers:
                parts[layer].append(self._pooled(found[layer].double(), classifier))
        return {layer: torch.cat(found) for layer, found in parts.items()}

    def _pooled(self, values: torch.Tensor, classifier: Classifier) -> torch.Tensor:
        try:
            values = feature_maps(values, classifier.input_size[1:])
        except ValueError:
            return values.flatten(1)
        return F.adaptive_avg_pool2d(values, self.grid).flatten(1)


def logistic_regression(
    features: np.ndarray, labels: np.ndarray, classes: int, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [classes,D] and biases [classes] of a multinomial logistic regression with the penalty of `LinearProbe`.

    features: [n,D], float64; labels: [n], whole numbers. Features are standardised for the penalty, those of one value
    left out; the weights are of the features as they come. Deterministic: from zeros by L-BFGS.
    """
    from scipy import optimize, special  # takes a second to import

    mean, std = features.mean(0), features.std(0)
    varies = std > 1e-12 * np.abs(features).max(0)
    scale = np.divide(1, std, out=np.zeros_like(std), where=varies)
    rows, is_label = (features - mean) * scale, np.eye(classes)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = np.split(flat.reshape(classes, -1), [rows.shape[1]], axis=1)
        log_probability = special.log_softmax(rows @ weight.T + bias.T, axis=1)
        wrong = (np.exp(log_probability) - is_label) / len(rows)
        gradient = np.hstack([wrong.T @ rows + l2 * weight, wrong.sum(0)[:, None]])
        return l2 / 2 * (weight**2).sum() - (is_label * log_probability).sum() / len(rows), gradient.ravel()

    start = np.zeros(classes * (rows.shape[1] + 1))
    flat = optimize.fmin_l_bfgs_b(loss, start, factr=10, pgtol=1e-8, maxiter=2000, maxfun=4000)[0]
    found = np.asarray(flat).reshape(classes, -1)
    weight = found[:, :-1] * scale
    return weight, found[:, -1] - weight @ mean
