"""Individual conditional expectations: scikit-learn's, and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.inspection import partial_dependence
from torch import nn

from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.network.ice import ICE
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing

WIDTH = 4


class Table(Dataset):
    """Rows of four features that have names."""

    features = ("age", "blood pressure", "x", "y")

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return Example(self.rows[index].view(1, 1, -1), 0.0)


def measured(module: nn.Module, points: int = 7, batch_size: int = 32):
    """Columns of twelve rows, the grid from forty others, and the rows."""
    rows = torch.randn(52, WIDTH, generator=torch.Generator().manual_seed(0))
    samples = Samples(Table(rows), Preprocessing(mean=(0.0,), std=(1.0,)), range(12))
    fit = Samples(Table(rows), Preprocessing(mean=(0.0,), std=(1.0,)), range(12, 52))
    network = Classifier("rows", module.double(), (1, 1, WIDTH), places="columns", output="raw", batch_size=batch_size)
    metric = ICE(points)
    metric.check(network)
    found = metric.fit(network, fit, torch.Generator())
    batch = samples.load(samples.ids)
    batch = replace(batch, inputs=batch.inputs.double(), targets=torch.zeros(12, dtype=torch.long))
    columns = metric.evaluate(network, batch, None, Context(data=samples, fitted=found))
    return metric, network, columns, found["grid"], rows


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 1))


class Estimator(RegressorMixin, BaseEstimator):
    """A network as scikit-learn asks it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def fit(self, rows, labels):
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @torch.no_grad()
    def predict(self, rows):
        return self.module(torch.from_numpy(np.asarray(rows, dtype=np.float64)).view(-1, 1, 1, WIDTH))[:, 0].numpy()


def test_equals_scikit_learn():
    """Curve by curve, at the same values of each feature; their mean is the partial dependence."""
    metric, classifier, columns, grid, rows = measured(network())
    for at in range(WIDTH):
        expected = partial_dependence(
            Estimator(classifier.module),
            rows[:12].double().numpy(),
            [at],
            custom_values={at: grid[:, at].numpy()},
            method="brute",
            kind="both",
        )
        np.testing.assert_allclose(columns[f"curve_{at}"].numpy(), expected["individual"][0], rtol=1e-9)
        np.testing.assert_allclose(columns[f"curve_{at}"].mean(0).numpy(), expected["average"][0], rtol=1e-9)
    np.testing.assert_allclose(grid.numpy(), np.quantile(rows[12:].double().numpy(), np.linspace(0, 1, 7), axis=0))
    assert metric.axes(classifier).keys() == {f"curve_{at}" for at in range(WIDTH)}
    assert metric.axes(classifier)["curve_0"].tolist() == pytest.approx([i / 6 for i in range(7)])


def test_ranges_of_a_line_and_of_a_product():
    """w (v - x) along each feature of a linear network; of a product the range is the other factor's size."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0, -3.0]))

        def forward(self, inputs):
            x = inputs.flatten(1)
            return (x[:, 0] * x[:, 1] + x[:, 2:] @ self.weight)[:, None]

    metric, classifier, columns, grid, rows = measured(Product())
    span, x = grid[-1] - grid[0], rows[:12].double()
    names = [statistic.column for statistic in metric.statistics_on(Table(rows), classifier)]
    assert names == ["range_age", "range_blood_pressure", "range_x", "range_y"]
    expected = torch.stack([x[:, 1].abs() * span[0], x[:, 0].abs() * span[1]], 1)
    torch.testing.assert_close(torch.stack([columns[name] for name in names[:2]], 1), expected)
    for name, size in (("range_x", 2 * span[2]), ("range_y", 3 * span[3])):
        torch.testing.assert_close(columns[name], size.expand(12))
    torch.testing.assert_close(
        columns["curve_2"], (2 * (grid[:, 2] - x[:, 2:3]) + classifier.logits(x.view(-1, 1, 1, WIDTH)))
    )


def test_neither_the_batch_size_nor_the_neighbours_count():
    _, _, whole, _, _ = measured(network())
    calls = []
    module = network()
    module.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    metric, classifier, parts, _, _ = measured(module, batch_size=5)
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-12, atol=1e-12)
    assert metric.cost(classifier) == (4 * 7, 0) and sum(calls) == 12 * 4 * 7 and max(calls) == 5


def test_what_has_no_columns_is_refused():
    with pytest.raises(Refusal, match=r"the inputs of net are pixels.*factor_importance"):
        ICE().check(Classifier("net", nn.Flatten(), (3, 8, 8)))
    with pytest.raises(ValueError, match="points=1: expected at least 2"):
        ICE(1)
