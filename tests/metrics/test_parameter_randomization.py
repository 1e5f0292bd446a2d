"""Parameter randomisation on given maps. What makes the maps is in tests/test_other_weights.py."""

import pytest
import torch

from xaibench.metrics.randomisation.parameter_randomization import ParameterRandomization
from xaibench.models.randomise import Randomisation

from .helpers import evaluated

BLOCKS = ["0..3", "7"]  # of `convnet`: both convolutions, the linear layer


@pytest.fixture
def given(convnet, batch_for):
    """A classifier, a batch, maps, and maps by two seeds of two steps: nearly the same, then unrelated."""
    classifier = convnet((3, 24, 24))
    batch = batch_for(classifier, 4)
    maps = torch.randn(4, 24, 24)
    others = {
        str(Randomisation("cascade", block, seed)): maps * share + (1 - share) * torch.randn(4, 24, 24)
        for block, share in (("7", 0.9), ("0..3", 0.0))
        for seed in range(2)
    }
    return classifier, batch, maps, others


def test_steps_average_over_seeds_and_the_score_over_steps(given):
    classifier, batch, maps, others = given
    metric = ParameterRandomization(blocks=2, seeds=2)
    found = evaluated(metric, classifier, batch, maps, others=others)
    single = [metric.similarities(maps, other)["ssim"] for other in others.values()]
    first, second = (single[0] + single[1]) / 2, (single[2] + single[3]) / 2
    torch.testing.assert_close(found["ssim_curve"], torch.stack([first, second], dim=1))
    torch.testing.assert_close(found["ssim"], (first + second) / 2)
    torch.testing.assert_close(found["first"], first)
    spread = [(single[at] - single[at + 1]).abs() / 2**0.5 for at in (0, 2)]
    torch.testing.assert_close(found["ssim_seed_std_curve"], torch.stack(spread, dim=1))
    torch.testing.assert_close(found["seed_std"], (spread[0] + spread[1]) / 2)
    assert list(metric.axes(classifier)["ssim_curve"]) == list(metric.axes(classifier)["ssim_seed_std_curve"]) == [1, 2]


def test_unchanged_asks_for_every_seed_of_the_first_step(given):
    classifier, batch, maps, others = given
    metric = ParameterRandomization(blocks=2, seeds=2)
    first, again, *_ = others
    same = {**others, first: maps, again: maps.clone()}
    same[again][1, 3, 3] += 10 * maps.abs().max()  # in one of four images, by one seed
    assert evaluated(metric, classifier, batch, maps, others=same)["unchanged"].tolist() == [1, 0, 1, 1]
    assert not evaluated(metric, classifier, batch, maps, others=others)["unchanged"].any()


@pytest.mark.parametrize(
    "mode, order", [("cascade", BLOCKS[::-1]), ("independent", BLOCKS[::-1]), ("bottom_up", BLOCKS)]
)
def test_states_go_from_the_top_down_or_from_the_bottom_up(given, mode, order):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Job:
        target: str = "label"
        weights_state: str = "trained"

    metric = ParameterRandomization(mode=mode, blocks=2, seeds=2, init="normal", batch_norm="keep")
    states = metric.needs(Job(), given[0])
    assert list(states) == [f"{mode}:{block}:{seed}:normal:keep" for block in order for seed in range(2)]
    assert all(job.weights_state == name and job.target == "original" for name, job in states.items())


def test_a_sample_is_scored_without_its_neighbours(given, take):
    classifier, batch, maps, others = given
    metric = ParameterRandomization(blocks=2, seeds=2)
    whole = evaluated(metric, classifier, batch, maps, others=others)
    places = [2, 0]
    of_part = {name: other[places] for name, other in others.items()}
    part = evaluated(metric, classifier, take(batch, places), maps[places], others=of_part)
    for name, column in whole.items():
        torch.testing.assert_close(part[name], column[places], rtol=0, atol=1e-12)


@pytest.mark.parametrize("parameters, named", [({"blocks": 0}, "blocks=0"), ({"seeds": 0}, "seeds=0")])
def test_mistakes_are_named(parameters, named):
    with pytest.raises(ValueError, match=named):
        ParameterRandomization(**parameters)
