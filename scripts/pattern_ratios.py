"""How close to rank 1 weights, patterns and their products are: the singular ratios of Sixt et al. 2020, figure 5.

    python scripts/pattern_ratios.py model=vgg_small dataset=imagefolder dataset.root=DATA --out pattern_ratios.csv

One row for each convolution and linear layer: sigma_1 / sigma_2 of the weights W, the patterns A of pattern_net and
their elementwise product; and `between`, the same for the layer together with the next one. `distance` is of random
vectors handed down the chain of the weights, as rank_one.py does with random ones. Overrides are those of `xaibench
run`; the patterns are estimated once and kept in the cache.
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

VECTORS = 32


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
    chains = {
        kind: [matrix(weight, below) for weight, below in zip(weights, [None, *weights])]
        for kind, weights in kinds.items()
    }
    rows = {"layer": [layer.name for layer in layers]}
    for kind, matrices in chains.items():
        rows[kind] = [ratio(torch.linalg.svdvals(one)) for one in matrices]
        rows[f"{kind}_between"] = [*(between(low, high) for low, high in pairwise(matrices)), torch.nan]
    return pd.DataFrame({**rows, "distance": handed_down(chains["weight"])})


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


def handed_down(matrices: list[torch.Tensor]) -> list[float]:
    """The median of 1 - |cosine| over pairs of vectors that matrices [K,C], the last of which is the first, hand down
    from random ones, each product followed by a ReLU: after each of them; NaN below a matrix that does not fit."""
    vectors = torch.randn(VECTORS, len(matrices[-1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [torch.nan] * len(matrices)
    first, second = torch.triu_indices(VECTORS, VECTORS, 1)
    for place in reversed(range(len(matrices))):
        if len(matrices[place]) != vectors.shape[1]:
            break
        vectors = (vectors @ matrices[place]).clamp(min=0)
        units = vectors / vectors.norm(dim=1, keepdim=True)  # NaN where nothing is left
        found[place] = float((1 - (units @ units.T)[first, second]).nanmedian())
    return found


if __name__ == "__main__":
    main()
