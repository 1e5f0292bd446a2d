"""Does a map give less to a feature the more classes have it in common? BAM's relative contrast over commonality.

    python scripts/commonality.py --out commonality.csv

Yang and Kim 2019, as Loreth 2023 quotes it. A grey square lies somewhere on all images of the first c of ten classes of
scenes, and smallcnn is trained to tell the scenes, anew for every c from 1 to 10. Where one class alone has the square
it gives that class away; where all have it, it tells nothing and hides what it covers. g is the mean of a map within
the square (`bam.BAM`), on test images that have the square and whose scene the network recognises.

FILE.csv has a row per method and c: g, and g less that of the same images under c = 10 where both are right, with 95 %
intervals; and with c = 0 two rows of the method, named in `statistic`: `spearman`, the mean over images of the rank
correlation of g and c (-1 where the map gives ever less; images of the first five classes, which have the square under
six of the networks or more), and `false_positive_rate`, the share of images on which the square gets no less under
c = 10 than the scene that it covers (one less BAM's input dependence rate; a square that tells nothing should be 0).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from scipy import stats

import xaibench as xb
from xaibench.build import build
from xaibench.datasets.base import Samples
from xaibench.datasets.images import Images
from xaibench.datasets.shapes import SCENES, SIDE, Drawing, Shapes
from xaibench.metrics.ground_truth.bam_idr import BAMIDR
from xaibench.models.loading import build_module
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.train import train
from xaibench.rng import seed_of
from xaibench.scores.statistics import estimate

CONF = Path(__file__).parent.parent / "conf" / "model" / "smallcnn.yaml"
CLASSES = len(SCENES)
SQUARE, GREY = SIDE // 3, 128
LEAST = 6  # networks that an image's rank correlation takes
BATCH = 100
METHODS = (
    "gradient", "saliency", "input_x_gradient", "smoothgrad", "integrated_gradients", "guided_backprop", "deconvnet",
    "lrp_zplus", "deeplift", "gradcam", "gradcam_pp", "layercam", "occlusion", "random", "sobel", "input",
)  # fmt: skip


class Marked(Shapes):
    """Scenes without objects, of which those of the first `common` classes have a grey square at a random place."""

    def __init__(self, common: int, split: str = "test") -> None:
        super().__init__(split=split, task="scene")
        self.common = common
        self.fingerprint += f":grey square in {common}"
        self._drawn: dict[int, Drawing] = {}  # drawing takes longer than a step of training

    def _draw(self, index: int) -> Drawing:
        if index not in self._drawn:
            self._drawn[index] = self._mark(index)
        return self._drawn[index]

    def _mark(self, index: int) -> Drawing:
        drawn, mask = super()._draw(index), np.zeros((SIDE, SIDE), dtype=bool)
        if drawn.scene_label < self.common:
            place = seed_of("grey square", self.split, index)
            top, left = place % (SIDE - SQUARE + 1), place // SIDE % (SIDE - SQUARE + 1)
            mask[top : top + SQUARE, left : left + SQUARE] = True
        image = np.where(mask, np.uint8(GREY), drawn.background)
        return Drawing(image, drawn.background, mask, drawn.object_label, drawn.scene_label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    parser.add_argument("--train", type=int, default=3000, help="images to train on")
    parser.add_argument("--images", type=int, default=200, help="test images, of which those with the square count")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = {common: trained(common, options.train) for common in range(1, CLASSES + 1)}
    marked, empty = cases(networks, options.images)
    table = pd.concat([rows(method, marked, empty, options.images) for method in options.methods])
    print(table.to_string(index=False, float_format="%.3f"))
    table.to_csv(options.out, index=False, float_format="%.4g", lineterminator="\n")


def trained(common: int, images: int) -> xb.Classifier:
    """smallcnn by its recipe, on scenes of which `common` classes have the square; it says how good it is."""
    spec = yaml.safe_load(CONF.read_text())
    recipe, preprocessing = build(spec["recipe"], "model.recipe"), Preprocessing(mean=spec["mean"], std=spec["std"])
    module = build_module({**spec, "weights": None}, seed=recipe.seed)
    train(module, recipe, Images(Samples(Marked(common, "train"), preprocessing, range(images))))
    network = xb.Classifier(module, spec["mean"], spec["std"], layers=spec["layers"], class_names=list(SCENES))
    pixels, labels, _ = shown(Marked(common), range(1000))
    right = recognised(network, pixels, labels).mean()
    print(f"the square in {common} of {CLASSES} classes: {right:.1%} of 1000 test images right", flush=True)
    return network


def shown(dataset: Marked, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels [N,3,H,W], labels [N] and where the square is, bool [N,H,W]."""
    examples = [dataset[index] for index in indices]
    squares = torch.stack([dataset.object_mask(index) for index in indices])
    return torch.stack([e.image for e in examples]), torch.tensor([e.label for e in examples]), squares


