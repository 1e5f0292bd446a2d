"""The transformer of our own: its size and its parts."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from xaibench.build import build
from xaibench.models.classifier import Classifier
from xaibench.models.cut import Cut, grid_shape
from xaibench.models.smallvit import SmallViT

CONFIGS = Path(__file__).parents[2] / "conf" / "model"


@pytest.mark.parametrize(("name", "side"), [("smallvit", 64), ("smallvit_cifar", 32)])
def test_its_yaml_names_layers_of_8x8_patches_that_it_can_be_cut_at(name, side):
    spec = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=False)
    parts = {key: spec[key] for key in ("_target_", "num_classes", "width", "depth", "heads", "side", "patch")}
    network = Classifier(name, build(parts, "model"), (3, side, side), layers=spec["layers"])
    assert network.logits(network.probe(2)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in network.module.parameters()) == 442_330
    for layer in spec["layers"]:
        assert grid_shape(network, layer) == (96, 8, 8)
        assert Cut(network, layer, network.blank).separable
    blocks = list(network.module.blocks)
    assert network.layer("last_conv") is blocks[-1].norm1 and network.layer("bottleneck") is blocks[1]


def test_a_token_stands_for_its_patch_and_the_class_token_for_none():
    """Grey but for one patch: of the tokens before the first block those far from it, and the class token, stay."""
    torch.manual_seed(0)
    network = SmallViT(width=16, depth=1, heads=2).eval()
    images = torch.zeros(2, 3, 64, 64)
    images[1, :, 24:32, 40:48] = 1
    with torch.no_grad():
        tokens = network.embedding(network.stem(images).flatten(2).transpose(1, 2))
    changed = (tokens[1] - tokens[0]).abs().amax(1)
    assert changed[0] == 0
    grid = changed[1:].view(8, 8)
    rows, columns = (grid > 0).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 5, 4, 7)


@pytest.mark.parametrize(("side", "patch"), [(64, 3), (66, 4), (64, 16)])
def test_patches_that_do_not_fill_the_image_are_refused(side, patch):
    with pytest.raises(ValueError, match=rf"patch={patch}: expected one of \[2, 4, 8\] that divides side={side}"):
        SmallViT(side=side, patch=patch)
