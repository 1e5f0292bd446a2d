"""The thesis's network: at its width it has the thesis's layers and number of parameters."""

import pytest
import torch
from torch import nn

from xaibench.models.vgg_small import VGGSmall


def test_at_width_64_the_parameters_are_the_theses():
    network = VGGSmall(64, 200, side=64, dropout_conv=0.25, dropout_dense=0.5)

    def count(*kinds) -> int:
        return sum(p.numel() for m in network.modules() if isinstance(m, kinds) for p in m.parameters())

    assert count(nn.Conv2d) == 7_635_264
    assert count(nn.BatchNorm2d) == 5_376 and count(nn.BatchNorm1d) == 8_192
    assert count(nn.Linear) == 21_385_416
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.25] * 10 + [0.5] * 2
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 200)
    with pytest.raises(ValueError, match="side=40: expected a multiple of 16"):
        VGGSmall(side=40)


def test_layers_are_named_as_in_the_thesis_and_run_in_that_order():
    network = VGGSmall().eval()
    weights = [name for name, m in network.named_children() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert weights == [*(f"conv{i}" for i in range(1, 11)), "fc1", "fc2", "fc3"]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert all(not relu.inplace for relu in network.modules() if isinstance(relu, nn.ReLU))
