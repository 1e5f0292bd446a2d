"""DNNR beside thirty lines of numpy, scikit-learn and the thesis's figures; its gradient is the mean local slope."""

import math

import numpy as np
import pytest
import torch

from xaibench.datasets.tables import Friedman1
from xaibench.errors import Refusal, UserError
from xaibench.methods.context import Context
from xaibench.methods.gradients.dnnr_relevance import DNNRRelevance
from xaibench.models import checkpoint
from xaibench.models.classifier import Classifier
from xaibench.models.digest import weights_digest
from xaibench.models.dnnr import DNNR, kernel_regression_metric, lasso, nearest_others, scaling_epoch
from xaibench.models.fitting import Fitting
from xaibench.models.tabular import MLP, Linear


def reference(points, values, rows, k=3, near=None, order=1, scale=1.0, weighted=False):
    """Equation 4, one row, one neighbour and one least-squares problem after the other -> (answers, slopes at them)."""
    near = near or 3 * points.shape[1]

    def nearest(x, count, but=()):
        far = [math.inf if n in but else math.sqrt(sum((scale * (p - x)) ** 2)) for n, p in enumerate(points)]
        return sorted(range(len(points)), key=far.__getitem__)[:count]

    answers, slopes = [], []
    for x in rows:
        found = []
        for m in nearest(x, k):
            same = [n for n, p in enumerate(points) if (p == points[m]).all()]
            steps, rises = [], []
            for i in nearest(points[m], near, same):
                step = points[i] - points[m]
                far = math.sqrt(step @ step) if weighted else 1.0
                steps.append(np.concatenate([step, step**2 / 2][:order]) / far)
                rises.append((values[i] - values[m]) / far)
            g = np.linalg.lstsq(np.array(steps), np.array(rises), rcond=1e-10)[0]
            step = x - points[m]
            found.append((values[m] + g @ np.concatenate([step, step**2 / 2][:order]), g[: len(x)]))
        answers.append(min(max(np.mean([value for value, _ in found]), min(values)), max(values)))
        slopes.append(np.mean([slope for _, slope in found], 0))
    return np.array(answers), np.array(slopes)


@pytest.fixture
def world():
    """60 training rows of four features, three of them the same, and 20 further rows."""
    draw = np.random.default_rng(0)
    points = draw.normal(size=(60, 4))
    points[1], points[2] = points[0], points[0]
    values = np.sin(points[:, 0]) + points[:, 1] * points[:, 2] + 0.1 * draw.normal(size=60)
    values[:3] = values[0]
    return points, values, draw.normal(size=(20, 4)) * 0.7


def fitted(points, values, seed=0, **settings):
    module = DNNR(**settings)
    module.fit(torch.from_numpy(points).view(len(points), 1, 1, -1), torch.from_numpy(values), seed)
    return module.eval()


def as_inputs(rows):
    return torch.from_numpy(rows).view(len(rows), 1, 1, -1)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, {}),
        ({"neighbours": 5, "gradient_neighbours": 7}, {"k": 5, "near": 7}),
        ({"order": 2, "gradient_neighbours": 20}, {"order": 2, "near": 20}),
        ({"weighting": "distance"}, {"weighted": True}),
        ({"order": 2, "weighting": "distance"}, {"order": 2, "weighted": True}),
        ({"gradient_neighbours": 2}, {"near": 2}),  # fewer rows than features: the smallest of many slopes
    ],
)
def test_answers_are_those_of_the_slow_definition(settings, same, world):
    points, values, rows = world
    answers, _ = reference(points, values, rows, **same)
    np.testing.assert_allclose(fitted(points, values, **settings)(as_inputs(rows))[:, 0], answers, atol=1e-9)


def test_the_gradient_is_the_mean_slope_of_the_neighbours_and_0_where_it_is_cut(world):
    points, values, rows = world
    rows[:3] *= 10  # far outside
    answers, slopes = reference(points, values, rows)
    classifier = Classifier("dnnr", fitted(points, values), (1, 1, 4), output="raw", returns="values")
    gradient = classifier.gradient(as_inputs(rows), torch.zeros(20, dtype=torch.int64))
    cut = (answers == values.min()) | (answers == values.max())
    assert 0 < cut.sum() < 5
    np.testing.assert_allclose(gradient[:, 0, 0], np.where(cut[:, None], 0, slopes), atol=1e-9)
    uncut = fitted(points, values, clip=False)
    near = uncut.nearest(torch.from_numpy(rows))
    free = Classifier("dnnr", uncut, (1, 1, 4), output="raw", returns="values")
    gradient = free.gradient(as_inputs(rows), torch.zeros(20, dtype=torch.int64))
    torch.testing.assert_close(gradient.flatten(1), uncut.slopes[near].mean(1), rtol=1e-12, atol=1e-15)


