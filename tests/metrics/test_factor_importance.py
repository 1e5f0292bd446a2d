"""Factor importance on scorers whose answers are written by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from xaibench.build import build
from xaibench.datasets.shapes import Shapes
from xaibench.datasets.two4two_sampler import FACTORS
from xaibench.errors import Refusal, UserError
from xaibench.methods.context import Context
from xaibench.metrics.network.factor_importance import FactorImportance
from xaibench.models.classifier import Classifier
from xaibench.scores import statistics

from .two4two import SIDE, known_factors, study

COUNT = 24
# Legs most, colour a little, shape against the class; the pose not at all but for a pitch.
WEIGHTS = dict(zip(FACTORS, [8.0, 1.5, -0.7, 0, 0, 0, 0, 0, 0.2, 0]))


def measured(metric, classifier, samples):
    """The columns, and each statistic's value as the leaderboard would have it."""
    columns = metric.evaluate(classifier, samples.load(samples.ids), None, Context(data=samples))
    columns = {name: column.numpy() for name, column in columns.items()}
    values = {}
    for statistic in metric.statistics:
        kept = np.isfinite(columns[statistic.column])
        per = statistic.per and columns[statistic.per][kept]
        values[statistic.name] = statistics.estimate(columns[statistic.column][kept], per, statistic.kind).value
    return columns, values


@pytest.fixture(scope="module")
def data():
    return study(COUNT)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_network_that_is_linear_in_the_factors(data, outputs):
    dataset, samples = data
    w, offset = torch.tensor([*WEIGHTS.values()]), -4.5
    common = torch.randn(10)  # what both classes have in common is no answer
    weight = w[None] if outputs == 1 else torch.stack([common, common + w])
    bias = torch.tensor([offset] if outputs == 1 else [3.0, 3.0 + offset])
    columns, values = measured(FactorImportance(), known_factors(dataset, COUNT, weight, bias), samples)

    # Partners may differ by so little that their pictures are the same to the last byte, as two rolls by 0.1 degrees:
    # what the network knows of them is right to 1e-3.
    _, factors = dataset.scenes(range(COUNT))
    logit = sum(WEIGHTS[name] * factors[name] for name in FACTORS) + offset
    for name, slope in WEIGHTS.items():
        delta = dataset.intervened(range(COUNT), name)[name] - factors[name]
        if name != "yaw":
            np.testing.assert_allclose(columns[f"delta_{name}"], delta)
            assert values[f"feature_norm_{name}"] == pytest.approx(np.abs(delta).mean(), abs=1e-4)
        np.testing.assert_allclose(columns[f"delta_logit_{name}"], slope * delta, atol=1e-3)
        flips = [(before > 0) != (before + slope * d > 0) for before, d in zip(logit, delta)]
        assert values[f"flip_rate_{name}"] == np.mean(flips)
        assert values[f"logit_change_{name}"] == pytest.approx(abs(slope) * np.median(np.abs(delta)), abs=1e-3)
        if slope or outputs == 1:  # between two outputs the last bits are left, which have a direction too
            assert values[f"r_squared_{name}"] == pytest.approx(float(slope != 0), abs=1e-4)
        if name != "yaw":  # the network has it the long way round
            angle = math.degrees(math.acos(slope / float(w.norm())))
            assert values[f"angle_{name}"] == pytest.approx(angle, abs=0.1)
    assert values["flip_rate_legs"] > 0.2 and values["flip_rate_color"] > 0


