"""Draw a figure from the score files of one or more experiments.

    xaibench run experiment=iba_beta_sweep
    python scripts/figures.py iba_beta_sweep --results results --out iba_beta_sweep.png

Bands and bars are the 95 % intervals of the leaderboard.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaibench.scores import leaderboard, statistics
from xaibench.scores.leaderboard import Cell

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"
# In the figure of csc, with their colours (Okabe and Ito's): more lines than these cannot be told apart.
RULES = {
    "gradient": "#666666",
    "deeplift": "#56b4e9",
    "lrp_zero": "#0072b2",
    "deconvnet": "#f0e442",
    "guided_backprop": "#e69f00",
    "lrp_alphabeta": "#cc79a7",
    "lrp_cmp": "#882255",
    "pattern_attribution": "#d55e00",
    "lrp_zplus": "#009e73",
}
# In the figure of paths.
SELECTORS = {
    "neuron_intgrad": "#d55e00",
    "neuron_mct": "#e69f00",
    "pathway_dgr": "#0072b2",
    "pathway_dgr_random": "#56b4e9",
    "pathway_greedy": "#009e73",
    "pathway_random": "#666666",
}
LAYERS = ("bottleneck_early", "bottleneck", "bottleneck_late")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    matplotlib.use("Agg")
    figure = FIGURES[options.figure](options.results)
    figure.savefig(options.out, dpi=90)


def beta_sweep(results: Path) -> Figure:
    """Information, accuracy and scores of IBA over beta."""
    figure, (information, accuracy, score) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    card, curves = capacity(results)
    betas = curves["information_curve_x"]
    band(information, betas, curves["information_curve"], BLUE, "final mask")
    information.axhline(curves["initial_information"].mean(), color=GREY, linestyle="--", label="start (alpha = 5)")
    information.set(yscale="log", title="Information kept", ylabel="nats per feature")
    for name, colour in (("top1", BLUE), ("top5", ORANGE)):
        band(accuracy, betas, curves[f"{name}_curve"], colour, f"{name[:3]}-{name[3:]}")
        accuracy.axhline(curves[f"clean_{name}"].mean(), color=colour, linestyle="--", linewidth=1)
    accuracy.set(ylim=(0, 1.03), title="Accuracy behind the bottleneck", ylabel="share of noisy copies")
    accuracy.plot([], [], color=GREY, linestyle="--", label="without bottleneck")
    for metric, colour in (("degradation", BLUE), ("pointing_game", ORANGE)):
        found = {cell.card["config"]["method"]["beta"]: headline(cell) for cell in runs(results, metric, "beta")}
        bars(score, sorted(found), [found[beta] for beta in sorted(found)], colour, metric)
    score.set(ylim=(0, 1.03), title="Scores of the maps", ylabel="score, higher is better")
    for axes in (information, accuracy, score):
        axes.set(xscale="log", xlabel="beta (of the mean information per feature)")
        axes.legend(frameon=False)
    figure.suptitle("IBA over beta: " + what(card))
    return figure


def layer_sweep(results: Path) -> Figure:
    """Scores of IBA at an early, a middle and a late layer."""
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for shift, (metric, colour) in zip((-0.05, 0.05), (("degradation", BLUE), ("pointing_game", ORANGE))):
        cells = {cell.card["config"]["method"]["layer"]: cell for cell in runs(results, metric, "layer")}
        places = [place + shift for place in range(len(LAYERS))]
        bars(axes, places, [headline(cells[layer]) for layer in LAYERS], colour, metric)
    axes.set(ylim=(0, 1.03), ylabel="score, higher is better")
    figure.suptitle("IBA over depth: " + what(cells[LAYERS[0]].card))
    axes.set_xticks(range(len(LAYERS)), LAYERS)
    axes.legend(frameon=False)
    return figure


def convergence(results: Path) -> Figure:
    """1 - |cosine| of random vectors from the logits down to the first convolution, for RULES with their defaults."""
    cells: dict[str, dict[str, Path]] = {}
    for path in sorted((results / "scores").glob("*/*/csc/*.json")):
        card = json.loads(path.read_text())
        changed = [part for part in card["method_variant"].split(",") if part and not part.startswith("fit.")]
        if card["method"] in RULES and not changed:
            panel = cells.setdefault(f"{card['model']} x {card['dataset']}", {})
            panel[card["method"]] = path.with_suffix(".h5")
    rows = 1 if len(cells) < 3 else 2
    columns = -(-len(cells) // rows)
    size = (4.2 * columns + 1.8, 3.4 * rows + 0.4)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes, (title, methods) in zip(panels.flat, cells.items()):
        for method in filter(methods.get, RULES):
            with h5py.File(methods[method]) as file:
                layers = file["median_from_logits_x"][()]
                median, random = (np.nanmedian(file[f"{name}_from_logits"], axis=0) for name in ("median", "baseline"))
            axes.plot(layers, np.maximum(1 - median, 1e-8), color=RULES[method], marker=".", label=method)
        axes.plot(layers, 1 - random, color="black", linestyle="--", label="random vectors")
        axes.set(yscale="log", xlabel="layer of the main path, 1 the first convolution", title=title)
        axes.set(ylabel="1 - |cosine|, median")
        axes.invert_xaxis()
    for axes in panels.flat[len(cells) :]:
        axes.set_axis_off()
    handles = {name: handle for axes in panels.flat for handle, name in zip(*axes.get_legend_handles_labels())}
    order = [name for name in (*RULES, "random vectors") if name in handles]
    figure.legend([handles[name] for name in order], order, frameon=False, loc="outside right center")
    figure.suptitle("Random relevance vectors, handed down from the logits")
    return figure


def paths(results: Path) -> Figure:
    """The headlines of the metrics of paths over the sparsity that was reached, for SELECTORS with their defaults.

    What was reached is known from path_dead on the same images; without it, it is the sparsity that was asked for.
    """
    titles = {"path_dead": "Dead neurons", "path_output": "Output, the rest at 0", "path_overlap": "Overlap",
              "path_linearity": "Radius of linearity"}  # fmt: skip
    cells = [cell for cell in leaderboard.read_cells(results) if not cell.card["metric_variant"]]
    if len(settings := sorted({f"{cell.card['model']} x {cell.card['dataset']}" for cell in cells})) > 1:
        raise SystemExit(f"{results}: paths of {', '.join(settings)}; expected a folder with those of one")
    panels = {metric: own for metric in titles if (own := [c for c in cells if c.card["metric"] == metric])}
    reached = {_of(c): c.columns["sparsity"].mean() for c in panels.get("path_dead", ())}
    figure, drawn = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels) + 2, 3.6), layout="constrained", squeeze=False
    )
    for axes, (metric, own) in zip(drawn.flat, panels.items()):
        for method, colour in SELECTORS.items():
            chosen = [c for c in own if _default(c, method)]
            found = {reached.get(_of(c), c.card["config"]["method"]["sparsity"]): headline(c) for c in chosen}
            if found:
                bars(axes, sorted(found), [found[sparsity] for sparsity in sorted(found)], colour, method)
        axes.set(title=titles[metric], xlabel="sparsity reached", ylabel=own[0].card["statistics"][0]["unit"])
    handles = dict(zip(*reversed(drawn.flat[0].get_legend_handles_labels())))
    figure.legend(handles.values(), handles, frameon=False, loc="outside right center")
    figure.suptitle("Paths: " + what(cells[0].card))
    return figure


def questions(results: Path) -> Figure:
    """Histograms of how much pixels of a map change with another answer and with another question, method by method,
    the means beside their names. Both are shares of all pixels; methods whose maps change with neither have none."""
    cells = [cell for cell in leaderboard.read_cells(results) if cell.card["metric"] == "question_sensitivity"]
    cells = [cell for cell in cells if cell.columns["question"].mean() > 0]
    if not cells:
        raise SystemExit(f"{results}: no runs of question_sensitivity in which a map changed")
    across = min(5, len(cells))
    down = -(-len(cells) // across)
    size = (2.6 * across, 2.2 * down + 0.8)
    figure, panels = plt.subplots(
        down, across, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for axes, cell in zip(panels.flat, cells):
        tables = cell.tables()
        for name, colour in (("answer", BLUE), ("question", ORANGE)):
            shares, mean = np.nanmean(tables[f"{name}_histogram"], axis=0), cell.columns[name].mean()
            middles = (np.arange(len(shares)) + 0.5) / len(shares)
            axes.step(middles, shares, where="mid", color=colour, label=f"another {name}")
            axes.axvline(mean, color=colour, linewidth=0.8, linestyle=":")
        axes.set(yscale="log", ylim=(1e-5, 1.2), xlim=(0, 1))
        axes.set_title(" ".join(filter(None, (cell.card["method"], cell.card["method_variant"]))), fontsize=9)
    for axes in panels.flat[len(cells) :]:
        axes.set_axis_off()
    figure.supxlabel("change of a pixel of the normalised map (dotted: the mean)", fontsize=9)
    figure.supylabel("share of pixels", fontsize=9)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    figure.suptitle(what(cells[0].card), fontsize=10, x=0.01, ha="left")
    return figure


def _of(cell: Cell) -> tuple[str, ...]:
    """Whose paths a cell is about."""
    return cell.card["method"], cell.card["method_variant"], cell.card["keys"]["sample_key"]


def _default(cell: Cell, method: str) -> bool:
    """Whether a cell is of this method, nothing but its sparsity changed."""
    changed = [part for part in cell.card["method_variant"].split(",") if part]
    return cell.card["method"] == method and all(part.startswith(("sparsity=", "target=", "seed=")) for part in changed)


def capacity(results: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The card of the one bottleneck_capacity run, and its per-sample columns and curves."""
    (path,) = (results / "scores").glob("*/*/bottleneck_capacity/*.json")
    with h5py.File(path.with_suffix(".h5")) as file:
        curves = {name: file[name][()] for name in file}
    scalars = leaderboard.read_cell(path.with_suffix(".csv")).columns
    return json.loads(path.read_text()), curves | {name: scalars[name].to_numpy() for name in scalars}


