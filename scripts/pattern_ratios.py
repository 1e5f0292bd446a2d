"""How close to rank 1 weights, patterns and their products are: the singular ratios of Sixt et al. 2020, figure 5.

    python scripts/pattern_ratios.py model=vgg_small dataset=imagefolder dataset.root=DATA --out pattern_ratios.csv

One row for each convolution and linear layer: sigma_1 / sigma_2 of the weights W, the patterns A of pattern_net and
their elementwise product; and `between`, the same for the layer together with the next one. Overrides are those of
`xaibench run`; the patterns are estimated once and kept in the cache.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch

from xaibench.config import compose_job
from xaibench.engine.runner import prepare
from xaibench.models.tracing.graph import Graph
from xaibench.models.tracing.steps import Convolution, Dense


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    options = parser.parse_args()
    job = compose_job(["method=pattern_net", "dataset.limit=1", *options.overrides])
    scoring = prepare(job, job.cache)
    setting, fit = scoring.setting, scoring.maps.fit
    if fit.misses(()):
        fit.fill(())
    patterns = setting.fitted(fit)
    layers = Graph.of(setting.classifier).of_kind(Convolution | Dense)
    table(layers, patterns).to_csv(options.out, index=False, float_format="%.4g", lineterminator="\n")


def table(layers: list[Convolution | Dense], patterns: dict[str, torch.Tensor]) -> pd.DataFrame:
    """The ratios of layers in their order, from the lowest; NaN where two layers do not fit together."""
    kinds = {
        "weight": [layer.weight for layer in layers],
        "pattern": [patterns[layer.name] for layer in layers],
        "product": [layer.weight * patterns[layer.name] for layer in layers],
    }
    rows = {"layer": [layer.name for layer in layers]}
    for kind, weights in kinds.items():
        matrices = [matrix(weight, below) for weight, below in zip(weights, [None, *weights])]
        rows[kind] = [ratio(torch.linalg.svdvals(one)) for one in matrices]
        rows[f"{kind}_between"] = [*(between(low, high) for low, high in pairwise(matrices)), torch.nan]
    return pd.DataFrame(rows)


def matrix(weight: torch.Tensor, below: torch.Tensor | None) -> torch.Tensor:
    """A layer at one place: the centre of kernels [K,C,h,w], the middle place of a linear layer that reads the C
    channels `below` at several places [K,C*P]; float64 [K,C]."""
    if weight.dim() == 4:
        return weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2].double()
    channels = weight.shape[1] if below is None else below.shape[0]
    places = weight.double().reshape(len(weight), channels, -1)
    return places[:, :, places.shape[2] // 2]


def ratio(sigma: torch.Tensor) -> float:
    """sigma_1 / sigma_2."""
    return float(sigma[0] / sigma[1])


def between(low: torch.Tensor, high: torch.Tensor) -> float:
    """The ratio of T = sqrt(S_l) V_l U_h sqrt(S_h), with the singular value decompositions of a layer [K,C] and the
    next one [L,K], as they act on relevance from above, transposed: how the two turn into each other's directions."""
    if high.shape[1] != low.shape[0]:  # a residual connection or a pooling of channels lies between
        return torch.nan
    (_, sigma_high, right_high), (left_low, sigma_low, _) = (torch.linalg.svd(one, False) for one in (high, low))
    turned = sigma_high.sqrt()[:, None] * (right_high @ left_low) * sigma_low.sqrt()
    return ratio(torch.linalg.svdvals(turned))


if __name__ == "__main__":
    main()