def test_factors_that_change_at_once_add_up_in_a_linear_network(data):
    dataset, samples = data
    joint = "shape+color+background"
    weight, bias = torch.tensor([*WEIGHTS.values()])[None], torch.tensor([-4.5])
    network = known_factors(dataset, COUNT, weight, bias, [joint, "shape", "color"])
    columns, values = measured(FactorImportance((joint, "shape", "color")), network, samples)
    _, factors = dataset.scenes(range(COUNT))
    changed = dataset.intervened(range(COUNT), joint)
    assert {name for name in FACTORS if not np.array_equal(changed[name], factors[name])} == set(joint.split("+"))
    steps = [WEIGHTS[name] * (changed[name] - factors[name]) for name in joint.split("+")]
    np.testing.assert_allclose(columns[f"change_{joint}"], np.abs(sum(steps)), atol=2e-3)
    np.testing.assert_allclose(columns["delta_logit_shape"] + columns["delta_logit_color"], sum(steps), atol=2e-3)
    told = {name for name in values if name.endswith(joint)}
    assert told == {f"{kind}_{joint}" for kind in ("flip_rate", "logit_change", "feature_norm")}
    with pytest.raises(ValueError, match="factors: colour is not one"):
        FactorImportance(("shape+colour",))


class Corner(nn.Module):
    """Red less blue of the upper right corner, where no animal is: the wall's colour, from the picture itself."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, 0, 0, -1:] - inputs[:, 2, 0, -1:]


def test_a_scorer_of_the_wall_finds_the_wall(data):
    dataset, samples = data
    metric = FactorImportance(features=False)
    columns, values = measured(metric, Classifier("corner", Corner(), (3, SIDE, SIDE)), samples)
    assert not (dataset.draw(dataset.scenes(range(COUNT))[1])[1][:, 0, -1] > 0).any()
    for name in FACTORS:
        if name != "background":
            assert values[f"flip_rate_{name}"] == values[f"logit_change_{name}"] == values[f"r_squared_{name}"] == 0
    # Blue over grey to red: the answer is positive from 0.5 on, and nearly straight.
    before, after = dataset.scenes(range(COUNT))[1], dataset.intervened(range(COUNT), "background")
    crossed = (before["background"] > 0.5) != (after["background"] > 0.5)
    assert values["flip_rate_background"] == crossed.mean()
    assert values["r_squared_background"] > 0.9
    assert not any("norm" in name or "angle" in name for name in (*columns, *values))


def test_yaw_is_compared_the_short_way_round(data):
    _, samples = data
    columns, _ = measured(
        FactorImportance(["yaw"], features=False), Classifier("corner", Corner(), (3, SIDE, SIDE)), samples
    )
    long_way = samples.dataset.intervened(range(COUNT), "yaw")["yaw"] - samples.dataset.scenes(range(COUNT))[1]["yaw"]
    assert np.abs(columns["delta_yaw"]).max() <= math.pi < np.abs(long_way).max()
    np.testing.assert_allclose(np.exp(1j * columns["delta_yaw"]), np.exp(1j * long_way), atol=1e-12)


def test_what_cannot_be_measured_is_refused():
    corner = Classifier("corner", Corner(), (3, SIDE, SIDE))
    with pytest.raises(Refusal, match="features=false"):
        FactorImportance().check(corner)
    FactorImportance(features=False).check(corner)
    with pytest.raises(Refusal, match="dataset=two4two"):
        FactorImportance().check_data(Shapes())
    spec = {"_target_": "xaibench.metrics.network.factor_importance.FactorImportance", "factors": ["leg"]}
    with pytest.raises(UserError, match="did you mean 'legs'"):
        build(spec, "metric")


def test_a_run_scores_the_model_once_and_is_resumed(xaibench):
    arguments = ("run", "model=two4two_cnn", "model.weights=random", "dataset=two4two", "dataset.limit=3")
    code, out, err = xaibench(*arguments, "metric=factor_importance", "metric.factors=[legs,yaw]")
    assert code == 0, err
    assert "r_squared_legs" in out and "none" in out
    assert xaibench(*arguments, "metric=factor_importance", "metric.factors=[legs,yaw]", "method=saliency")[0] == 0
    code, out, _ = xaibench("leaderboard")
    assert code == 0 and out.count("angle_yaw") == 1
