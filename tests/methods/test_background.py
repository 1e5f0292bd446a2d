"""The fill `background`: what is absent shows what training samples show there, on average."""

import pytest
import torch

from tests.methods.helpers import settings
from tests.methods.nets import Rows
from xaibench.build import build
from xaibench.datasets.base import Samples
from xaibench.datasets.tables import Friedman1
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.perturb.background import REFERENCES
from xaibench.rng import sample_generators

WEIGHTS = torch.tensor([[2.0, -1.0, 0.5, 0.0, 3.0, -2.0]], dtype=torch.float64)


@pytest.fixture
def explained():
    """explained(method, product, **settings) -> a row's map [6], the row and the background [20,6]."""

    def do(name, product=0.0, **changed):
        classifier = Classifier("rows", Rows(WEIGHTS, product), (1, 1, 6), returns="values", places="columns")
        players = {} if name == "feature_ablation" else {"players": 6}
        method = build({**settings(name), "fill": "background", **players, **changed}, "method")
        method.check(classifier)
        train = Friedman1("train", samples=60, features=6)
        fitted = method.fit(classifier, Samples(train, Preprocessing(), range(len(train))), torch.Generator())
        assert fitted["references"].shape == (REFERENCES, 1, 1, 6)
        inputs = torch.randn(1, 1, 1, 6, dtype=torch.float64)
        context = Context(sample_generators(0, "method", [0]), fitted)
        maps = method.attribute(classifier, inputs, torch.zeros(1, dtype=torch.int64), context)
        return maps.flatten(), inputs.flatten(), fitted["references"].flatten(1).double()

    return do


@pytest.mark.parametrize("name", ["exact_shapley", "kernel_shap", "shapley_sampling", "feature_ablation"])
def test_on_a_linear_network_it_is_w_times_x_less_the_mean(name, explained):
    found, row, background = explained(name)
    torch.testing.assert_close(found, WEIGHTS[0] * (row - background.mean(0)), rtol=1e-9, atol=1e-9)


def test_a_product_is_averaged_over_the_background_and_not_taken_of_its_mean(explained):
    """phi_1 of x1 x2 is half of (x1 - b1) x2 + (x1 - b1) b2, averaged over the rows b."""
    found, row, background = explained("exact_shapley", product=4.0)
    first = WEIGHTS[0, 0] * (row[0] - background[:, 0]) + 2 * (row[0] - background[:, 0]) * (row[1] + background[:, 1])
    assert float(found[0]) == pytest.approx(float(first.mean()), rel=1e-9)


def test_it_takes_as_many_times_the_passes_and_no_sentences():
    method = build({**settings("exact_shapley"), "fill": "background", "players": 6}, "method")
    rows = Classifier("rows", Rows(WEIGHTS, 0.0), (1, 1, 6), returns="values")
    assert method.cost(rows) == (REFERENCES * 2**6, 0)
    with pytest.raises(Refusal, match="other sentences have words at other places"):
        method.check(Classifier("text", Rows(WEIGHTS, 0.0), (1, 1, 6), places="words"))
