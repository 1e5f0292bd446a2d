"""The scripts about DNNR: Lemma 1 with a constant that is one, the bound by loops, choices inside folds."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from xaibench.datasets.tables import friedman1
from xaibench.models.dnnr import DNNR, nearest_others


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(0)
    x = draw.random((600, 5))
    return x, friedman1(torch.from_numpy(x)).numpy()


def gradient(x):
    row = torch.from_numpy(x).clone().requires_grad_()
    return torch.autograd.grad(friedman1(row).sum(), row)[0].numpy()


def test_138_bounds_the_second_derivative_and_40_does_not(rows):
    """The largest is at the corner where x0 x1 turns fastest."""
    corner = torch.tensor([[0.78, 0.78, 0.5, 0.5, 0.5]], dtype=torch.float64)
    points = [*torch.from_numpy(rows[0][:100]), *torch.rand(50, 5, dtype=torch.float64), corner[0]]
    norms = [
        float(torch.linalg.matrix_norm(torch.autograd.functional.hessian(lambda x: friedman1(x[None])[0], x), 2))
        for x in points
    ]
    assert 100 < max(norms) < 138.3 and norms[-1] > 3 * 40 / 1.2


def test_lemma_1_holds_for_every_row(script, rows):
    """|gradient - slope| <= theta h_max / (2 sigma_1) sqrt(sum |nu_i|_1^2), with slopes of equation 3."""
    x, y = rows
    module = DNNR(7, 32, weighting="distance").double()
    module.fit(torch.from_numpy(x)[:, None, None], torch.from_numpy(y), 0)
    index, _ = nearest_others(x, 32)
    farthest = np.linalg.norm(x[index[:, -1]] - x, axis=1)
    limit = 138.3 * farthest / 2 * script("dnnr_friedman1").taus(x, y)
    off = np.linalg.norm(gradient(x) - module.slopes.numpy(), axis=1)
    assert (off <= limit).all() and off.max() > 1


def test_tau_is_what_its_definition_says(script, rows):
    x, y = rows[0][:60], rows[1][:60]
    found = script("dnnr_friedman1").taus(x, y)
    for m in range(5):
        far = np.linalg.norm(x - x[m], axis=1)
        near = far.argsort()[1:33]
        directions = (x[near] - x[m]) / far[near, None]
        total = math.sqrt(sum(sum(abs(direction)) ** 2 for direction in directions))
        assert found[m] == pytest.approx(total / np.linalg.svd(directions)[1].min())


def test_choices_are_made_on_training_rows_alone(script):
    """A family whose second choice is right on test rows only is left with its first."""
    tables = script("dnnr_tables")
    train = (np.arange(50.0)[:, None], np.zeros(50))

    def family(train, rows, choice):
        yield ("good",), np.zeros(len(rows))
        yield ("bad",), np.ones(len(rows))

    assert tables.choose(family, train) == ("good",)
    found = dict(
        tables.dnnr({"order": 2})((np.random.default_rng(0).normal(size=(80, 3)), np.zeros(80)), np.zeros((2, 3)), None)
    )
    assert len(found) == len(tables.TIMES) * len(tables.NEIGHBOURS) and min(prime for _, prime in found) == 12


def test_the_report_has_the_thesis_beside_and_a_paired_interval(script):
    rows = pd.DataFrame(
        [
            ("airfoil", method, fold, mse + fold, "")
            for method, mse in (("KNN", 4.0), ("DNNR unscaled", 3.0))
            for fold in range(3)
        ],
        columns=["table", "method", "fold", "mse", "choice"],
    )
    text = script("dnnr_tables").report(rows)
    assert "| DNNR unscaled | 4 ± 1 (3 folds) | 0 % | 4.82 ± 0.74 |" in text
    assert "| KNN | 5 ± 1 (3 folds) | 25 % | 4.25 ± 0.96 |" in text
    assert "- airfoil: DNNR unscaled - KNN = -1 (-1 to -1, paired t over 3 folds)" in text
