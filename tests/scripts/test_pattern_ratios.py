"""scripts/pattern_ratios.py: singular ratios where they are known."""

import math

import pytest
import torch

from xaibench.models.tracing.steps import Convolution, Dense


@pytest.fixture
def pattern_ratios(script):
    return script("pattern_ratios")


def turned(values: list[float]) -> torch.Tensor:
    """A square matrix with these singular values."""
    left, right = (torch.linalg.qr(torch.randn(len(values), len(values)).double())[0] for _ in range(2))
    return left @ torch.diag(torch.tensor(values).double()) @ right


def test_ratios_of_layers_with_known_singular_values(pattern_ratios):
    low, high = turned([8.0, 2, 1, 1]), turned([3.0, 2, 1, 1])
    kernel = torch.randn(4, 4, 3, 3).double()
    kernel[:, :, 1, 1] = low
    # A linear layer that reads four channels at two places, channels first, as flattening orders them.
    flat = torch.stack([torch.randn(4, 4).double(), high], dim=2).reshape(4, 8)
    layers = [Convolution("conv", (0,), kernel, None, {}), Dense("linear", (1,), flat, None)]
    patterns = {"conv": torch.full_like(kernel, 2.0), "linear": torch.ones(4, 8).double()}
    found = pattern_ratios.table(layers, patterns)
    assert found["layer"].tolist() == ["conv", "linear"]
    assert found["weight"].tolist() == pytest.approx([4.0, 1.5]) == found["product"].tolist()
    assert found["pattern"].min() > 1e12  # of one value: rank 1
    assert found["weight_between"][0] == pytest.approx(found["product_between"][0])
    assert math.isnan(found["weight_between"][1])


def test_between_layers_directions_count(pattern_ratios):
    """Diagonal layers in the same and in opposite order: (9 * 4, 1 * 1) and (9 * 1, 1 * 4), under the root."""
    low = torch.diag(torch.tensor([9.0, 1.0])).double()
    same, crossed = (torch.diag(torch.tensor(values)).double() for values in ([4.0, 1.0], [1.0, 4.0]))
    assert pattern_ratios.between(low, same) == pytest.approx(6.0)
    assert pattern_ratios.between(low, crossed) == pytest.approx(1.5)
    assert math.isnan(pattern_ratios.between(low, torch.randn(2, 3).double()))


def test_vectors_that_are_handed_down_by_permutations_are_cut_off_once(pattern_ratios):
    """Of two normal variables cut off at 0 the cosine is E[x+]^2 / E[x+^2] = 1 / pi, and another order leaves it; one
    matrix of rank 1 makes all vectors the same, and below one of another shape nothing is known."""
    shuffled = [torch.eye(3000).double()[torch.randperm(3000)] for _ in range(2)]
    one = torch.ones(3000, 3000).double()
    found = pattern_ratios.handed_down([torch.eye(5).double(), one, *shuffled])
    assert found[3] == pytest.approx(1 - 1 / math.pi, abs=0.01) and found[2] == pytest.approx(found[3])
    assert found[1] == pytest.approx(0, abs=1e-12) and math.isnan(found[0])
