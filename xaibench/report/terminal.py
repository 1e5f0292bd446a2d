"""What a person sees: results on stdout, talk and progress on stderr."""

import contextlib
import logging
import shlex
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..errors import about
from ..scores import compare, leaderboard, rank
from ..scores.cells import Summary
from ..scores.check import INCOMPARABLE, SAME, Compared
from ..scores.compare import Published
from ..scores.leaderboard import Damaged
from ..scores.rank import Comparison, Overall
from ..scores.statistics import FEW
from .check_report import counts, verdict
from .tables import Board, glance

if TYPE_CHECKING:  # it loads matplotlib
    from .map_agreement import MapAgreement

# A pipe has no width of its own: give tables room instead of cutting their columns.
stdout = Console(width=None if sys.stdout.isatty() else 200)
stderr = Console(stderr=True, width=None if sys.stderr.isatty() else 200)
# Without a terminal, progress is a line now and then.
SECONDS_BETWEEN_LINES = 30
# Of a sweep, until its first cells say something about the others.
SECONDS_BEFORE_ESTIMATE = 5
# Of more cells than this there is an overview in the place of tables: nobody reads them, and printing takes a minute.
MOST_SHOWN = 1000
# Of more cells than this the jobs of a sweep are not listed.
MOST_LISTED = 200
_COUNTED = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
Item = TypeVar("Item")


def talk_on_stderr(level: int = logging.INFO) -> None:
    """Send this package's log messages to stderr, once."""
    log = logging.getLogger("xaibench")
    if not log.handlers:
        log.addHandler(RichHandler(console=stderr, show_time=False, show_path=False, show_level=False))
        log.setLevel(level)
        log.propagate = False


@dataclass(frozen=True)
class Sweep:
    """Where in a sweep a cell stands: its number from 1, how many there are, and when the first began (time.time)."""

    number: int
    total: int
    began: float


class Pace:
    """How much of a cell is done, and how long the rest will take at the pace so far. show: called after reports."""

    def __init__(self, work: Mapping[str, int], sweep: Sweep | None = None) -> None:
        self.work, self.sweep = work, sweep
        self.done: Counter[str] = Counter()
        self.spent: dict[str, float] = defaultdict(float)
        self.kind = ""
        self.began = self.before = time.monotonic()
        self.show: Callable[[], None] = lambda: None

    def report(self, kind: str, more: int) -> None:
        """So many more of a kind are done, since the last report."""
        now = time.monotonic()
        self.spent[kind] += now - self.before if more else 0.0
        self.done[kind] += more
        self.kind, self.before = kind, now
        self.show()

    def left_of(self, kind: str) -> float | None:
        """Seconds that the rest of a kind will take; None before any is done."""
        done, total = self.done[kind], self.work[kind]
        return self.spent[kind] / done * max(total - done, 0) if done else None

    def left_of_sweep(self) -> float | None:
        """Seconds that the rest of the sweep will take, if its other cells are like those so far."""
        if self.sweep is None:
            return None
        total = sum(self.work.values())
        part = min(sum(self.done[kind] for kind in self.work) / total, 1.0) if total else 0.0
        done = self.sweep.number - 1 + part
        return (time.time() - self.sweep.began) / done * (self.sweep.total - done) if done else None

    def line(self, title: str) -> str:
        """Where it is, in words."""
        where = f"cell {self.sweep.number} of {self.sweep.total}: " if self.sweep else ""
        said = [f"{self.done[kind]} of {total} {kind}" for kind, total in self.work.items()]
        if self.kind and self.kind not in self.work:
            said.append(f"at the {self.kind}")
        lefts = [left for kind in self.work if (left := self.left_of(kind)) is not None]
        known = 0 < len(lefts) == len(self.work)
        said.append(f"about {about(sum(lefts))} left" if known else f"{about(time.monotonic() - self.began)} so far")
        if self.sweep and (left := self.left_of_sweep()) is not None:
            said.append(f"about {about(left)} to the end of the sweep")
        return f"{where}{title}: {', '.join(said)}"


