"""Methods that read a layer, where the layer returns tokens: the grid of the patches, class activation maps, IBA."""

import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from tests.methods.helpers import fitted
from tests.methods.nets import SIZE, classifier, seeded, transformer
from xaibench.errors import Refusal
from xaibench.methods.bottleneck._bottleneck import Bottleneck, bits_per_pixel, blur
from xaibench.methods.bottleneck.iba import IBA
from xaibench.methods.bottleneck.iba_readout import IBAReadout
from xaibench.methods.bottleneck.input_iba import InputIBA
from xaibench.methods.cam.gradcam import CAM, GradCAM
from xaibench.methods.context import Context
from xaibench.methods.counterfactual.concept import Concept
from xaibench.methods.gradients.semantic_attribution import SemanticAttribution
from xaibench.models.cut import Cut, grid_shape
from xaibench.models.relus import last_conv
from xaibench.models.tokens import Grid, feature_maps, token_grid
from xaibench.rng import sample_generators

TARGETS = torch.tensor([3, 0, 4])


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (197, (224, 224), Grid(1, 14, 14)),  # ViT-B/16
        (50, (224, 224), Grid(1, 7, 7)),  # ViT-B/32
        (198, (224, 224), Grid(2, 14, 14)),  # DeiT, with a token of distillation
        (261, (224, 224), Grid(5, 16, 16)),  # DINOv2/14 with four registers
        (1370, (518, 518), Grid(1, 37, 37)),  # ViT-H/14 of torchvision at 518 pixels
        (49, (224, 224), Grid(0, 7, 7)),
        (65, (64, 64), Grid(1, 8, 8)),
        (33, (32, 64), Grid(1, 4, 8)),
        (80, (64, 64), None),
        (77, (64, 64), None),
    ],
)
def test_the_grid_is_found_from_the_patch_size(count, size, grid):
    assert token_grid(count, size) == grid


