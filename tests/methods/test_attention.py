"""Methods of attention beside a transformer written out with loops, in double precision."""

import math
import weakref

import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from tests.methods.nets import VGGLike, classifier, seeded, transformer
from xaibench.errors import Refusal
from xaibench.methods.attention.attention import AttentionGradient, AttentionRollout, RawAttention
from xaibench.methods.context import Context
from xaibench.models.attention import Attention, watched

TARGETS = torch.tensor([3, 0, 4])


class Plain(nn.Module):
    """Of torch's own encoder layers, the tokens of a sequence before the samples or behind; no class token: the mean
    over all tokens is read."""

    def __init__(self, batch_first: bool, norm_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=norm_first) for _ in range(3)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, inputs):
        tokens = self.patches(inputs).flatten(2).permute((0, 2, 1) if self.batch_first else (2, 0, 1))
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1 if self.batch_first else 0))


def torchvisions():
    """The class of vit_b_16, small, with a head that is not all zeros as torchvision leaves it."""
    torch.manual_seed(1)
    module = VisionTransformer(16, 4, 3, 2, 8, 16, num_classes=5)
    nn.init.normal_(module.heads.head.weight)
    return module


NETWORKS = {
    "smallvit": transformer,
    "torchvision": torchvisions,
    "encoder_layers": lambda: Plain(batch_first=True, norm_first=True),
    "tokens_first": lambda: Plain(batch_first=False, norm_first=False),
}


@pytest.fixture(params=NETWORKS, scope="module")
def network(request):
    torch.manual_seed(0)
    return classifier(steep(NETWORKS[request.param]()), batch_size=2)


@pytest.fixture(scope="module")
def written(network):
    """Of each of three images what `slow` finds."""
    return [slow(network, image, target) for image, target in zip(seeded(3), TARGETS)]


def steep(module):
    """Weights so large that attention is far from uniform."""
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            part.in_proj_weight.data *= 3
            nn.init.normal_(part.in_proj_bias)
    return module


def written_out(module, tokens):
    """The attention of one sample's tokens [n,D], by loops over heads and tokens -> maps [heads,n,n], output [n,D]."""
    count, width = tokens.shape
    each = width // module.num_heads
    query, key, value = (tokens @ module.in_proj_weight.T + module.in_proj_bias).split(width, 1)
    maps = []
    for head in range(module.num_heads):
        part = slice(head * each, (head + 1) * each)
        rows = []
        for token in range(count):
            fits = torch.stack([query[token, part] @ key[other, part] for other in range(count)]) / math.sqrt(each)
            rows.append(fits.exp() / fits.exp().sum())
        maps.append(torch.stack(rows))
    maps = torch.stack(maps)
    mixed = torch.cat([maps[head] @ values for head, values in enumerate(value.split(each, 1))], 1)
    return maps, mixed @ module.out_proj.weight.T + module.out_proj.bias


def slow(network, image, target):
    """Every layer's attention of one image and the gradient there of the target's logit: two lists of [heads,n,n]."""
    maps, handles = [], []

    def replace(module, arguments, output):
        tokens = arguments[0].squeeze(0 if module.batch_first else 1)
        found, out = written_out(module, tokens)
        maps.append(found)
        return out.unsqueeze(0 if module.batch_first else 1), None

    for module in network.module.modules():
        if isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_hook(replace))
    logits = network.module(image[None].clone().requires_grad_())
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(logits, network.module(image[None]), rtol=1e-9, atol=1e-9)
    return [one.detach() for one in maps], torch.autograd.grad(logits[0, target], maps)


def on_image(relevance):
    """The row that is read of [n,n], its patches 4x4 enlarged to the image."""
    row = relevance[0, 1:] if len(relevance) == 17 else relevance.mean(0)
    return nn.functional.interpolate(row.view(1, 1, 4, 4), size=(16, 16), mode="bilinear")


def of(method, network, inputs):
    method.check(network)
    return method.attribute(network, inputs, TARGETS, Context())


def test_maps_and_their_gradients_are_those_of_an_attention_written_out(network, written):
    inputs = seeded(3)
    with watched(network) as seen:
        logits = network.module(inputs.clone().requires_grad_())
    gradients = torch.autograd.grad(network.select(logits, TARGETS).sum(), [one.output for one in seen])
    for row, (maps, expected) in enumerate(written):
        assert len(maps) == len(seen) and all(found.std() > 0.01 for found in maps)
        for layer, attention in enumerate(seen):
            torch.testing.assert_close(attention.map()[row], maps[layer], rtol=1e-9, atol=1e-12)
            found = attention.gradient(gradients[layer])[row]
            torch.testing.assert_close(found, expected[layer], rtol=1e-8, atol=1e-12)


