"""Figures of the report, each a pure function of what it shows: curves, ranks, agreement, cost."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from ..scores import paired, statistics
from ..scores.leaderboard import Cell, Curve
from ..scores.rank import Comparison, Contestant, Overall
from .colours import ACCENT, INK, LINE, MUTED, OTHER, SERIES

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "text.parse_math": False,  # a method may be called anything
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titley": 1.0,  # where it is: looking for room above ticks takes longer than drawing them
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "xaibench",
}
PANELS_PER_ROW = 5
# Of a curve NAME_curve the deviation over seeds, drawn as bars around it.
SPREAD = "_seed_std_curve"
CHANCE: dict[str, Any] = {"color": MUTED, "linestyle": (0, (2, 2)), "linewidth": 0.8}


def style() -> AbstractContextManager[None]:
    """matplotlib with the report's settings, as a context."""
    return matplotlib.rc_context(STYLE)


# ---- files -----------------------------------------------------------------------------------------------------------


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file; the same figure is the same text."""
    return _saved(figure, "svg", transparent=True, metadata={"Date": None, "Creator": None}).decode()


def png(figure: Figure) -> bytes:
    """A figure as a PNG file on white."""
    return _saved(figure, "png", dpi=150, facecolor="white", metadata={"Software": None})


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, **options)
    figure.set_layout_engine("none")  # it is laid out now, in whatever kind comes next
    return buffer.getvalue()


# ---- parts of figures ------------------------------------------------------------------------------------------------


def band(axes: Axes, curve: Curve, colour: str, label: str) -> None:
    """A mean curve with its band."""
    marker = "o" if len(curve.x) < 10 else None
    axes.plot(curve.x, curve.mean, color=colour, marker=marker, markersize=3, label=label)
    axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)


def bars(axes: Axes, x: Sequence[float], found: Sequence[statistics.Estimate], colour: str, label: str) -> None:
    """Values with their intervals as error bars."""
    value = np.array([point.value for point in found])
    low, high = (np.array([getattr(point, end) for point in found]) for end in ("low", "high"))
    # Rounding may put the end of an interval past a value of exactly 0 or 1.
    ends = np.maximum([value - low, high - value], 0)
    axes.errorbar(x, value, ends, color=colour, marker="o", capsize=3, label=label)


def short(name: Any, most: int = 40) -> str:
    """A name that leaves room for what it names."""
    text = str(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def _room(names: Sequence[Any]) -> float:
    """The inches that the longest of these names takes."""
    return 0.07 * max(len(short(name)) for name in names)


def _marker(contestant: Contestant) -> dict[str, Any]:
    """Filled for a method; hollow and grey for a control or the truth."""
    return {"color": ACCENT} if contestant.is_rival else {"color": MUTED, "markerfacecolor": "none"}


# ---- curves ----------------------------------------------------------------------------------------------------------


def curves(cells: Sequence[Cell]) -> Figure:
    """The curves of comparable cells, a panel per method, in the order given; dashed, those of the control `random`;
    bars, a deviation over seeds.

    Raises ValueError if no cell has a curve.
    """
    cells = [cell for cell in cells if cell.curves]
    if not cells:
        raise ValueError("no curves")
    chance = _chance(cells)
    with style():
        figure, panels = _panels(len(cells))
        shown = [curve for cell in cells for kind in (_means, _spreads) for curve in kind(cell).values()]
        x_limits, y_limits, scale = _limits(shown)
        for number, (axes, cell) in enumerate(zip(panels, cells)):
            axes.set(xscale=scale, xlim=x_limits, ylim=y_limits)
            _ticks(axes, left=number % PANELS_PER_ROW == 0, below=number + PANELS_PER_ROW >= len(cells))
            _curve_panel(axes, cell, {} if cell is chance or chance is None else chance.curves)
        x_label = cells[0].card.get("x_label") or "x"
        figure.text(0.5, 0.08 / figure.get_figheight(), x_label, ha="center", va="bottom", color=MUTED)
        handles, names = panels[0].get_legend_handles_labels()
        if chance is not None and len(cells) > 1:
            handles, names = [*handles, Line2D([], [], **CHANCE)], [*names, "random"]
        figure.legend(handles, names, loc="upper left", ncols=len(names), borderaxespad=0.2)
    return figure


def _chance(cells: Sequence[Cell]) -> Cell | None:
    """The cell of the control `random`, unless each cell brings a random curve of its own."""
    if any("random_curve" in cell.curves for cell in cells):
        return None
    return next((cell for cell in cells if Contestant.of(cell.card) == Contestant("random")), None)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with room for so many panels, row by row."""
    columns = min(PANELS_PER_ROW, count)
    rows = -(-count // columns)
    width, height = max(2.1 * columns + 0.4, 3.6), 1.5 * rows + 0.75
    figure = Figure(figsize=(width, height))
    # Measured out by hand: matplotlib's own layout takes longer than the drawing.
    room = {"left": 0.4 / width, "right": 1 - 0.1 / width, "bottom": 0.45 / height, "top": 1 - 0.55 / height}
    grid = figure.add_gridspec(rows, columns, wspace=0.12, hspace=0.32, **room)
    return figure, [figure.add_subplot(grid[divmod(number, columns)]) for number in range(count)]


def _limits(shown: Sequence[Curve]) -> tuple[tuple[float, float], tuple[float, float], str]:
    """The limits of x and of y that all panels have, and the scale of x. Told to matplotlib, since axes that share
    theirs look at each other at every step."""
    x = np.concatenate([curve.x for curve in shown])
    y = np.concatenate([part for curve in shown for part in (curve.mean, curve.low, curve.high)])
    scale = "log" if x.min() > 0 and x.max() > 50 * x.min() else "linear"
    x_limits = np.exp(_with_margin(np.log(x))) if scale == "log" else _with_margin(x)
    low, high = x_limits
    return (float(low), float(high)), _with_margin(y[np.isfinite(y)]), scale


def _with_margin(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest, with a twentieth of what is between them on either side; of none, 0 and 1."""
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _ticks(axes: Axes, left: bool, below: bool) -> None:
    """Ticks on the sides where no other panel is: most of the time for a figure goes into ticks."""
    axes.tick_params(length=2)
    if not left:
        axes.yaxis.set_major_locator(NullLocator())
    else:
        axes.locator_params(axis="y", nbins=4)
    if not below:
        axes.xaxis.set_major_locator(NullLocator())
        axes.xaxis.set_minor_locator(NullLocator())
    elif axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.locator_params(axis="x", nbins=4)


def _means(cell: Cell) -> dict[str, Curve]:
    """The curves of a cell that are no deviations."""
    return {name: curve for name, curve in sorted(cell.curves.items()) if not name.endswith(SPREAD)}


def _spreads(cell: Cell) -> dict[str, Curve]:
    """Of the curves that have a deviation over seeds, its ends around their means."""
    found = {}
    for name, curve in _means(cell).items():
        if spread := cell.curves.get(name.removesuffix("_curve") + SPREAD):
            found[name] = Curve(curve.x, curve.mean, curve.mean - spread.mean, curve.mean + spread.mean)
    return found


def _curve_panel(axes: Axes, cell: Cell, chance: Mapping[str, Curve]) -> None:
    """The curves of a cell, each with the one of its name in `chance` and with its deviation over seeds."""
    spreads = _spreads(cell)
    for (name, curve), colour in zip(_means(cell).items(), SERIES):
        if name in chance:
            axes.plot(chance[name].x, chance[name].mean, **CHANCE)
        band(axes, curve, colour, name.removesuffix("_curve").replace("_", " "))
        if name in spreads:
            axes.vlines(curve.x, spreads[name].low, spreads[name].high, color=colour, linewidth=0.8)
    if cell.card["method"] != "none":
        axes.set_title(short(Contestant.of(cell.card), 30), loc="left", pad=3)


# ---- ranks -----------------------------------------------------------------------------------------------------------


def stability(comparison: Comparison) -> Figure:
    """The rank of each method and where 95 % of its ranks lie when samples are resampled; bars at the right join
    methods that cannot be told apart."""
    groups = [group for group in comparison.groups if len(group) > 1]
    low, high = comparison.rank_intervals
    with style():
        figure, axes = _rows(comparison.contestants, comparison.order, 2.2, f"rank under {comparison.name}")
        _ranks(axes, comparison.contestants, comparison.order, comparison.ranks, low, high)
        last = len(comparison.order)
        places = np.argsort(comparison.order)
        for number, group in enumerate(groups):
            x = last + 1.2 + 0.6 * number
            # One bar for a group; it is broken where a method between two of its own does not belong to it.
            at = np.sort(places[group])
            for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
                axes.plot([x, x], [run.min() - 0.25, run.max() + 0.25], color=INK, linewidth=1.6)
        axes.set_xlim(0.5, last + 1.2 + 0.6 * max(1, len(groups)))
    return figure


def mean_ranks(view: Overall) -> Figure:
    """The mean rank over the metrics, with its interval when metrics are resampled; small, the rank under each."""
    order = np.argsort(view.mean_ranks, kind="stable")
    with style():
        figure, axes = _rows(view.contestants, order, 3.6, "rank, 1 is best")
        strokes = np.broadcast_to(np.arange(len(order)), (len(view.ranks), len(order)))
        axes.plot(view.ranks[:, order].ravel(), strokes.ravel(), "|", color=MUTED, markersize=7, alpha=0.6)
        _ranks(axes, view.contestants, order, view.mean_ranks, view.low, view.high)
        axes.set_xlim(0.5, len(order) + 0.5)
    return figure


def _rows(contestants: Sequence[Contestant], order: np.ndarray, width: float, x_label: str) -> tuple[Figure, Axes]:
    """A figure with a row per method and an axis of ranks, `width` inches wide."""
    room, height = _room(contestants) + 0.1, 0.2 * len(order) + 0.6
    figure = Figure(figsize=(room + width, height))
    axes = figure.add_axes((room / (room + width), 0.5 / height, 0.98 - room / (room + width), 1 - 0.55 / height))
    axes.set_yticks(range(len(order)), [short(contestants[at]) for at in order])
    for tick, at in zip(axes.get_yticklabels(), order):
        tick.set_color(INK if contestants[at].is_rival else MUTED)
    axes.set(ylim=(len(order) - 0.4, -0.6), xlabel=short(x_label))
    axes.set_xticks(sorted({1, *range(5, len(order) + 1, 5), len(order)}))
    axes.tick_params(length=0)
    axes.grid(axis="x", color=LINE, linewidth=0.5)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _ranks(
    axes: Axes,
    contestants: Sequence[Contestant],
    order: np.ndarray,
    ranks: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """Dots with bars; filled for methods, hollow and grey for controls and the truth."""
    for rivals, colour, inside in ((True, ACCENT, ACCENT), (False, MUTED, "none")):
        places = [place for place, at in enumerate(order) if contestants[at].is_rival == rivals]
        at = order[places]
        axes.hlines(places, low[at], high[at], color=colour, linewidth=3, alpha=0.35)
        axes.plot(ranks[at], places, "o", markersize=5, color=colour, markerfacecolor=inside)


def critical_difference(view: Overall) -> Figure:
    """Demsar's diagram (2006): mean ranks over the metrics on an axis; bars join methods that are closer than the
    critical difference of Nemenyi's test, the metrics being its blocks."""
    means = view.mean_ranks
    order = np.argsort(means, kind="stable")
    critical = paired.critical_difference(len(order), len(view.ranks))
    far = np.abs(means[:, None] - means) > critical
    groups = [group for group in paired.groups(order, far) if len(group) > 1]
    half = -(-len(order) // 2)
    with style():
        room = _room(view.contestants) + 0.35
        figure = Figure(figsize=(2.9 + 2 * room, 0.2 * half + 0.16 * len(groups) + 0.9))
        axes = figure.add_axes((0, 0, 1, 1))
        count, bottom = len(order), -0.9 - 0.5 * len(groups)
        axes.plot([1, count], [0, 0], color=INK, linewidth=1)
        for rank in range(1, count + 1):
            axes.plot([rank, rank], [0, 0.15], color=INK, linewidth=0.8)
            axes.text(rank, 0.25, str(rank), ha="center", va="bottom", color=MUTED, fontsize=8)
        axes.plot([1, 1 + critical], [1.35, 1.35], color=INK, linewidth=2, solid_capstyle="butt")
        axes.text(1, 1.5, f"critical difference {critical:.2f}", va="bottom", fontsize=8, color=MUTED)
        for number, group in enumerate(groups):
            ends = means[group]
            y = -0.4 - 0.5 * number
            axes.plot([ends.min() - 0.05, ends.max() + 0.05], [y, y], color=INK, linewidth=2.4, alpha=0.85)
        for place, at in enumerate(order):
            left = place < half
            y = bottom - 0.62 * (place if left else count - 1 - place)
            edge = 0.2 if left else count + 0.8
            colour = ACCENT if view.contestants[at].is_rival else MUTED
            axes.plot([means[at], means[at], edge], [0, y, y], color=colour, linewidth=0.8)
            name = short(view.contestants[at])
            said = f"{name}  {means[at]:.1f}" if left else f"{means[at]:.1f}  {name}"
            ink = INK if view.contestants[at].is_rival else MUTED
            axes.text(edge + (-0.1 if left else 0.1), y, said, ha="right" if left else "left", va="center", color=ink)
        margin = (count + 0.6) * room / 2.9
        axes.set(xlim=(0.2 - margin, count + 0.8 + margin), ylim=(bottom - 0.62 * half, 2.2))
        axes.axis("off")
    return figure


# ---- metrics beside metrics ------------------------------------------------------------------------------------------


def agreement(names: Sequence[str], correlations: np.ndarray) -> Figure:
    """Rank correlations [m,m] between metrics, as a table of colours and numbers: blue where two agree."""
    count = len(names)
    with style():
        room = _room(names)
        figure = Figure(figsize=(0.46 * count + room + 0.8, 0.38 * count + 0.8 * room + 0.2), layout="constrained")
        axes = figure.add_subplot()
        hidden = np.eye(count, dtype=bool) | ~np.isfinite(correlations)
        others = np.ma.masked_where(hidden, correlations)
        axes.pcolormesh(others, cmap="RdBu", vmin=-1, vmax=1, edgecolor="none")
        for row in range(count):
            for column in range(count):
                value = correlations[row, column]
                if not hidden[row, column]:
                    colour = "#ffffff" if abs(value) > 0.6 else "#1a1a1a"
                    said = f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")
                    axes.text(column + 0.5, row + 0.5, said, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(np.arange(count) + 0.5, list(map(short, names)), rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(np.arange(count) + 0.5, list(map(short, names)))
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
    return figure


# ---- cost ------------------------------------------------------------------------------------------------------------


def cost(costs: Mapping[str, Mapping[Contestant, float]], ranks: Mapping[Contestant, float], y_label: str) -> Figure:
    """What methods cost against how they rank: a panel per kind of cost (its label -> cost per map of each method)."""
    with style():
        figure = Figure(figsize=(4.6 * len(costs), 4.2), layout="constrained")
        panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, (x_label, of_panel) in zip(panels, costs.items()):
            _cost_panel(axes, {one: (cost, ranks[one]) for one, cost in of_panel.items() if one in ranks})
            axes.set_xlabel(x_label)
        panels[0].set_ylabel(y_label)
        panels[0].invert_yaxis()
    return figure


def _cost_panel(axes: Axes, points: Mapping[Contestant, tuple[float, float]]) -> None:
    """One point per contestant, at its (cost, rank)."""
    contestants, costs, y = list(points), *(np.array(column) for column in zip(*points.values()))
    # Free maps stand left of the cheapest one, at a place of their own.
    free = min(costs[costs > 0], default=1.0) / 4
    x = np.where(costs > 0, costs, free)
    for at, contestant in enumerate(contestants):
        axes.plot(x[at], y[at], "o", markersize=5, **_marker(contestant))
    axes.set_xscale("log")
    axes.set_xlim(free / 2, max(x) * 12)
    _name_points(axes, x, y, contestants)
    axes.xaxis.set_major_formatter("{x:g}")  # the powers of ten that it would draw are raw TeX in the page's text
    axes.minorticks_off()
    if (costs == 0).any():
        ticks = [free, *(10.0**power for power in range(-6, 7) if free * 2 <= 10.0**power <= max(x) * 2)]
        axes.set_xticks(ticks, ["0", *(f"{tick:g}" for tick in ticks[1:])])
    axes.grid(color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _name_points(axes: Axes, x: np.ndarray, y: np.ndarray, contestants: Sequence[Contestant]) -> None:
    """Names right of their points, moved apart where they would overlap."""
    step = 0.045 * (np.ptp(y) or 1.0)
    places = y.astype(float).copy()
    order = np.argsort(y, kind="stable")
    near = np.abs(np.log10(x)[:, None] - np.log10(x)) < 0.3 * np.ptp(np.log10(x)) + 0.3
    for rank, at in enumerate(order):
        above = [places[other] for other in order[:rank] if near[at, other]]
        if above:
            places[at] = max(places[at], max(above) + step)
    for at, contestant in enumerate(contestants):
        ink = INK if contestant.is_rival else MUTED
        axes.annotate(
            short(contestant), (x[at], y[at]), (x[at] * 1.25, places[at]), fontsize=7.5, color=ink, va="center"
        )


# ---- for the page ----------------------------------------------------------------------------------------------------

# Colours that follow the reader's light or dark scheme, as custom properties of style.css.
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", OTHER: "--other"}


def inlined(text: str, name: str) -> str:
    """An SVG file's text as an element of a page: colours by the page's scheme, ids of its own, the page's fonts."""
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"(\bid=\"|url\(#|href=\"#)", rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    return re.sub(r'<metadata>.*?</metadata>|<svg [^>]*viewBox="([^"]*)"[^>]*>', _opening, text, flags=re.DOTALL)


def _opening(match: re.Match[str]) -> str:
    return f'<svg viewBox="{match[1]}" xmlns:xlink="http://www.w3.org/1999/xlink">' if match[1] else ""
