"""The factor audit against the numbers of the study's sampler."""

import pytest
import torch

from xaibench.datasets.base import Batch
from xaibench.datasets.shapes import Shapes
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.network.factor_audit import FactorAudit
from xaibench.rng import generator

from .two4two import study

COUNT = 5000


def test_the_numbers_of_the_study(linear):
    """Spec: legs 96.17 %, colour 66.2 %, shape 78.9 %; in the overlap shape tells nothing and colour 92.8 %."""
    metric, classifier = FactorAudit(), linear((1, 1, 1), classes=2)
    _, train = study(10_000, "train")
    fitted = metric.fit(classifier, train, generator("fit"))
    dataset, samples = study(COUNT)
    labels = torch.from_numpy(dataset.scenes(range(COUNT))[0])
    inputs = labels.double().view(-1, 1, 1, 1) - 0.5
    classifier.module[1].weight.data = torch.tensor([[-1.0], [1.0]]).double()  # a network that is always right
    classifier.module[1].bias.data.zero_()
    batch = Batch(tuple(range(COUNT)), inputs, labels, labels, None, (0,) * COUNT)
    columns = metric.evaluate(classifier, batch, None, Context(data=samples, fitted=fitted))
    inside = columns["in_overlap"].sum()
    found = {
        s.name: (columns[s.column].mean() if s.per is None else columns[s.column].sum() / inside).item()
        for s in metric.statistics
    }
    assert found["accuracy_model"] == found["overlap_accuracy_model"] == 1
    # 5000 samples: three standard errors of a share are up to 0.021, in the overlap (380) up to 0.077.
    expected = {"legs": 0.9617, "color": 0.662, "shape": 0.789, "background": 0.5, "yaw": 0.5, "bending": 0.5}
    for name, value in expected.items():
        assert found[f"accuracy_{name}"] == pytest.approx(value, abs=0.021), name
    for name, value in {"color": 0.928, "shape": 0.5, "pitch": 0.5}.items():
        assert found[f"overlap_accuracy_{name}"] == pytest.approx(value, abs=0.077), name


def test_a_factor_that_is_the_class_is_found_in_a_fit_by_hand(linear):
    _, samples = study(50)
    fitted = FactorAudit(bins=4).fit(None, samples, generator("fit"))
    _, factors = samples.dataset.scenes(samples.ids)
    ordered = sorted(factors["legs"])
    for edge, place in zip(fitted["edges_legs"].tolist(), (49 / 4, 49 / 2, 3 * 49 / 4)):
        low, part = int(place), place % 1
        assert edge == pytest.approx(ordered[low] + part * (ordered[low + 1] - ordered[low]))
    assert fitted["class_legs"].tolist()[0] == 0 and fitted["class_legs"].tolist()[-1] == 1


def test_refusals():
    with pytest.raises(Refusal, match="dataset=two4two"):
        FactorAudit().check_data(Shapes())
    with pytest.raises(ValueError, match="bins=1"):
        FactorAudit(bins=1)
