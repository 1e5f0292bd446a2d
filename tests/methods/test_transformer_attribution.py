"""The relevance of attention beside a backward pass written out with matrices of contributions."""

import pytest
import torch
from torch import nn

from tests.methods.nets import VGGLike, classifier, seeded, transformer
from tests.methods.test_attention import TARGETS, Others, on_image, slow, steep, torchvisions
from xaibench.errors import Refusal
from xaibench.methods.attention.transformer_attribution import TransformerAttribution
from xaibench.methods.context import Context

# Norm, attention, norm, two linear layers of each block; the norm and the linear layer behind them.
PARTS = {
    "smallvit": lambda net: (
        [(block.norm1, block.attention, block.norm2, block.mlp[0], block.mlp[2]) for block in net.blocks],
        (net.norm, net.head),
    ),
    "torchvision": lambda net: (
        [(block.ln_1, block.self_attention, block.ln_2, block.mlp[0], block.mlp[3]) for block in net.encoder.layers],
        (net.encoder.ln, net.heads.head),
    ),
}
FIRST = {"smallvit": "blocks.0.norm1", "torchvision": "encoder.layers.encoder_layer_0.ln_1"}


def through_linear(inputs, weight, relevance):
    """Of tokens [n,D] through weights [K,D]: the contributions above 0 alone, output by output, without the bias; an
    output that has none hands on nothing."""
    found = torch.zeros_like(inputs)
    for token in range(len(inputs)):
        contributions = (inputs[token] * weight).clamp(min=0)  # [K,D]
        total = contributions.sum(1, keepdim=True)
        found[token] = ((contributions / total).nan_to_num(0) * relevance[token, :, None]).sum(0)
    return found


def through_sum(one, other, relevance):
    """Two shares in proportion, then each scaled to its size's part of the whole relevance (eq. 8 to 10)."""
    shares = [x / (one + other) * relevance for x in (one, other)]
    sizes = [share.sum().abs() for share in shares]
    return [share / share.sum() * size / sum(sizes) * relevance.sum() for share, size in zip(shares, sizes)]


def through_product(left, right, relevance):
    """Of left [n,k] @ right [k,m]: every product's share of its sum, half of it to either factor."""
    found = torch.zeros_like(left), torch.zeros_like(right)
    products = torch.einsum("nk,km->nkm", left, right)
    shares = products / products.sum(1, keepdim=True) * relevance[:, None] / 2
    found[0].add_(shares.sum(2))
    found[1].add_(shares.sum(0))
    return found


def relevances(blocks, end, tokens, target):
    """R_A of every block, [heads,n,n], from 1 at the target, for tokens [n,D] before the first block."""
    passes = []
    for norm1, attention, norm2, first, second in blocks:
        normed, heads = norm1(tokens), attention.num_heads
        query, key, value = (normed @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, 1)
        split = [x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (query, key, value)]
        maps = torch.stack([(q @ k.T / k.shape[1] ** 0.5).softmax(1) for q, k in zip(split[0], split[1])])
        mixed = torch.cat([a @ v for a, v in zip(maps, split[2])], 1)
        attended = attention.out_proj(mixed)
        between = tokens + attended
        hidden = nn.functional.gelu(first(norm2(between)))
        passes.append((tokens, normed, split, maps, mixed, attended, between, norm2(between), hidden, second(hidden)))
        tokens = between + second(hidden)
    normed, head = end[0](tokens), end[1]
    wanted = torch.zeros(1, len(head.weight), dtype=tokens.dtype)
    wanted[0, target] = 1
    relevance = torch.zeros_like(tokens)
    relevance[:1] = through_linear(normed[:1], head.weight, wanted)
    found = []
    for (_, attention, _, first, second), seen in zip(reversed(blocks), reversed(passes)):
        tokens, normed, split, maps, mixed, attended, between, normed2, hidden, out = seen
        straight, branch = through_sum(between, out, relevance)
        branch = through_linear(normed2, first.weight, through_linear(hidden, second.weight, branch))
        straight, branch = through_sum(tokens, attended, straight + branch)
        branch = through_linear(mixed, attention.out_proj.weight, branch)
        at_maps, at_parts = [], []
        for head, part in enumerate(branch.chunk(attention.num_heads, 1)):
            at_map, at_value = through_product(maps[head], split[2][head], part)
            scores = through_product(split[0][head], split[1][head].T, at_map)
            at_maps.append(at_map)
            at_parts.append((scores[0], scores[1].T, at_value))
        found.append(torch.stack(at_maps))
        by_projection = torch.cat([torch.cat(parts, 1) for parts in zip(*at_parts)], 1)
        relevance = straight + through_linear(normed, attention.in_proj_weight, by_projection)
    return found[::-1]


@pytest.mark.parametrize("name", PARTS)
def test_maps_are_those_of_a_pass_written_out(name):
    network = classifier(steep({"smallvit": transformer, "torchvision": torchvisions}[name]()), batch_size=2)
    blocks, end = PARTS[name](network.module)
    method, inputs, expected = TransformerAttribution(), seeded(3), []
    tokens = []
    first = network.module.get_submodule(FIRST[name])
    handle = first.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))
    network.logits(inputs)
    handle.remove()
    for image, of_image, target in zip(inputs, torch.cat(tokens), TARGETS):
        with torch.no_grad():
            relevance = relevances(blocks, end, of_image, target)
        rollout = torch.eye(17, dtype=torch.float64)
        for gradient, at_map in zip(slow(network, image, target)[1], relevance):
            rollout = rollout + (gradient * at_map).clamp(min=0).mean(0) @ rollout
        expected.append(on_image(rollout))
    method.check(network)
    maps = method.attribute(network, inputs, TARGETS, Context())
    assert maps.std() > 1e-6
    torch.testing.assert_close(maps, torch.cat(expected), rtol=1e-6, atol=1e-9 * float(maps.max()))


class Written(nn.Module):
    """The same attention as a user writes it."""

    def __init__(self, attention):
        super().__init__()
        self.heads, self.out, self.projections = attention.num_heads, attention.out_proj, nn.Linear(16, 48)
        self.projections.weight, self.projections.bias = attention.in_proj_weight, attention.in_proj_bias

    def forward(self, tokens, *_, **__):
        parts = self.projections(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (parts[0] @ parts[1].transpose(-2, -1) / parts[0].shape[-1] ** 0.5).softmax(-1)
        return self.out((attention @ parts[2]).transpose(1, 2).flatten(2)), attention


def test_attention_that_is_written_out_is_served_alike():
    maps = []
    for written in (False, True):
        network = classifier(steep(transformer()))
        for block in network.module.blocks if written else ():
            block.attention = Written(block.attention)
        TransformerAttribution().check(network)
        maps.append(TransformerAttribution().attribute(network, seeded(3), TARGETS, Context()))
    torch.testing.assert_close(*maps, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("module", "why"), [(VGGLike, "has no attention"), (lambda: Others("many"), "48 tokens")])
def test_what_is_no_attention_of_patches_is_refused(module, why):
    with pytest.raises(Refusal, match=why):
        TransformerAttribution().check(classifier(module()))
