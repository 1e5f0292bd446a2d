"""Draw the surfaces of a plane world: data, network, and what each method says about either feature.

    python scripts/plane_figures.py xor --out docs/xor.png
    python scripts/plane_figures.py ring_of_gaussians --out docs/ring_of_gaussians.png

Maps come from the cache, and are made where it lacks them. x1 runs to the right and x2 upwards.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaibench.build import build
from xaibench.config import compose_job
from xaibench.datasets.planes import Plane
from xaibench.engine.pooled import Pooled
from xaibench.engine.runner import fill, prepare
from xaibench.engine.setting import Setting
from xaibench.metrics.two_features._surface import surfaces
from xaibench.metrics.two_features.dim_diff import DimDiff

USUAL = ("saliency", "input_x_gradient", "integrated_gradients", "integrated_gradients_half", "feature_ablation")
# World -> what its preset overrides, and the methods in the order of the thesis.
WORLDS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "xor": (("model=xor_net",), (("oracle",), *((name,) for name in USUAL), ("iba_features",))),
    "ring_of_gaussians": (
        ("model=rog_net", "output=probability"),
        (
            ("saliency",),
            ("smoothgrad",),
            *((name,) for name in USUAL[1:]),
            ("iba_features", "method.loss=cross_entropy"),
        ),
    ),
}
SIGNED, UNSIGNED = "RdBu_r", "cividis"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("--points", type=int, default=100, help="of the grid, per axis")
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    matplotlib.use("Agg")
    overrides, methods = WORLDS[options.world]
    usual = (f"dataset={options.world}", f"dataset.split=grid:{options.points}", f"paths.cache={options.cache}")
    draw([*usual, *overrides], methods).savefig(options.out, dpi=72)


def draw(overrides: Sequence[str], methods: Sequence[Sequence[str]]) -> Figure:
    """A column per method, with A_1, A_2 and D; the first has the data, the network, and the range of a map.

    overrides: of the world. methods: each a name and its overrides.
    """
    figure, panels = plt.subplots(
        3, 1 + len(methods), figsize=(1.75 * (1 + len(methods)), 5.4), layout="constrained", squeeze=False
    )
    for column, (name, *changes) in enumerate(methods, 1):
        setting, pictures, values = explained_surfaces([*overrides, f"method={name}", *changes])
        if column == 1:
            draw_world(panels[:, 0], setting)
        draw_method(panels[:, column], setting.dataset, name, pictures, values)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    for axes, label in zip(panels[:, 1], ("$A_1$", "$A_2$", "$D = |A_1 - A_2|$, scaled")):
        axes.set_ylabel(label)
    return figure


def explained_surfaces(overrides: Sequence[str]) -> tuple[Setting, np.ndarray, float]:
    """What a run with these overrides explains, the pictures [2,N,N] of the method's maps, and their dim_diff."""
    job = compose_job([*overrides, "metric=dim_diff"])
    scoring: Pooled = prepare(job, job.cache)
    fill(scoring.stages[:-1])
    scoring.maps.stage.finish()
    setting = scoring.setting
    maps, _ = scoring.maps.collapsed(range(len(setting.dataset)), scoring.maps.method.collapse, "signed")
    return setting, surfaces(maps).numpy(), DimDiff().pool(maps, maps)["dim_diff"].item()


def draw_world(panels: Sequence[Axes], setting: Setting) -> None:
    """The drawn points, and what the network answers: a scalar output, or the largest probability."""
    data: Plane = setting.dataset
    drawn = build({**setting.job.dataset_spec, "split": "test"}, "dataset")
    labels = [drawn[index].label for index in range(1000)]
    panels[0].scatter(*drawn.points[:1000].T, c=labels, s=1, cmap="tab10" if len(set(labels)) > 2 else SIGNED)
    panels[0].set(title="data", aspect="equal")
    logits = setting.logits_of(range(len(data)))
    is_scalar = setting.network.outputs == 1
    sure = logits[:, 0] if is_scalar else logits.softmax(1).amax(1)
    show(panels[1], data, sure.reshape(data.steps, data.steps).numpy(), UNSIGNED, (0, 1))
    panels[1].set_title("network" if is_scalar else "largest probability")
    panels[2].axis("off")


def draw_method(panels: Sequence[Axes], data: Plane, name: str, pictures: np.ndarray, difference: float) -> None:
    """A_1 and A_2 on one scale, zero in the middle, and D from its smallest to its largest value."""
    most = np.abs(pictures).max() or 1.0
    for axes, picture in zip(panels, pictures):
        show(axes, data, picture, SIGNED, (-most, most))
    panels[0].set_title(f"{name.replace('_', ' ')}\n±{most:.2g}", fontsize=8)
    gap = np.abs(pictures[0] - pictures[1])
    show(panels[2], data, gap, UNSIGNED, (gap.min(), gap.max()))
    panels[2].set_title(f"dim_diff {difference:.2f}", fontsize=8)


def show(axes: Axes, data: Plane, picture: np.ndarray, colours: str, limits: tuple[float, float]) -> None:
    """A picture [N,N] over the domain of a world."""
    axes.imshow(picture, cmap=colours, vmin=limits[0], vmax=limits[1], origin="lower", extent=(*data.domain,) * 2)


if __name__ == "__main__":
    main()
