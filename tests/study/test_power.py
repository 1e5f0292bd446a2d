"""Power: by brute force over all outcomes, by the test itself on what is drawn, and by its size under no effect."""

import itertools
import math

import numpy as np
import pytest

from xaibench.study import power, statistics


@pytest.mark.parametrize("alternative", ["greater", "two-sided", "less"])
def test_mcnemar_over_every_outcome_of_five_people(alternative):
    """Each of the 4^5 ways in which five people answer, weighed, and given to the test."""
    first, second, n, total = 0.9, 0.3, 5, 0.0
    chance = {(a, b): (first if a else 1 - first) * (second if b else 1 - second) for a in (0, 1) for b in (0, 1)}
    for people in itertools.product(chance, repeat=n):
        one, other = (np.array([person[at] for person in people], dtype=bool) for at in (0, 1))
        if statistics.mcnemar(one, other, alternative).p <= 0.1:
            total += math.prod(chance[person] for person in people)
    found = power.mcnemar(n, first, second, 0.1, alternative)
    assert found == pytest.approx(total, rel=1e-10) and (0 < found < 1)


def test_power_grows_with_people_and_keeps_its_size():
    assert power.mcnemar(40, 0.86, 0.49, 0.025) > power.mcnemar(20, 0.86, 0.49, 0.025) > 0.3
    assert 0 < power.mcnemar(43, 0.7, 0.7, 0.025) <= 0.025  # exact tests keep below their level
    assert power.rank_sum(40, 0.7, 0.7, 5, 0.05) == pytest.approx(0.05, abs=1e-3)
    assert power.mcnemar(10, 1.0, 1.0, 0.05) == 0 == power.rank_sum(10, 1.0, 1.0, 5, 0.05)


@pytest.mark.parametrize(("alternative", "shares"), [("two-sided", (0.6, 0.75)), ("greater", (0.75, 0.6))])
def test_rank_sum_beside_simulated_studies(alternative, shares):
    """The approximation, and the share of 4000 drawn studies that the test rejects (standard error .008)."""
    formula = power.rank_sum(40, *shares, 5, 0.05, alternative)
    drawn = power.drawn_rank_sum(40, *shares, 5, 0.05, alternative, 4000, np.random.default_rng(0))
    assert 0.5 < formula < 0.95 and drawn == pytest.approx(formula, abs=0.025)
    assert power.rank_sum(40, *shares[::-1], 5, 0.05, "less") == pytest.approx(
        power.rank_sum(40, *shares, 5, 0.05, "greater")
    )


def test_drawn_studies_are_tested_as_real_ones():
    x, y = np.array([[0, 1, 4, 6], [5, 0, 0, 0]]), np.array([[2, 3, 3, 1], [4, 0, 0, 0]])
    z = power.z_of_counts(x, y)
    people = [np.repeat(np.arange(4), counts).astype(float) for counts in (x[0], y[0])]
    assert z[0] == pytest.approx(statistics.rank_sum(*people).statistic, rel=1e-12) and math.isnan(z[1])


def test_mcnemar_beside_simulated_studies():
    exact = power.mcnemar(30, 0.86, 0.49, 0.025)
    drawn = power.drawn_mcnemar(30, 0.86, 0.49, 0.025, "greater", 3000, np.random.default_rng(0))
    assert drawn == pytest.approx(exact, abs=0.03)  # three standard errors
