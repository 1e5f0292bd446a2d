"""What a transformer's attentions do in a pass: looked at from outside, their modules are left as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import Refusal
from .classifier import Classifier


@dataclass(frozen=True)
class Attention:
    """One self-attention of a pass: its module, the tokens [B,n,D] that it read, and its output as the module gave it.

    Nothing of size n x n is kept: `map` and `gradient` compute it when they are asked, a layer at a time.
    """

    module: nn.MultiheadAttention
    tokens: torch.Tensor
    output: torch.Tensor

    def map(self) -> torch.Tensor:
        """How much of which token (last axis) each token takes in, per head: [B,heads,n,n], rows sum to 1."""
        query, key = self._projected(0), self._projected(1)
        return (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(3)

    def gradient(self, at_output: torch.Tensor) -> torch.Tensor:
        """The gradient at the map [B,heads,n,n] that belongs to a gradient at the output, laid out like that.

        The output is map @ values per head, and then linear: no more of the network has to be known."""
        at_heads = self._by_sample(at_output) @ self.module.out_proj.weight
        return self._heads(at_heads) @ self._projected(2).transpose(2, 3)

    def _projected(self, which: int) -> torch.Tensor:
        """The tokens' queries, keys or values (0, 1, 2) [B,heads,n,D/heads]."""
        weight = cast(torch.Tensor, self.module.in_proj_weight).chunk(3)[which]
        bias = None if self.module.in_proj_bias is None else self.module.in_proj_bias.chunk(3)[which]
        return self._heads(F.linear(self.tokens, weight, bias))

    def _heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(2, (self.module.num_heads, -1)).transpose(1, 2)

    def _by_sample(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if self.module.batch_first else tokens.transpose(0, 1)


@contextmanager
def watched(classifier: Classifier) -> Iterator[list[Attention]]:
    """The attentions (torch.nn.MultiheadAttention) of the passes that are made meanwhile, in the order of their calls.

    Raises Refusal where one is no plain attention of an image's tokens to each other.
    """
    seen: list[Attention] = []

    def look(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        attention = cast(nn.MultiheadAttention, module)
        names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights")
        given = dict(zip(names, arguments)) | options
        tokens = given["query"]
        if tokens is not given["key"] or tokens is not given["value"]:
            raise Refusal(f"{classifier.name} has an attention of tokens to others than themselves")
        if given.get("key_padding_mask") is not None or given.get("attn_mask") is not None:
            raise Refusal(f"{classifier.name} has an attention with a mask")
        if attention.bias_k is not None or attention.add_zero_attn:
            raise Refusal(f"{classifier.name} has an attention to a token that is none (bias_k or add_zero_attn)")
        rows = tokens if attention.batch_first else tokens.transpose(0, 1)
        seen.append(Attention(attention, rows.detach(), output[0]))

    modules = [module for module in classifier.module.modules() if isinstance(module, nn.MultiheadAttention)]
    handles = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