@contextlib.contextmanager
def progress(title: str, work: Mapping[str, int], sweep: Sweep | None = None) -> Iterator[Callable[[str, int], None]]:
    """Progress of one cell on stderr with an estimate of the time left; yields report(kind, how many more are done).

    work: how many there are of each kind: maps, scores, trainings, epochs. Of other kinds only the name is shown. A
    report of 0 says that a kind is begun. Bars on a terminal; otherwise a line every half minute, however long a block
    takes.
    """
    pace = Pace(work, sweep)
    show = _bars if stderr.is_terminal else _lines
    with show(title, pace):
        yield pace.report


@contextlib.contextmanager
def _bars(title: str, pace: Pace) -> Iterator[None]:
    with Progress(*_COUNTED, TextColumn("{task.fields[left]}"), console=stderr, transient=True) as bars:
        where = f"cell {pace.sweep.number} of {pace.sweep.total}" if pace.sweep else ""
        sweep = bars.add_task(where, total=1, left="", visible=pace.sweep is not None)
        if pace.sweep:
            bars.tasks[0].start_time = time.monotonic() - (time.time() - pace.sweep.began)
        tasks = {kind: bars.add_task(f"{title}: {kind}", total=n, left="") for kind, n in pace.work.items()}

        def show() -> None:
            for kind, task in tasks.items():
                bars.update(task, completed=pace.done[kind], left=about(pace.left_of(kind)))
            if pace.sweep:
                done, total = pace.sweep.number - 1, pace.sweep.total
                bars.update(sweep, completed=done, total=total, left=about(pace.left_of_sweep()))

        pace.show = show
        show()
        yield
    _spoke.at = time.monotonic()


class _Spoke:
    """When the last progress was shown: the cells of a sweep share the half minute, however short they are."""

    at = time.monotonic()


_spoke = _Spoke()


@contextlib.contextmanager
def _lines(title: str, pace: Pace) -> Iterator[None]:
    ended = threading.Event()
    if not pace.sweep:
        _spoke.at = time.monotonic()

    def talk() -> None:
        while not ended.wait(max(_spoke.at + SECONDS_BETWEEN_LINES - time.monotonic(), 0)):
            stderr.print(pace.line(title), highlight=False, markup=False, soft_wrap=True)
            _spoke.at = time.monotonic()

    # A thread, since a block may take longer than that.
    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def sweep_begins(cells: int, values: Mapping[str, int]) -> None:
    """What a sweep is about to do: how many cells, of how many values of what."""
    of = " x ".join(f"{count} {name}" for name, count in values.items() if count > 1)
    of = f" ({of})" if of else ""
    more = "" if stderr.is_terminal else f"; where it is follows every {SECONDS_BETWEEN_LINES} s"
    _spoke.at = time.monotonic()
    stderr.print(f"{cells} {'cell' if cells == 1 else 'cells'} to run{of}{more}", highlight=False, soft_wrap=True)


def sweep_estimate(done: int, total: int, began: float) -> None:
    """How long a sweep will take, if its other cells are like those that are done, where no bar says so."""
    left = (time.time() - began) / done * (total - done)
    if not stderr.is_terminal and left > SECONDS_BETWEEN_LINES:
        said = f"{done} of {total} cells took {about(time.time() - began)}: about {about(left)} to the end of the sweep"
        stderr.print(said, highlight=False, soft_wrap=True)


def launched(ids: Sequence[str], cells: Sequence[Sequence[Sequence[str]]], name: str, logs: str) -> None:
    """The jobs that a scheduler has taken: their name, ids and cells (what differs of each), and where their logs
    are."""
    several = f"{ids[0]} to {ids[-1]}" if len(ids) > 1 else ids[0]
    said = [f"{len(ids)} {'job' if len(ids) == 1 else 'jobs'} {name}: {several}; logs: {logs}"]
    # Of the only cell nothing differs.
    lines = [f"  {job}: {' '.join(cell)}" for job, of_job in zip(ids, cells) for cell in of_job if cell]
    said += lines[:MOST_LISTED]
    said += [f"  and {len(lines) - MOST_LISTED} more cells"] if len(lines) > MOST_LISTED else []
    _say("\n".join(said))


