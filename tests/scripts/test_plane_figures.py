"""scripts/plane_figures.py draws the cached maps, x1 to the right and x2 upwards."""

import importlib.util
from pathlib import Path

import pytest
import torch

from xaibench.datasets.planes import Xor

SCRIPT = Path(__file__).parents[2] / "scripts" / "plane_figures.py"


@pytest.fixture
def figures():
    spec = importlib.util.spec_from_file_location("plane_figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_have_x1_to_the_right_and_x2_upwards(here, figures):
    few = ("model=xor_net", "model.weights=random", "dataset=xor", "dataset.split=grid:5")
    figure = figures.draw(few, [("input",), ("oracle",)])
    data, x1, oracle_1, network, x2, *_, gap = figure.axes[0], *figure.axes[1:6], figure.axes[7]
    axis = torch.linspace(0, 1, 5)
    for axes, expected in ((x1, axis.expand(5, 5)), (x2, axis.expand(5, 5).T)):
        (picture,) = axes.images
        assert picture.origin == "lower" and picture.get_extent() == [0, 1, 0, 1]
        assert torch.from_numpy(picture.get_array().data).equal(expected.double())
        assert picture.get_clim() == (-1, 1)
    assert torch.from_numpy(oracle_1.images[0].get_array().data).equal(
        2 * (axis.double() - 0.5).abs()[:, None].expand(5, 5)
    )
    assert torch.from_numpy(gap.images[0].get_array().data).equal((axis - axis[:, None]).abs().double())
    assert len(data.collections[0].get_offsets()) == 1000 and network.images[0].get_array().shape == (5, 5)
    assert len(list(here.glob("cache/maps/*/*/*/*/manifest.json"))) == 2 and len(Xor("grid:5")) == 25
