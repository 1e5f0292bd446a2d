import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

from xaibench.errors import Refusal
from xaibench.metrics.two_features.gradient_independence import GradientIndependence
from xaibench.models.classifier import Classifier


def test_equals_scipy(linear, batch_for, scored):
    classifier = linear((3, 6, 6))
    batch = batch_for(classifier, 9)
    batch.inputs[1] = batch.inputs[1].round()  # ties
    found = scored(GradientIndependence(), classifier, batch, None)
    weights = classifier.module[1].weight
    for row, (inputs, target) in enumerate(zip(batch.inputs, batch.targets)):
        values, gradient = inputs.flatten().numpy(), weights[target].numpy()
        assert found["pearson"][row].item() == pytest.approx(pearsonr(values, gradient)[0], abs=1e-9)
        assert found["spearman"][row].item() == pytest.approx(spearmanr(values, gradient)[0], abs=1e-9)
        assert found["spearman_abs"][row] == abs(found["spearman"][row])


def test_a_function_whose_gradient_is_the_input_is_as_dependent_as_can_be(batch_for, scored):
    class HalfSquare(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(1).square().sum(1, keepdim=True) / 2

    classifier = Classifier("square", HalfSquare(), (1, 4, 4))
    batch = batch_for(classifier, 3)
    found = scored(GradientIndependence(), classifier, batch, None)
    for name in ("pearson", "spearman"):
        assert found[name].tolist() == pytest.approx([1, 1, 1])
    batch.inputs[0] = 0.5
    assert scored(GradientIndependence(), classifier, batch, None)["pearson"].isnan().tolist() == [True, False, False]


def test_two_values_correlate_with_anything(linear):
    with pytest.raises(Refusal, match="2 values of linear's input"):
        GradientIndependence().check(linear((1, 1, 2)))
