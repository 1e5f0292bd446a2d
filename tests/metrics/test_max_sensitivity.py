"""Max-sensitivity on maps whose change is known. Captum's is in tests/oracles."""

import math

import pytest
import torch

from xaibench.metrics.properties.max_sensitivity import MaxSensitivity

from .helpers import evaluated


def explained_by(attribute, classifier, batch, metric, seed=0):
    """The columns, and the inputs that the metric had explained: attribute(inputs, targets) -> maps."""
    asked = []

    def explain(inputs, targets, purpose, masks=None):
        asked.append((inputs, purpose))
        assert torch.equal(targets, batch.targets)
        return attribute(inputs, targets)

    maps = attribute(batch.inputs, batch.targets)
    return evaluated(metric, classifier, batch, maps, seed, explain=explain), asked


def squares(inputs, targets):
    return inputs**2


def test_equals_a_slow_loop(linear, batch_for):
    classifier = linear((3, 5, 7))
    batch = batch_for(classifier, 4)
    metric = MaxSensitivity(draws=6, radius=0.1)
    columns, asked = explained_by(squares, classifier, batch, metric)
    assert len(asked) == metric.explanations(classifier) == 6
    for b, image in enumerate(batch.inputs):
        ratios = []
        for inputs, _ in asked:
            change = sum((p**2 - q**2) ** 2 for p, q in zip(inputs[b].flatten().tolist(), image.flatten().tolist()))
            ratios.append(math.sqrt(change) / math.sqrt(sum(q**4 for q in image.flatten().tolist())))
        assert columns["max_sensitivity"][b].item() == pytest.approx(max(ratios), rel=1e-12)
        assert columns["avg_sensitivity"][b].item() == pytest.approx(sum(ratios) / 6, rel=1e-12)


def test_perturbations_are_uniform_in_the_cube_and_each_draw_has_its_own_noise(linear, batch_for):
    classifier = linear((3, 20, 20))
    batch = batch_for(classifier, 8)
    _, asked = explained_by(squares, classifier, batch, MaxSensitivity(draws=5, radius=0.3))
    moves = torch.stack([inputs - batch.inputs for inputs, _ in asked])
    assert moves.abs().max() <= 0.3 + 1e-12 and len({purpose for _, purpose in asked}) == 5
    assert len({move.sum().item() for move in moves.flatten(0, 1)}) == 40
    cells = ((moves + 0.3) / 0.06).floor().clamp(0, 9).long().flatten().bincount(minlength=10)
    count = moves.numel()
    assert (cells - count / 10).abs().max() < 4.5 * math.sqrt(count * 0.1 * 0.9)


def test_a_slope_moves_a_linear_map_by_its_share(linear, batch_for):
    """A map proportional to its input moves by ||d|| / ||x||, whatever the factor; ||d||^2 is n radius^2 / 3."""
    classifier = linear((3, 40, 40))
    batch = batch_for(classifier, 3)
    metric = MaxSensitivity(draws=4, radius=0.02)
    columns, _ = explained_by(lambda inputs, _: -7 * inputs, classifier, batch, metric)
    expected = 0.02 * math.sqrt(4800 / 3) / batch.inputs.flatten(1).norm(dim=1)
    torch.testing.assert_close(columns["avg_sensitivity"], expected, rtol=0.02, atol=0)
    assert (columns["max_sensitivity"] > columns["avg_sensitivity"]).all()


def test_a_map_of_zeros_is_undefined_and_leaves_its_neighbours(linear, batch_for, take):
    classifier = linear((1, 6, 6))
    batch = batch_for(classifier, 3)

    def empty_at_first(inputs, targets):
        maps = inputs**2
        if torch.equal(inputs, batch.inputs):
            maps[1] = 0
        return maps

    columns, _ = explained_by(empty_at_first, classifier, batch, MaxSensitivity())
    assert all(column[1].isnan() for column in columns.values())
    alone, _ = explained_by(squares, classifier, take(batch, [2, 0]), MaxSensitivity())
    for name, column in columns.items():
        assert torch.equal(column[[2, 0]], alone[name])


def test_a_map_that_is_not_finite_nearby_is_undefined(linear, batch_for):
    classifier = linear((1, 6, 6))
    batch = batch_for(classifier, 2)

    def broken(inputs, targets):
        maps = inputs.clone()
        if not torch.equal(inputs, batch.inputs):
            maps[1, 0, 0, 0] = torch.nan
        return maps

    columns, _ = explained_by(broken, classifier, batch, MaxSensitivity())
    assert columns["max_sensitivity"].isfinite().tolist() == [True, False]


@pytest.mark.parametrize("parameters, named", [({"draws": 0}, "draws=0"), ({"radius": 0.0}, "radius=0.0")])
def test_mistakes_are_named(parameters, named):
    with pytest.raises(ValueError, match=named):
        MaxSensitivity(**parameters)
