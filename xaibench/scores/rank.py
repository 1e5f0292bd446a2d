"""Which methods can be told apart, and do the metrics agree: from score files to tests, ranks and flags."""

import itertools
import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from . import paired, statistics, units
from .cells import Cell, Summary, comparable
from .kept import KnownTests
from .leaderboard import badness, is_rerun
from .paired import ALPHA
from .summary import finite, read_again

# Controls that know nothing of the network: a metric under which one of them wins measures something else.
CONTROLS = ("random", "constant", "sobel", "input", "centre", "region", "row", "last_place", "position")
# What knows the answer is no null control, and competes with nobody: the ground truth, which should win where the mask
# is the definition, and the network's own counterfactual, as a map or as the baseline of one.
ORACLES = ("oracle", "counterfactual")
# A method with fewer than this share of the samples defined is left out, so that the others keep their samples.
DEFINED = 0.5


@dataclass(frozen=True)
class Contestant:
    """A row of a table: a method with its overrides, be it a rival, a control or an oracle."""

    name: str
    variant: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Contestant":
        """The one that a row of the leaderboard, or a card, is about."""
        return cls(row["method"], row["method_variant"])

    def __str__(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def is_control(self) -> bool:
        return self.name in CONTROLS

    @property
    def is_rival(self) -> bool:
        """Whether it is a method proper: neither a control nor an oracle."""
        return not self.is_control and not self.is_oracle

    @property
    def is_oracle(self) -> bool:
        """Whether it knows the answer."""
        return self.name in ORACLES or re.search("(^|,)baseline=[^=]*counterfactual", self.variant) is not None


@dataclass(frozen=True)
class Comparison:
    """The methods under one statistic of one metric, on the n samples (or repeats) that all of them have.

    columns, per [n,m]: the statistic's columns. values, badness [m]: the statistic, and what is ranked (smaller is
    better). left_out: methods undefined on too many samples. All ranks start from 1. Equal values (`statistics.tied`)
    share the better rank, as in the leaderboard; within samples, where ranks are averaged and tested, the mean of their
    ranks. What takes long, the tests and the resamples, is computed when it is asked for. tests: those known already.
    """

    model: str
    dataset: str
    metric: str
    metric_variant: str
    sample_key: str
    statistic: str
    direction: str
    target: float | None
    headline: bool
    kind: str
    contestants: tuple[Contestant, ...]
    left_out: tuple[Contestant, ...]
    columns: np.ndarray
    per: np.ndarray | None
    tests: KnownTests = field(default_factory=KnownTests)

    @property
    def n(self) -> int:
        """How many samples, or repeats."""
        return len(self.columns)

    @cached_property
    def values(self) -> np.ndarray:
        return statistics.statistic(self.columns, self.per, self.kind)

    @cached_property
    def badness(self) -> np.ndarray:
        return np.asarray(self._bad(self.values))

    @cached_property
    def p(self) -> np.ndarray:
        """Of each pair of methods, corrected by Holm over all pairs of this comparison, [m,m]."""
        if self.kind == "repeats":
            return paired.holm_pairs(paired.t_test(self.columns, self._bad))
        return self.tests.matrix(
            lambda: paired.holm_pairs(paired.swap_test(self.columns, self.per, self.kind, self._bad)),
            self.columns, self.per, self.kind, self.direction, self.target,
        )  # fmt: skip

    @cached_property
    def drawn(self) -> np.ndarray:
        """Ranks when the samples are resampled, [RESAMPLES,m]; in single precision, which holds every rank."""
        drawn = statistics.resampled(self.columns, self.per, self.kind)
        return statistics.places(self._bad(drawn)).astype(np.float32)

    @cached_property
    def _within(self) -> np.ndarray:
        """Ranks within each sample, [n,m]. There the denominator of a ratio is the model's, the same for all."""
        return paired.ranks(self._bad(self.columns))

    @cached_property
    def sample_ranks(self) -> np.ndarray:
        """Mean ranks within the samples, [m]."""
        return self._within.mean(axis=0)

    @cached_property
    def friedman_p(self) -> float:
        """Of the ranks within the samples (`paired.friedman`)."""
        return paired.friedman(self._within)

    @cached_property
    def critical_difference(self) -> float:
        """Nemenyi's, of `sample_ranks`."""
        return paired.critical_difference(len(self.contestants), self.n)

    def _bad(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(badness(values, self.direction, self.target))

    @property
    def name(self) -> str:
        """The metric with its overrides, and the statistic where it is not the headline."""
        variant = f" ({self.metric_variant})" if self.metric_variant else ""
        return f"{self.metric}{variant}" + ("" if self.headline else f" {self.statistic}")

    @property
    def few(self) -> bool:
        """Whether there are too few samples for the resampled ranks to be trusted."""
        return self.n < statistics.FEW

    @cached_property
    def ranks(self) -> np.ndarray:
        """[m]."""
        return statistics.places(self.badness)

    @cached_property
    def order(self) -> np.ndarray:
        """The methods' indices, best first; of equal ones by name."""
        return np.argsort(self.ranks, kind="stable")

    @cached_property
    def differ(self) -> np.ndarray:
        """Which pairs differ after the correction, [m,m]."""
        return self.p < ALPHA

    @cached_property
    def best(self) -> np.ndarray:
        """How often each method is the best when the samples are resampled, [m]; a tie is shared."""
        first = self.drawn == self.drawn.min(axis=1, keepdims=True)
        return (first / first.sum(axis=1, keepdims=True)).mean(axis=0)

    @cached_property
    def rank_intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """The ranks between which 95 % of the resamples lie, ([m], [m])."""
        low, high = np.quantile(self.drawn, [ALPHA / 2, 1 - ALPHA / 2], axis=0, method="nearest")
        return low, high

    @cached_property
    def shares(self) -> np.ndarray:
        """How often each method has each rank when the samples are resampled, [m,m]."""
        places = self.drawn.astype(int) - 1
        return np.stack([np.bincount(column, minlength=len(self.contestants)) for column in places.T]) / len(places)

    @cached_property
    def groups(self) -> list[list[int]]:
        """The largest groups of methods in which no pair differs, each best first."""
        return paired.groups(self.order, self.differ)

    @cached_property
    def letters(self) -> list[str]:
        """The groups of each method as letters: methods that share one cannot be told apart, [m]."""
        lettered = [(_letter(number), group) for number, group in enumerate(self.groups)]
        return ["".join(n for n, group in lettered if at in group) for at in range(len(self.contestants))]

    @cached_property
    def nemenyi_groups(self) -> list[list[int]]:
        """As `groups`, by the critical difference of the mean ranks within samples."""
        gaps = np.abs(self.sample_ranks[:, None] - self.sample_ranks)
        return paired.groups(np.argsort(self.sample_ranks, kind="stable"), gaps > self.critical_difference)

    @cached_property
    def winning_controls(self) -> tuple[Contestant, ...]:
        """The controls that no method beats: not worse than the best method, or not significantly."""
        rivals = [at for at in self.order if self.contestants[at].is_rival]
        if not rivals:
            return ()
        best = rivals[0]
        return tuple(
            contestant
            for at, contestant in enumerate(self.contestants)
            if contestant.is_control and (self.ranks[at] <= self.ranks[best] or not self.differ[at, best])
        )

    @property
    def control_wins(self) -> bool:
        return bool(self.winning_controls)

    @cached_property
    def cannot_tell(self) -> bool:
        """Whether no two methods proper differ."""
        rivals = [at for at, contestant in enumerate(self.contestants) if contestant.is_rival]
        return len(rivals) > 1 and not self.differ[np.ix_(rivals, rivals)].any()


# More methods than this under one metric are not compared: tests grow with the fourth power of their number.
MOST = 100
Groups = Sequence[Sequence[Cell | Summary]]


def comparisons(
    cells: Sequence[Cell | Summary], tracked: Callable[[Groups], Iterable[Any]] = iter, tests: KnownTests | None = None
) -> list[Comparison]:
    """Every statistic of every set of comparable cells in which at least two methods are defined; in a fixed order.

    Reruns under other seeds are no further methods: they stay out where the run that they repeat is there. Of more than
    MOST methods there is none (`crowded`). tracked: called with the sets; the files of summaries are read again.
    tests: where those that were computed are kept.
    """
    found = []
    for group in tracked([group for group in comparable(cells) if not _is_crowded(group)]):
        found += _of_group([cell if isinstance(cell, Cell) else read_again(cell) for cell in group])
    if tests is not None:
        found = [replace(comparison, tests=tests) for comparison in found]
    return sorted(found, key=lambda c: (c.model, c.dataset, c.metric, c.metric_variant, -c.n))


def crowded(cells: Sequence[Cell | Summary]) -> list[str]:
    """What is not compared, since there are more than MOST methods: metric and how many, for people."""
    groups = filter(_is_crowded, comparable(cells))
    return [f"{group[0].card['metric']} ({len(group)} methods on {group[0].card['dataset']})" for group in groups]


def _is_crowded(group: Sequence[Cell | Summary]) -> bool:
    return len(_first_runs(group)) > MOST


def _first_runs(group: Sequence[Cell | Summary]) -> dict[Contestant, Any]:
    """The cells of a set by who they are about, less the reruns."""
    cell_of = {Contestant.of(cell.card): cell for cell in group}
    methods = {(contestant.name, contestant.variant) for contestant in cell_of}
    return {c: cell_of[c] for c in sorted(cell_of, key=str) if not is_rerun(c.name, c.variant, methods)}


def _of_group(group: Sequence[Cell]) -> list[Comparison]:
    kept = _first_runs(group)
    found = (
        _comparison(kept, statistic, headline=number == 0)
        for number, statistic in enumerate(group[0].card["statistics"])
    )
    return [comparison for comparison in found if comparison is not None]


def _comparison(cells: Mapping[Contestant, Cell], statistic: Mapping[str, Any], headline: bool) -> Comparison | None:
    if statistic["kind"] in ("r_squared", "spearman", *units.KINDS):
        return None  # a number of all samples together, which none of them has a value of
    enough, common = _ranked(cells, statistic)
    if len(enough) < 2 or not common:
        return None

    def matrix(column: str) -> np.ndarray:
        return np.stack([cells[contestant].columns.loc[common, column].to_numpy() for contestant in enough], axis=1)

    card = cells[enough[0]].card
    return Comparison(
        **{name: card[name] for name in ("model", "dataset", "metric", "metric_variant")},
        sample_key=card["keys"]["sample_key"],
        statistic=statistic["name"],
        direction=statistic["direction"],
        target=statistic["target"],
        headline=headline,
        kind=statistic["kind"],
        contestants=tuple(enough),
        left_out=tuple(contestant for contestant in cells if contestant not in enough),
        columns=matrix(statistic["column"]),
        per=matrix(statistic["per"]) if statistic["per"] else None,
    )


def _ranked(cells: Mapping[Contestant, Cell], statistic: Mapping[str, Any]) -> tuple[list[Contestant], list[int]]:
    """Who is defined on enough samples, and the samples on which all of these are."""
    defined = {c: cell.columns.index[finite(cell, statistic)].tolist() for c, cell in cells.items()}
    enough = [c for c, samples in defined.items() if samples and len(samples) >= DEFINED * cells[c].card["n"]]
    return enough, sorted(set.intersection(*(set(defined[contestant]) for contestant in enough))) if enough else []


@dataclass(frozen=True)
class Overall:
    """The methods over the headlines of several metrics of one model and data set, the truth left aside.

    places [metrics,m]: ranks among these methods, equal ones sharing the better; ranks: equal ones sharing the mean, of
    which mean ranks are made. low, high [m]: the mean rank's 95 % interval when metrics are resampled.
    agreement: Kendall's W of the metrics over these methods; agreement_methods: without the controls, which is the
    harder question. correlations [metrics,metrics]: Spearman's, over these methods. left_out: methods that some
    of these metrics do not rank; thin: metrics that rank fewer than half of the methods.
    """

    model: str
    dataset: str
    comparisons: tuple[Comparison, ...]
    contestants: tuple[Contestant, ...]
    places: np.ndarray
    ranks: np.ndarray
    low: np.ndarray
    high: np.ndarray
    agreement: float
    agreement_methods: float
    correlations: np.ndarray
    left_out: tuple[Contestant, ...]
    thin: tuple[Comparison, ...]

    @property
    def mean_ranks(self) -> np.ndarray:
        """[m]."""
        return self.ranks.mean(axis=0)


def overall(comparisons: Sequence[Comparison]) -> list[Overall]:
    """One view for each model and data set with at least two metrics and two methods that all of them rank."""
    places: dict[tuple[str, str], dict[str, Comparison]] = defaultdict(dict)
    for comparison in comparisons:
        if comparison.headline:
            # Of several sets of samples the largest: they come first.
            places[comparison.model, comparison.dataset].setdefault(comparison.name, comparison)
    found = (_overall(*place, list(headlines.values())) for place, headlines in places.items())
    return [view for view in found if view]


def _ranked_by(comparison: Comparison) -> set[Contestant]:
    return {contestant for contestant in comparison.contestants if not contestant.is_oracle}


def _overall(model: str, dataset: str, headlines: list[Comparison]) -> Overall | None:
    anywhere = set().union(*map(_ranked_by, headlines))
    wide = [comparison for comparison in headlines if len(_ranked_by(comparison)) >= len(anywhere) / 2]
    everywhere = set.intersection(*map(_ranked_by, wide)) if wide else set()
    if len(wide) < 2 or len(everywhere) < 2:
        return None
    contestants = tuple(sorted(everywhere, key=str))
    badness = np.stack([c.badness[[c.contestants.index(one) for one in contestants]] for c in wide])
    ranks = paired.ranks(badness)
    rivals = [at for at, contestant in enumerate(contestants) if contestant.is_rival]
    drawn = statistics.resampled(ranks, None, "mean")
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return Overall(
        model=model,
        dataset=dataset,
        comparisons=tuple(wide),
        contestants=contestants,
        places=statistics.places(badness),
        ranks=ranks,
        low=low,
        high=high,
        agreement=paired.kendalls_w(ranks),
        agreement_methods=paired.kendalls_w(paired.ranks(badness[:, rivals])) if len(rivals) > 1 else float("nan"),
        correlations=paired.correlations(ranks),
        left_out=tuple(sorted(anywhere - everywhere, key=str)),
        thin=tuple(comparison for comparison in headlines if comparison not in wide),
    )


def marks(comparisons: Sequence[Comparison]) -> str:
    """One line on the statistics that a control wins or that tell no methods apart; '' if there are none."""
    said = []
    for comparison in comparisons:
        if comparison.control_wins:
            said.append(f"{comparison.statistic}: no method beats {', '.join(map(str, comparison.winning_controls))}")
        if comparison.cannot_tell:
            others = any(not contestant.is_rival for contestant in comparison.contestants)
            aside = " (controls and truth aside)" if others else ""
            said.append(f"{comparison.statistic}: no two methods differ{aside}")
    return "! " + "; ".join(said) if said else ""


def method_rows(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A row per method of each comparison, best first."""
    rows = []
    for c in comparisons:
        low, high = c.rank_intervals
        for at in c.order:
            rows.append(
                {
                    **_labels(c),
                    "method": c.contestants[at].name,
                    "method_variant": c.contestants[at].variant,
                    "control": c.contestants[at].is_control,
                    "n": c.n,
                    "value": c.values[at],
                    "rank": c.ranks[at],
                    "rank_low": low[at],
                    "rank_high": high[at],
                    "best": c.best[at],
                    "group": c.letters[at],
                    "sample_rank": c.sample_ranks[at],
                }
            )
    return pd.DataFrame(rows)


def pair_rows(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A row per pair of methods of each comparison: `gap` is how much better the first is, `p` is Holm's."""
    rows = []
    for c in comparisons:
        for at, one in enumerate(c.order):
            for other in c.order[at + 1 :]:
                rows.append(
                    {
                        **_labels(c),
                        "better": str(c.contestants[one]),
                        "worse": str(c.contestants[other]),
                        "gap": c.badness[other] - c.badness[one],
                        "p": c.p[one, other],
                        "n": c.n,
                    }
                )
    return pd.DataFrame(rows)


def metric_rows(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A row per comparison: its flags, and the tests over all methods."""
    rows = [
        {
            **_labels(c),
            "n": c.n,
            "methods": len(c.contestants),
            "left_out": ", ".join(map(str, c.left_out)),
            "control_wins": ", ".join(map(str, c.winning_controls)),
            "cannot_tell": c.cannot_tell,
            "friedman_p": c.friedman_p,
            "critical_difference": c.critical_difference,
        }
        for c in comparisons
    ]
    return pd.DataFrame(rows)


def overall_rows(views: Sequence[Overall]) -> pd.DataFrame:
    """A row per method and metric of each overall view, with the method's mean rank and its interval in each.

    Of equal values `rank` is the better one, as in every table; the mean rank counts the mean of theirs.
    """
    rows = []
    for view in views:
        for at in np.argsort(view.mean_ranks, kind="stable"):
            for comparison, places in zip(view.comparisons, view.places):
                rows.append(
                    {
                        "model": view.model,
                        "dataset": view.dataset,
                        "method": view.contestants[at].name,
                        "method_variant": view.contestants[at].variant,
                        "mean_rank": view.mean_ranks[at],
                        "mean_rank_low": view.low[at],
                        "mean_rank_high": view.high[at],
                        "metric": comparison.metric,
                        "metric_variant": comparison.metric_variant,
                        "rank": places[at],
                    }
                )
    return pd.DataFrame(rows)


def agreement_rows(views: Sequence[Overall]) -> pd.DataFrame:
    """A row per pair of metrics of each overall view: Spearman's correlation of their ranks of the n methods."""
    rows = []
    for view in views:
        for one, other in itertools.combinations(range(len(view.comparisons)), 2):
            rows.append(
                {
                    "model": view.model,
                    "dataset": view.dataset,
                    "metric": view.comparisons[one].name,
                    "other": view.comparisons[other].name,
                    "correlation": view.correlations[one, other],
                    "n": len(view.contestants),
                }
            )
    return pd.DataFrame(rows)


def _labels(c: Comparison) -> dict[str, str]:
    return {name: getattr(c, name) for name in ("model", "dataset", "metric", "metric_variant", "statistic")}


def _letter(number: int) -> str:
    """a, b, ... z, a2, b2, ..."""
    return string.ascii_lowercase[number % 26] + (str(number // 26 + 1) if number >= 26 else "")
