"""What torch computes in one call, written out in products, sums, scales and softmaxes, each of which becomes a step of
its own.

Attention (`MultiheadAttention`, `scaled_dot_product_attention`) and its like have no rule as a whole. These functions
do the same by its parts; the tracer puts them in place of it. One that returns NotImplemented leaves the call as it is.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q k^T scale + mask) v of [...,T,d]: torch.nn.functional's function of that name, in evaluation.

    Raises ValueError for dropout, which evaluation has none of.
    """
    if dropout_p:
        raise ValueError("attention with dropout in evaluation mode: pass dropout_p=0 unless self.training")
    if enable_gqa:
        key, value = (part.repeat_interleave(query.size(-3) // part.size(-3), -3) for part in (key, value))
    scores = torch.matmul(query * (1 / math.sqrt(query.size(-1)) if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        future = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    if attn_mask is not None:
        closed = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf) if closed else scores + attn_mask
    return torch.matmul(functional.softmax(scores, -1), value)


def multi_head_attention(
    module: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """nn.MultiheadAttention's forward pass of a batch: its output, and the attention [B,T,S] (or [B,heads,T,S]).

    Raises ValueError for what networks on images have no use for: padded keys and added ones.
    """
    if key_padding_mask is not None or module.bias_k is not None or module.add_zero_attn:
        raise ValueError("MultiheadAttention with padded or added keys")
    if not module.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    packed = module.in_proj_weight
    if packed is not None:
        size = module.embed_dim
        parts = [packed[start : start + size] for start in (0, size, 2 * size)]
        biases: list[Any] = [None] * 3
        if module.in_proj_bias is not None:
            biases = [module.in_proj_bias[start : start + size] for start in (0, size, 2 * size)]
    else:
        parts = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
    heads = [
        functional.linear(x, weight, bias).unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), parts, biases)
    ]
    scores = torch.matmul(heads[0] * (1 / math.sqrt(module.head_dim)), heads[1].transpose(-2, -1))
    if attn_mask is not None:
        closed = attn_mask.dtype == torch.bool
        if attn_mask.ndim == 3:  # [B heads,T,S]
            attn_mask = attn_mask.unflatten(0, (-1, module.num_heads))
        scores = scores.masked_fill(attn_mask, -math.inf) if closed else scores + attn_mask
    attention = functional.softmax(scores, -1)
    mixed = torch.matmul(attention, heads[2]).transpose(1, 2).flatten(2)
    output = functional.linear(mixed, module.out_proj.weight, module.out_proj.bias)
    if not module.batch_first:
        output = output.transpose(0, 1)
    weights = (attention.mean(1) if average_attn_weights else attention) if need_weights else None
    return output, weights


def gated(values: Any, dim: int = -1) -> Any:
    """torch.nn.functional.glu: the first half times the sigmoid of the second."""
    first, second = values.chunk(2, dim)
    return first * torch.sigmoid(second)


def product_added(values: Any, first: Any, second: Any, *, value: float = 1) -> Any:
    """torch.addcmul: values + value * first * second."""
    product = first * second
    return values + (product if value == 1 else product * value)


def euclidean_norm(values: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    """torch.norm of p=2 along dimensions, with a derivative of 0 where all of the values are 0. Others stay as
    they are."""
    if p not in (2, "fro") or dim is None or more:
        return NotImplemented
    # A root has no finite derivative at 0: the least number that there is stands below it.
    return (values.square().sum(dim=dim, keepdim=keepdim) + torch.finfo(values.dtype).tiny).sqrt()


class Largest(NamedTuple):
    """What torch.max along a dimension returns."""

    values: Any
    indices: Any


def largest(values: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """torch.max along a dimension, as `amax` (of several that are the largest each gets its share of a derivative, and
    not the first one all). Without a dimension, or of two tensors, it stays as it is."""
    if not isinstance(dim, int):
        return NotImplemented
    return Largest(values.amax(dim, keepdim), values.argmax(dim, keepdim))


def put(values: torch.Tensor, place: Any, value: Any) -> torch.Tensor:
    """A copy of `values` with `value` at a place: x[place] = value, out of place."""
    found = values.clone()
    found[place] = value
    return found


# What is called -> the same by its parts.
PARTS: dict[Any, Callable[..., Any]] = {
    functional.scaled_dot_product_attention: scaled_dot_product_attention,
    functional.glu: gated,
    torch.addcmul: product_added,
    "addcmul": product_added,
    torch.norm: euclidean_norm,
    "norm": euclidean_norm,
    torch.max: largest,
    "max": largest,
}
