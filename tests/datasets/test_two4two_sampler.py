"""The sampler of Peekies and Stretchies: the study's numbers, other people's distributions, and mistakes named."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import stats

from xaibench.datasets.two4two_sampler import FACTORS, Sampler
from xaibench.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
STUDY = OmegaConf.to_container(OmegaConf.load(CONF / "two4two.yaml"))["bias"]
COUNT = 200_000


def scenes(bias, count=20_000, seed=0):
    noise = np.random.default_rng(seed).random((count, 11))
    return Sampler(bias).draw(noise)


@pytest.fixture(scope="module")
def study():
    return scenes(STUDY, COUNT)


def color_likelihood(color, legs, label):
    """By the release's own words: with prob 0.85 U(0, m), from the other end for a Stretchy, otherwise U(0, 1)."""
    m = (0.25 + 2.5 * (legs - 0.5 if label else 0.5 - legs)).clip(0, 1)
    inside = (1 - color if label else color) <= m
    return 0.85 * inside / np.maximum(m, 1e-12) + 0.15


def test_the_numbers_of_the_study(study):
    """Within half a percentage point of what the release's sampler gives (spec, 200 000 draws)."""
    labels, factors = study
    legs, color, shape = factors["legs"], factors["color"], factors["shape"]
    overlap = (legs >= 0.48) & (legs <= 0.52)
    likelier = np.sign(color_likelihood(color, legs, 1) - color_likelihood(color, legs, 0))
    by_color = np.where(likelier == 0, 0.5, (likelier > 0) == labels)
    by_legs = np.where(overlap, 0.5, (legs > 0.5) == labels)
    by_shape = (shape > 0.5) == labels
    found = {
        "in the overlap": overlap.mean(),
        "legs": by_legs.mean(),
        "legs and color": np.where(overlap, by_color, by_legs).mean(),
        "color": ((color > 0.5) == labels).mean(),
        "shape": by_shape.mean(),
        "shape in the overlap": by_shape[overlap].mean(),
        "color in the overlap": by_color[overlap].mean(),
        "cubic among clear Peekies": (shape < 0.5)[(labels == 0) & (legs < 0.45)].mean(),
    }
    expected = (0.0767, 0.9617, 0.9945, 0.662, 0.789, 0.504, 0.928, 0.833)
    # Of what is counted in the overlap there are 15 300 draws: the spec's own 50.4 % is a coin's 50 %.
    tolerance = {"shape in the overlap": 0.012}
    for (name, value), number in zip(found.items(), expected):
        assert value == pytest.approx(number, abs=tolerance.get(name, 0.005)), name
    assert labels.mean() == pytest.approx(0.5, abs=0.005)


def test_the_study_as_its_release_draws_it(study):
    """Colour and shape against a plain loop with rejection, as the release does it."""
    labels, factors = study
    random = np.random.default_rng(1)
    color, shape = [], []
    for legs, label in zip(factors["legs"][:20_000], labels[:20_000]):
        m = min(max(0.25 + 2.5 * ((legs - 0.5) if label else (0.5 - legs)), 0), 1)
        value = 1 - random.uniform(0, m) if label else random.uniform(0, m)
        color.append(random.uniform() if random.random() < 0.15 else value)
        s = random.beta(0.3, 0.3)
        while (legs < 0.45 and s > 0.5) or (legs > 0.55 and s < 0.5):
            s = random.beta(0.3, 0.3)
        shape.append(random.beta(0.3, 0.3) if random.random() < 0.33 else s)
    for name, values in (("color", color), ("shape", shape)):
        for label in (0, 1):
            ours, theirs = factors[name][labels == label][-60_000:], np.array(values)[labels[:20_000] == label]
            assert stats.ks_2samp(ours, theirs).pvalue > 0.001


@pytest.mark.parametrize("name", FACTORS)
def test_unbiased_factors_follow_the_table_and_not_the_class(name):
    labels, factors = scenes({})
    factor, values = FACTORS[name], factors[name]
    assert factor.low <= values.min() and values.max() <= factor.high
    width = factor.high - factor.low
    std = {"roll": 0.03 * np.pi / 4, "pitch": np.pi / 8, "bending": np.pi / 20}.get(name)
    if name == "legs":
        for label, (low, high) in enumerate(((0, 0.52), (0.48, 1))):
            assert stats.kstest(values[labels == label], stats.uniform(low, high - low).cdf).pvalue > 0.001
        return
    table = stats.truncnorm(factor.low / std, factor.high / std, scale=std) if std else stats.uniform(factor.low, width)
    assert stats.kstest(values, table.cdf).pvalue > 0.001
    assert stats.ks_2samp(values[labels == 0], values[labels == 1]).pvalue > 0.001


