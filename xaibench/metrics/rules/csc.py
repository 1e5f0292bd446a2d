"""Cosine similarity convergence: does what a method hands down still depend on what it was handed?"""

import torch
from scipy.special import betaincinv

from ...datasets.base import Batch
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ...models.cut import LOGITS
from ...models.tracing.graph import Graph
from ..base import Columns, Metric, Statistic

# By default: where vectors start, the logits included, and how many layers they are looked at in.
STARTS, KEPT = 4, 12
# Bounds of the histogram; the last ones are those of convergence (the code of Sixt et al. 2020).
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999, 0.9999, 1.0)
QUANTILES = {"low": 0.05, "median": 0.5, "high": 0.95}


class CosineConvergence(Metric):
    """How alike two random relevance vectors become while a method hands them down (Sixt et al. 2020, "CSC").

    Vectors v ~ N(0, I) take the place of the relevance at a layer `start` and are handed down by the method's rules for
    the image. |cosine| is taken between the vectors of every pair, in convolutional layers at each place along the
    channels. If it comes to 1, what arrives below is the same whatever was explained above: the map knows nothing of
    the layers above. Two vectors that have nothing in common are not at 0 but at the median of random ones, which is
    higher the fewer channels there are (0.5 for 3): the `baseline`. A vector of 0 has no direction: its pairs are left
    out and counted as `undefined`.

    vectors: per image and start. start: layers (aliases, module paths, `logits`); null takes the logits and the outputs
        at three quarters, half and a quarter of the main path. layers: where to look; null takes at most 12 of the
        main path, evenly spaced, the first convolution among them. See `Graph.trunk`.

    Columns, of the lowest of `layers` and the highest start: cosine, the median over pairs and places; above_random,
    that less the baseline; undefined, the share of such pairs; histogram, the share of the pairs between two bounds,
    over the lower one. For each start curves over its layers, numbered from the lowest, 1: median_from_START, low_ and
    high_ (5 and 95 %), undefined_from_START, and baseline_from_START. NaN where every pair is undefined.

    The input itself is left out: its few channels make any two vectors alike. Lower is better.
    """

    reads_maps = False
    propagates = True
    statistics = (
        Statistic("cosine", "lower", "cosine", kind="median", low=0, high=1, unit="|cosine|"),
        Statistic("above_random", "lower", "above_random", kind="median", low=-1, high=1, unit="|cosine|"),
        Statistic("undefined", "lower", "undefined", low=0, high=1, unit="share of pairs"),
    )

    def __init__(self, vectors: int = 5, start: list[str] | None = None, layers: list[str] | None = None) -> None:
        if vectors < 2:
            raise ValueError(f"vectors={vectors}: expected at least 2, to have a pair")
        for name, value in (("start", start), ("layers", layers)):
            if value is not None and not value:
                raise ValueError(f"{name}=[]: expected at least one layer, or null")
        self.vectors, self.start, self.layers = vectors, start, layers

    def check(self, classifier: Classifier) -> None:
        self.paths(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        starts = len(self.paths(classifier))
        return (starts, starts * self.vectors)

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        curves = {
            f"{name}_from_{start}": torch.arange(1, len(below) + 1)
            for start, below in self.paths(classifier).items()
            for name in (*QUANTILES, "undefined", "baseline")
        }
        return {"histogram": torch.tensor(EDGES[:-1], dtype=torch.float64), **curves}

    def paths(self, classifier: Classifier) -> dict[str, list[str]]:
        """Each start, the highest first, with the layers below it, the lowest first."""
        graph = Graph.of(classifier)
        trunk = graph.trunk()
        kept = sorted(self.layers or _spaced(trunk, KEPT), key=graph.place)
        starts = sorted(self.start or [LOGITS, *_spaced(trunk, STARTS + 1)[1:-1]], key=graph.place, reverse=True)
        found = {start: [name for name in kept if graph.place(name) < graph.place(start)] for start in starts}
        for start, below in found.items():
            if not below:
                where = ", ".join(kept) or "none on the main path has a name"
                raise Refusal(f"metric.layers ({where}): none lies below the start {start} in {classifier.name}")
        return found

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        graph, inputs, generators = Graph.of(classifier), batch.inputs, context.generators
        values = graph.run(inputs[:1])
        at_once = max(1, classifier.batch_size // self.vectors)
        columns: Columns = {}
        for start, below in self.paths(classifier).items():
            shape, parts = values[graph.place(start)].shape[1:], []
            for first in range(0, len(inputs), at_once):
                rows = slice(first, first + at_once)
                drawn = torch.stack([torch.randn(self.vectors, *shape, generator=g) for g in generators[rows]], dim=1)
                arrived = context.propagate(inputs[rows], drawn.to(inputs).unbind(), start, below)
                found = [cosines(torch.stack([signals[layer] for signals in arrived])) for layer in below]
                curves = _curves(found, [random_baseline(arrived[0][layer].shape[1]) for layer in below])
                part = {f"{name}_from_{start}": curve for name, curve in curves.items()}
                if not columns:  # the highest start
                    part["cosine"], part["undefined"] = curves["median"][:, 0], curves["undefined"][:, 0]
                    part["above_random"] = part["cosine"] - curves["baseline"][:, 0]
                    part["histogram"] = _histogram(found[0])
                parts.append(part)
            columns |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return columns


def cosines(signals: torch.Tensor) -> torch.Tensor:
    """|cosine| of every pair of V signals [V,B,C] or [V,B,C,H,W], the latter place by place -> float64 [B,N].

    N is V (V - 1) / 2 times the places; NaN where one of the two is 0.
    """
    values = signals.double().reshape(*signals.shape[:3], -1)
    values = values / values.abs().amax(2, keepdim=True)  # squares of what a long chain leaves would be 0
    values = values / values.norm(dim=2, keepdim=True)
    first, second = torch.triu_indices(len(signals), len(signals), 1)
    found = torch.einsum("vbcp,wbcp->vwbp", values, values)[first, second]
    return found.abs().clamp(max=1).transpose(0, 1).flatten(1)


def random_baseline(channels: int) -> float:
    """The median of |cosine| of two vectors v ~ N(0, I): its square is Beta(1/2, (channels - 1) / 2)."""
    return 1.0 if channels == 1 else float(betaincinv(0.5, (channels - 1) / 2, 0.5)) ** 0.5


def _curves(found: list[torch.Tensor], baselines: list[float]) -> dict[str, torch.Tensor]:
    """Quantiles and the undefined share of cosines, a [B,N] for each of L layers, and the baselines -> [B,L] each."""
    levels = found[0].new_tensor(list(QUANTILES.values()))
    quantiles = torch.stack([torch.stack([row.nanquantile(levels) for row in layer]) for layer in found], dim=2)
    undefined = torch.stack([layer.isnan().double().mean(1) for layer in found], dim=1)
    curves = dict(zip(QUANTILES, quantiles.unbind(1)))
    return {**curves, "undefined": undefined, "baseline": undefined.new_tensor(baselines).expand_as(undefined)}


def _histogram(found: torch.Tensor) -> torch.Tensor:
    """The share of defined cosines [B,N] from each of EDGES to the next -> [B,X]; the last bound belongs to it."""
    from_edge = torch.stack([(found >= edge).sum(1) for edge in EDGES[:-1]], dim=1)
    counts = from_edge - torch.nn.functional.pad(from_edge[:, 1:], (0, 1))
    return counts.double() / (~found.isnan()).sum(1, keepdim=True)


def _spaced(names: list[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spaced, with the first and the last."""
    if len(names) <= count:
        return names
    return [names[round(number * (len(names) - 1) / (count - 1))] for number in range(count)]