def test_maps_are_what_torchs_module_returns(network):
    given = []
    handles = [
        module.register_forward_hook(lambda module, arguments, output: given.append((module, arguments[0])))
        for module in network.module.modules()
        if isinstance(module, nn.MultiheadAttention)
    ]
    with torch.no_grad(), watched(network) as seen:
        network.module(seeded(3))
    for handle in handles:
        handle.remove()
    for attention, (module, tokens) in zip(seen, given, strict=True):
        _, maps = module(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)
        torch.testing.assert_close(attention.map(), maps, rtol=1e-9, atol=1e-12)


def test_attention_is_the_last_layers(network, written):
    expected = torch.cat([on_image(maps[-1].mean(0)) for maps, _ in written])
    torch.testing.assert_close(of(RawAttention(), network, seeded(3)), expected, rtol=1e-9, atol=1e-12)


def test_rollout_multiplies_the_layers_from_first_to_last(network, written):
    """Abnar and Zuidema 2020, eq. 1, with whole matrices; rows stay shares of 1."""
    expected = []
    for maps, _ in written:
        rollout = torch.eye(maps[0].shape[1], dtype=torch.float64)
        for attention in maps:
            rollout = (0.5 * attention.mean(0) + 0.5 * torch.eye(len(rollout))) @ rollout
        torch.testing.assert_close(rollout.sum(1), torch.ones(len(rollout)).double())
        expected.append(on_image(rollout))
    torch.testing.assert_close(of(AttentionRollout(), network, seeded(3)), torch.cat(expected), rtol=1e-9, atol=1e-12)


def test_attention_gradient_adds_what_each_layer_mixes(network, written):
    """Chefer et al. 2021 (ICCV), eq. 5 and 6, element by element of whole matrices."""
    expected = []
    for maps, gradients in written:
        count = maps[0].shape[1]
        relevance = torch.eye(count, dtype=torch.float64)
        for attention, gradient in zip(maps, gradients):
            mixed = torch.zeros(count, count, dtype=torch.float64)
            products = [one * other for one, other in zip(attention.flatten(1).T, gradient.flatten(1).T)]
            for place, heads in enumerate(products):
                kept = [float(product) for product in heads if product > 0]
                mixed.view(-1)[place] = sum(kept) / len(heads)
            relevance = relevance + mixed @ relevance
        expected.append(on_image(relevance))
    found = of(AttentionGradient(), network, seeded(3))
    assert found.std() > 1e-6
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-8, atol=1e-12)


class Others(nn.Module):
    """Attention by a query that is no token, with a mask, to a token that is none, or of more tokens than patches."""

    def __init__(self, how: str, **options) -> None:
        super().__init__()
        self.how, self.patches = how, nn.Conv2d(3, 8, 4, stride=4)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True, **options), nn.Linear(8, 5)

    def forward(self, inputs):
        tokens = self.patches(inputs).flatten(2).transpose(1, 2)
        if self.how == "pooled":
            query = tokens.mean(1, keepdim=True)
            return self.head(self.attention(query, tokens, tokens)[0][:, 0])
        mask = torch.zeros(16, 16, dtype=tokens.dtype) if self.how == "mask" else None
        tokens = tokens.repeat(1, 3, 1) if self.how == "many" else tokens
        return self.head(self.attention(tokens, tokens, tokens, attn_mask=mask)[0].mean(1))


@pytest.mark.parametrize("method", [RawAttention(), AttentionRollout(), AttentionGradient()])
@pytest.mark.parametrize(
    ("module", "why"),
    [
        (VGGLike, "has no attention"),
        (lambda: Others("pooled"), "to others than themselves"),
        (lambda: Others("mask"), "a mask"),
        (lambda: Others("zero", add_zero_attn=True), "a token that is none"),
        (lambda: Others("many"), "attends to 48 tokens, expected"),
    ],
)
def test_what_is_no_attention_of_patches_is_refused(module, why, method):
    network = classifier(module())
    with pytest.raises(Refusal, match=why):
        method.check(network)
    assert not any(part._forward_hooks for part in network.module.modules())


def test_no_map_of_attention_outlives_its_layer(monkeypatch):
    """Maps [B,heads,n,n] are made a layer at a time, of no more inputs than a batch has."""
    made, network, whole = [], classifier(transformer(), batch_size=2), Attention.map

    def counted(attention):
        assert not any(reference() is not None for _, reference in made)
        found = whole(attention)
        made.append((len(found), weakref.ref(found)))
        return found

    monkeypatch.setattr(Attention, "map", counted)
    for method in (RawAttention(), AttentionRollout(), AttentionGradient()):
        of(method, network, seeded(3))
    assert {size for size, _ in made} == {2, 1} and len(made) == 2 * (1 + 2 + 2)
