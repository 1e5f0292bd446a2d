"""What the results say, in sentences: for the head of the page and for each board's findings."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..scores.leaderboard import CONSTANT, FEW, MANY_EXCLUDED, QUALITY, TUNED
from ..scores.rank import Comparison, Contestant, Overall
from .tables import Board, Glance, records


def counted(boards: Sequence[Board]) -> str:
    """How many models and data sets there are."""
    models, data = {board.model for board in boards}, {board.dataset for board in boards}
    return f"{numbered(len(models), 'model')} on {numbered(len(data), 'data set')}"


def numbered(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def lede(boards: Sequence[Board]) -> str:
    """Methods, metrics and samples of all boards in a sentence."""
    contestants = {Contestant(*names) for board in boards for names in _methods(board)}
    rivals = sum(contestant.is_rival for contestant in contestants)
    metrics = {(m, v) for board in boards for m, v in zip(board.frame["metric"], board.frame["metric_variant"])}
    said = f"{numbered(rivals, 'attribution method')}"
    if len(contestants) > rivals:
        said += f" and {numbered(len(contestants) - rivals, 'control')}"
    counts = sorted({int(n) for board in boards for rows in board.headlines() for n in rows["n"] + rows["excluded"]})
    samples = "" if not counts else f" on {'up to ' * (len(counts) > 1)}{counts[-1]} samples"
    return f"{said} under {numbered(len(metrics), 'metric')}{samples}."


def _methods(board: Board) -> set[tuple[str, str]]:
    return {pair for pair in zip(board.frame["method"], board.frame["method_variant"]) if pair[0] != "none"}


def findings(board: Board, glance: Glance) -> list[tuple[str, str]]:
    """What the comparisons say, and what weakens them, each as (about what, a sentence)."""
    headlines = [comparison for comparison in board.comparisons if comparison.headline]
    said = {
        "The network": _quality(board.frame),
        "First among methods": _first(headlines),
        "Agreement": _agreement(board.overall),
        "Controls": _controls(headlines, glance),
        "Nothing told apart": _nothing_told_apart(glance),
        "Tests": "" if headlines else "none: one method alone, or no score files to resample.",
        "Few samples": _few_samples(board.frame),
        "Many excluded": _many_excluded(board.frame),
        "Tuned (*)": _tuned(board.frame),
        "Maps of one value (°)": _constant_maps(board.frame),
        "Out of reach": _out_of_reach(board),
    }
    return [(about, sentence) for about, sentence in said.items() if sentence]


def _quality(frame: pd.DataFrame) -> str:
    """How good the network itself is, by the most samples that it was measured on."""
    rows = frame[(frame["metric"] == QUALITY) & frame["headline"]]
    if rows.empty:
        return "how good it is on these data has not been measured; `xaibench run metric=quality` does."
    row = rows.sort_values("n").iloc[-1]
    interval = f"({row['ci_low']:.3f} to {row['ci_high']:.3f})"
    return f"{row['statistic']} {row['value']:.3f} {interval}, {int(row['n'])} samples."


def _first(headlines: Sequence[Comparison]) -> str:
    """Which methods are first under how many metrics, of those that do not tie all of them; a tie counts for each."""
    first: Counter[str] = Counter()
    metrics = 0
    for c in headlines:
        rivals = [at for at in c.order if c.contestants[at].is_rival]
        ahead = [at for at in rivals if c.ranks[at] == c.ranks[rivals[0]]]
        if len(ahead) < len(rivals):
            metrics += 1
            first.update(str(c.contestants[at]) for at in ahead)
    if not first:
        return ""
    named = ", ".join(f"{method} ({count})" for method, count in first.most_common(3))
    more = f", and {numbered(len(first) - 3, 'other')}" if len(first) > 3 else ""
    return f"by number of metrics, of {metrics}: {named}{more}."


def _agreement(view: Overall | None) -> str:
    if view is None or not np.isfinite(view.agreement_methods):
        return ""
    said = f"Kendall's W of {len(view.comparisons)} metrics is {view.agreement_methods:.2f} over the"
    return f"{said} methods (0: their ranks have nothing in common, 1: they are the same)."


def _controls(headlines: Sequence[Comparison], glance: Glance) -> str:
    if not headlines:
        return ""
    if not any(contestant.is_control for comparison in headlines for contestant in comparison.contestants):
        return "none were run: whether a metric can be fooled is not known here."
    won = [f"{column['name']} ({', '.join(column['controls'])})" for column in glance.columns if column["controls"]]
    return f"not beaten under {'; '.join(won)}." if won else "beaten under every metric that has one."


def _nothing_told_apart(glance: Glance) -> str:
    blind = [column["name"] for column in glance.columns if column["cannot_tell"]]
    return f"no two methods differ under {', '.join(blind)}." if blind else ""


def _few_samples(frame: pd.DataFrame) -> str:
    few = frame[frame[FEW] & (frame["n"] > 0)]
    if few.empty:
        return ""
    names = sorted(set(few["metric"]))
    under = ", ".join(names) if len(names) <= 4 else numbered(len(names), "metric")
    return f"{few['n'].min()} at the least: ranks and intervals under {under} are hints."


def _many_excluded(frame: pd.DataFrame) -> str:
    excluded = frame[frame["excluded"] > MANY_EXCLUDED * (frame["n"] + frame["excluded"])]
    pairs = dict.fromkeys(f"{row.method} under {row.metric}" for row in excluded.itertuples())
    return f"undefined for more than 5 % of the samples: {', '.join(pairs)}." if pairs else ""


def _tuned(frame: pd.DataFrame) -> str:
    pairs = dict.fromkeys(f"{row.method} on {row.metric}" for row in frame[frame[TUNED]].itertuples())
    return f"parameters were chosen by the metric: {', '.join(pairs)}." if pairs else ""


def _out_of_reach(board: Board) -> str:
    """Concepts that are too large, beside what units mark, to have a detector whatever the network knows."""
    levels = {
        (cell.card["metric"], cell.card["metric_variant"], statistic["name"]): statistic["units"]["level"]
        for cell in board.cells
        for statistic in cell.card["statistics"]
        if statistic["kind"] == "ceiling"
    }
    found = dict.fromkeys(
        f"{row['statistic'].removeprefix('ceiling_')} ({row['value']:.3f} at most)"
        for row in records(board.frame)
        if row["value"] < levels.get((row["metric"], row["metric_variant"], row["statistic"]), -np.inf)
    )
    return f"no unit can be a detector of {', '.join(found)}: they mark too few pixels." if found else ""


def _constant_maps(frame: pd.DataFrame) -> str:
    most = frame[frame[CONSTANT] > 0].groupby("method")[CONSTANT].max()
    named = ", ".join(f"{method} ({count})" for method, count in most.items())
    return f"some maps rank nothing, and are scored like random ones: {named}." if named else ""
