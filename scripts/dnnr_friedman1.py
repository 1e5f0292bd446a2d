"""What DNNR says of Friedman's problem, whose truth is known, and its error bounds: Sixt 2022, sections 7.4 and 7.5.

    python scripts/dnnr_friedman1.py --out results/reference

Writes to the folder

    dnnr_friedman1.csv   how well the five features are found (area under the ROC curve of each row and of the mean over
                         rows), how close the mean local slope is to the analytic gradient, and the squared error with
                         all features, without the five, and with these only
    dnnr_inspection.csv  one prediction: its neighbours, and what each feature of each adds
    dnnr_bounds.csv      the share of test rows whose error is below the bound of Theorem 1, by constant
    dnnr_bounds.png      that bound and the error of each test row, sorted; and how many samples a tolerance takes

The bounds have five features, 10000 training and 2000 test rows, k = 7 and k' = 32, as in section 7.4.5. Of a test row,
h is the distance to its k-th neighbour and tau the mean over its neighbours; the thesis does not say which it takes.
The printed constant theta = 40 is below the largest second derivative, so it is no valid one: 138 is.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata

from xaibench.datasets.tables import Friedman1, friedman1
from xaibench.models.dnnr import DNNR, differences, nearest_others

THETAS = (40.0, 138.0)
K, K_PRIME, TRAIN, TEST, FEATURES = 7, 32, 10_000, 2_000, 5
DELTA, RANGE = 0.05, 30.0  # of section 7.4.5: the chance of failure, and max y - min y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    folder = parser.parse_args().out
    importance().to_csv(folder / "dnnr_friedman1.csv", index=False, float_format="%.4g", lineterminator="\n")
    inspection().to_csv(folder / "dnnr_inspection.csv", index=False, float_format="%.4g", lineterminator="\n")
    found = bounds()
    shares(found).to_csv(folder / "dnnr_bounds.csv", index=False, float_format="%.4g", lineterminator="\n")
    draw(found).savefig(folder / "dnnr_bounds.png", dpi=110)


def fitted(train: Friedman1, keep: list[int] | None = None, **settings: object) -> DNNR:
    """DNNR without scaling on the rows of a split, with the features `keep` (None: all)."""
    module = DNNR(**settings).double().eval()
    with torch.no_grad():
        module.fit(rows_of(train, keep), train.labels, 0)
    return module


def rows_of(data: Friedman1, keep: list[int] | None = None) -> torch.Tensor:
    """The inputs of a split: [n,1,1,d]."""
    inputs = data.inputs.double()
    return (inputs if keep is None else inputs[:, keep])[:, None, None]


# ---- what is found ---------------------------------------------------------------------------------------------------


def importance(folds: int = 10) -> pd.DataFrame:
    """Rows (fold, statistic, value)."""
    found = []
    for fold in range(folds):
        train, test = Friedman1("train", fold=fold), Friedman1("test", fold=fold)
        module = fitted(train)
        rows = rows_of(test)
        relevance = module.relevance(rows).mean(1).numpy()
        slopes = module.slopes[module.nearest(rows.flatten(1))].mean(1).numpy()
        truth = torch.stack([test.gradient(row) for row in range(len(test))]).numpy()
        named = {"relevance": relevance, "slopes": np.abs(slopes)}
        for name, values in named.items():
            found.append((fold, f"auc of {name}, mean of rows", np.mean([auc(row) for row in values])))
            found.append((fold, f"auc of mean {name}", auc(values.mean(0))))
        found.append((fold, "auc of analytic gradient, mean of rows", np.mean([auc(row) for row in np.abs(truth)])))
        cosine = (slopes * truth).sum(1) / np.linalg.norm(slopes, axis=1) / np.linalg.norm(truth, axis=1)
        found.append((fold, "cosine of slopes and analytic gradient", cosine.mean()))
        order = list(np.argsort(-relevance.mean(0), kind="stable"))
        for name, keep in (("all", order), ("without the first five", order[5:]), ("only the first five", order[:5])):
            answers = fitted(train, keep)(rows_of(test, keep))[:, 0]
            found.append((fold, f"mse, {name}", float((answers - test.labels).square().mean())))
    return pd.DataFrame(found, columns=["fold", "statistic", "value"])


def auc(values: np.ndarray) -> float:
    """The chance that one of the first five features is ranked above one of the others."""
    ranks = rankdata(values)
    return (ranks[:5].sum() - 15) / (5 * (len(values) - 5))


def inspection() -> pd.DataFrame:
    """The prediction of the first fold that is furthest off: a row for each neighbour, with its label, its answer and,
    for each feature, (x - x_m) * slope."""
    train, test = Friedman1("train"), Friedman1("test")
    module, rows = fitted(train), rows_of(test)
    answers = module(rows)[:, 0]
    worst = int((answers - test.labels).abs().argmax())
    row = rows[worst].flatten(1)
    near = module.nearest(row)[0]
    added = (row - module.points[near]) * module.slopes[near]
    table = pd.DataFrame(added.numpy(), columns=[f"added by {name}" for name in test.features])
    table.insert(0, "answer", (module.values[near] + added.sum(1)).numpy())
    table.insert(0, "label of neighbour", module.values[near].numpy())
    table.insert(0, "predicted", float(answers[worst]))
    table.insert(0, "label", float(test.labels[worst]))
    table.insert(0, "row of the table", int(test.rows[worst]))
    return table


# ---- bounds ----------------------------------------------------------------------------------------------------------


def bounds() -> pd.DataFrame:
    """Of each test row (in the units of x, 0 to 1): its error, h, tau, and the error of plain nearest neighbours."""
    draw = np.random.default_rng(0)
    x = draw.random((TRAIN + TEST, FEATURES))
    y = friedman1(torch.from_numpy(x)).numpy()
    train, values, test, truth = x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]
    module = DNNR(K, K_PRIME).double().eval()
    with torch.no_grad():
        module.fit(torch.from_numpy(train)[:, None, None], torch.from_numpy(values), 0)
        near = module.nearest(torch.from_numpy(test)).numpy()
        answers = module(torch.from_numpy(test)[:, None, None])[:, 0].numpy()
    return pd.DataFrame(
        {
            "error": np.abs(answers - truth),
            "knn error": np.abs(values[near].mean(1) - truth),
            "h": np.linalg.norm(train[near[:, -1]] - test, axis=1),
            "tau": taus(train, values)[near].mean(1),
        }
    )


def taus(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """sqrt(sum of |nu_i|_1^2) / sigma_1 of each training row: nu_i the directions to its k' neighbours, sigma_1 the
    smallest singular value of the matrix that they make."""
    index, there = nearest_others(points, K_PRIME)
    steps, _ = differences(points, values, index, there)
    directions = steps / np.linalg.norm(steps, axis=2, keepdims=True)
    smallest = np.linalg.svd(directions, compute_uv=False)[:, -1]
    return np.sqrt((np.abs(directions).sum(2) ** 2).sum(1)) / smallest


def bound(found: pd.DataFrame, theta: float) -> pd.Series:
    """h^2 theta (1 + tau): Theorem 1, solved for the error."""
    return found.h**2 * theta * (1 + found.tau)


def shares(found: pd.DataFrame) -> pd.DataFrame:
    """By theta: the share of errors below the bound, the medians, and the correlation of their ranks."""
    rows = []
    for theta in THETAS:
        for name, error, limit in (
            ("dnnr", found.error, bound(found, theta)),
            ("knn", found["knn error"], 2 * theta * found.h),
        ):
            below, ranks = float((error <= limit).mean()), float(error.corr(limit, method="spearman"))
            rows.append((name, theta, below, error.median(), limit.median(), ranks, found.tau.mean()))
    columns = ["regressor", "theta", "share below", "median error", "median bound", "spearman", "mean tau"]
    return pd.DataFrame(rows, columns=columns)


def samples(epsilon: np.ndarray, theta: float, tau: float, knn: bool = False) -> np.ndarray:
    """n that Theorem 1 asks for: at least 2 k / P and 8 ln(2 / delta) / P, P the volume of a ball of radius h* whole
    inside of the cube, k at least 2 (max y - min y)^2 ln(4 / delta) / epsilon^2."""
    h = epsilon / (2 * theta) if knn else np.sqrt(epsilon / (theta * (1 + tau)))
    volume = np.pi ** (FEATURES / 2) / math.gamma(FEATURES / 2 + 1) * h**FEATURES
    k = 2 * RANGE**2 / epsilon**2 * math.log(4 / DELTA)
    return np.maximum(2 * k, 8 * math.log(2 / DELTA)) / volume


def draw(found: pd.DataFrame) -> Figure:
    """Left: samples against tolerance; right: bounds and errors of test rows, sorted by the bound."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epsilon = np.logspace(-2, 1, 50)
    tau = found.tau.mean()
    for theta, style in zip(THETAS, ("-", "--")):
        left.plot(epsilon, samples(epsilon, theta, tau), style, color="#0072b2", label=f"DNNR, $\\theta$ = {theta:g}")
        left.plot(
            epsilon, samples(epsilon, theta, tau, True), style, color="#c04a00", label=f"KNN, $\\theta$ = {theta:g}"
        )
    left.set(xscale="log", yscale="log", xlabel="tolerance of the answer", ylabel="samples that the theorem asks for")
    left.legend(fontsize=8)
    order = bound(found, THETAS[0]).argsort().to_numpy()
    for theta, style in zip(THETAS, ("-", "--")):
        right.plot(bound(found, theta).to_numpy()[order], style, color="#0072b2", label=f"bound, $\\theta$ = {theta:g}")
    right.plot(2 * THETAS[0] * found.h.to_numpy()[order], color="#c04a00", lw=0.5, label="bound of KNN, $\\theta$ = 40")
    right.plot(found.error.to_numpy()[order], ".", ms=1.5, color="#5c6670", label="error of DNNR")
    right.set(yscale="log", xlabel="test rows, by their bound", ylabel="error")
    right.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
