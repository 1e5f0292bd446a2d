"""Products of many matrices come to rank 1: the simulations of "When explanations lie" (Sixt et al. 2020, Theorem 1).

    python scripts/rank_one.py --out results/reference

writes rank_one.csv and rank_one.png. Left: random relevance vectors handed down a chain of random matrices, shaped like
VGG-16 from the logits to the colours with each 3x3 kernel as one matrix. Right: products of square matrices beside the
bound of the theorem, and matrices that it leaves out.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from xaibench.metrics.rules.csc import random_baseline

VGG16 = (1000, 4096, 4096, 512, 512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64, 3)
VECTORS = 32
RELU = "N(0, 1), ReLU"


def alpha_beta(alpha: float) -> Callable[[np.ndarray], np.ndarray]:
    """alpha W+ + beta W- with beta = alpha - 1."""
    return lambda w: alpha * w.clip(min=0) + (alpha - 1) * w.clip(max=0)


# From a matrix of N(0, 1), [above, below], to one of the chain.
CHAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "N(0, 1)": lambda w: w,
    RELU: lambda w: w,
    **{f"alpha {alpha}, beta {alpha - 1}": alpha_beta(alpha) for alpha in (10, 5, 4, 3, 2)},
    "non-negative": alpha_beta(1),
    "stochastic": lambda w: np.abs(w) / np.abs(w).sum(1, keepdims=True),
    "positive": np.abs,
}

# The square matrices of a product, by number from 1.
PRODUCTS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "non-negative, 32 x 32": lambda random, n: random.standard_normal((32, 32)).clip(min=0),
    "positive, 32 x 32": lambda random, n: np.abs(random.standard_normal((32, 32))),
    "[[1, 0], [1/n, 1]]": lambda random, n: np.array([[1, 0], [1 / n, 1]]),
    "[[1, 0], [1/n², 1]]": lambda random, n: np.array([[1, 0], [1 / n**2, 1]]),
}
FACTORS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=5, help="random chains of each kind")
    options = parser.parse_args()
    chains, products = simulated_chains(options.repeats), simulated_products()
    table = pd.concat([chains, products])
    table.to_csv(options.out / "rank_one.csv", index=False, float_format="%.3g", lineterminator="\n")
    matplotlib.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    draw(left, chains, "handed down a chain shaped like VGG-16", "pairs of random vectors, median")
    random = [1 - random_baseline(width) for width in VGG16[1:]]
    left.plot(range(1, len(VGG16)), random, color="black", linestyle="--", label="random vectors")
    draw(right, products, "products of square matrices", "columns, largest; dotted: the theorem's bound")
    right.set(xscale="log")
    for axes in (left, right):
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(options.out / "rank_one.png", dpi=90)


def simulated_chains(repeats: int, widths: Sequence[int] = VGG16) -> pd.DataFrame:
    """The median of 1 - |cosine| after each product, over pairs and repeats, for every kind of chain."""
    rows = []
    for name in CHAINS:
        found = [list(chain(name, widths, np.random.default_rng(seed))) for seed in range(repeats)]
        medians = np.nanmedian(found, axis=(0, 2))
        rows += [(name, number, width, value) for number, (width, value) in enumerate(zip(widths[1:], medians), 1)]
    return pd.DataFrame(rows, columns=["matrices", "product", "width", "distance"])


def chain(name: str, widths: Sequence[int], random: np.random.Generator) -> Iterator[np.ndarray]:
    """`distances` of random vectors of widths[0] after each product with the next matrix of a chain."""
    vectors = random.standard_normal((VECTORS, widths[0]))
    for above, below in pairwise(widths):
        vectors = vectors @ CHAINS[name](random.standard_normal((above, below)))
        if name == RELU:
            vectors = vectors.clip(min=0)
        yield distances(vectors)


def simulated_products(factors: int = FACTORS) -> pd.DataFrame:
    """The largest 1 - cosine of two columns of a product of n matrices, and its bound, for every kind of matrix."""
    rows = []
    for name, matrix in PRODUCTS.items():
        random = np.random.default_rng(0)
        matrices = (matrix(random, n) for n in range(1, factors + 1))
        rows += [(name, n, distance, bound) for n, (distance, _, bound) in enumerate(product(matrices), 1)]
    return pd.DataFrame(rows, columns=["matrices", "product", "distance", "bound"])


def product(matrices: Iterable[np.ndarray]) -> Iterator[tuple[float, float, float]]:
    """(1 - s_n, lambda_n, bound) of the product A_1 ... A_n of non-negative matrices; s_n is the least cosine of two
    of its columns.

    A column of the next product is a sum of those of this one, as unit vectors, with the weights w = |column| A. So
    s_{n+1} >= s_n + lambda (1 - s_n) with lambda the least <a, b> / (|a|_1 |b|_1) of two columns a, b of the weights,
    and 1 - s_n <= (1 - lambda_2) ... (1 - lambda_n) (1 - s_1), the bound.
    """
    columns, rate, bound = None, 0.0, 0.0
    for matrix in matrices:
        if columns is None:
            columns = matrix
            bound = distances(columns.T).max()
        else:
            weights = np.linalg.norm(columns, axis=0)[:, None] * matrix
            shares = weights / weights.sum(0)
            rate = (shares.T @ shares)[np.triu_indices(shares.shape[1], 1)].min()
            columns = columns / np.linalg.norm(columns, axis=0) @ weights
            columns /= columns.max()  # a common factor changes nothing, and would overflow in the end
            bound *= 1 - rate
        yield distances(columns.T).max(), rate, bound


def distances(vectors: np.ndarray) -> np.ndarray:
    """1 - |cosine| of every pair of rows, as |u - v|^2 / 2, which is exact far below the machine's precision; NaN where
    one of the two is 0."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, np.nan)
    first, second = np.triu_indices(len(units), 1)
    squares = [((units[first] + sign * units[second]) ** 2).sum(1) for sign in (1, -1)]
    return np.minimum(*squares) / 2


def draw(axes: Axes, table: pd.DataFrame, what: str, over: str) -> None:
    """Distances on a logarithmic axis, one line for each kind of matrix."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, table["matrices"].nunique()))
    for colour, (name, rows) in zip(colours, table.groupby("matrices", sort=False)):
        axes.plot(rows["product"], rows["distance"].clip(1e-32), color=colour, marker=".", label=name)
        if "bound" in rows:
            axes.plot(rows["product"], rows["bound"], color=colour, linestyle=":")
    axes.set(yscale="log", xlabel="number of products", ylabel=f"1 - |cosine| ({over})", title=what)


if __name__ == "__main__":
    main()