def test_relevance_is_how_far_each_feature_moves_the_neighbours_answers(world):
    points, values, rows = world
    module = fitted(points, values)
    classifier = Classifier("dnnr", module, (1, 1, 4), output="raw", returns="values", batch_size=3)
    method = DNNRRelevance()
    method.check(classifier)
    maps = method.attribute(classifier, as_inputs(rows), torch.zeros(20, dtype=torch.int64), Context())
    for row, x in enumerate(rows):
        near = np.linalg.norm(points - x, axis=1).argsort(kind="stable")[:3]
        expected = np.mean([np.abs((x - points[m]) * module.slopes[m].numpy()) for m in near], 0)
        np.testing.assert_allclose(maps[row, 0, 0], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scaling": "learned"}, "set model.scaling=none"),
        ({"gradients": "none"}, "dnnr with model.gradients=none has none"),
        (None, "reads the slopes of neighbours, and dnnr has none: use dnnr"),
    ],
)
def test_relevance_is_refused_where_it_would_mislead(settings, message):
    module = torch.nn.Flatten() if settings is None else DNNR(**settings)
    with pytest.raises(Refusal, match=message):
        DNNRRelevance().check(Classifier("dnnr", module, (1, 1, 4)))


def test_neighbours_are_all_who_differ(world):
    points, *_ = world
    index, there = nearest_others(points, 59)
    for row in range(3):
        assert sorted(index[row][there[row]]) == list(range(3, 60)) and there[row].sum() == 57
    for row in range(3, 60):
        far = np.linalg.norm(points - points[row], axis=1)
        assert row not in index[row][there[row]] and (np.diff(far[index[row]][there[row]]) >= 0).all()


def test_without_slopes_it_is_scikit_learns_nearest_neighbours(world):
    neighbors = pytest.importorskip("sklearn.neighbors")
    points, values, rows = world
    expected = neighbors.KNeighborsRegressor(5).fit(points, values).predict(rows)
    np.testing.assert_allclose(fitted(points, values, gradients="none", neighbours=5)(as_inputs(rows))[:, 0], expected)


def test_local_planes_are_scikit_learns_regressions_and_their_slopes_the_gradient(world):
    linear, neighbors = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.neighbors")
    points, values, rows = world
    module = fitted(points, values, gradients="local", gradient_neighbours=12, clip=False)
    inputs = as_inputs(rows).requires_grad_()
    answers = module(inputs)
    (gradient,) = torch.autograd.grad(answers.sum(), inputs)
    for row, near in enumerate(neighbors.NearestNeighbors(n_neighbors=12).fit(points).kneighbors(rows)[1]):
        line = linear.LinearRegression().fit(points[near], values[near])
        assert answers[row].item() == pytest.approx(line.predict(rows[row : row + 1])[0])
        np.testing.assert_allclose(gradient[row, 0, 0], line.coef_, atol=1e-9)


