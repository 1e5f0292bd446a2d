"""DeconvNet and RectGrad against their rules written out as autograd functions."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.nets import classifier, seeded
from tests.methods.shapes import rewritten, shaped
from xaibench.methods.context import Context
from xaibench.methods.rules.guided_backprop import DeconvNet, RectGrad

SIZE = (3, 64, 64)


class Deconvolved(torch.autograd.Function):
    @staticmethod
    def forward(context, x, cap, q):
        return x.clamp(0, cap)

    @staticmethod
    def backward(context, signal):
        return torch.where(signal > 0, signal, 0), None, None


class Rectified(torch.autograd.Function):
    @staticmethod
    def forward(context, x, cap, q):
        context.save_for_backward(x, x.clamp(0, cap))
        context.cap, context.q = cap, q
        return x.clamp(0, cap)

    @staticmethod
    def backward(context, signal):
        x, y = context.saved_tensors
        effect = (y * signal).numpy()
        thresholds = [np.percentile(one, context.q, method="lower") for one in effect]
        kept = np.stack([one > threshold for one, threshold in zip(effect, thresholds)])
        return signal * torch.from_numpy(kept) * ((x > 0) & (x < context.cap)), None, None


class With(nn.Module):
    def __init__(self, rule, cap, q):
        super().__init__()
        self.rule, self.cap, self.q = rule, cap, q

    def forward(self, x):
        return self.rule.apply(x, self.cap, self.q)


def written_out(module, rule, q=0.0):
    """A copy whose ReLUs follow the rule themselves."""
    module = rewritten(module, "separate")
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, With(rule, 6.0 if isinstance(child, nn.ReLU6) else float("inf"), q))
    return module


@pytest.mark.parametrize("name", ["vgg", "mobilenet"])
@pytest.mark.parametrize(
    ("method", "rule", "q"),
    [(DeconvNet(), Deconvolved, 0), (RectGrad(), Rectified, 98), (RectGrad(50), Rectified, 50)],
    ids=["deconvnet", "rectgrad", "rectgrad_50"],
)
def test_equals_the_rule_written_out(name, method, rule, q):
    module = shaped(name)
    network, slow = classifier(copy.deepcopy(module), SIZE), classifier(written_out(module, rule, q), SIZE)
    inputs, targets = seeded(2, SIZE), torch.tensor([1, 4])
    method.check(network)
    expected = slow.gradient(inputs, targets)
    assert expected.abs().max() > 0
    torch.testing.assert_close(method.attribute(network, inputs, targets, Context()), expected)
    assert not torch.allclose(expected, network.gradient(inputs, targets))


def test_the_inputs_step_keeps_what_is_positive_of_input_times_gradient():
    """Of a network with one ReLU, by hand: f = 2 relu(a.x) - relu(b.x) - 3 relu(c.x), of which q = 0 cuts the least."""
    first = nn.Linear(4, 3, bias=False)
    module = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    rows = torch.tensor([[1.0, -1, 2, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).double()
    first.weight.data, module[3].weight.data = rows, torch.tensor([[2.0, -1, -3]]).double()
    x = torch.tensor([2.0, -1, 1, 3]).double()  # a.x = 5, b.x = 3, c.x = 5: effects 10, -3, -15
    arrived = 2 * rows[0] - rows[1]  # 2, -3, 3, -1
    network, targets = classifier(module, (1, 2, 2)), torch.tensor([0])
    maps = [RectGrad(0, last).attribute(network, x.view(1, 1, 2, 2), targets, Context()) for last in (False, True)]
    assert maps[0].flatten().tolist() == arrived.tolist()
    assert maps[1].flatten().tolist() == [4, 3, 3, 0]


def test_an_impossible_percentile_is_named():
    for q in (-1, 100):
        with pytest.raises(ValueError, match=f"q={q}: expected a percentage"):
            RectGrad(q)
