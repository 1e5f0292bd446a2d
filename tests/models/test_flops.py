"""Operations of a forward pass: as torch's own counter has them, and by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from xaibench.models.flops import forward_flops
from xaibench.models.loading import load_classifier

TORCHVISION = "xaibench.models.torchvision_nets.torchvision_net"
NETS = {
    "convnet": {"_target_": "xaibench.models.smallcnn.SmallCNN", "input_size": [3, 64, 64]},
    "depthwise": {"_target_": TORCHVISION, "arch": "mobilenet_v2", "input_size": [3, 64, 64]},
    "attention": {"_target_": TORCHVISION, "arch": "vit_b_32", "input_size": [3, 224, 224]},
}


@pytest.mark.parametrize("name", NETS)
def test_as_torch_counts(name):
    classifier = load_classifier(name, {**NETS[name], "weights": "random"})
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier.module(classifier.blank)
    assert forward_flops(classifier) == counter.get_total_flops() > 0


def test_by_hand():
    spec = {"_target_": "tests.models.test_flops.tiny", "input_size": [3, 8, 8]}
    # Two operations for each of 3 x 5 x 5 weights at each of 4 x 4 x 4 outputs, and for each of 64 x 10 weights.
    assert forward_flops(load_classifier("tiny", spec)) == 2 * (75 * 64 + 64 * 10)


def tiny() -> nn.Module:
    """A convolution and a linear layer."""
    return nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