def runs(results: Path, metric: str, parameter: str) -> list[Cell]:
    """The largest set of runs of IBA under a metric that differ in this parameter alone."""
    sets: dict[tuple[str, ...], list[Cell]] = {}
    for cell in leaderboard.read_cells(results):
        card = cell.card
        if (card["method"], card["metric"]) == ("iba", metric):
            others = [part for part in card["method_variant"].split(",") if not part.startswith(f"{parameter}=")]
            same = [card["keys"][name] for name in ("model_key", "data_key", "metric_key", "sample_key")]
            sets.setdefault((*filter(None, others), *same), []).append(cell)
    if not sets:
        raise SystemExit(f"{results}: no runs of iba x {metric}")
    return max(sets.values(), key=len)


def what(card: Mapping[str, Any]) -> str:
    """What was run, for a title."""
    return f"{card['model']} x {card['dataset']}, {card['n']} images"


def headline(cell: Cell) -> statistics.Estimate:
    """The first statistic of a cell as the leaderboard has it."""
    statistic = cell.card["statistics"][0]
    columns = cell.columns.dropna()
    per = columns[statistic["per"]].to_numpy() if statistic["per"] else None
    return statistics.estimate(columns[statistic["column"]].to_numpy(), per, statistic["kind"])


def band(axes: Axes, x: np.ndarray, curves: np.ndarray, colour: str, label: str) -> None:
    """The mean of curves [n,X] with its bootstrap interval."""
    found = [statistics.estimate(column, None, "mean") for column in curves.T]
    axes.plot(x, [point.value for point in found], color=colour, marker="o", label=label)
    axes.fill_between(
        x, [point.low for point in found], [point.high for point in found], color=colour, alpha=0.2, linewidth=0
    )


def bars(axes: Axes, x: Sequence[float], found: Sequence[statistics.Estimate], colour: str, label: str) -> None:
    """Values with their intervals as error bars."""
    value = np.array([point.value for point in found])
    low, high = (np.array([getattr(point, end) for point in found]) for end in ("low", "high"))
    # Rounding may put the end of an interval past a value of exactly 0 or 1.
    ends = np.maximum([value - low, high - value], 0)
    axes.errorbar(x, value, ends, color=colour, marker="o", capsize=3, label=label)


FIGURES: dict[str, Callable[[Path], Figure]] = {
    "iba_beta_sweep": beta_sweep,
    "iba_layer_sweep": layer_sweep,
    "csc": convergence,
    "paths": paths,
    "questions": questions,
}

if __name__ == "__main__":
    main()
