"""The bundled transformer: its size, its parts, and what its checkpoint really reaches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import xaibench.models
from xaibench.build import build
from xaibench.datasets.shapes import SPLITS, draw
from xaibench.models.classifier import Classifier
from xaibench.models.cut import Cut, grid_shape
from xaibench.models.preprocessing import Preprocessing
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


@torch.no_grad()
def test_the_checkpoint_reads_the_object_and_nothing_else():
    file = Path(xaibench.models.__file__).parent / "checkpoints" / "smallvit_object.safetensors"
    assert file.stat().st_size < 4_000_000
    network = SmallViT().eval()
    network.load_state_dict(load_file(file))
    drawings = [draw(0, position) for position in SPLITS["test"][:300]]
    labels = torch.tensor([drawing.object_label for drawing in drawings])
    shares = []
    for images in ([drawing.image for drawing in drawings], [drawing.background for drawing in drawings]):
        inputs = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3).normalise(torch.from_numpy(np.stack(images)) / 255)
        shares.append((network(inputs).argmax(1) == labels).float().mean().item())
    assert shares[0] >= 0.95 and shares[1] <= 0.2
