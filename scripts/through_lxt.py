"""AttnLRP by LXT's explicit functions, of a network that is left as it is: what `bench_methods.py` times ours beside,
and `tests/oracles/test_lxt.py` compares it with.

LXT's functions hand down relevance where torch's hand down gradients. They take torch's place while the network runs
within `ThroughLXT`, and autograd does the rest. Attention in one call is written out in products first.
"""

from collections.abc import Callable
from typing import Any

import lxt.explicit.functional as lxt
import torch
from lxt.explicit.rules import epsilon_lrp, identity
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from xaibench.models.tracing.parts import multi_head_attention


class ThroughLXT(TorchFunctionMode):
    """LRP-epsilon in linear layers, convolutions and sums, AttnLRP's rules for products, softmax and normalisation,
    relevance passed on by GELU. epsilon: of every denominator, added whatever its sign."""

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__()

        def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return lxt.linear_epsilon(x, weight, bias, epsilon)

        def convolution(x: torch.Tensor, *options: Any) -> torch.Tensor:
            return epsilon_lrp(lambda values: functional.conv2d(values, *options), epsilon, x)

        def normalised(x: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> torch.Tensor:
            return lxt.layer_norm_grad_fn.apply(x, weight, bias, eps, epsilon)

        self.instead: dict[Any, Callable[..., Any]] = {
            functional.linear: linear,
            torch.conv2d: convolution,
            functional.layer_norm: normalised,
            functional.gelu: lambda x, approximate: identity(functional.gelu, x),
            functional.softmax: lambda x, dim, **_: lxt.softmax(x, dim),
            torch.matmul: lambda x, y: lxt.matmul(x, y, False, epsilon),
            torch.Tensor.add: lambda x, y: lxt.add2(x, y.expand_as(x), False, epsilon),
            torch.Tensor.mul: lxt.mul2,
        }

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.instead.get(function, function)(*args, **(kwargs or {}))


def attribution(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """Relevance of inputs [B,C,H,W] from the logits of `targets` [B], as large as these."""
    whole = nn.MultiheadAttention.forward
    nn.MultiheadAttention.forward = multi_head_attention  # type: ignore[method-assign,assignment]
    try:
        with ThroughLXT(epsilon), torch.enable_grad():
            inputs = inputs.detach().requires_grad_(True)
            logits = module(inputs)
    finally:
        nn.MultiheadAttention.forward = whole  # type: ignore[method-assign]
    chosen = functional.one_hot(targets, logits.shape[1]).to(logits)
    return torch.autograd.grad(logits, inputs, chosen * logits)[0]
