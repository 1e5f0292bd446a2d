"""A small transformer, and the same with gradients changed so that input x gradient is a layer-wise relevance.

LRP with epsilon 0 and biases kept is input x gradient of a network whose operations have these derivatives (Ali et al.
2022, section 4; Achtibat et al. 2024, appendix B): what is held is detached, an activation is x times the constant
f(x) / x, and halves of a product's relevance are halves of its gradient.
"""

import torch
from torch import nn
from torch.nn import functional as F

SIZE = (3, 16, 16)


class Transformer(nn.Module):
    """Patches, a class token, positions, two blocks of attention and a gated MLP, of several ways to write them.

    rules: None for the network itself; `attnlrp` or `conservative` for the derivatives of that propagation.
    bias: whether linear layers and normalisations have one. embedded: whether there are a class token and positions.
    """

    def __init__(self, bias: bool = True, embedded: bool = True, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rules, self.heads, self.embedded = None, heads, embedded
        self.patches = nn.Conv2d(3, width, 4, 4, bias=bias)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=bias) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.mixed = nn.Linear(width, width, bias=bias)
        self.up, self.down = nn.Linear(width, 24, bias=bias), nn.Linear(12, width, bias=bias)
        self.scale, self.head = nn.Parameter(torch.rand(width) + 0.5), nn.Linear(width, 5, bias=bias)
        with torch.no_grad():
            for norm in self.norms:
                norm.weight.add_(0.3 * torch.randn(width))
                if bias:
                    norm.bias.add_(0.3 * torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.embedded:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.scale * self.attention(self.normalised(self.norms[0], x))
        x = x + self.gated(self.normalised(self.norms[1], x))
        x = self.normalised(self.norms[2], x)
        return self.head(x[:, 0] if self.embedded else x.mean(1))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.rules is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = self.halved(q @ k.transpose(2, 3)) / (width // self.heads) ** 0.5
            mixed = self.product(scores.softmax(3), v, torch.matmul)
        return self.mixed(mixed.transpose(1, 2).reshape(batch, count, width))

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        values, gate = self.up(x).chunk(2, dim=-1)
        if self.rules is None:
            return self.down(F.gelu(values) * torch.sigmoid(gate))
        values = values * (F.gelu(values) / values).detach()
        gate = gate * (torch.sigmoid(gate) / gate).detach()
        return self.down(self.product(gate, values, torch.mul))

    def normalised(self, norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        if self.rules is None:
            return norm(x)
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach() * norm.weight
        return y if norm.bias is None else y + norm.bias

    def product(self, gate: torch.Tensor, values: torch.Tensor, function) -> torch.Tensor:
        if self.rules == "conservative":
            return function(gate.detach(), values)
        return self.halved(function(gate, values))

    @staticmethod
    def halved(product: torch.Tensor) -> torch.Tensor:
        return product / 2 + product.detach() / 2


def input_x_gradient(module: Transformer, inputs: torch.Tensor, targets: torch.Tensor, rules: str) -> torch.Tensor:
    """Relevance [B,C,H,W] of the logits of targets."""
    module.rules = rules
    try:
        x = inputs.clone().requires_grad_(True)
        total = module(x).gather(1, targets[:, None]).sum()
        return inputs * torch.autograd.grad(total, x)[0]
    finally:
        module.rules = None
