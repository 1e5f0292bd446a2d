"""The readout bottleneck: its start, its training, and that a map is one pass."""

import math

import pytest
import torch

from tests.methods.helpers import LAYER, samples
from tests.methods.nets import VGGLike, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.bottleneck._bottleneck import information, noise_share
from xaibench.methods.bottleneck.iba_readout import READOUT, IBAReadout
from xaibench.methods.context import Context
from xaibench.models.cut import activations
from xaibench.rng import sample_generators

READOUTS = [LAYER, "features.5", "logits"]


def readout(**changes) -> IBAReadout:
    return IBAReadout(**({"layer": LAYER, "readouts": READOUTS, "epochs": 1, "learning_rate": 1e-12} | changes))


def fit(method, network):
    return method.fit(network, samples(), torch.Generator().manual_seed(0))


def maps_of(method, network, inputs, found):
    generators = sample_generators(0, "iba", range(len(inputs)))
    return method.attribute(
        network, inputs, torch.zeros(len(inputs), dtype=torch.long), Context(generators, fitted=found)
    )


def test_training_starts_where_nearly_everything_passes():
    network, inputs = classifier(VGGLike()), seeded(2)
    found = fit(readout(bound=20.0), network)
    values = activations(network, [LAYER], inputs)[LAYER]
    standardised = (values - found[f"{LAYER}.mean"]) / found[f"{LAYER}.std"]
    expected = information(standardised, noise_share(torch.full_like(values, 5.0), 1.0)).sum() / math.log(2)
    torch.testing.assert_close(maps_of(readout(bound=20.0), network, inputs, found).sum(), expected, rtol=0.01, atol=0)


def test_training_takes_information_out():
    """An untrained network's outputs say little, so at beta 10 the loss is nearly all information."""
    network, inputs = classifier(VGGLike()), seeded(5)
    start = fit(readout(), network)
    trained = fit(readout(epochs=15, learning_rate=1e-2), network)
    before, after = (maps_of(readout(), network, inputs, found).sum() for found in (start, trained))
    assert after < 0.5 * before
    assert trained.keys() == start.keys() and torch.equal(trained[f"{LAYER}.mean"], start[f"{LAYER}.mean"])
    assert not torch.equal(trained[f"{READOUT}0.weight"], start[f"{READOUT}0.weight"])


def test_fit_depends_on_its_generator_only():
    network = classifier(VGGLike())
    method = readout(learning_rate=1e-3)
    state = torch.get_rng_state()
    first, second = fit(method, network), fit(method, network)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())
    # The inner batch bounds memory and changes nothing.
    split = fit(method, classifier(network.module, batch_size=5))
    assert all(torch.allclose(first[name], split[name], rtol=1e-9, atol=1e-9) for name in first)
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in first.values())


def test_a_map_is_one_pass_and_does_not_depend_on_the_batch():
    network, inputs = classifier(VGGLike(), batch_size=64), seeded(7)
    method = readout(learning_rate=1e-2)
    found = fit(method, network)
    rows = []
    handle = network.module.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    whole = maps_of(method, network, inputs, found)
    assert sum(rows) == 7 * method.cost(network)[0] and whole.shape == (7, 1, 16, 16) and (whole >= 0).all()
    handle.remove()
    parts = maps_of(method, classifier(network.module, batch_size=2), inputs, found)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(maps_of(method, network, inputs[3:4], found), whole[3:4], rtol=1e-9, atol=1e-12)


def test_a_map_leaves_the_global_generator_alone():
    network, inputs = classifier(VGGLike()), seeded(2)
    found = fit(readout(), network)
    state = torch.get_rng_state()
    maps_of(readout(), network, inputs, found)
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_served_is_refused():
    network = classifier(VGGLike(), layers={})
    with pytest.raises(Refusal, match=r"set method\.layer="):
        IBAReadout().check(network)
    with pytest.raises(Refusal, match="did you mean"):
        readout(readouts=["featurs.5"]).check(network)
    readout().check(network)
    for wrong in ({"readouts": []}, {"epochs": 0}, {"bound": 0.0}, {"beta": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            readout(**wrong)
