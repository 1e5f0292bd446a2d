import numpy as np
import pytest

from xaibench.methods.context import Context
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.metrics.two_features.ig_decomposition import FACTORS, IGDecomposition
from xaibench.scores.leaderboard import read_cell


def test_equals_numpy_on_a_linear_network_where_the_factors_are_known(linear, batch_for):
    classifier = linear((1, 6, 6))
    batch = batch_for(classifier, 5)
    batch.inputs[4] = 0.0  # the baseline itself: nothing to take apart
    maps, *factors = (
        IntegratedGradients(steps=3, factor=factor).attribute(classifier, batch.inputs, batch.targets, Context())[:, 0]
        for factor in ("product", *FACTORS)
    )
    found = IGDecomposition().evaluate(classifier, batch, maps, Context(others=dict(zip(FACTORS, factors))))
    for row, (x, target) in enumerate(zip(batch.inputs.flatten(1).numpy(), batch.targets)):
        w = classifier.module[1].weight[target].numpy()
        if row == 4:
            assert all(column[row].isnan() for column in found.values())
            continue
        for name, factor in (("difference", x), ("average_gradient", w)):
            ig = x * w
            by_abs_max = np.abs(ig / np.abs(ig).max() - factor / np.abs(factor).max()).mean()
            assert found[f"{name}_abs_max"][row].item() == pytest.approx(by_abs_max, rel=1e-9)
            spans = [(m - m.min()) / (m.max() - m.min()) for m in (ig, factor)]
            assert found[f"{name}_min_max"][row].item() == pytest.approx(np.abs(spans[0] - spans[1]).mean(), rel=1e-9)


def test_the_factors_are_maps_of_the_same_run(xaibench, here):
    few = ("dataset.limit=2", "metric=ig_decomposition", "method.steps=2")
    assert xaibench("run", "method=integrated_gradients", "method.baseline=black", *few)[0] == 0
    assert len(list(here.glob("cache/maps/smallcnn/shapes/integrated_gradients/*"))) == 3
    (path,) = here.glob("results/scores/*/*/*/*.csv")
    columns = read_cell(path).columns
    assert (columns["difference_abs_max"] > 0).all() and len(columns) == 2
    code, _, talk = xaibench("run", "method=gradient", *few[:2])
    assert code == 2 and "takes integrated gradients apart, not method=gradient" in talk
    code, _, talk = xaibench("run", "method=integrated_gradients", "method.factor=difference", *few)
    assert code == 2
