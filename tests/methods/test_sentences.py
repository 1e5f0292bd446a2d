"""Methods on sentences, beside closed forms and Captum."""

import itertools
import math

import pytest
import torch
from captum.attr import LayerIntegratedGradients

from tests import text
from tests.methods.helpers import settings
from tests.methods.nets import VGGLike, classifier
from xaibench.build import build
from xaibench.datasets.base import Samples
from xaibench.errors import Refusal
from xaibench.methods.bottleneck._bottleneck import estimate
from xaibench.methods.bottleneck.input_iba import RecurrentCritic
from xaibench.methods.context import Context
from xaibench.models.sentences import Sentences
from xaibench.perturb.fills import filled
from xaibench.rng import sample_generators

LINE = "a b c a k"


@pytest.fixture
def net():
    return text.network(dtype=torch.float64)


@pytest.fixture
def additive(net):
    """A network whose logits are sums over the places: each word says what it says."""
    net.forward = lambda inputs: net.head(torch.cat([inputs, inputs[:, :1]], 1).sum((2, 3)))
    return net


def explained(net, method, line=LINE, **parameters):
    network = text.classifier(net)
    ((_, batch),) = text.batch(net, line).alike()
    made = build({**settings(method), **parameters}, "method")
    made.check(network)
    context = Context(sample_generators(0, "method", batch.samples))
    maps = made.attribute(network.sized(batch.inputs), batch.inputs.double(), batch.targets, context)
    return maps[0].sum(0)[0], batch


def contributions(additive, batch, fill):
    """What each place adds to the explained logit, compared with the fill."""
    inputs = batch.inputs.double()
    rows = [inputs.clone() for _ in range(inputs.shape[3])]
    for place, row in enumerate(rows):
        row[..., place] = fill.view(1, -1, 1)
    with torch.no_grad():
        return torch.stack([(additive(inputs) - additive(row))[0, batch.targets[0]] for row in rows])


def test_lime_finds_what_each_word_adds(additive):
    maps, batch = explained(additive, "lime_text", samples=400, ridge=1e-9, fill="unknown")
    added = contributions(additive, batch, Sentences.of(additive).unknown)
    # `a` is there twice, and comes and goes as one.
    assert maps.numpy() == pytest.approx(added.numpy(), abs=1e-6)


def test_lime_keeps_the_words_that_weigh_most(additive):
    maps, batch = explained(additive, "lime_text", samples=400, ridge=1e-9, fill="unknown", features=2)
    added = contributions(additive, batch, Sentences.of(additive).unknown)
    sizes = {"a": 2 * added[0], "b": added[1], "c": added[2], "k": added[4]}
    kept = sorted(sizes, key=lambda word: -abs(sizes[word]))[:2]
    assert [bool(value) for value in maps] == [word in kept for word in LINE.split()]


def test_lime_of_one_word_is_undefined(additive):
    assert explained(additive, "lime_text", "b")[0].isnan().all()


@pytest.mark.parametrize(
    "method", ["shapley_sampling", "kernel_shap", "occlusion", "exact_shapley", "integrated_gradients"]
)
def test_additive_networks_have_one_answer(additive, method):
    options = {"occlusion": {"patch": 1}, "kernel_shap": {"samples": 200}}.get(method, {})
    maps, batch = explained(additive, method, **options)
    assert maps.numpy() == pytest.approx(contributions(additive, batch, torch.zeros(5)).numpy(), abs=1e-6)


def test_shapley_values_of_words_by_their_definition(net):
    maps, batch = explained(net, "exact_shapley")
    inputs, target, places = batch.inputs.double(), batch.targets[0], batch.inputs.shape[3]

    def worth(coalition):
        with torch.no_grad():
            return float(net(inputs * torch.tensor([place in coalition for place in range(places)]))[0, target])

    for player in range(places):
        others = [place for place in range(places) if place != player]
        value = sum(
            (worth({*some, player}) - worth(some)) / places / math.comb(places - 1, size)
            for size in range(places)
            for some in map(set, itertools.combinations(others, size))
        )
        assert float(maps[player]) == pytest.approx(value, abs=1e-9)


def test_integrated_gradients_on_vectors_are_captums_at_the_embedding(net):
    maps, batch = explained(net, "integrated_gradients", steps=20)
    ids = torch.tensor([[net.places(LINE.split())[0]]])
    theirs = LayerIntegratedGradients(lambda ids: net(net.embedding(ids).permute(0, 3, 1, 2)), net.embedding).attribute(
        ids, torch.full_like(ids, 0), target=int(batch.targets[0]), n_steps=20, method="riemann_right"
    )
    # Captum starts at the vector of padding, which is 0.
    assert not net.embedding.weight[0].any()
    assert maps.numpy() == pytest.approx(theirs[0, 0].sum(-1).detach().numpy(), abs=1e-6)


def test_statistics_of_a_layer_are_those_of_its_channels_at_any_place(net):
    lines = ["a b c", "d", "e f g h i", "k a b"]
    samples = Samples(text.Lines(*lines), Sentences.of(net), range(4))
    found = estimate(text.classifier(net), ["bottleneck"], samples)
    with torch.no_grad():
        outputs = []
        for line in lines:
            x = net.table.weight[net.places(line.split())[0]].T[None, :, None]
            outputs.append(net.rnn_4(net.rnn_3(net.rnn_2(net.rnn_1(x))))[0, :, 0])
    values = torch.cat(outputs, 1)
    assert found["bottleneck.mean"].shape == (6, 1, 1)
    # Inputs are float32 as data sets hand them on.
    torch.testing.assert_close(found["bottleneck.mean"].flatten(), values.mean(1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["bottleneck.std"].flatten(), values.std(1), rtol=1e-6, atol=1e-8)


def test_a_recurrent_critic_reads_to_the_last_place():
    critic = RecurrentCritic((6, 1, 4), (3,))
    features = torch.randn(2, 6, 1, 4)
    hidden = critic.lstm(features[:, :, 0].transpose(1, 2))[1][0][0]
    torch.testing.assert_close(critic(features), critic.head(hidden))
    assert critic(features).shape == (2, 1)


def test_controls_of_places(net):
    assert explained(net, "last_place")[0].tolist() == [0, 0, 0, 0, 1]
    assert explained(net, "position")[0].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_unknown_word_fills_every_place(net):
    read = Sentences.of(net)
    assert filled(torch.randn(2, 5, 1, 3), "unknown", read)[1, :, 0, 2].equal(net.embedding.weight[net.unknown].float())


@pytest.mark.parametrize(
    ("method", "parameters", "said"),
    [
        ("lime", {}, "segments=slic finds superpixels"),
        ("occlusion", {"patch": 1, "fill": "blur"}, "fill=blur is made of pixels"),
        ("integrated_gradients", {"baseline": "dataset"}, "other sentences have other lengths"),
        ("sobel", {}, "sobel looks for edges"),
        ("extremal_perturbation", {}, "blurs masks"),
        ("input_iba", {}, "method.critic=recurrent"),
    ],
)
def test_what_is_made_for_pictures_is_refused(net, method, parameters, said):
    with pytest.raises(Refusal, match=said):
        build({**settings(method), **parameters}, "method").check(text.classifier(net))


def test_words_are_refused_by_networks_of_pictures():
    for method, parameters in (("lime_text", {}), ("occlusion", {"fill": "unknown"})):
        with pytest.raises(Refusal, match="words"):
            build({**settings(method), **parameters}, "method").check(classifier(VGGLike()))
