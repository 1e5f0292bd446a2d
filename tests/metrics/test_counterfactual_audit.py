"""The audit on a flow and an observer whose answers are written by hand, and the observer's training."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from tests.metrics.helpers import evaluated
from tests.metrics.two4two import study
from xaibench.datasets.shapes import Shapes
from xaibench.datasets.two4two import Two4Two
from xaibench.datasets.two4two_sampler import FACTORS
from xaibench.errors import Refusal
from xaibench.metrics.network._observer import Observer, encoded, observed, places
from xaibench.metrics.network.counterfactual_audit import CounterfactualAudit
from xaibench.models.classifier import Classifier

SIDE = 32


class Identity(nn.Module):
    """A flow that is the identity: f is 4 times the mean red less 2, and z is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIDE**2, 2)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[1, : SIDE**2] = 4 / SIDE**2
            self.head.bias.copy_(torch.tensor([0.0, -2.0]))

    def encode(self, x):
        return x, [], torch.zeros(len(x))

    def decode(self, z, kept):
        return z

    def forward(self, x):
        return self.head(x.flatten(1))


def eye() -> dict[str, torch.Tensor]:
    """Weights of an observer that sees the mean red of four pixels as the legs' position, their mean green as the
    colour, and nothing else."""
    observer = Observer(SIDE)
    state = {name: torch.zeros_like(tensor) for name, tensor in observer.state_dict().items()}
    for number, layer in enumerate(observer.layers):
        if isinstance(layer, nn.Conv2d):
            for channel in (0, 1):  # the pixel itself; above 0, where ReLUs do nothing
                state[f"layers.{number}.weight"][channel, channel, 1, 1] = 1
                state[f"layers.{number}.bias"][channel] = float(number == 0)
    first, second = (f"layers.{number}" for number, layer in enumerate(observer.layers) if isinstance(layer, nn.Linear))
    for unit, factor in enumerate(("legs", "color")):
        state[f"{first}.weight"][unit, 4 * unit : 4 * unit + 4] = 1 / 4
        state[f"{second}.weight"][places()[factor], unit] = 1
        state[f"{second}.bias"][places()[factor]] = -0.5
    return {f"observer.{name}": tensor for name, tensor in state.items()}


def test_what_moves_is_what_the_head_reads():
    dataset, samples = study(6)
    net, metric = Classifier("identity", Identity(), (3, SIDE, SIDE)), CounterfactualAudit()
    batch = samples.load(range(6))
    f = net.logits(batch.inputs).diff(dim=1)[:, 0]
    low, high = f.mean().item() - 0.1, f.mean().item() + 0.1
    columns = evaluated(metric, net, batch, None, data=samples, fitted={"range": torch.tensor([low, high]), **eye()})
    # Red alone moves, by a quarter of f, in every pixel alike; the gradient's steps in pixels are the same here.
    ends = [
        (batch.inputs[:, 0, ::16, ::16] + (end - f)[:, None, None] / 4).clamp(0, 1).mean((1, 2)) for end in (low, high)
    ]
    for way in ("moved", "pixels"):
        torch.testing.assert_close(columns[f"{way}_legs"].float(), ends[1] - ends[0], rtol=0, atol=1e-5)
        assert columns[f"{way}_color"].abs().max() < 1e-6
    # A random direction is nearly at right angles to it, and moves green as much as red.
    assert (columns["random_color"] > 0).all()
    assert columns["logit_error"].max() < 1e-4
    # Rounding to 8 bits is what is left, where nothing is clipped.
    assert columns["logit_clipped"].min() > 0 and columns["logit_clipped"].max() < 4 * 0.5 / 255 + 0.05
    wanted = encoded(dataset.scenes(range(6))[1])
    red = batch.inputs[:, 0, ::16, ::16].mean((1, 2))
    torch.testing.assert_close(columns["error_legs"], (red - wanted[:, 0]).square().double(), rtol=1e-4, atol=1e-6)
    assert {statistic.column for statistic in metric.statistics} == set(columns)


def test_factors_are_scaled_by_their_ranges_and_yaw_is_a_circle():
    _, factors = Two4Two("test", side=16).scenes(range(500))
    values = encoded(factors)
    assert values.shape == (500, 11) and values.min() >= 0 and values.max() <= 1
    yaw = values[:, places()["yaw"]] * 2 - 1
    torch.testing.assert_close(yaw.norm(dim=1), torch.ones(500))
    torch.testing.assert_close(
        torch.atan2(yaw[:, 0], yaw[:, 1]) % (2 * math.pi), torch.from_numpy(factors["yaw"]).float(), rtol=0, atol=1e-3
    )
    assert list(places()) == list(FACTORS)


def test_an_observer_learns_to_see():
    """Few scenes and epochs: better than the mean at what is easiest, the wall's colour, and the same each time."""
    weights = observed(16, images=400, epochs=12, seed=0)
    again = observed(16, images=400, epochs=12, seed=0)
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    eye = Observer(16).eval()
    eye.load_state_dict(weights)
    data = Two4Two("test", side=16)
    _, factors = data.scenes(range(100))
    with torch.no_grad():
        error = (eye(data.draw(factors)[0].float() / 255) - encoded(factors)).square()
    assert error[:, places()["background"]].mean() < 0.5 / 12  # half of the variance


def test_what_cannot_be_audited_is_refused(linear):
    with pytest.raises(Refusal, match="metric=counterfactual_audit runs the network backwards"):
        CounterfactualAudit().check(linear())
    with pytest.raises(Refusal, match="dataset=two4two"):
        CounterfactualAudit().check_data(Shapes())
    with pytest.raises(ValueError, match=r"tail=0\.5: expected a share between 0 and 0\.5"):
        CounterfactualAudit(tail=0.5)
    with pytest.raises(ValueError, match="images=0: expected at least 1"):
        CounterfactualAudit(images=0)


def test_a_run_reads_its_observer_from_the_cache(xaibench):
    cell = ("model=two4two_inn", "model.weights=random", "dataset=two4two", "dataset.limit=1", "fit.limit=4")
    arguments = ("run", *cell, "metric=counterfactual_audit", "metric.images=8", "metric.epochs=1")
    code, out, err = xaibench(*arguments)
    assert code == 0, err
    assert "moved_legs" in out and "pixels_legs" in out and "error_legs" in out


def test_the_bundled_networks_audit_has_the_studys_order():
    """Of results/reference: legs and colour move more than the wall, legs five times as far as under the control."""
    rows = pd.read_csv(Path(__file__).parents[2] / "results" / "reference" / "two4two_inn.csv")
    audit = rows[rows["metric"] == "counterfactual_audit"].set_index("statistic")
    for factor in ("legs", "color"):
        assert audit.at[f"moved_{factor}", "ci_low"] > audit.at["moved_background", "ci_high"]
    for control in ("random", "pixels"):
        assert audit.at["moved_legs", "value"] > 5 * audit.at[f"{control}_legs", "value"]
