"""Draw docs/two4two.png: Peekies and Stretchies of the study's sampler with their masks, and each factor swept.

    python scripts/draw_two4two.py --out docs/two4two.png

With --legs, docs/two4two_legs.png: the legs of animals against each of their other factors, by class (Sixt 2022,
chapter 6, figure 3).

    python scripts/draw_two4two.py --legs --out docs/two4two_legs.png
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaibench.build import build
from xaibench.config import compose_job
from xaibench.datasets.two4two import Two4Two
from xaibench.datasets.two4two_sampler import FACTORS, OVERLAP

SIDE, STEPS = 96, 7
# What is not swept: a Stretchy at rest, red before blue.
BASE = {name: 0.0 for name in FACTORS} | {"legs": 0.85, "color": 0.9, "shape": 0.3, "background": 0.3, "pitch": 0.15}
BASE |= {"position_x": -0.4, "position_y": -0.4}
MANY, CLASS_COLOURS = 1500, ("#0072b2", "#d55e00")
PARTS = {"fixed_legs": "#0072b2", "spine": "#999999", "moving_legs": "#d55e00"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--legs", action="store_true", help="against the other factors, by class")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    matplotlib.use("Agg")
    spec = {**compose_job(["model=two4two_cnn", "dataset=two4two"]).dataset_spec, "side": SIDE}
    dataset: Two4Two = build(spec, "dataset")
    figure = legs(dataset) if options.legs else pictures(dataset)
    figure.savefig(options.out, dpi=84)


def legs(dataset: Two4Two) -> Figure:
    """A panel for each factor but the legs: its value over the legs' position in MANY animals of either class."""
    labels, factors = dataset.scenes(range(MANY))
    others = [name for name in factors if name != "legs"]
    figure = Figure(figsize=(7.4, 7.0), layout="constrained")
    for axes, name in zip(figure.subplots(3, 3, sharex=True).flat, others, strict=True):
        for label, (what, colour) in enumerate(zip(dataset.class_names, CLASS_COLOURS)):
            own = labels == label
            points = {"color": colour, "markersize": 2.5, "alpha": 0.5, "markeredgewidth": 0, "label": what}
            axes.plot(factors["legs"][own], factors[name][own], ".", **points)
        axes.axvspan(*OVERLAP, color="#dddddd", zorder=0)
        axes.set(xlim=(0, 1), title=name.replace("_", " "))
    figure.supxlabel("position of the legs (grey: where both classes have them)", fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2, markerscale=3)
    return figure


def pictures(dataset: Two4Two) -> Figure:
    """Animals with their masks, and below them each factor swept."""
    figure, (examples, swept) = plt.subplots(
        2, 1, figsize=(7.4, 14.2), height_ratios=[4, len(FACTORS)], layout="constrained"
    )
    show(examples, *animals(dataset))
    examples.set_title("The study's sampler, and the block masks:\nfixed legs blue, spine grey, moving legs orange")
    show(swept, *sweeps(dataset))
    swept.set_title("One factor changed, the others kept")
    return figure


def animals(dataset: Two4Two) -> tuple[np.ndarray, list[str]]:
    """The first animals of either class, each row above its masks -> one picture and a label per row."""
    labels, _ = dataset.scenes(range(100))
    rows, names = [], []
    for label, name in enumerate(dataset.class_names):
        chosen = np.flatnonzero(labels == label)[:STEPS]
        images, _ = dataset.draw(dataset.scenes(chosen)[1])
        masks = np.full((len(chosen), SIDE, SIDE, 3), 255, dtype=np.uint8)
        for part, mask in dataset.regions(chosen).items():
            if part in PARTS:
                masks[mask.numpy()] = (255 * np.array(matplotlib.colors.to_rgb(PARTS[part]))).round()
        rows += [in_a_row(images), np.concatenate(masks, axis=1)]
        names += [name, "blocks"]
    return np.concatenate(rows), names


def sweeps(dataset: Two4Two) -> tuple[np.ndarray, list[str]]:
    """A row per factor, from the low to the high end of its range."""
    rows, names = [], []
    for name, factor in FACTORS.items():
        values = np.linspace(factor.low, factor.high, STEPS)
        factors = {other: np.full(STEPS, value) for other, value in BASE.items()} | {name: values}
        rows.append(in_a_row(dataset.draw(factors)[0]))
        names.append(f"{name}\n{factor.low:.3g} to {factor.high:.3g}")
    return np.concatenate(rows), names


def in_a_row(images: torch.Tensor) -> np.ndarray:
    """[N,3,S,S] -> [S,N*S,3]."""
    return np.concatenate(images.permute(0, 2, 3, 1).numpy(), axis=1)


def show(axes: Axes, picture: np.ndarray, names: list[str]) -> None:
    axes.imshow(picture)
    axes.set_yticks([SIDE * (row + 0.5) for row in range(len(names))], names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
