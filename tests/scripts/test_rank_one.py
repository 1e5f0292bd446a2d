"""scripts/rank_one.py: products of matrices and the bound of Theorem 1 (Sixt et al. 2020)."""

import numpy as np
import pytest

from xaibench.metrics.rules.csc import random_baseline

# VGG-16's shapes at an eighth of its width; the colours stay three.
WIDTHS = (125, 512, 512, 64, 64, 64, 64, 64, 64, 32, 32, 32, 16, 16, 8, 8, 3)


@pytest.fixture(scope="module")
def chains(rank_one):
    table = rank_one.simulated_chains(5, WIDTHS)
    return {name: rows["distance"].to_numpy() for name, rows in table.groupby("matrices")}


@pytest.fixture(scope="module")
def products(rank_one):
    return {name: rows for name, rows in rank_one.simulated_products(1000).groupby("matrices")}


@pytest.fixture(scope="module")
def rank_one(script):
    return script("rank_one")


@pytest.mark.parametrize("kind", ["non-negative", "positive", "stochastic"])
def test_chains_of_non_negative_matrices_converge_exponentially(chains, kind):
    distance = chains[kind]
    assert distance[7] < 1e-6 and distance[-1] < 1e-9
    # A straight line over the number of products, as long as the matrices are of one size.
    steps = np.diff(np.log(distance[2:8]))
    assert (steps < -0.5).all()


def test_random_matrices_leave_vectors_nearly_unrelated(chains):
    """First at the baseline; a long product of them is not far from it, until few values are left."""
    assert chains["N(0, 1)"][0] == pytest.approx(1 - random_baseline(WIDTHS[1]), abs=0.05)
    assert (chains["N(0, 1)"][:9] > 0.7).all() and (chains["N(0, 1)"][:-1] > 0.4).all()


def test_negative_parts_slow_the_convergence_down_until_there_is_none(chains):
    """alpha 5, beta 4 still converges, weakly; alpha 10, beta 9 does not."""
    last = [chains[f"alpha {alpha}, beta {alpha - 1}"][-2] for alpha in (2, 3, 4, 5, 10)]
    assert last[0] < 1e-6 and sorted(last) == last
    assert last[-1] > 0.2


@pytest.mark.parametrize("size", [2, 5, 30])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.8])
def test_the_bound_of_the_theorem(rank_one, size, zeros):
    """s_{n+1} >= s_n + lambda (1 - s_n), with s_n straight from the definition."""
    random = np.random.default_rng(size)
    matrices = [np.abs(random.standard_normal((size, size))) for _ in range(12)]
    for matrix in matrices:
        matrix[random.random((size, size)) < zeros] = 0
        matrix += np.eye(size)  # no column without an entry
    whole, before = np.eye(size), None
    for matrix, (distance, rate, bound) in zip(matrices, rank_one.product(matrices)):
        whole = whole @ matrix
        units = whole / np.linalg.norm(whole, axis=0)
        least = (units.T @ units).min()
        assert distance == pytest.approx(1 - least, abs=1e-12)
        if before is not None:
            assert least >= before + rate * (1 - before) - 1e-12
            assert distance <= bound + 1e-12
        before = least


def test_what_the_theorem_leaves_out_has_no_rate(products):
    """The products of [[1, 0], [1/n, 1]] are [[1, 0], [H_n, 1]], H_n the harmonic numbers: their columns come together
    like 1 / (2 log^2 n), slower than any power. With 1/n^2, H is at most pi^2 / 6, and they never do."""
    for name, power in (("[[1, 0], [1/n, 1]]", 1), ("[[1, 0], [1/n², 1]]", 2)):
        sums = (1 / np.arange(1, 1001) ** power).cumsum()
        np.testing.assert_allclose(products[name]["distance"], 1 - sums / np.hypot(1, sums), rtol=1e-9)
    assert products["[[1, 0], [1/n, 1]]"]["distance"].iloc[-1] > 0.008
    assert products["[[1, 0], [1/n², 1]]"]["distance"].iloc[-1] > 0.14
    assert products["non-negative, 32 x 32"]["distance"].iloc[30] < 1e-12
