"""A network cut in two must answer as the whole one, whether or not it could be traced."""

import pytest
import torch
from torch import nn

from xaibench.errors import Refusal
from xaibench.models.classifier import Classifier
from xaibench.models.cut import Cut, activations, feature_shape, output_shape


class Block(nn.Module):
    """A skip connection around two convolutions, an in-place ReLU, and a position embedding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)
        self.position = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x + self.position))) + x)


class Net(nn.Module):
    """stem -> block -> head, with functional operations in between; `branch` decides on values, which no trace can."""

    def __init__(self, branch: bool = False, fixed_rows: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.block = Block(6)
        self.head = nn.Linear(6, 4)
        self.branch, self.fixed_rows = branch, fixed_rows

    def forward(self, x):
        rows = x.shape[0]
        x = self.stem(x)
        if self.branch and x.sum() > 1e9:
            x = -x
        x = torch.relu(self.block(x)).mean((2, 3))
        return self.head(x.view(rows, 6) if self.fixed_rows else x)


def classifier(**options) -> Classifier:
    return Classifier("net", Net(**options), (3, 8, 8), layers={"bottleneck": "block"})


@pytest.mark.parametrize("layer", ["input", "stem", "stem.0", "block.first", "block.second", "bottleneck"])
@pytest.mark.parametrize("branch", [False, True])
def test_the_parts_answer_as_the_whole(layer, branch):
    net = classifier(branch=branch)
    inputs = torch.randn(3, 3, 8, 8)
    cut = Cut(net, layer, inputs[:1])
    assert cut.separable is (not branch or layer == "input")
    features = cut.before(inputs)
    copies = features.values.repeat_interleave(2, dim=0)
    torch.testing.assert_close(cut.behind(copies, features, copies=2), net.logits(inputs).repeat_interleave(2, dim=0))
    # Again: nothing was overwritten by the in-place ReLU.
    torch.testing.assert_close(cut.behind(features.values.clone(), features), net.logits(inputs))


@pytest.mark.parametrize("layer", ["stem.0", "block.first", "bottleneck"])
def test_both_ways_give_the_same_numbers_and_gradients(layer):
    inputs = torch.randn(2, 3, 8, 8)
    found = []
    for branch in (False, True):
        cut = Cut(classifier(branch=branch), layer, inputs[:1])
        features = cut.before(inputs)
        torch.manual_seed(5)
        values = torch.randn(6, *features.values.shape[1:]).requires_grad_(True)
        logits = cut.behind(values * 1, features, copies=3)
        found.append((logits, torch.autograd.grad(logits.square().sum(), values)[0]))
    torch.testing.assert_close(found[0], found[1])


def test_a_cut_that_would_change_the_number_of_rows_is_not_used():
    """The row count of the clean pass is a plain number that the copies would not fit."""
    inputs = torch.randn(2, 3, 8, 8)
    cut = Cut(classifier(fixed_rows=True), "block", inputs[:1])
    assert not cut.separable
    features = cut.before(inputs)
    assert cut.behind(features.values.repeat_interleave(5, dim=0), features, copies=5).shape == (10, 4)


def test_only_the_part_behind_is_run_again():
    net = classifier()
    inputs = torch.randn(1, 3, 8, 8)
    cut = Cut(net, "block", inputs)
    calls = {"stem": 0, "block": 0, "head": 0}
    for name in calls:
        getattr(net.module, name).register_forward_hook(
            lambda module, arguments, output, name=name: calls.update({name: calls[name] + 1})
        )
    features = cut.before(inputs)
    for _ in range(4):
        cut.behind(features.values.clone(), features)
    assert calls == {"stem": 1, "block": 1, "head": 4}


def test_activations_are_not_overwritten_and_end_early():
    net = classifier()
    inputs = torch.randn(2, 3, 8, 8)
    found = activations(net, ["stem.0", "block.first", "logits", "input"], inputs)
    torch.testing.assert_close(found["stem.0"], net.module.stem[0](inputs))
    assert (found["stem.0"] < 0).any()
    torch.testing.assert_close(found["logits"], net.logits(inputs))
    assert found["input"] is inputs
    net.module.head.register_forward_hook(lambda *_: pytest.fail("ran beyond the last layer"))
    activations(net, ["stem.0", "block"], inputs)
    assert not any(module._forward_hooks for module in net.module.modules() if module is not net.module.head)


def test_shapes_and_refusals():
    net = classifier()
    assert feature_shape(net, "bottleneck") == (6, 8, 8)
    assert feature_shape(net, "input") == (3, 8, 8)
    assert output_shape(net, "logits") == (4,)
    with pytest.raises(Refusal, match="has no feature maps"):
        feature_shape(net, "head")
    with pytest.raises(Refusal, match="runs 2 times"):
        feature_shape(net, "block.relu")
    with pytest.raises(Refusal, match="did you mean 'block"):
        feature_shape(net, "blok")
