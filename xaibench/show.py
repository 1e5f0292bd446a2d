"""What a person sees: results on stdout, talk and progress on stderr."""

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import leaderboard
from .check import BETTER, INCOMPARABLE, MISSING, NEW, SAME, WORSE, Compared

# A pipe has no width of its own: give tables room instead of cutting their columns.
stdout = Console(width=None if sys.stdout.isatty() else 200)
stderr = Console(stderr=True, width=None if sys.stderr.isatty() else 200)
ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
# Without a terminal, progress is a line now and then.
SECONDS_BETWEEN_LINES = 30


def talk_on_stderr(level: int = logging.INFO) -> None:
    """Send this package's log messages to stderr, once."""
    log = logging.getLogger("xaibench")
    if not log.handlers:
        log.addHandler(RichHandler(console=stderr, show_time=False, show_path=False, show_level=False))
        log.setLevel(level)
        log.propagate = False


@contextlib.contextmanager
def progress(title: str, work: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """Progress of one cell on stderr with an estimate of the time left; yields report(kind, how many are done).

    work: how many there are of each kind: maps, scores, trainings. Other kinds are not shown.
    """
    if not stderr.is_terminal:
        yield _lines(title, work)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr, transient=True) as bars:
        tasks = {kind: bars.add_task(f"{title}: {kind}", total=total) for kind, total in work.items()}

        def report(kind: str, done: int) -> None:
            if kind in tasks:
                bars.advance(tasks[kind], done)

        yield report


def _lines(title: str, work: Mapping[str, int]) -> Callable[[str, int], None]:
    done: Counter[str] = Counter()
    began: dict[str, float] = {}  # a kind begins where what was reported before it ended
    said = before = time.monotonic()

    def report(kind: str, more: int) -> None:
        nonlocal said, before
        done[kind] += more
        now = time.monotonic()
        started = began.setdefault(kind, before)
        before = now
        if kind in work and now - said > SECONDS_BETWEEN_LINES and done[kind] < work[kind]:
            said = now
            left = (now - started) / done[kind] * (work[kind] - done[kind])
            stderr.print(f"{title}: {done[kind]} of {work[kind]} {kind}, about {left:.0f} s left", highlight=False)

    return report


def epochs(title: str) -> Callable[[int, int, float, float], None]:
    """Progress of a training on stderr: report(epochs done, epochs, loss, accuracy)."""
    started = time.monotonic()

    def report(epoch: int, total: int, loss: float, accuracy: float) -> None:
        left = (time.monotonic() - started) / max(epoch, 1) * (total - epoch)
        stderr.print(
            f"{title}: epoch {epoch} of {total}, loss {loss:.4f}, accuracy {accuracy:.4f}, about {left:.0f} s left",
            highlight=False,
        )

    return report


def plan(title: str, rows: Sequence[tuple[str, str, int, int, int]]) -> None:
    """What a run would do."""
    table = Table(title=title, title_justify="left")
    for name in ("artefact", "key", "samples there", "missing", "passes to do (nominal)"):
        table.add_column(name, justify="left" if name in ("artefact", "key") else "right")
    for kind, key, there, missing, passes in rows:
        table.add_row(kind, key, str(there), str(missing), f"{passes:,}")
    stdout.print(table)


def leaderboard_table(frame: pd.DataFrame) -> None:
    """A leaderboard (`leaderboard.table`), grouped by model, data set and metric, best first within each statistic.

    A method that was tuned on the metric is marked, with a line below that says so.
    """
    if frame.empty:
        stderr.print("no results yet; `xaibench run` makes some")
        return
    groups = ["model", "dataset", "metric", "metric_variant", "sample_key"]
    for (model, dataset, metric, variant, _), rows in frame.groupby(groups, sort=True):
        title = f"{model} · {dataset} · {metric}" + (f" ({variant})" if variant else "")
        legend = "* tuned on this metric: it chose the method's parameters" if rows[leaderboard.TUNED].any() else None
        table = Table(title=escape(title), title_justify="left", caption=legend, caption_justify="left")
        for name in ("statistic", "rank", "method", "value", "95 % interval", "n", "excluded"):
            table.add_column(name, justify="left" if name in ("statistic", "method") else "right")
        for number, (statistic, part) in enumerate(rows.groupby("statistic", sort=False)):
            if number:
                table.add_section()
            for _, row in part.sort_values("rank", kind="stable").iterrows():
                method = row["method"] + (" *" if row[leaderboard.TUNED] else "")
                method += f" ({row['method_variant']})" if row["method_variant"] else ""
                rank = "" if pd.isna(row["rank"]) else str(int(row["rank"]))
                interval = "" if pd.isna(row["ci_low"]) else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
                value = "undefined" if pd.isna(row["value"]) else f"{row['value']:.4f}"
                flagged = row["excluded"] > leaderboard.MANY_EXCLUDED * (row["n"] + row["excluded"])
                excluded = f"{row['excluded']}{' !' if flagged else ''}" if row["excluded"] else ""
                arrow = ARROWS[row["direction"]]
                cells = (f"{statistic} {arrow}", rank, escape(method), value, interval, str(row["n"]), excluded)
                table.add_row(*cells)
        stdout.print(table)


def finished(results: Path, files: Sequence[Path], headline_only: bool = False) -> None:
    """The table of the cells just run, or of their metrics' first statistics alone; the leaderboard on disk is
    brought up to date."""
    if not files:
        return
    cells = leaderboard.read_cells(results, files)
    frame = leaderboard.table(cells)
    if headline_only:
        headlines = {(cell.card["metric"], cell.card["statistics"][0]["name"]) for cell in cells}
        frame = frame[[pair in headlines for pair in zip(frame["metric"], frame["statistic"])]]
    leaderboard_table(frame)
    leaderboard.write(results)


def failures(cells: Sequence[dict[str, Any]]) -> None:
    """The end of a sweep: how many cells there were, and how to run each failed one again."""
    failed = [cell for cell in cells if cell["status"] == "failed"]
    stderr.print(f"{len(cells) - len(failed)} of {len(cells)} cells done, {len(failed)} failed", highlight=False)
    for cell in failed:
        said = f"failed: {cell['error']}\n  again: xaibench run {cell['cell']}"
        stderr.print(said, highlight=False, markup=False)


def compared(rows: Sequence[Compared]) -> None:
    """The outcome of a check: every row that is not simply the same, then the counts."""
    words = {WORSE: "regressed", BETTER: "better", SAME: "same", NEW: "new", MISSING: "missing",
             INCOMPARABLE: "not comparable"}  # fmt: skip
    notable = [row for row in rows if row.mark != SAME]
    if notable:
        table = Table(title="- regressed  + better  * new  ! missing  x not comparable", title_justify="left")
        for name in ("", "cell", "statistic", "before", "after", "tolerance", "samples changed", "why"):
            table.add_column(name)
        for row in notable:
            cell = " · ".join(part for part in row.identity[:-1] if part)
            values = ("" if value is None else f"{value:.4f}" for value in (row.before, row.after, row.tolerance))
            changed = "" if row.changed is None else str(row.changed)
            table.add_row(row.mark, escape(cell), row.identity[-1], *values, changed, row.why)
        stdout.print(table)
    counts = Counter(row.mark for row in rows)
    count = sum(counts[mark] for mark in (WORSE, BETTER, SAME))
    said = ", ".join(f"{counts[mark]} {word}" for mark, word in words.items() if counts[mark])
    stdout.print(f"compared {count} rows: {said or 'nothing to compare'}", highlight=False)
