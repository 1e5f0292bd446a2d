"""A network with a scalar output on a data set with real-valued labels, from the command line to the maps."""

import pandas as pd
import pytest
import torch

from tests.engine.helpers import prepared
from xaibench.methods.bottleneck.iba import IBA
from xaibench.methods.context import Context
from xaibench.rng import sample_generators

CODE = """
import torch
from torch import nn
from xaibench.datasets.base import Dataset, Example

class Net(nn.Module):
    '''The left half raises the output, the right half lowers it.'''
    def __init__(self, outputs: int = 1):
        super().__init__()
        self.outputs = outputs
        self.features = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.features.weight)
        nn.init.zeros_(self.features.bias)
    def forward(self, x):
        x = self.features(x)
        value = 4 * (x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3)))
        return value[:, None].expand(-1, self.outputs)

class Graded(Dataset):
    fingerprint = "graded"
    def __init__(self, split: str = "test"): pass
    def __len__(self): return 6
    def __getitem__(self, index):
        image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index))
        return Example(image, 1.5 * index - 4)
"""


@pytest.fixture
def regression(here):
    """Overrides that choose the network and the data set."""
    (here / "graded.py").write_text(CODE)
    for group, text in (
        ("model", "_target_: graded.Net\noutputs: 1\ninput_size: [1, 8, 8]\n"),
        ("dataset", "_target_: graded.Graded\n"),
    ):
        (here / "mine" / group).mkdir(parents=True)
        (here / "mine" / group / "graded.yaml").write_text(f"# Graded.\n{text}")
    return ("--config-dir=mine", "model=graded", "dataset=graded", "output=raw")


def test_iba_aims_at_the_real_valued_labels(xaibench, here, regression):
    parameters = {"loss": "squared_error", "layer": "features", "beta": 0.1, "steps": 20, "smoothing": 0.0}
    method = ("method=iba", *(f"method.{name}={value}" for name, value in parameters.items()))
    code, _, said = xaibench("run", *regression, *method, "metric=sensitivity_n", "metric.sets=4")
    assert code == 0, said
    maps = prepared(here, *regression, *method, "metric=sensitivity_n", "metric.sets=4").maps
    setting = maps.setting
    rows = maps.stage.artefact.read(setting.samples)
    assert sorted(rows.samples) == list(range(6))
    for sample in range(6):
        batch = setting.split.samples.load([sample])
        iba = IBA(**parameters, value=1.5 * sample - 4)
        generators = sample_generators(0, "method", [sample])
        target = torch.tensor([0])
        expected = iba.attribute(
            setting.classifier, batch.inputs, target, Context(generators, fitted=setting.fitted(maps.fit))
        )
        position = list(rows.samples).index(sample)
        torch.testing.assert_close(torch.from_numpy(rows.arrays["maps"][[position]]), expected, rtol=1e-4, atol=1e-6)
        assert rows.arrays["target"][position] == 0


def test_removal_of_a_scalar_output_has_the_closed_form_of_a_linear_network(xaibench, here, regression):
    """Every pixel moves the output by a 32nd of 4 times its value, up on the left and down on the right."""
    pixels = torch.cat([torch.full((8, 4), 4 / 32), torch.full((8, 4), -4 / 32)], dim=1).double().flatten()
    images = [torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index)) for index in range(6)]
    effects = pixels * torch.stack(images).flatten(1).double()
    falling = effects.sort(1, descending=True).values
    shares = torch.linspace(0, 1, 65, dtype=torch.float64)
    inserted = torch.cat([torch.zeros(6, 1), falling.cumsum(1)], dim=1)
    insertion = torch.trapezoid(inserted, shares).mean()
    deletion = torch.trapezoid(effects.sum(1, keepdim=True) - inserted, shares).mean()
    cell = ("run", *regression, "method=input_x_gradient")
    assert xaibench(*cell, "metric=sensitivity_n", "metric.sets=8")[0] == 0
    curves = ("metric=insertion_deletion", "metric.steps=null", "metric.insertion_fill=zero")
    code, _, said = xaibench(*cell, *curves)
    assert code == 2 and "set metric.output=logit" in said
    assert xaibench(*cell, *curves, "metric.output=logit")[0] == 0
    board = pd.read_csv("results/leaderboard.csv").set_index("statistic").value
    assert board["sensitivity_n"] == pytest.approx(1, abs=1e-5)
    assert board["insertion"] == pytest.approx(float(insertion), abs=1e-5)
    assert board["deletion"] == pytest.approx(float(deletion), abs=1e-5)


def test_real_valued_labels_need_a_scalar_output(xaibench, here, regression):
    code, _, said = xaibench("run", *regression, "model.outputs=2")
    assert code == 2
    assert "real labels" in said, said
    assert len(said.strip().splitlines()) == 1
