"""How many people a study needs: the power of its two main tests over the number of participants."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ..errors import UserError, nearest
from ..report.colours import SERIES
from ..report.figures import png, style
from .simulate import parse_share
from .statistics import DIRECTIONS, Alternative

EXACT, FORMULA, DRAWS = "exact", "normal approximation", "simulated participants"


@dataclass(frozen=True)
class Point:
    """The power in [0,1] of a test of n people (of two groups: n in each), and how it was found: EXACT, FORMULA or
    DRAWS, of how many. effect: what is assumed."""

    test: str
    effect: str
    n: int
    power: float
    how: str
    draws: int = 0


@dataclass(frozen=True)
class Plan:
    """What power is asked for. people: numbers of participants, in each group. baseline: its expected accuracy, and
    `CONDITION=SHARE` of those compared with it; expected: condition -> higher or lower. pairs: the accuracies of two
    questions to the same people, of which the first is expected to be higher."""

    people: Sequence[int]
    baseline: float | None
    accuracies: Sequence[str]
    expected: Mapping[str, str]
    pairs: Sequence[tuple[float, float]]
    questions: int
    alpha: float

    def checked(self) -> dict[str, float]:
        """Condition -> accuracy. Raises UserError for what is out of range or does not go together."""
        shares = dict(parse_share("--accuracy", text) for text in self.accuracies)
        if not 0 < self.alpha < 1:
            raise UserError(f"--alpha {self.alpha:g}: expected a level between 0 and 1, such as 0.05")
        if min(self.people) < 2:
            raise UserError(f"--people {min(self.people)}: expected numbers of participants, 2 or more")
        if self.questions < 1:
            raise UserError(f"--questions {self.questions}: expected a number from 1 on")
        if not shares and not self.pairs:
            raise UserError(
                "study power: say what is compared, --baseline 0.8 --accuracy other=0.9, or --pair 0.86:0.49"
            )
        if bool(shares) != (self.baseline is not None):
            raise UserError("study power: --baseline SHARE and --accuracy CONDITION=SHARE go together")
        if self.baseline is not None and not 0 <= self.baseline <= 1:
            raise UserError(f"--baseline {self.baseline:g}: expected an accuracy from 0 to 1")
        for name in self.expected:
            if name not in shares:
                raise UserError(f"--expect: condition '{name}' has no accuracy: {nearest(name, shares)}")
        return shares


def curves(plan: Plan, draws: int | None, seed: int) -> list[Point]:
    """The power of each test at each number of people; with `draws`, beside it that of so many simulated studies.

    Raises UserError as `Plan.checked`.
    """
    shares = plan.checked()
    if draws is not None and draws < 1:
        raise UserError(f"--simulate {draws}: expected a number of studies")
    generator, points = np.random.default_rng(seed), []
    for n in plan.people:
        for name, share in shares.items():
            direction = DIRECTIONS.get(plan.expected.get(name, ""), "two-sided")
            given = (n, share, plan.baseline or 0.0, plan.questions, plan.alpha, direction)
            effect = f"{name} {share:g} against {plan.baseline:g}, {direction}"
            points.append(Point("rank_sum", effect, n, rank_sum(*given), FORMULA))
            if draws is not None:
                points.append(Point("rank_sum", effect, n, drawn_rank_sum(*given, draws, generator), DRAWS, draws))
        for first, second in plan.pairs:
            pair = (n, first, second, plan.alpha, DIRECTIONS["higher"])
            effect = f"{first:g} against {second:g}, greater"
            points.append(Point("mcnemar", effect, n, mcnemar(*pair), EXACT))
            if draws is not None:
                points.append(Point("mcnemar", effect, n, drawn_mcnemar(*pair, draws, generator), DRAWS, draws))
    return points


def mcnemar(n: int, first: float, second: float, alpha: float, alternative: Alternative = "greater") -> float:
    """The exact power of McNemar's exact test with n people who answer two questions independently, right with these
    probabilities: over all numbers of people who have one of the two right alone."""
    b, c = first * (1 - second), second * (1 - first)
    if b + c == 0:
        return 0.0
    either = stats.binom.pmf(np.arange(n + 1), n, b + c)
    return math.fsum(
        share * stats.binom.pmf(_rejects(differ, alpha, alternative), differ, b / (b + c)).sum()
        for differ, share in enumerate(either)
    )


@functools.cache
def _rejects(differ: int, alpha: float, alternative: Alternative) -> np.ndarray:
    """The b out of `differ` at which the test rejects."""
    b = np.arange(differ + 1)
    upper, lower = stats.binom.sf(b - 1, differ, 0.5), stats.binom.cdf(b, differ, 0.5)
    p = {"greater": upper, "less": lower, "two-sided": 2 * np.minimum(upper, lower)}[alternative]
    # No coin was tossed, nothing is rejected; rounding must not move a p that is alpha.
    return b[(p <= alpha * (1 + 1e-12)) & (differ > 0)]


def rank_sum(
    n: int, one: float, other: float, questions: int, alpha: float, alternative: Alternative = "two-sided"
) -> float:
    """The power of the rank-sum test of two groups of n, whose people answer so many questions right with these
    probabilities, by the normal approximation.

    U/n^2 has the mean P = P(X > Y) + P(X = Y)/2 and the variance of a two-sample U-statistic (Lehmann 1951); the test
    takes the variance with ties of the pooled distribution.
    """
    x, y = (stats.binom.pmf(np.arange(questions + 1), questions, share) for share in (one, other))
    wins = np.cumsum(y) - y / 2  # P(X > Y) + P(X = Y)/2 of each value of X
    losses = 1 - (np.cumsum(x) - x / 2)  # the same of each value of Y
    mean = float(x @ wins)
    of_kernel = float(x @ (np.tri(questions + 1, k=-1) + np.eye(questions + 1) / 4) @ y) - mean**2
    of_x, of_y = float(x @ wins**2) - mean**2, float(y @ losses**2) - mean**2
    actual = math.sqrt(max(0.0, of_kernel + (n - 1) * (of_x + of_y))) / n
    pooled = (x + y) / 2
    assumed = math.sqrt(max(0.0, (2 * n + 1) / 12 / n**2 * (1 - (pooled**3).sum())))
    if assumed == 0:
        return 0.0  # all answers are the same: undefined, no verdict
    critical = float(stats.norm.isf(alpha if alternative != "two-sided" else alpha / 2)) * assumed
    ends = {"greater": (critical, math.inf), "less": (math.inf, critical), "two-sided": (critical, critical)}
    above, below = ends[alternative]
    gap = mean - 0.5
    if actual == 0:
        return float(gap >= above or -gap >= below)
    return float(stats.norm.sf((above - gap) / actual) + stats.norm.sf((below + gap) / actual))


def drawn_rank_sum(
    n: int,
    one: float,
    other: float,
    questions: int,
    alpha: float,
    alternative: Alternative,
    draws: int,
    generator: np.random.Generator,
) -> float:
    """As `rank_sum`, by the share of so many simulated studies in which the test rejects."""
    x, y = (
        generator.multinomial(n, stats.binom.pmf(np.arange(questions + 1), questions, share), size=draws)
        for share in (one, other)
    )
    z = z_of_counts(x, y)
    p = {"greater": stats.norm.sf(z), "less": stats.norm.cdf(z), "two-sided": 2 * stats.norm.sf(abs(z))}[alternative]
    return float((p <= alpha).mean())


def z_of_counts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Z of `statistics.rank_sum` of groups given by how many have each score, [r,q+1] both; NaN without spread."""
    n, m, tied = x.sum(axis=1), y.sum(axis=1), x + y
    u = (x * (np.cumsum(y, axis=1) - y / 2)).sum(axis=1)
    size = n + m
    variance = n * m / 12 * (size + 1 - (tied**3 - tied).sum(axis=1) / (size * (size - 1)))
    return (u - n * m / 2) / np.sqrt(np.where(variance > 0, variance, np.nan))