@pytest.mark.parametrize(
    "spec, expected",
    [
        ({"uniform": [0.2, 0.4]}, stats.uniform(0.2, 0.2)),
        ({"truncnorm": [0.7, 0.2]}, stats.truncnorm(-3.5, 1.5, 0.7, 0.2)),
        ({"truncnorm": [0.7, 0.2], "within": [0.5, 0.6]}, stats.truncnorm(-1, -0.5, 0.7, 0.2)),
        ({"beta": [2, 5]}, stats.beta(2, 5)),
        (
            {"mixture": [[0.25, {"uniform": [0, 0.5]}], [0.75, {"uniform": [0.5, 1]}]]},
            stats.rv_histogram(([1, 3], [0, 0.5, 1])),
        ),
    ],
)
def test_distributions_are_scipys(spec, expected):
    _, factors = scenes({"color": spec})
    assert stats.kstest(factors["color"], expected.cdf).pvalue > 0.001


def test_beta_within_is_what_rejection_gives_and_spans_another_factors_range():
    _, factors = scenes({"pitch": {"beta": [0.5, 2], "within": [0, 0.4]}})
    low, width = FACTORS["pitch"].low, FACTORS["pitch"].high - FACTORS["pitch"].low
    drawn = low + width * np.random.default_rng(1).beta(0.5, 2, 200_000)
    assert stats.ks_2samp(factors["pitch"], drawn[(drawn >= 0) & (drawn <= 0.4)]).pvalue > 0.001


def test_conditions_on_the_class_and_on_the_legs():
    labels, factors = scenes(
        {
            "yaw": {"peaky": {"uniform": [0, 1]}, "stretchy": 2.5},
            "background": {"by_legs": [[0.3, 0.1], [0.8, {"uniform": [0.4, 0.5]}], [1, 0.9]]},
        }
    )
    assert factors["yaw"][labels == 0].max() < 1 and (factors["yaw"][labels == 1] == 2.5).all()
    legs, background = factors["legs"], factors["background"]
    assert (background[legs <= 0.3] == 0.1).all() and (background[legs > 0.8] == 0.9).all()
    middle = background[(legs > 0.3) & (legs <= 0.8)]
    assert middle.min() >= 0.4 and middle.max() <= 0.5


def test_interventions_depend_on_nothing_that_stays_but_colour_follows_the_legs(study):
    sampler = Sampler(STUDY)
    labels, factors = (study[0][:50_000], {name: values[:50_000] for name, values in study[1].items()})
    noise = np.random.default_rng(1).random((50_000, 3))
    changed = {name: sampler.redraw(name, noise, factors) for name in FACTORS}
    for name in FACTORS:
        distribution = stats.ks_2samp(changed[name], study[1][name][50_000:]).pvalue
        assert distribution > 0.001, f"{name}: another marginal"
        if name != "color":
            assert abs(stats.spearmanr(changed[name], labels).statistic) < 0.015, name
            assert abs(stats.spearmanr(changed[name], factors[name]).statistic) < 0.015, name
    legs, color = factors["legs"], changed["color"]
    near, overlap = (legs > 0.52) & (legs < 0.6), (legs >= 0.48) & (legs <= 0.52)
    assert color[near].mean() > 0.7  # red, as near Stretchies are
    assert abs(stats.spearmanr(color[overlap], labels[overlap]).statistic) < 0.06  # either class's: a coin


@pytest.mark.parametrize(
    "bias, message",
    [
        ({"colour": 0.5}, "dataset.bias.colour is not a factor: did you mean 'color'"),
        ({"color": {"unifrom": [0, 1]}}, "color.unifrom is not a distribution: did you mean 'uniform'"),
        ({"color": {"uniform": [0.2, 1.4]}}, r"uniform=\[0.2, 1.4\]: expected values from 0 to 1"),
        ({"color": {"uniform": [0.7, 0.2]}}, "the lower one first"),
        ({"color": {"uniform": 3}}, "expected two numbers"),
        ({"color": {"truncnorm": [0.5, 0]}}, "expected more than 0"),
        ({"color": {"beta": [0, 1]}}, "two positive numbers"),
        ({"color": {"beta": [1, 1], "within": [0.5, 0.5]}}, "expected a range"),
        ({"color": {"uniform": [0, 1], "within": [0, 1]}}, "only truncnorm and beta"),
        ({"color": {"uniform": [0, 1], "beta": [1, 1]}}, "got uniform and beta"),
        ({"color": {"peeky": 0.2}}, "color.stretchy is missing"),
        ({"color": {"peeky": 0.2, "strechy": 0.3}}, "did you mean 'stretchy'"),
        ({"color": {"peeky": 0.2, "stretchy": {"const": 0.3}}}, "color.stretchy.const is not a distribution"),
        ({"color": {"by_legs": [[0.5, 0.1], [0.4, 0.2]]}}, "rising order"),
        ({"color": {"by_legs": [[0.5, 0.1]]}}, "the last of them 1"),
        ({"color": {"mixture": [[0.5, 0.1], [0.6, 0.2]]}}, "add up to 1"),
        ({"color": {"mixture": {"uniform": [0, 1]}}}, r"list of \[number, distribution\]"),
        ({"legs": {"fading": 2}}, "cannot depend on itself"),
        ({"background": 1.0}, "from 0.05 to 0.95"),
        ({"roll": "none"}, "expected a distribution"),
        ({"roll": {"within": [0, 0.1]}}, "got none"),
    ],
)
def test_mistakes_are_named(bias, message):
    with pytest.raises(UserError, match=message):
        Sampler(bias)
