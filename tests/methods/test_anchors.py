"""Anchors: by brute force over all sets of features, and of networks that are rules."""

import itertools

import pytest
import torch
from torch import nn

from tests.methods.nets import classifier, unbiased
from tests.methods.test_coalitions import attribute, blobs
from xaibench.errors import Refusal, UserError
from xaibench.methods.context import Context
from xaibench.methods.removal._coalitions import every_coalition
from xaibench.methods.removal.anchors import Anchors, precisions, smallest
from xaibench.models.preprocessing import Preprocessing

SIZE = (1, 1, 8)


class Rule(nn.Module):
    """Two classes: 1 where the rule holds of which of eight features are more than one half, else 0."""

    def __init__(self, rule) -> None:
        super().__init__()
        self.rule, self.weight = rule, nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        holds = self.rule((inputs.flatten(1) > 0.5).T).to(self.weight) - 0.5
        return torch.stack([-holds, holds], dim=1) * self.weight


def anchor(rule, inputs=None, **settings) -> list[list[int]]:
    """The features in the anchor of each row, by default of one row of ones."""
    network = classifier(Rule(rule), SIZE, preprocessing=Preprocessing(), layers={}, batch_size=100)
    inputs = torch.ones(1, *SIZE, dtype=torch.float64) if inputs is None else inputs
    method = Anchors(players=8, **settings)
    method.check(network)
    maps = attribute(method, network, inputs, torch.zeros(len(inputs), dtype=torch.long))
    assert maps.shape == inputs.shape and set(maps.unique().tolist()) <= {0.0, 1.0}
    return [row.flatten().nonzero().flatten().tolist() for row in maps]


@pytest.mark.parametrize("players", [1, 3, 8])
@pytest.mark.parametrize("least", [0.5, 0.8, 1.0])
def test_equals_brute_force_over_all_sets(players, least):
    draw = torch.Generator().manual_seed(players)
    same = (torch.rand(20, 2**players, generator=draw) < 0.7).double()
    same[:, -1] = 1
    coalitions = [frozenset(row.nonzero().flatten().tolist()) for row in every_coalition(players)]
    found = precisions(same)
    for row, table in zip(found, same.tolist()):
        expected = []
        for chosen in coalitions:
            within = [value for value, other in zip(table, coalitions) if chosen <= other]
            expected.append(sum(within) / len(within))
        assert row.tolist() == pytest.approx(expected, abs=1e-12)
    best = [min((len(coalitions[i]), -p, i) for i, p in enumerate(row) if p >= least)[2] for row in found.tolist()]
    assert smallest(found, least).tolist() == best


def test_rules_are_found():
    """Both of two features; either of two, of which the first is taken; nothing, where the class never changes; and of
    a majority of five, four features of which three in four coalitions have one more: 15 of 16 have three of them."""
    assert anchor(lambda there: there[2] & there[6]) == [[2, 6]]
    assert anchor(lambda there: there[3] | there[5]) == [[3]]
    assert anchor(lambda there: there[0] | ~there[0]) == [[]]
    # Of two features of the pair each keeps half of the coalitions, which is enough for a precision of one half.
    assert anchor(lambda there: there[2] & there[6], precision=0.5) == [[2]]
    assert anchor(lambda there: there[2] & there[6], precision=0.51) == [[2, 6]]


def test_a_majority_by_counting():
    """At least three of five features: with two there, one of the other three is with a probability of 7/8; with three
    there it is certain. A feature that is no part of it is in no anchor."""
    majority = lambda there: there[:5].sum(0) >= 3  # noqa: E731
    assert anchor(majority, precision=7 / 8) == [[0, 1]]
    assert anchor(majority, precision=7 / 8 + 1e-6) == [[0, 1, 2]]


def test_it_is_the_prediction_that_is_held():
    """A row that does not fulfil a rule is held to class 0, by what is in the way; the class asked for says nothing."""
    row = torch.ones(1, *SIZE, dtype=torch.float64)
    assert anchor(lambda there: there[1] & ~there[4], row) == [[4]]
    row[..., 4] = 0
    assert anchor(lambda there: there[1] & ~there[4], row) == [[1]]
    network, inputs = classifier(unbiased(), batch_size=64), blobs(3)
    maps = [attribute(Anchors(players=4, segments="slic"), network, inputs, torch.full((3,), k)) for k in (0, 1)]
    assert torch.equal(*maps)


def test_of_a_picture_the_rule_holds_for_the_network_itself():
    """Whatever else of the regions is hidden, in at least the share asked for of all ways to hide them."""
    network, inputs = classifier(unbiased(), batch_size=64), blobs(6)
    method = Anchors(players=4, precision=0.9)
    maps, labels = attribute(method, network, inputs, torch.zeros(6, dtype=torch.long)), method.labels(network, inputs)
    predicted = network.logits(inputs).argmax(1)
    for image, label, mask, same in zip(inputs, labels, maps[:, 0], predicted):
        kept = []
        for rest in itertools.product((False, True), repeat=4):
            shown = torch.tensor(rest)[label] | (mask > 0)
            kept.append((network.logits((image * shown)[None]).argmax(1) == same).double().item())
        assert sum(kept) / len(kept) >= 0.9
    assert 0 < maps.mean() < 1


def test_a_background_averages_over_its_samples():
    """The rule holds by chance where the sample in the place of what is absent fulfils it: of two samples one does."""
    network = classifier(Rule(lambda there: there[2] & there[6]), SIZE, preprocessing=Preprocessing(), layers={})
    inputs = torch.ones(1, *SIZE, dtype=torch.float64)
    references = torch.stack([torch.ones(SIZE), torch.zeros(SIZE)]).double()
    method = Anchors(players=8, fill="background", precision=0.74)
    maps = method.attribute(
        network, inputs, torch.zeros(1, dtype=torch.long), Context(fitted={"references": references})
    )
    assert maps.flatten().nonzero().flatten().tolist() == [2]  # (1 + 1/2) / 2 with either of the two


def test_what_has_no_classes_is_refused():
    network = classifier(nn.Sequential(nn.Flatten(), nn.Linear(8, 1)), SIZE, output="raw", layers={})
    with pytest.raises(Refusal, match="the class that it predicts"):
        Anchors().check(network)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("players", 17, "players=17: expected at most 16"),
        ("precision", 0, "precision=0.0: expected more than 0"),
        ("precision", 1.1, "precision=1.1: expected more than 0 and up to 1"),
    ],
)
def test_bad_parameters_are_named(parameter, value, message, make):
    with pytest.raises(UserError, match=message):
        make("anchors", **{parameter: value})


def test_the_network_is_called_as_often_as_the_cost_says():
    network, calls, method = classifier(unbiased(), batch_size=4), [], Anchors(players=4)
    network.module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    attribute(method, network, blobs(3), torch.zeros(3, dtype=torch.long))
    assert method.cost(network) == (17, 0) and sum(calls) == 3 * 17 and max(calls) <= 4