def test_patches_lie_row_by_row_behind_the_class_token():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2)[..., 0, 0]  # the first pixel of each patch
    tokens = torch.cat([torch.full((1, 1, 1), -1.0), patches.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(feature_maps(tokens, (4, 4)), patches)
    assert torch.equal(Grid(1, 2, 2).replaced(tokens, 10 * patches)[0, :, 0], torch.tensor([-1.0, 0, 20, 80, 100]))
    assert feature_maps(images, (4, 4)) is images
    with pytest.raises(ValueError, match=r"\[1, 40, 2\]"):
        feature_maps(torch.zeros(1, 40, 2), (16, 16))


def test_torchvisions_transformers_have_the_alias():
    """Its vit_b_16 has twelve such blocks."""
    module = VisionTransformer(16, 4, 3, 2, 8, 16, num_classes=5)
    nn.init.normal_(module.heads.head.weight)
    assert last_conv(module) == "encoder.layers.encoder_layer_2.ln_1"
    network = classifier(
        module, layers={"last_conv": last_conv(module), "bottleneck": "encoder.layers.encoder_layer_0"}
    )
    assert grid_shape(network, "last_conv") == (8, 4, 4) == grid_shape(network, "bottleneck")
    for method in (GradCAM(), IBA(steps=2, copies=2)):
        method.check(network)
        context = Context(sample_generators(0, "maps", range(3)), fitted(method, network) if method.fit else {})
        maps = method.attribute(network, seeded(3), TARGETS, context)
        assert maps.shape == (3, 1, *SIZE[1:]) and all(found.std() > 0 for found in maps)
    assert Cut(network, "bottleneck", seeded(1)).separable


@pytest.mark.parametrize("layer", ["norm", "blocks.1"])
def test_gradcam_behind_the_last_attention_is_refused(layer):
    """There the class token has the whole gradient; just before, every patch has some."""
    network = classifier(transformer(), layers={"last_conv": "blocks.1.norm1"})
    with pytest.raises(Refusal, match="reads no patch behind layer"):
        GradCAM(layer).check(network)
    GradCAM().check(network)
    nn.init.zeros_(network.module.head.weight)  # as torchvision leaves it before training: no gradient anywhere
    GradCAM(layer).check(network)
    network.module.head.reset_parameters()
    assert GradCAM()._features(network, seeded(3), TARGETS)[1].abs().amax(1).min() > 0


def test_cam_serves_the_mean_over_tokens_and_no_class_token():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Flatten(2), Transposed())
            self.head = nn.Linear(8, 5)

        def forward(self, inputs):
            return self.head(self.tokens(inputs).mean(1))

    network, inputs = classifier(Mean(), layers={"last_conv": "tokens"}), seeded(3)
    CAM().check(network)
    maps = CAM().attribute(network, inputs, TARGETS, Context())
    tokens, head = network.module.tokens(inputs), network.module.head
    expected = torch.einsum("bnc,bc->bn", tokens, head.weight[TARGETS]).view(3, 1, 4, 4)
    expected = nn.functional.interpolate(expected, size=SIZE[1:], mode="bilinear")
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(Refusal, match="needs global average pooling"):
        CAM("blocks.1.norm1").check(classifier(transformer()))


class Transposed(nn.Module):
    def forward(self, maps):
        return maps.transpose(1, 2)


class Twin(nn.Module):
    """A convolution, and behind it linear maps of each place and a mean over places: of maps, or the same of tokens."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tokens = tokens
        self.features = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.GELU())
        self.layer = nn.Sequential(nn.Flatten(2), Transposed()) if tokens else nn.Identity()
        self.place, self.head = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, inputs):
        values = self.layer(self.features(inputs))
        values = values if self.tokens else values.permute(0, 2, 3, 1).flatten(1, 2)
        return self.head(self.place(values).tanh().mean(1))


class DrawnAsMaps(Bottleneck):
    """What its tokens draw is laid out as feature maps draw it."""

    def sample(self, noise, copies, generators):
        as_maps = [self.grid.maps(tensor.expand_as(noise)) for tensor in (self.features, self.mean, self.std, noise)]
        drawn = Bottleneck(as_maps[0], as_maps[1], as_maps[2]).sample(as_maps[3], copies, generators)
        return drawn.flatten(2).transpose(1, 2)


def test_iba_of_tokens_is_that_of_the_feature_maps_that_they_are():
    maps = []
    for tokens in (False, True):
        network = classifier(Twin(tokens), layers={"bottleneck": "layer"})
        method = IBA(steps=8, copies=3)
        method.kind = DrawnAsMaps if tokens else Bottleneck
        context = Context(sample_generators(0, "maps", range(3)), fitted(method, network))
        maps.append(method.attribute(network, seeded(3), TARGETS, context))
    assert maps[0].std() > 0
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-6, atol=1e-9 * float(maps[0].max()))


def test_nothing_passes_beside_the_mask_in_the_class_token():
    """Behind the first block the class token knows of the image: with noise at the patches alone it would tell."""
    network = classifier(transformer(), layers={"bottleneck": "blocks.0"})
    method, inputs = IBA(), seeded(2)
    cut = Cut(network, "bottleneck", inputs[:1])
    features = cut.before(inputs)
    bottleneck = method.bottleneck(features.values, fitted(method, network), SIZE[1:])
    noise = torch.ones_like(features.values)

    def logits(noise):
        z = bottleneck.sample(noise, 1, [*sample_generators(0, "iba", [0]), *sample_generators(0, "iba", [0])])
        return cut.behind(z, features)

    torch.testing.assert_close(*logits(noise), rtol=1e-12, atol=1e-12)
    noise[:, 0] = 0
    one, other = logits(noise)
    assert (one - other).abs().max() > 1e-3


def test_the_mask_is_smoothed_over_the_places_of_patches_and_the_map_shows_their_bits():
    tokens, grid = torch.rand(2, 17, 3, dtype=torch.float64), Grid(1, 4, 4)
    smoothed = blur(tokens, 1.0, grid)
    assert torch.equal(smoothed[:, 0], tokens[:, 0])
    places = tokens[:, 1:].reshape(2, 4, 4, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(smoothed[:, 1:].reshape(2, 4, 4, 3).permute(0, 3, 1, 2), blur(places, 1.0))
    assert blur(tokens, 0, grid) is tokens
    bits = bits_per_pixel(tokens, (16, 16))
    torch.testing.assert_close(bits, bits_per_pixel(places, (16, 16)))
    torch.testing.assert_close(bits.sum((1, 2, 3)) * torch.tensor(2.0).log(), tokens[:, 1:].sum((1, 2)))


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (IBAReadout(layer="bottleneck"), "returns tokens"),
        (InputIBA(layer="bottleneck"), "returns tokens"),
        (Concept(), "has no feature maps"),
        (SemanticAttribution(), "has no feature maps"),
    ],
)
def test_what_reads_maps_alone_refuses_tokens(method, why):
    network = classifier(transformer(), layers={"bottleneck": "blocks.0", "last_conv": "blocks.1.norm1"})
    with pytest.raises(Refusal, match=why):
        method.check(network)
