"""Draw scenes that are made from a network, each beside the maps of its classes (Khakzar 2022, chapter 7).

    python scripts/draw_scenes.py feature_switch --methods gradcam lrp_zplus "iba method.layer=bottleneck_late" \\
        --scenes 2 --out scenes.png

The metric says what role the patches have. A row per explained class, with a line around the patch that is of this
class; of a null feature the first class is explained. Maps are those that the metric reads, by their absolute values
unless it says otherwise, each with a scale of its own. Scenes come from the cache, and are made where it lacks them;
further overrides are those of `xaibench run`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xaibench.config import compose_job
from xaibench.engine.runner import fill, prepare
from xaibench.engine.scoring import PerSample
from xaibench.metrics.ranking import collapse
from xaibench.metrics.scenes._scenes import masks
from xaibench.report.colours import painted
from xaibench.report.gallery import pixels
from xaibench.report.study import Grid, draw, lines, outlined

# In the file, which a palette makes a third as large: noise hardly compresses.
COLOURS = 64
METRICS = ("null_feature", "feature_switch", "feature_leak", "feature_saturation")


@dataclass(frozen=True)
class Scenes:
    """Scenes of a metric that were accepted, and what they show.

    samples: their numbers. pictures: uint8 [n,H,W,3]. classes: of each the names of the explained ones. patches: bool
    [n,K,H,W], those of the K explained classes. maps: of each method float32 [n,K,H,W].
    """

    samples: list[int]
    pictures: np.ndarray
    classes: list[list[str]]
    patches: np.ndarray
    maps: dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metric", choices=METRICS)
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD", help="a name, or 'name override...'")
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--side", type=int, default=80, help="of a scene in the figure, in pixels")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_intermixed_args()
    found = explained(options.metric, options.methods, options.scenes, options.overrides)
    draw(panels(found), options.side).savefig(options.out)
    with Image.open(options.out) as drawn:
        drawn.convert("RGB").quantize(COLOURS).save(options.out, optimize=True)


def explained(metric: str, methods: Sequence[str], count: int, overrides: Sequence[str] = ()) -> Scenes:
    """The scenes among the first `count` that were accepted, and the maps of each method, a name and its overrides.
    Ends the program where there are none."""
    maps = {}
    for method in methods:
        name, *changes = method.split()
        job = compose_job([f"method={name}", *changes, f"metric={metric}", f"dataset.limit={count}", *overrides])
        scoring = prepare(job, job.cache)
        assert isinstance(scoring, PerSample)  # the kind of these metrics
        fill([*scoring.responses.reads, scoring.responses])
        scoring.responses.finish()
        setting, network = scoring.setting, scoring.setting.classifier
        rows = scoring.responses.rows(setting.samples)
        if not (made := rows["accepted"] > 0).any():
            raise SystemExit(f"none of {count} scenes was accepted; more may be (--scenes)")
        samples = [sample for sample, accepted in zip(setting.samples, made) if accepted]
        answers = {key: torch.from_numpy(rows[key][made]) for key in ("scene", "corners", "classes")}
        scenes, classes = answers["scene"].to(network.device, network.dtype), answers["classes"]
        places = masks(answers["corners"], scoring.metric.side(network), *network.input_size[1:])
        targets = range(scoring.metric.explanations(network))
        about = [places[:, (0, -1)[k]] for k in targets]
        labels = setting.load(samples).labels
        found = [
            scoring.maps.attribute(scenes, classes[:, k].to(network.device), samples, masks=about[k], labels=labels)
            for k in targets
        ]
        read = [collapse(values, scoring.how, scoring.metric.sign).cpu() for values in found]
        maps[method] = torch.stack(read, 1).numpy()
    names = setting.dataset.class_names
    return Scenes(
        samples,
        pixels(network.preprocessing, scenes.cpu()),
        [[names[k] for k in row[: len(targets)]] for row in classes.tolist()],
        torch.stack(about, 1).numpy(),
        maps,
    )


def panels(found: Scenes) -> Grid:
    """A row per scene and explained class: the scene with a line around the class's patch, then a map per method."""
    tiles, rows = [], []
    for at, (picture, classes) in enumerate(zip(found.pictures, found.classes)):
        for k, name in enumerate(classes):
            shown = [painted(maps[at, k], bool((maps[at] < 0).any())) for maps in found.maps.values()]
            tiles.append(np.stack([outlined(picture, found.patches[at, k]), *shown]))
            rows.append(f"explained:\n{name}")
    columns = [lines(method.replace("method.", "")) for method in found.maps]
    return Grid(np.stack(tiles), tuple(rows), ("scene", *columns))


if __name__ == "__main__":
    main()