@torch.no_grad()
def recognised(network: xb.Classifier, pixels: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Whether the scene is recognised: bool [N]."""
    found = [network.module(network.preprocessing.normalise(part)).argmax(1) for part in pixels.split(BATCH)]
    return (torch.cat(found) == labels).numpy()


@dataclass(frozen=True)
class Case:
    """What a network is asked about: test images by index, their pixels, labels and squares as `shown` has them, and
    whether it recognises each scene, bool [N]."""

    network: xb.Classifier
    indices: Sequence[int]
    pixels: torch.Tensor
    labels: torch.Tensor
    squares: torch.Tensor
    right: np.ndarray

    @classmethod
    def of(cls, network: xb.Classifier, dataset: Marked, indices: Sequence[int], empty: bool = False) -> "Case":
        """empty: the same scenes without the square, whose place is still known."""
        pixels, labels, squares = shown(dataset, indices)
        if empty:
            pixels = torch.stack([dataset.background(index) for index in indices])
        return cls(network, indices, pixels, labels, squares, recognised(network, pixels, labels))

    def contents(self, method: str) -> np.ndarray:
        """g [N] of a method's maps of the labels; NaN where the scene is not recognised or the map has no range."""
        maps = xb.explain(self.network, self.pixels, method, targets=self.labels).sum(1).clamp(min=0)
        return np.where(self.right, BAMIDR().attribution(maps, self.squares).numpy(), np.nan)


def cases(networks: Mapping[int, xb.Classifier], images: int) -> tuple[dict[int, Case], Case]:
    """By c the first images of those that have the square; and all of them without it, for the network under c = 10."""
    datasets = {common: Marked(common) for common in networks}
    marked = {
        common: Case.of(network, data, [index for index in range(images) if data.scene_label(index) < common])
        for (common, network), data in zip(networks.items(), datasets.values())
    }
    return marked, Case.of(networks[CLASSES], datasets[CLASSES], range(images), empty=True)


def rows(method: str, marked: Mapping[int, Case], empty: Case, images: int) -> pd.DataFrame:
    """What FILE.csv has of a method, see above. marked, empty: of `cases`."""
    g = np.full((images, CLASSES), np.nan)
    for common, case in marked.items():
        g[case.indices, common - 1] = case.contents(method)
    without = empty.contents(method)
    found = []
    for common in range(1, CLASSES + 1):
        own = g[:, common - 1]
        for name, column in (("g", own), ("g - g of 10", own - g[:, -1])):
            found.append((common, name, column))
    falling = [
        stats.spearmanr(np.flatnonzero(kept), row[kept]).statistic if np.ptp(row[kept]) > 0 else 0.0
        for row in g
        if (kept := np.isfinite(row)).sum() >= LEAST
    ]
    found.append((0, "spearman", np.array(falling)))
    both = np.isfinite(g[:, -1]) & np.isfinite(without)
    found.append((0, "false_positive_rate", (g[:, -1] >= without)[both].astype(float)))
    return pd.DataFrame([(method, common, name, *_interval(column, name)) for common, name, column in found],
                        columns=["method", "common", "statistic", "value", "ci_low", "ci_high", "n"])  # fmt: skip


def _interval(column: np.ndarray, name: str) -> tuple[float, float, float, int]:
    kept = column[np.isfinite(column)]
    found = estimate(kept, None, "proportion" if name == "false_positive_rate" else "mean")
    return found.value, found.low, found.high, found.n


if __name__ == "__main__":
    main()