def left(folder: Path) -> None:
    """A sweep is left to the scheduler: how to find it again."""
    _say("\n".join(f"xaibench sweep {what} {shlex.quote(str(folder))}" for what in ("status", "wait", "cancel")))


def go_on(jobs: Sequence[str], folder: Path) -> bool:
    """Says which jobs go on without us, and asks on a terminal whether to cancel them -> the answer."""
    one = len(jobs) == 1
    _say(f"{'this job goes' if one else f'these {len(jobs)} jobs go'} on: {', '.join(jobs)}")
    if sys.stdin.isatty() and stderr.is_terminal:
        stderr.print(f"cancel {'it' if one else 'them'}? y/N ", end="", highlight=False)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return True
    left(folder)
    return False


def cancelled(jobs: Sequence[str]) -> None:
    """Jobs that SLURM was asked to end."""
    _say(f"cancelled: {', '.join(jobs)}" if jobs else "no job of this sweep is left to cancel")


def worker_killed(cells: Sequence[Sequence[str]]) -> None:
    """A process of joblib was killed, and with it the others."""
    said = ["a worker was killed: the others go on; tried again alone, at the end:"]
    _say("\n".join([*said, *(f"  {' '.join(cell)}" for cell in cells)]))


@contextlib.contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Shows one line that changes: in its place on a terminal; otherwise when it has changed, every
    SECONDS_BETWEEN_LINES at most."""
    if stderr.is_terminal:
        with stderr.status("") as status:
            yield lambda line: status.update(escape(line))
        return
    said, at = "", -float("inf")

    def show(line: str) -> None:
        nonlocal said, at
        if line != said and time.monotonic() - at >= SECONDS_BETWEEN_LINES:
            _say(line)
            said, at = line, time.monotonic()

    yield show


def _say(text: str) -> None:
    stderr.print(text, highlight=False, markup=False, soft_wrap=True)


def sweep_goes_on(place: Sweep) -> None:
    """Where a sweep is, after cells that were there already and say nothing of themselves: now and then a line."""
    left = Pace({}, place).left_of_sweep()
    if left is not None and time.monotonic() - _spoke.at >= SECONDS_BETWEEN_LINES:
        said = f"cell {place.number} of {place.total}: about {about(left)} to the end of the sweep"
        stderr.print(said, highlight=False, soft_wrap=True)
        _spoke.at = time.monotonic()


def tracked(what: str) -> Callable[[Sequence[Item]], Iterable[Item]]:
    """Shows how many of some items are done, while they are gone through: a bar, or a line every
    SECONDS_BETWEEN_LINES where stderr is no terminal. what: the items, done."""

    def shown(items: Sequence[Item]) -> Iterator[Item]:
        if stderr.is_terminal:
            with Progress(*_COUNTED, console=stderr, transient=True) as bars:
                yield from bars.track(items, description=what)
            return
        said = time.monotonic()
        for number, item in enumerate(items):
            yield item
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                stderr.print(f"{what}: {number + 1} of {len(items)}", highlight=False)
                said = time.monotonic()

    return shown


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


def _table(title: str, columns: Sequence[str], words: Sequence[str] = (), legend: Sequence[str] = ()) -> Table:
    """An empty table: its title above, below it the lines of the legend that say something; columns of `words` stand
    left, those of numbers right."""
    caption = escape("\n".join(filter(None, legend))) or None
    table = Table(title=escape(title), title_justify="left", caption=caption, caption_justify="left")
    for name in columns:
        table.add_column(escape(name), justify="left" if name in words else "right")
    return table


def plan(title: str, rows: Sequence[tuple[str, str, int, int, int]]) -> None:
    """What a run would do."""
    columns = ("artefact", "key", "samples there", "missing", "passes to do (nominal)")
    table = _table(title, columns, words=("artefact", "key"))
    for kind, key, there, missing, passes in rows:
        table.add_row(kind, key, str(there), str(missing), f"{passes:,}")
    stdout.print(table)


def leaderboard_table(frame: pd.DataFrame, comparisons: Sequence[Comparison] = ()) -> None:
    """A leaderboard (`leaderboard.table`), grouped by model, data set and metric, best first within each statistic.

    Lines below a table say what its marks mean and, given the comparisons, which statistics a control wins or which
    tell no methods apart.
    """
    if frame.empty:
        stderr.print("no results yet; `xaibench run` makes some")
        return
    groups = ["model", "dataset", "metric", "metric_variant", "sample_key"]
    for labels, rows in frame.groupby(groups, sort=True):
        model, dataset, metric, variant, _ = map(str, labels)
        title = f"{model} · {dataset} · {metric}" + (f" ({variant})" if variant else "")
        of_table = [c for c in comparisons if tuple(getattr(c, name) for name in groups) == labels]
        legend = [
            "* tuned on this metric: it chose the method's parameters" if rows[leaderboard.TUNED].any() else "",
            f"~ fewer than {FEW} samples: the interval is too narrow" if rows[leaderboard.FEW].any() else "",
            _constant_maps(rows),
            "undefined with samples: what the statistic divides by is zero, or rounding"
            if (rows["value"].isna() & (rows["n"] > 0)).any()
            else "",
            rank.marks([c for c in of_table if c.statistic in set(rows["statistic"])]),
        ]
        columns = ("statistic", "rank", "method", "value", "95 % interval", "n", "excluded")
        table = _table(title, columns, words=("statistic", "method"), legend=legend)
        for number, (_, part) in enumerate(rows.groupby("statistic", sort=False)):
            if number:
                table.add_section()
            for _, row in part.sort_values("rank", kind="stable").iterrows():
                table.add_row(*_leaderboard_row(row))
        stdout.print(table)


def qualities(lines: Sequence[str]) -> None:
    """Below a leaderboard: how good the networks are (`leaderboard.qualities`)."""
    for line in lines:
        stdout.print(line, highlight=False, markup=False, soft_wrap=True)


def overview(cells: Sequence[Summary], file: Path | None) -> None:
    """What there is of many cells, by model and data set, and how to see some of them. file: where all rows are."""
    boards: dict[tuple[str, str], list[Summary]] = defaultdict(list)
    for cell in cells:
        boards[cell.card["model"], cell.card["dataset"]].append(cell)
    words = ("model", "data set")
    table = _table("", (*words, "cells", "methods", "metrics", "samples"), words)
    for (model, dataset), of_board in sorted(boards.items()):
        methods = {(cell.card["method"], cell.card["method_variant"]) for cell in of_board}
        metrics = {(cell.card["metric"], cell.card["metric_variant"]) for cell in of_board}
        counts = sorted({cell.card["n"] for cell in of_board})
        samples = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        numbers = (str(len(of_board)), str(len(methods)), str(len(metrics)), samples)
        table.add_row(escape(model), escape(dataset), *numbers)
    stdout.print(table)
    where = f"all rows are in {file}; " if file else ""
    said = f"{len(cells)} cells, of more than {MOST_SHOWN} no tables: {where}ask for some with {_ASK}"
    stdout.print(said, highlight=False, markup=False, soft_wrap=True)


_ASK = "--model NAME, --dataset NAME, --method NAME or --metric NAME (each may be repeated)"


def crowded(sets: Sequence[str]) -> None:
    """Which sets of methods were too large to be compared."""
    if sets:
        said = f"not compared, more than {rank.MOST} methods: {', '.join(sets)}; --method NAME asks for some"
        stderr.print(said, highlight=False, markup=False, soft_wrap=True)


def _leaderboard_row(row: pd.Series) -> tuple[str, ...]:
    """A row of the leaderboard as the cells of `leaderboard_table`."""
    method = row["method"] + (" *" if row[leaderboard.TUNED] else "") + (" °" if row[leaderboard.CONSTANT] else "")
    method += f" ({row['method_variant']})" if row["method_variant"] else ""
    place = "" if pd.isna(row["rank"]) else str(int(row["rank"]))
    interval = "" if pd.isna(row["ci_low"]) else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
    interval += " ~" if row[leaderboard.FEW] else ""
    value = "undefined" if pd.isna(row["value"]) else f"{row['value']:.4f}"
    flagged = row["excluded"] > leaderboard.MANY_EXCLUDED * (row["n"] + row["excluded"])
    excluded = f"{row['excluded']}{' !' if flagged else ''}" if row["excluded"] else ""
    arrow = leaderboard.ARROWS[row["direction"]]
    return f"{row['statistic']} {arrow}", place, escape(method), value, interval, str(row["n"]), excluded


def _constant_maps(rows: pd.DataFrame) -> str:
    """Which methods have maps of one value, and how many."""
    flagged = rows[rows[leaderboard.CONSTANT] > 0]
    counts = dict(zip(flagged["method"], flagged[leaderboard.CONSTANT]))
    said = ", ".join(f"{method} {count}" for method, count in counts.items())
    return f"° maps of one value everywhere, which rank nothing: {said}" if said else ""


def ranks(comparisons: Sequence[Comparison]) -> None:
    """A table per comparison: where each method stands, how firmly, and from which others it is told apart."""
    for c in comparisons:
        title = f"{c.model} · {c.dataset} · {c.name} {leaderboard.ARROWS[c.direction]} · {c.n} {_unit(c)}"
        methods = len(c.contestants)
        pairs = methods * (methods - 1) // 2
        friedman = f"Friedman p {_p(c.friedman_p)}, mean ranks differ from {c.critical_difference:.1f} on (Nemenyi)"
        legend = [
            f"same letter: not told apart (p < 0.05, Holm over {pairs} pairs); {methods} methods: {friedman}",
            f"~ fewer than {FEW} {_unit(c)}: the resampled ranks look firmer than they are" if c.few else "",
            f"undefined on too many samples: {', '.join(map(str, c.left_out))}" if c.left_out else "",
            rank.marks([c]),
        ]
        columns = ("rank", "resampled", "best in", "method", "value", "told apart", "mean rank in a sample")
        table = _table(title, columns, words=("method", "told apart"), legend=legend)
        low, high = c.rank_intervals
        for at in c.order:
            interval = f"{low[at]:g} to {high[at]:g}" + (" ~" if c.few else "")
            cells = (f"{c.ranks[at]:g}", interval, f"{100 * c.best[at]:.0f} %", escape(str(c.contestants[at])))
            table.add_row(*cells, f"{c.values[at]:.4f}", c.letters[at], f"{c.sample_ranks[at]:.1f}")
        stdout.print(table)


def ranks_of_file(boards: Sequence[Board]) -> None:
    """The ranks of a leaderboard file, a table per model and data set: without samples there is nothing to test."""
    for board in boards:
        found = glance(board)
        names = [column["name"] for column in found.columns]
        legend = ["a leaderboard alone has no samples: no test, no interval of ranks"]
        table = _table(f"{board.model} · {board.dataset}", ("method", "mean rank", *names), ("method",), legend)
        for row in found.rows:
            mean = found.means.get(row["method"])
            cells = ["" if cell is None or not cell["rank"] else f"{cell['rank']:g}" for cell in row["cells"]]
            table.add_row(escape(str(row["method"])), "" if mean is None else f"{mean:.1f}", *cells)
        stdout.print(table)


def overall(views: Sequence[Overall]) -> None:
    """Ranks over several metrics, with where each method is best and worst: the metrics need not agree."""
    for view in views:
        k = len(view.comparisons)
        names = [c.name for c in view.comparisons]
        legend = [
            f"agreement of the metrics (Kendall's W; {1 / k:.2f} by chance): {view.agreement:.2f}, "
            f"without the controls {view.agreement_methods:.2f}",
            _furthest(view),
            f"not ranked by every metric: {', '.join(map(str, view.left_out))}" if view.left_out else "",
            f"too few methods: {', '.join(c.name for c in view.thin)}" if view.thin else "",
        ]
        words = ("method", "best under", "worst under")
        title = f"{view.model} · {view.dataset} · all {k} metrics"
        table = _table(title, ("mean rank", "other metrics", *words), words, legend)
        for at in np.argsort(view.mean_ranks, kind="stable"):
            under = _best_and_worst(names, view.places[:, at])
            interval = f"{view.low[at]:.1f} to {view.high[at]:.1f}"
            told = (escape(text) for text in (str(view.contestants[at]), *under))
            table.add_row(f"{view.mean_ranks[at]:.1f}", interval, *told)
        stdout.print(table)


def map_agreement(found: "Sequence[MapAgreement]") -> None:
    """A matrix per model and data set: how alike the maps of two methods are."""
    for one in found:
        title = f"{one.model} · {one.dataset}"
        if len(one.methods) < 2:
            said = " ".join((f"{title}: no two methods have maps in the cache.", *one.missing))
            stderr.print(said, highlight=False, markup=False, soft_wrap=True)
            continue
        samples = one.samples.max()
        legend = [
            f"mean rank correlation of two maps of a sample, {samples} samples: who resembles whom, not who is right",
            *one.missing,
        ]
        numbers = [str(number) for number in range(1, len(one.methods) + 1)]
        table = _table(f"{title} · maps", ("", "method", *numbers), ("method",), legend)
        for number, name, row in zip(numbers, one.methods, one.correlations):
            table.add_row(number, escape(name), *("" if np.isnan(value) else f"{value:.2f}" for value in row))
        stdout.print(table)


def _best_and_worst(names: Sequence[str], places: np.ndarray) -> tuple[str, str]:
    """The metrics under which a method has its best and its worst rank; of equal ones the first and how many more."""
    if np.ptp(places) == 0:
        return f"the same under all ({places[0]:g})", ""

    def named(place: float) -> str:
        found = [name for name, rank in zip(names, places) if rank == place]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return f"{found[0]}{more} ({place:g})"

    return named(places.min()), named(places.max())


def _furthest(view: Overall) -> str:
    between = np.where(np.eye(len(view.correlations), dtype=bool), np.nan, view.correlations)
    if np.isnan(between).all():
        return ""
    one, other = np.unravel_index(np.nanargmin(between), between.shape)
    names = f"{view.comparisons[one].name} and {view.comparisons[other].name}"
    n = len(view.contestants)
    return f"furthest apart: {names}, rank correlation {view.correlations[one, other]:.2f} over {n} methods"


def _unit(c: Comparison) -> str:
    return "repeats" if c.kind == "repeats" else "samples"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def damaged(files: Sequence[Damaged]) -> int:
    """Say which score files are not as a run wrote them, and how each is made again; the exit code: 1 if there are
    any."""
    for found in files:
        stderr.print(f"left out: {found}", highlight=False, markup=False, soft_wrap=True)
    return 1 if files else 0


def failures(cells: Sequence[dict[str, Any]], brief: bool = False) -> None:
    """The end of a sweep: how many cells there were, each reason of a failure once, and how to run its cells again.
    brief: without how many."""
    failed: dict[str, list[str]] = {}
    for cell in cells:
        if cell["status"] == "failed":
            failed.setdefault(cell["error"], []).append(cell["command"])
    count = sum(map(len, failed.values()))
    if not brief:
        stderr.print(f"{len(cells) - count} of {len(cells)} cells done, {count} failed", highlight=False)
    for error, commands in failed.items():
        several = f" ({len(commands)} cells)" if len(commands) > 1 else ""
        said = [f"failed{several}: {error}", *(f"  again: {command}" for command in commands)]
        stderr.print("\n".join(said), highlight=False, markup=False, soft_wrap=True)


def beside(theirs: Published, frame: pd.DataFrame) -> None:
    """Published numbers beside ours (`compare.beside`), a table per statistic, with what differs and how far the
    orders agree."""
    agreed = compare.agreement(frame)
    for (metric, statistic), part in frame.groupby(["metric", "statistic"], sort=False):
        title = metric if statistic == metric else f"{metric}: {statistic}"
        stdout.print(_beside_table(f"{theirs.experiment} · {title}", part, theirs.words))
        for _, row in agreed[(agreed["metric"] == metric) & (agreed["statistic"] == statistic)].iterrows():
            where = f"{row['published_model']} and {_setting([row[name] for name in compare.HERE])}"
            ordered = f"{row['ordered']} of {row['pairs']} pairs in the published order"
            said = f"rank correlation {row['correlation']:.2f} over {row['methods']} methods, {ordered}"
            stdout.print(f"{where}: {said}", highlight=False, markup=False)
        ours = part.dropna(subset="value")
        if not ours["as_read"].all():
            stdout.print("* the map was read otherwise than published (metric.collapse): not in the correlation")
        if ours.empty:
            stdout.print(f"none of ours: xaibench run experiment={theirs.experiment}", highlight=False)
    for name in ("source", "table", "data", "n", "differs"):
        stdout.print(f"{name}: {theirs.facts[name]}", highlight=False, markup=False)


def _beside_table(title: str, part: pd.DataFrame, words: Mapping[float, str]) -> Table:
    """Rows of `compare.beside` under one statistic: a row per method, a column per published model and setting of
    ours. words: what published values stand for, if they are verdicts."""
    models = list(dict.fromkeys(part["published_model"]))
    ours = sorted({tuple(row) for row in part.dropna(subset="value")[compare.HERE].itertuples(index=False)})
    columns = ("method", *(f"published: {model}" for model in models), *map(_setting, ours))
    table = _table(title, columns, words=("method",))
    for who, rows in part.groupby(["method", "method_variant"], sort=False):
        method, variant = map(str, who)
        printed = dict(zip(rows["published_model"], rows["published"]))
        found = {tuple(row[name] for name in compare.HERE): row for _, row in rows.iterrows()}
        shown = {model: words.get(value, f"{value:.3f}") for model, value in printed.items()}
        cells = [shown.get(model, "") for model in models]
        cells += [_with_interval(found[setting]) if setting in found else "" for setting in ours]
        table.add_row(escape(f"{method} ({variant})" if variant else method), *cells)
    return table


def _setting(setting: Sequence[str]) -> str:
    model, dataset, variant = setting
    return f"{model} on {dataset}" + (f" ({variant})" if variant else "")


def _with_interval(row: pd.Series) -> str:
    interval = "" if pd.isna(row["ci_low"]) else f" ({row['ci_low']:.2f} to {row['ci_high']:.2f})"
    return f"{row['value']:.3f}{interval}" + ("" if row["as_read"] else " *")


def compared(rows: Sequence[Compared]) -> None:
    """The outcome of a check: every row that is not simply the same, then the counts."""
    notable = [row for row in rows if row.mark != SAME or row.why]
    if notable:
        columns = ("", "cell", "statistic", "before", "after", "tolerance", "samples changed", "why")
        table = _table(
            "- regressed  # failed  + better  * new  ! missing  x not comparable  = the same", columns, words=columns
        )
        for row in notable:
            cell = " · ".join(part for part in row.identity[:-1] if part)
            values = ("" if value is None else f"{value:.4f}" for value in (row.before, row.after, row.tolerance))
            changed = "" if row.changed is None else str(row.changed)
            table.add_row(row.mark, escape(cell), row.identity[-1], *values, changed, escape(row.why))
        stdout.print(table)
    stdout.print(counts(rows), highlight=False)
    if any(row.mark == INCOMPARABLE for row in rows):
        stdout.print(verdict(rows), highlight=False)
