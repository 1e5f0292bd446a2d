"""The bundled network: its size, its modules, and what its two checkpoints really reach."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

import xaibench.models
from xaibench.datasets.shapes import SPLITS, draw
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.smallcnn import SmallCNN

CHECKPOINTS = Path(xaibench.models.__file__).parent / "checkpoints"
CONFIG = OmegaConf.load(Path(__file__).parents[2] / "conf" / "model" / "smallcnn.yaml")
COUNT = 300


@pytest.fixture(scope="module")
def drawings():
    return [draw(0, position) for position in SPLITS["test"][:COUNT]]


def bundled(task: str) -> SmallCNN:
    model = SmallCNN()
    model.load_state_dict(load_file(CHECKPOINTS / f"smallcnn_{task}.safetensors"))
    return model.eval()


@torch.no_grad()
def accuracy(model: SmallCNN, images: list[np.ndarray], labels: list[int]) -> float:
    preprocessing = Preprocessing(mean=tuple(CONFIG.mean), std=tuple(CONFIG.std))
    inputs = preprocessing.normalise(torch.from_numpy(np.stack(images)).float() / 255)
    return (model(inputs).argmax(1) == torch.tensor(labels)).float().mean().item()


def test_a_forward_pass_takes_at_most_15_million_multiply_adds():
    model, counted = SmallCNN(), []

    def count(module, inputs, output):
        per_output = module.weight[0].numel()
        counted.append(per_output * output.numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 64, 64))
    assert sum(counted) == 12_096_128 <= 15_000_000


def test_every_relu_is_a_module_used_once_and_not_in_place():
    model, calls = SmallCNN(), []
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    for relu in relus:
        assert not relu.inplace
        relu.register_forward_hook(lambda module, inputs, output: calls.append(module))
    model(torch.zeros(1, 3, 64, 64))
    assert calls == relus


def test_last_conv_is_the_rectified_map_before_pooling():
    model, seen = SmallCNN(), []
    layer = model.get_submodule(CONFIG.layers.last_conv)
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.pool.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(torch.randn(2, 3, 64, 64))
    assert isinstance(layer, nn.ReLU) and seen[0].shape == (2, 64, 8, 8)
    assert seen[0] is seen[1]


def test_num_classes_sets_the_outputs():
    assert SmallCNN(num_classes=3)(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_the_object_checkpoint_reads_the_object_and_nothing_else(drawings):
    model, labels = bundled("object"), [d.object_label for d in drawings]
    assert accuracy(model, [d.image for d in drawings], labels) >= 0.95
    assert accuracy(model, [d.background for d in drawings], labels) <= 0.2


def test_the_scene_checkpoint_reads_the_scene(drawings):
    model, labels = bundled("scene"), [d.scene_label for d in drawings]
    assert accuracy(model, [d.image for d in drawings], labels) >= 0.95
    assert accuracy(model, [d.background for d in drawings], labels) >= 0.95


@pytest.mark.parametrize("task", ["object", "scene"])
def test_a_checkpoint_is_small(task):
    assert (CHECKPOINTS / f"smallcnn_{task}.safetensors").stat().st_size < 500_000
