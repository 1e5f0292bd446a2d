"""LRP through attention equals LXT's, the authors' implementation of AttnLRP, in double precision.

LXT adds its epsilon to a denominator whatever its sign; a tiny one is given to both. lxt needs the whole of
transformers (2.1 needs one before version 5) and is no part of the extra `oracles`; where it is missing,
`tests/methods/test_attention_lrp.py` has the same by other means.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, vision_transformer

from tests.methods.nets import classifier, seeded
from tests.methods.transformers import SIZE, Transformer
from xaibench.methods.context import Context
from xaibench.methods.rules.attention_lrp import AttentionLRP
from xaibench.methods.rules.rules import Epsilon
from xaibench.models.smallvit import SmallViT

lxt = pytest.importorskip("lxt.explicit.functional", reason="lxt is not installed: pip install lxt 'transformers<5'")
from lxt.explicit.rules import epsilon_lrp, identity  # noqa: E402

TINY = 1e-13
TARGETS = torch.tensor([0, 3])


class ByLXT(Transformer):
    """The transformer by LXT's functions, whose backward passes hand relevance down."""

    rules = "attnlrp"

    def linear(self, layer, x):
        return lxt.linear_epsilon(x, layer.weight, layer.bias, TINY)

    def add(self, x, y):
        return lxt.add2(x, y.expand_as(x), False, TINY)

    def normalised(self, norm, x):
        return lxt.layer_norm_grad_fn.apply(x, norm.weight, norm.bias, norm.eps, TINY)

    def forward(self, x):
        x = epsilon_lrp(self.patches, TINY, x).flatten(2).transpose(1, 2)
        x = self.add(torch.cat([self.token.expand(len(x), -1, -1), x], 1), self.positions)
        x = self.add(x, lxt.mul2(self.attention(self.normalised(self.norms[0], x)), self.scale))
        x = self.add(x, self.gated(self.normalised(self.norms[1], x)))
        return self.linear(self.head, self.normalised(self.norms[2], x)[:, 0])

    def attention(self, x):
        batch, count, width = x.shape
        q, k, v = self.linear(self.qkv, x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = lxt.mul2(lxt.matmul(q, k.transpose(2, 3), False, TINY), (width // self.heads) ** -0.5)
        attention = lxt.softmax(scores, -1)
        if self.rules == "conservative":
            mixed = epsilon_lrp(torch.matmul, TINY, attention.detach(), v)
        else:
            mixed = lxt.matmul(attention, v, False, TINY)
        return self.linear(self.mixed, mixed.transpose(1, 2).reshape(batch, count, width))

    def gated(self, x):
        values, gate = self.linear(self.up, x).chunk(2, dim=-1)
        gate = identity(torch.sigmoid, gate)
        gate = gate.detach() if self.rules == "conservative" else gate
        return self.linear(self.down, lxt.mul2(identity(F.gelu, values), gate))


@pytest.mark.parametrize("attention", ["attnlrp", "conservative"])
def test_a_transformer_of_lxts_functions(attention):
    theirs = ByLXT().double().requires_grad_(False)
    theirs.rules = attention
    ours = classifier(Transformer(), SIZE)
    inputs = seeded(2, SIZE).requires_grad_(True)
    logits = theirs(inputs)
    torch.testing.assert_close(logits, ours.logits(inputs))
    (expected,) = torch.autograd.grad(logits, inputs, F.one_hot(TARGETS, 5) * logits)
    inputs = inputs.detach()
    maps = AttentionLRP(Epsilon(TINY), attention=attention).attribute(ours, inputs, TARGETS, Context())
    assert (maps - expected).abs().max() < 1e-8 * expected.abs().max()


def test_torchvisions_transformer_as_lxt_patches_it(monkeypatch):
    """lxt.efficient: input x gradient of a patched VisionTransformer, conservative within attention."""
    from lxt.efficient.models.vit_torch import cp_LRP

    torch.manual_seed(0)
    module = VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16, num_classes=5)
    nn.init.normal_(module.heads.head.weight)
    network, inputs = classifier(module, SIZE), seeded(2, SIZE)
    maps = AttentionLRP(Epsilon(0), attention="conservative").attribute(network, inputs, TARGETS, Context())
    for kind, patch in cp_LRP.items():
        # So that what they overwrite comes back.
        monkeypatch.setattr(kind, "forward", kind.forward)
        monkeypatch.setattr(kind, "original_forward", kind.forward, raising=False)
        patch(kind)
    assert vision_transformer.nn.GELU.forward.__module__ == "lxt.efficient.patches"
    expected = inputs * network.gradient(inputs, TARGETS)
    assert (maps - expected).abs().max() < 1e-7 * expected.abs().max()


@pytest.mark.parametrize("name", ["smallvit", "vision_transformer"])
def test_networks_of_torchs_attention(name, script):
    """The networks as they are, LXT's functions in place of torch's."""
    torch.manual_seed(0)
    if name == "smallvit":
        module = SmallViT(5, width=16, depth=2, heads=2, side=16)
    else:
        module = VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16, num_classes=5)
        nn.init.normal_(module.heads.head.weight)
    network, inputs = classifier(module, SIZE), seeded(2, SIZE)
    expected = script("through_lxt").attribution(network.module, inputs, TARGETS, TINY)
    maps = AttentionLRP(Epsilon(TINY)).attribute(network, inputs, TARGETS, Context())
    assert (maps - expected).abs().max() < 1e-7 * expected.abs().max()
