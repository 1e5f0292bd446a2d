"""Draw images without their most relevant pixels: what networks are trained on under ROAR (Loreth 2023, figure 5.1).

    python scripts/roar_images.py method=integrated_gradients --images 2 --out removed.png
    python scripts/roar_images.py model=lenet dataset=mnist method=gradcam metric.fractions=[0.5,0.9] --out removed.png

Of each test image a row by a random ranking and one by the method's, over the fractions of the metric. The overrides
are those of `xaibench run metric=roar`. Nothing is retrained; maps come from the cache, and are made where it lacks
them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from xaibench.config import compose_job
from xaibench.engine.retraining import TEST, Retrained
from xaibench.engine.runner import fill, prepare
from xaibench.metrics.retraining.roar import Masking
from xaibench.models.preprocessing import scaled
from xaibench.report.study import Grid, draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--side", type=int, default=80, help="of an image in the figure, in pixels")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_intermixed_args()
    draw(removed(options.overrides, options.images), options.side).savefig(options.out)


def removed(overrides: Sequence[str], images: int) -> Grid:
    """The first test images, whole and without each fraction of their pixels: by random, then by the method."""
    # Of the train split no map is needed, and one sample is the least that can be asked for.
    limits = (f"dataset.limit={images}", "metric.train_limit=1", "metric.validation_limit=1")
    job = compose_job([*overrides, "metric=roar", *limits])
    scoring = prepare(job, job.cache)
    assert isinstance(scoring, Retrained)  # the kind of the metric
    stage, metric = scoring.maps[TEST].stage, scoring.metric
    fill([*stage.reads, stage])
    stage.finish()

    def shown(masking: Masking | None) -> np.ndarray:
        pixels, _ = scoring.trainings.masked(TEST, masking, repeat=0).load(torch.arange(len(stage.order)))
        return scaled(pixels).mul(255).round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()

    whole, *masked = [shown(masking) for masking in metric.maskings()]
    count = len(metric.fractions)
    tiles, names = [], []
    for at, image in enumerate(whole):
        for name, rows in (("random", masked[:count]), (job.method, masked[count:])):
            tiles.append(np.stack([image, *(row[at] for row in rows)]))
            names.append(name.replace("_", "\n"))
    return Grid(np.stack(tiles), tuple(names), ("image", *(f"without {share:.0%}" for share in metric.fractions)))


if __name__ == "__main__":
    main()
