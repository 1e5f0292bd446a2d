"""The six layers of the convergence thesis: the parameters that Keras counts, and a pass written out."""

import torch
from torch.nn import functional as F

from xaibench.models.cifar_cnn import CifarCNN


def test_the_parameters_are_those_of_the_listing():
    """Kernels of 3x3 and a bias for each channel; 8 x 8 x 128 values into 1024 units."""
    counts = [sum(p.numel() for p in layer.parameters()) for layer in CifarCNN().children()]
    assert [count for count in counts if count] == [896, 18_496, 73_856, 147_584, 8_389_632, 10_250]


def test_a_pass_is_the_listing_and_training_drops_half():
    network = CifarCNN().eval()
    weights = dict(network.named_parameters())
    inputs = torch.rand(2, 3, 32, 32)
    x = inputs
    for number in (1, 2, 3, 4):
        x = F.conv2d(x, weights[f"conv{number}.weight"], weights[f"conv{number}.bias"], padding=1).clamp(min=0)
        x = F.max_pool2d(x, 2) if number in (2, 4) else x
    x = (x.reshape(2, -1) @ weights["fc5.weight"].T + weights["fc5.bias"]).clamp(min=0)
    expected = x @ weights["fc6.weight"].T + weights["fc6.bias"]
    torch.testing.assert_close(network(inputs), expected)
    dropped = network.dropout1.train()(torch.ones(10_000))
    assert 0.48 < (dropped == 0).float().mean() < 0.52 and dropped.max() == 2