def test_the_lasso_is_scikit_learns():
    models = pytest.importorskip("sklearn.linear_model")
    draw = np.random.default_rng(1)
    steps, rises = draw.normal(size=(3, 9, 4)), draw.normal(size=(3, 9))
    found = lasso(steps, rises, 0.1)
    for own, rise, slope in zip(steps, rises, found):
        expected = models.Lasso(0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(own, rise).coef_
        np.testing.assert_allclose(slope, expected, atol=1e-6)
    assert (found == 0).any()


def test_a_step_of_the_scaling_is_autograds_uphill_in_the_correlation():
    """With all other points without error (their labels are linear), the step of one point alone is seen."""
    draw = np.random.default_rng(2)
    points, lr = draw.normal(size=(40, 2)), 1e-7  # so small that the order of the points plays no part
    values = np.sin(2 * points[:, 0]) + points[:, 1]
    scale = np.array([1.3, 0.8])
    found = (scaling_epoch(points, values, scale, lr, draw) - scale) / lr
    s = torch.from_numpy(scale).requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(points, values):
        far = np.linalg.norm((points - x) * scale, axis=1)
        near = far.argsort()[1:17]
        steps, rises = points[near] - x, values[near] - y
        errors = np.abs(rises - steps @ np.linalg.lstsq(steps, rises, rcond=None)[0])
        distances = (torch.from_numpy(steps) * s).norm(dim=1)
        total = total + torch.corrcoef(torch.stack([distances, torch.from_numpy(errors)]))[0, 1]
    total.backward()
    np.testing.assert_allclose(found, s.grad, rtol=1e-4, atol=1e-4)


def test_the_kernel_metric_forgets_a_feature_that_says_nothing():
    draw = np.random.default_rng(3)
    points = draw.normal(size=(200, 2))
    metric = kernel_regression_metric(points, np.sin(2 * points[:, 0]), 0)

    def error(matrix):
        moved = points @ matrix
        kernel = np.exp(-((moved[:, None] - moved) ** 2).sum(2))
        np.fill_diagonal(kernel, 0)
        return np.mean((kernel @ np.sin(2 * points[:, 0]) / kernel.sum(1) - np.sin(2 * points[:, 0])) ** 2)

    assert error(metric) < 0.05 * error(np.eye(2))
    assert np.linalg.norm(metric[1]) < 0.1 * np.linalg.norm(metric[0])


def on_friedman1(**settings):
    """The mean squared error on the first fold of Friedman-1 (5000 rows), and what was fitted."""
    train, test = Friedman1("train"), Friedman1("test")
    module = fitted(train.inputs.numpy(), train.labels.numpy(), **settings)
    answers = module(test.inputs.view(len(test), 1, 1, -1))[:, 0]
    return float((answers - test.labels).square().mean()), module


# Sixt 2022, Table 2 (ten folds).
def test_errors_on_friedman1_are_those_of_the_thesis():
    assert on_friedman1(gradients="none", neighbours=10)[0] == pytest.approx(3.93, abs=0.43)
    error, unscaled = on_friedman1()
    assert error == pytest.approx(1.03, abs=0.15)
    slopes = unscaled.slopes.abs().mean(0)
    assert slopes[:5].min() > 3 * slopes[5:].max()


def test_scaling_makes_errors_small_and_is_no_importance():
    """x3 and x4 matter, linearly: they get the scale of the noise, though slopes find them."""
    error, module = on_friedman1(scaling="learned", epochs=3)
    assert error == pytest.approx(0.01, abs=0.005)
    scale = module.metric.diagonal()
    assert scale[:3].min() > 3 * scale[3:].max() and scale[3:5].max() < 1.5 * scale[5:].max()


def test_its_file_has_the_sizes_of_its_training_rows(world, tmp_path):
    points, values, rows = world
    module = fitted(points, values, order=2)
    checkpoint.write(tmp_path / "w.safetensors", module.state_dict())
    fresh = DNNR(order=2)
    assert weights_digest(fresh.state_dict(), {}) != weights_digest(module.state_dict(), {})
    assert fresh(as_inputs(rows)).tolist() == [[0.0]] * 20
    fresh = fresh.double()
    checkpoint.fit(fresh, checkpoint.read(tmp_path / "w.safetensors", "w"), "w")
    assert torch.equal(fresh(as_inputs(rows)), module(as_inputs(rows)))


def test_a_tiny_table_has_fewer_neighbours_than_asked_for():
    module = fitted(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([0.0, 2.0]))
    assert module(as_inputs(np.array([[0.25, 5.0], [7.0, 0.0]]))).tolist() == [[0.5], [2.0]]


@pytest.mark.parametrize("settings", [{"neighbours": 0}, {"gradient_neighbours": -1}, {"penalty": -1.0}, {"lr": 0.0}])
def test_numbers_out_of_range_are_named(settings):
    with pytest.raises(UserError, match=f"model.{next(iter(settings))}="):
        DNNR(**settings)


def test_a_linear_network_is_numpys_least_squares(world):
    points, values, _ = world
    points[:, 3] = 0.5  # constant: it takes nothing
    module = Linear()
    module(as_inputs(points).float())
    Fitting().fit(module, as_inputs(points).float(), torch.from_numpy(values).float())
    design = np.column_stack([points, np.ones(len(points))])
    expected = np.linalg.lstsq(design[:, [0, 1, 2, 4]], values, rcond=None)[0]
    np.testing.assert_allclose(module.output.weight[0], [*expected[:3], 0], atol=1e-5)
    assert float(module.output.bias) == pytest.approx(expected[3], abs=1e-5)


def test_what_cannot_be_fitted_is_said():
    rows, labels = torch.zeros(3, 1, 1, 2), torch.zeros(3)
    with pytest.raises(UserError, match="MLP cannot be fitted without epochs"):
        Fitting().fit(MLP(), rows, labels)
    with pytest.raises(UserError, match="the labels are classes: use model=mlp"):
        Fitting().fit(Linear(), rows, labels.long())


def test_hidden_layers_are_those_that_are_named():
    module = MLP((5, 4), outputs=3)
    assert module(torch.zeros(2, 1, 1, 7)).shape == (2, 3)
    assert [name for name, _ in module.named_children()] == [
        "input", "flatten", "linear1", "relu1", "linear2", "relu2", "output",
    ]  # fmt: skip
    assert [m.in_features for m in module if isinstance(m, torch.nn.Linear)] == [7, 5, 4]
