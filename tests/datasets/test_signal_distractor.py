"""The world of a signal and a distractor: its best weights, and which methods find the signal."""

import csv
import io

import pytest
import torch

from xaibench.datasets.planes import SignalDistractor
from xaibench.errors import UserError


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.7])
def test_the_best_weights_are_those_of_least_squares(noise):
    data = SignalDistractor("train", noise)
    found = torch.linalg.lstsq(data.points.double(), data.values.double()[:, None]).solution[:, 0]
    torch.testing.assert_close(data.weights().double(), found, atol=0.02, rtol=0)
    # They cancel the distractor the more exactly, the less noise there is beside it.
    assert abs(float(data.weights() @ data.distractor)) <= noise**2
    if noise == 0:
        assert data.weights().tolist() == pytest.approx([1, -1])
        torch.testing.assert_close(data.points @ data.weights(), data.values)


def test_a_point_carries_its_label_and_the_place_of_the_signal():
    data = SignalDistractor()
    example = data[3]
    assert example.image.flatten().equal(data.points[3]) and example.label == pytest.approx(float(data.values[3]))
    assert example.mask.tolist() == [[True, False]]
    assert not SignalDistractor("train").points[0].equal(data.points[0])
    assert SignalDistractor(noise=0.2).fingerprint != data.fingerprint
    for mistake, said in (({"split": "tests"}, "did you mean 'test'"), ({"noise": -1}, "noise=-1")):
        with pytest.raises(UserError, match=said):
            SignalDistractor(**mistake)


def test_patterns_find_the_signal_and_gradients_do_not(xaibench):
    """By the closed form: |w| is equal at both features to a hundredth, w x is of the order of y + e and of e, and the
    pattern cov(x) w / (w cov(x) w) is the signal's direction, whatever the noise."""
    methods = "gradient,lrp_epsilon,pattern_net,pattern_attribution,oracle"
    code, _, said = xaibench(
        "run", "-m", "model=signal_net", "dataset=signal_distractor", "output=raw", f"method={methods}",
        "metric=mass_accuracy", "metric.sign=absolute", "dataset.limit=200", "fit.limit=10000",
    )  # fmt: skip
    assert code == 0, said
    _, out, _ = xaibench("leaderboard", "--csv", "--metric", "mass_accuracy")
    found = {row["method"]: float(row["value"]) for row in csv.DictReader(io.StringIO(out))}
    w = SignalDistractor().weights().abs()
    assert found["gradient"] == pytest.approx(float(w[0] / w.sum()), abs=0.01)
    points = SignalDistractor().points.abs() * w
    assert found["lrp_epsilon"] == pytest.approx(float((points[:, 0] / points.sum(1)).mean()), abs=0.04)
    # Of 10000 points about half are of a sign; the second part of the pattern is off by 1 / sqrt(5000 * 0.36) = 0.024.
    assert found["pattern_net"] > 0.93 and found["pattern_attribution"] > 0.93 and found["oracle"] == 1