def drawn_mcnemar(
    n: int,
    first: float,
    second: float,
    alpha: float,
    alternative: Alternative,
    draws: int,
    generator: np.random.Generator,
) -> float:
    """As `mcnemar`, by the share of so many simulated studies in which the test rejects."""
    right = (generator.random((draws, n)) < share for share in (first, second))
    one, other = right
    b, c = (one & ~other).sum(axis=1), (other & ~one).sum(axis=1)
    return float(np.mean([alone in _rejects(int(alone + others), alpha, alternative) for alone, others in zip(b, c)]))


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The points as rows of a CSV file; `participants` says which come from simulated ones, and which from none."""
    return [
        {
            "participants": "simulated" if point.how == DRAWS else "none",
            "test": point.test,
            "effect": point.effect,
            "n": point.n,
            "power": point.power,
            "how": point.how,
            "draws": point.draws,
        }
        for point in points
    ]


def draw(points: Sequence[Point], alpha: float) -> bytes:
    """The curves as a PNG file: solid by formula, dots of simulated participants, which the picture says."""
    with style():
        figure = Figure(figsize=(5.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for colour, name in zip(SERIES * len(points), dict.fromkeys((p.test, p.effect) for p in points)):
            of_name = [point for point in points if (point.test, point.effect) == name]
            for simulated in (False, True):
                own = [point for point in of_name if (point.how == DRAWS) == simulated]
                line, marker = ("none", "o") if simulated else ("-", None)
                label = f"{' '.join(name)}{', simulated participants' if simulated else ''}"
                if own:
                    people, shares = [p.n for p in own], [p.power for p in own]
                    axes.plot(people, shares, linestyle=line, marker=marker, color=colour, label=label)
        axes.axhline(0.8, color="0.7", linewidth=0.7, zorder=0)
        axes.set(xlabel="people (in each group)", ylabel=f"power at alpha {alpha:g}", ylim=(0, 1.02))
        axes.legend(loc="best", fontsize=7)
        return png(figure)
