"""dim_diff and masked_pearson: against numpy, and on the ideal exclusive or, whose maps are known in closed form."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import nn

from xaibench.datasets.planes import RingOfGaussians, Xor
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient, InputXGradient, Saliency
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.removal.occlusion import Occlusion
from xaibench.metrics.two_features.dim_diff import DimDiff
from xaibench.metrics.two_features.masked_pearson import MaskedPearson
from xaibench.models.classifier import Classifier
from xaibench.models.smallcnn import SmallCNN

STEPS = 21
GRID = Xor(f"grid:{STEPS}")
X1, X2 = GRID.points.double().unbind(1)


class Ideal(nn.Module):
    """f = x1 + x2 - 2 x1 x2, the multilinear exclusive or."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x1, x2 = inputs.flatten(1).unbind(1)
        return self.one * (x1 + x2 - 2 * x1 * x2)[:, None]


def explain(method) -> torch.Tensor:
    """The method's maps of the ideal function over the grid [n,1,2]."""
    inputs = GRID.points.double().view(-1, 1, 1, 2)
    classifier = Classifier("ideal", Ideal(), (1, 1, 2))
    return method.attribute(classifier, inputs, torch.zeros(len(inputs), dtype=torch.int64), Context())[:, 0]


def pearson(maps: torch.Tensor, **options) -> dict[str, float]:
    outputs = X1 + X2 - 2 * X1 * X2
    return {name: value.item() for name, value in MaskedPearson(**options).pool(maps, outputs).items()}


@pytest.mark.parametrize(
    "method, first, second",
    [
        (Saliency(), 2 * (X2 - 0.5).abs(), 2 * (X1 - 0.5).abs()),
        (Occlusion(patch=1, fill="value"), (X1 - 0.5) * (1 - 2 * X2), (X2 - 0.5) * (1 - 2 * X1)),
        (IntegratedGradients(baseline="zero", quadrature="gausslegendre"), X1 * (1 - X2), X2 * (1 - X1)),
        (IntegratedGradients(baseline="value", quadrature="gausslegendre"), *2 * [-(X1 - 0.5) * (X2 - 0.5)]),
    ],
    ids=["saliency", "ablation", "IG from 0", "IG from 0.5"],
)
def test_maps_of_the_ideal_function_are_the_closed_forms(method, first, second):
    torch.testing.assert_close(explain(method), torch.stack([first, second], 1)[:, None], rtol=0, atol=1e-7)


def test_the_truth_of_the_world_is_the_ideal_functions_absolute_gradient():
    truth = torch.stack([GRID[index].mask for index in range(len(GRID))])
    torch.testing.assert_close(truth.double(), explain(Saliency()), rtol=0, atol=1e-6)


def test_what_the_thesis_reads_off_follows_from_the_baseline():
    """Occlusion and IG from 0.5 treat both features alike, and IG from 0 sets them against each other (-0.5 there)."""
    for method in (Occlusion(patch=1, fill="value"), IntegratedGradients(baseline="value")):
        found = pearson(explain(method))
        assert found["rho_sure"] == pytest.approx(1) and found["rho_boundary_transpose"] == pytest.approx(1)
        assert DimDiff().pool(explain(method), X1)["dim_diff"] == 0
    assert pearson(explain(IntegratedGradients(baseline="zero")))["rho_sure"] < -0.4


@pytest.mark.parametrize("method", [Gradient(), InputXGradient()])
def test_the_direction_of_the_turn_decides_the_sign(method):
    found = pearson(explain(method))
    # 1 - 2 x2 turned by a quarter becomes minus or plus 1 - 2 x1; the product with x1 keeps that on the whole.
    assert found["rho_boundary_rot90"] < -0.6 < 0.6 < found["rho_boundary_rot270"]
    assert found["rho_boundary_transpose"] == pytest.approx(1)
    if isinstance(method, Gradient):
        assert found["rho_boundary_rot90"] == pytest.approx(-1) and found["rho_boundary_rot270"] == pytest.approx(1)


def test_dim_diff_is_the_printed_formula():
    maps = torch.randn(STEPS**2, 1, 2)
    first, second = maps.double().numpy().reshape(STEPS, STEPS, 2).transpose(2, 0, 1)
    d = np.abs(first - second)
    normalised = (d - d.min()) / ((d.max() + 1e-12) - d.min())
    found = DimDiff().pool(maps, maps[:, 0, 0])
    assert found["dim_diff_sum"].item() == pytest.approx(normalised.sum() / STEPS, rel=1e-9)
    assert found["dim_diff"].item() == pytest.approx(normalised.mean(), rel=1e-9)
    scaled = DimDiff().pool(maps * 2**-30, maps[:, 0, 0])
    assert scaled["dim_diff"].item() == pytest.approx(normalised.mean(), rel=1e-6)


def test_dim_diff_is_0_for_whatever_is_everywhere_equally_unequal():
    for maps in (torch.ones(9, 1, 2), torch.tensor([[3.0, 1.0]]).expand(9, 2)[:, None]):
        assert {value.item() for value in DimDiff().pool(maps, maps[:, 0, 0]).values()} == {0.0}


def test_one_map_that_is_not_finite_leaves_dim_diff_undefined():
    maps = torch.ones(9, 1, 2)
    maps[4, 0, 1] = torch.nan
    assert all(value.isnan() for value in DimDiff().pool(maps, maps[:, 0, 0]).values())


@pytest.mark.parametrize("align", ["none", "rot90", "rot270", "transpose"])
def test_masked_pearson_equals_numpy_and_scipy(align):
    maps, outputs = torch.randn(STEPS**2, 1, 2), torch.rand(STEPS**2)
    first, second = maps.double().numpy().reshape(STEPS, STEPS, 2).transpose(2, 0, 1)
    f = outputs.numpy().reshape(STEPS, STEPS)
    sure = (f < 0.3) | (f > 0.6)
    turned = {"none": second, "rot90": np.rot90(second, 1), "rot270": np.rot90(second, 3), "transpose": second.T}[align]
    found = {name: value.item() for name, value in MaskedPearson(align, 0.3, 0.6).pool(maps, outputs).items()}
    assert found["rho_sure"] == pytest.approx(pearsonr(first[sure], second[sure])[0], abs=1e-9)
    expected = pearsonr(first[~sure], turned[~sure])[0]
    assert found["rho_boundary"] == found[f"rho_boundary_{align}"] == pytest.approx(expected, abs=1e-9)
    assert (found["n_sure"], found["n_boundary"]) == (sure.sum(), (~sure).sum())
    assert found["std_sure_2"] == pytest.approx(second[sure].std()) and found["std_boundary_1"] == pytest.approx(
        first[~sure].std()
    )


def test_a_constant_picture_and_an_empty_part_are_undefined():
    maps = torch.randn(9, 1, 2)
    found = MaskedPearson().pool(maps, torch.zeros(9))  # sure everywhere
    assert not found["rho_sure"].isnan() and all(v.isnan() for k, v in found.items() if k.startswith("rho_boundary"))
    maps[:, 0, 1] = 2.0
    assert MaskedPearson().pool(maps, torch.linspace(0, 1, 9))["rho_sure"].isnan()


def test_only_the_grid_of_two_features_has_surfaces():
    with pytest.raises(Refusal, match=r"dataset\.split=grid"):
        DimDiff().check_data(RingOfGaussians("test"))
    with pytest.raises(Refusal, match="two features, 1x1x2: smallcnn takes 3x64x64"):
        MaskedPearson().check(Classifier("smallcnn", SmallCNN(), (3, 64, 64)))
