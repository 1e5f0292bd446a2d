"""Draw the values of images against the gradients at them (Heurich 2021, figure 4.3): does one depend on the other?

    python scripts/gradient_scatter.py --images 2 --out gradient_scatter.png

All pixels and channels of an image and, beside them, 300 drawn at random, with the correlations that
`metric=gradient_independence` has. Overrides are those of `xaibench run`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from xaibench.config import compose_job
from xaibench.engine.runner import fill, prepare
from xaibench.engine.scoring import PerSample
from xaibench.report.colours import ACCENT

FEW = 300


@dataclass(frozen=True)
class Pairs:
    """Values and gradients of the normalised input of a sample, each [C*H*W], and their correlations."""

    sample: int
    values: np.ndarray
    gradients: np.ndarray
    pearson: float
    spearman: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_intermixed_args()
    draw(pairs(options.overrides, options.images)).savefig(options.out, dpi=90)


def pairs(overrides: Sequence[str], images: int) -> list[Pairs]:
    """Of the first images; the correlations are the metric's, from its cache."""
    job = compose_job([*overrides, "metric=gradient_independence", f"dataset.limit={images}"])
    scoring = prepare(job, job.cache)
    assert isinstance(scoring, PerSample)  # the kind of the metric
    fill(scoring.stages)
    scoring.scores.finish()
    samples = list(scoring.setting.samples)
    batch, columns = scoring.setting.load(samples), scoring.scores.rows(samples)
    gradients = scoring.setting.classifier.gradient(batch.inputs, batch.targets)
    both = (values.flatten(1).cpu().numpy() for values in (batch.inputs, gradients))
    return [Pairs(*row) for row in zip(samples, *both, columns["pearson"].tolist(), columns["spearman"].tolist())]


def draw(found: Sequence[Pairs]) -> Figure:
    """A row per image: all of its pairs, and FEW of them."""
    figure = Figure(figsize=(7.2, 2.7 * len(found)), layout="constrained")
    for row, pair in zip(figure.subplots(len(found), 2, squeeze=False, sharey="row"), found):
        few = np.random.default_rng(0).permutation(len(pair.values))[:FEW]
        row[0].plot(pair.values, pair.gradients, ".", color=ACCENT, markersize=1.5, alpha=0.25, markeredgewidth=0)
        row[1].plot(pair.values[few], pair.gradients[few], ".", color=ACCENT, markersize=4, markeredgewidth=0)
        title = f"image {pair.sample}: Pearson {pair.pearson:.3f}, Spearman {pair.spearman:.3f}"
        row[0].set_title(title, fontsize=9, loc="left")
        row[1].set_title(f"{len(few)} of its {len(pair.values)} values", fontsize=9, loc="left")
        row[0].set_ylabel("gradient")
        for axes in row:
            axes.set_xlabel("value of the normalised input")
            axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
