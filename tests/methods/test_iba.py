"""IBA and its variants on networks whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.helpers import LAYER, fitted, samples
from tests.methods.nets import SIZE, VGGLike, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.bottleneck._bottleneck import Bottleneck, layer_noise
from xaibench.methods.bottleneck.iba import IBA
from xaibench.methods.bottleneck.iba_inverse import IBAInverse
from xaibench.methods.bottleneck.iba_multilayer import IBAMultilayer, agreement, normalised
from xaibench.methods.context import Context
from xaibench.models.classifier import Classifier
from xaibench.models.cut import activations
from xaibench.rng import sample_generators


def maps_of(method, network, inputs, ids, seed=0, **keywords):
    targets = torch.tensor([i % 5 for i in ids]) if keywords.get("targets") is None else keywords["targets"]
    found = keywords.get("fitted") or fitted(method, network)
    return method.attribute(
        network, inputs[list(ids)], targets, Context(sample_generators(seed, "iba", ids), fitted=found)
    )


def test_fit_is_the_moments_of_the_layer():
    network = classifier(VGGLike())
    found = fitted(IBA(layer=LAYER), network)
    values = activations(network, [LAYER], torch.cat([batch.inputs for batch in samples()]).double())[LAYER]
    torch.testing.assert_close(found[f"{LAYER}.mean"], values.mean(0))
    torch.testing.assert_close(found[f"{LAYER}.std"], values.std(0))
    torch.testing.assert_close(found[f"{LAYER}.active"], (values != 0).double().mean(0))


@pytest.mark.parametrize("method", [IBA, IBAInverse, IBAMultilayer])
def test_maps_do_not_depend_on_batch_order_or_neighbours(method):
    parameters = (
        {"layers": ["features.0", LAYER], "thresholds": [None, 1.0]} if method is IBAMultilayer else {"layer": LAYER}
    )
    method = method(**parameters, steps=5, copies=5)
    module, inputs = VGGLike(), seeded(9)
    network = classifier(module, batch_size=64)
    found = fitted(method, network)
    whole = maps_of(method, network, inputs, range(9), fitted=found)
    for ids, together, batch_size in [([*range(9)], 1, 64), ([*range(9)], 9, 7), ([3, 8, 1, 0, 7, 2, 5, 4, 6], 4, 25)]:
        network = classifier(module, batch_size=batch_size)
        groups = [ids[start : start + together] for start in range(0, 9, together)]
        maps = torch.cat([maps_of(method, network, inputs, group, fitted=found) for group in groups])
        assert (maps - whole[ids]).abs().max() <= 1e-9 * whole.abs().max()


def test_a_broken_neighbour_changes_nothing():
    network, inputs = classifier(VGGLike(), batch_size=64), seeded(3)
    method = IBA(layer=LAYER)
    expected = maps_of(method, network, inputs, range(3))[[0, 2]]
    inputs[1] = math.nan
    torch.testing.assert_close(maps_of(method, network, inputs, range(3))[[0, 2]], expected, rtol=1e-12, atol=0)


def test_every_call_starts_anew_and_leaves_the_network_as_it_was():
    network, inputs = classifier(VGGLike()), seeded(2)
    method = IBA(layer=LAYER)
    found, before = fitted(method, network), inputs.clone()
    with torch.no_grad():
        first = maps_of(method, network, inputs, [0], fitted=found)
    maps_of(method, network, inputs, [1], fitted=found)
    assert torch.equal(first, maps_of(method, network, inputs, [0], fitted=found))
    assert torch.equal(inputs, before) and not first.requires_grad
    assert not any(module._forward_hooks for module in network.module.modules())
    assert all(parameter.grad is None for parameter in network.module.parameters())
    assert not torch.equal(first, maps_of(method, network, inputs, [0], seed=1, fitted=found))


def test_information_falls_with_beta_down_to_nothing_and_is_that_of_the_final_mask():
    network, inputs = classifier(VGGLike()), seeded(2)
    found = fitted(IBA(layer=LAYER), network)
    totals = []
    for beta in (0.0, 0.01, 0.1, 1000.0):
        method = IBA(layer=LAYER, beta=beta, steps=30)
        solutions = method.solve(network, inputs, torch.tensor([0, 1]), sample_generators(0, "iba", [0, 1]), found)
        solution = next(iter(solutions))
        maps = maps_of(method, network, inputs, range(2), fitted=found)
        torch.testing.assert_close(maps.sum(), solution.information.sum() / math.log(2))
        assert (maps >= 0).all()
        totals.append(float(maps.sum()))
    assert totals == sorted(totals, reverse=True)
    # One Adam step of 1 moves alpha from 5 to about -25 in 30 steps: nothing is left.
    assert totals[-1] < 1e-3 * totals[0]


def test_the_mask_and_the_bits_are_of_one_solution():
    """At the input, of one channel, nothing is resized: the bits of a pixel are the divergence of its Z, a Gaussian of
    mean lambda R + (1 - lambda) mean and deviation (1 - lambda) std, from the noise."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).double()
    network, inputs = Classifier("grey", module, (1, 6, 6)), torch.randn(3, 1, 6, 6, dtype=torch.float64)
    mean, std = torch.randn(1, 6, 6).double(), torch.rand(1, 6, 6).double() + 0.5
    found = {"input.mean": mean, "input.std": std, "input.active": torch.ones(1, 6, 6).double()}
    bits, mask = (
        maps_of(IBA(layer="input", beta=0.1, map=word), network, inputs, range(3), fitted=found)
        for word in ("bits", "mask")
    )
    noise = torch.distributions.Normal(mean, std)
    kept = torch.distributions.Normal(mask * inputs + (1 - mask) * mean, (1 - mask) * std)
    nats = torch.distributions.kl_divergence(kept, noise)
    torch.testing.assert_close(bits, nats / math.log(2), rtol=1e-6, atol=1e-9)
    assert mask.std() > 0.01 and mask.min() > 0 and mask.max() < 1


def test_the_mask_is_the_mean_over_channels_enlarged():
    network, inputs = classifier(VGGLike()), seeded(2)
    method = IBA(layer=LAYER, map="mask")
    found = fitted(method, network)
    solution = next(
        iter(method.solve(network, inputs, torch.tensor([0, 1]), sample_generators(0, "iba", [0, 1]), found))
    )
    small = (1 - solution.noise).mean(1, keepdim=True)
    expected = nn.Upsample(size=SIZE[1:], mode="bilinear", align_corners=False)(small)
    torch.testing.assert_close(maps_of(method, network, inputs, range(2), fitted=found), expected)


def test_what_is_left_suffices_for_the_prediction():
    """At the theses' beta the negative evidence is gone, so the target is more probable than without the mask."""
    torch.manual_seed(0)
    network, inputs = classifier(VGGLike()), seeded(4)
    method = IBA(layer=LAYER, beta=0.1, steps=40)
    targets = network.logits(inputs).argmax(1)
    generators = sample_generators(0, "iba", range(4))
    solution = next(iter(method.solve(network, inputs, targets, generators[:3], fitted(method, network))))
    with torch.no_grad():
        z = solution.bottleneck.sample(solution.noise, 50, generators)
        noisy = solution.cut.behind(z, solution.features, 50).softmax(-1)
    kept = network.select(noisy, targets[:3].repeat_interleave(50), "raw").view(3, 50).mean(1)
    assert (kept > network.scores(inputs[:3], targets[:3], "probability") - 0.01).all()


class Quadrants(nn.Module):
    """Class k is the brightness of quadrant k."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        nn.init.constant_(self.features.weight, 1.0)

    def forward(self, x):
        return 4 * self.pool(self.features(x)).mean(1).flatten(1)


def test_the_bits_lie_where_the_class_is():
    torch.manual_seed(0)
    network = Classifier("quadrants", Quadrants(), SIZE)
    inputs = torch.randn(4, *SIZE) * 0.3
    for k in range(4):
        inputs[k, :, 8 * (k // 2) :, 8 * (k % 2) :][:, :8, :8] += 2
    method = IBA(layer="features", beta=10)
    found = {
        "features.mean": torch.zeros(4, 16, 16),
        "features.std": torch.full((4, 16, 16), 1.5),
        "features.active": torch.ones(4, 16, 16),
    }
    maps = maps_of(method, network, inputs, range(4), targets=torch.arange(4), fitted=found)
    inside = nn.AdaptiveAvgPool2d(2)(maps).flatten(1)
    assert (inside.argmax(1) == torch.arange(4)).all()
    assert (inside.diagonal() > 0.5 * inside.sum(1)).all()


@pytest.mark.parametrize(
    ("gate", "kind", "beta", "kept"),
    [
        ("or", IBA, 0.1, 1),
        ("or", IBA, 0.3, 1),
        ("or", IBAInverse, 0.1, 2),
        ("or", IBAInverse, 0.3, 2),
        ("or", IBAInverse, 1.0, 0),
        ("and", IBA, 0.1, 2),
        ("and", IBA, 1.0, 2),
        ("and", IBAInverse, 0.1, 2),
        ("and", IBAInverse, 3.0, 0),
    ],
)
def test_redundant_and_conjunctive_features(gate, kind, beta, kept):
    """Of two features that are each enough, IBA keeps one and the inverse both; of two needed ones, IBA both."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(10.0))

        def forward(self, x):
            values = x.flatten(1)
            logit = self.scale * ((values.amax(1) if gate == "or" else values.amin(1)) - 0.5)
            return torch.stack([-logit / 2, logit / 2], dim=1)

    network = Classifier(gate, Gate(), (1, 1, 2), batch_size=256)
    method = kind(layer="input", beta=beta, steps=200, learning_rate=0.1, copies=100, smoothing=0.0, initial=1.0)
    found = {"input.mean": torch.full((1, 1, 2), 0.5), "input.std": torch.full((1, 1, 2), 0.5)}
    found["input.active"] = torch.ones(1, 1, 2)
    solutions = method.solve(
        network, torch.ones(1, 1, 1, 2), torch.tensor([1]), sample_generators(0, "iba", [0]), found
    )
    masks = 1 - next(iter(solutions)).noise
    assert int((masks > 0.5).sum()) == kept, masks


class Scalar(nn.Module):
    """y = offset + the mean of the left half minus that of the right half."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.features, self.offset = nn.Conv2d(1, 1, 1), nn.Parameter(torch.tensor(offset))
        nn.init.ones_(self.features.weight)
        nn.init.zeros_(self.features.bias)

    def forward(self, x):
        x = self.features(x)
        return (4 * (x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3))) + self.offset)[:, None]


def halves(loss, offset=0.0, kind=IBA, **keywords) -> tuple[float, float]:
    """Bits on the left and on the right of an image that is bright on both sides."""
    network = Classifier("scalar", Scalar(offset), (1, 8, 8))
    method = kind(layer="features", loss=loss, steps=30, learning_rate=0.5, smoothing=0.0, **keywords)
    method.check(network)
    found = {"features.mean": torch.zeros(1, 8, 8), "features.std": torch.ones(1, 8, 8)}
    found["features.active"] = torch.ones(1, 8, 8)
    target = torch.tensor([0])
    maps = method.attribute(
        network, torch.ones(1, 1, 8, 8), target, Context(sample_generators(0, "iba", [0]), fitted=found)
    )
    return float(maps[..., :4].sum()), float(maps[..., 4:].sum())


def test_regression_losses():
    """The left half raises the output and the right half lowers it; together they give the offset."""
    left, right = halves("maximisation", beta=0.1, offset=1.0)
    assert left > 3 * right
    left, right = halves("squared_error", beta=0.1, value=-4.0)
    assert right > 3 * left
    left, right = halves("squared_error", beta=0.1, value=4.0)
    assert left > 3 * right
    torch.testing.assert_close(
        halves("deviation", beta=0.1), halves("deviation", beta=0.1, offset=7.0), rtol=1e-3, atol=0
    )
    # The other way round: what has to go for a smaller y^2.
    left, right = halves("maximisation", kind=IBAInverse, beta=0.1, offset=3.0)
    assert left > 3 * right


class Answering(nn.Module):
    """What `Scalar` answers, handed on as `end` says."""

    def __init__(self, end) -> None:
        super().__init__()
        self.scalar, self.end = Scalar(-1.0), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.scalar(x))


@pytest.mark.parametrize("kind", [IBA, IBAInverse])
def test_binary_cross_entropy_is_the_cross_entropy_of_a_class_against_nothing(kind):
    """Of the logits 0 and f, where the softmax of f is its sigmoid; of f beside any other logit, by output=sigmoid; and
    of the sigmoid as the network's one output, with the label 1."""
    found = {f"scalar.features.{name}": fill(1, 8, 8) for name, fill in (("mean", torch.zeros), ("std", torch.ones))}
    found["scalar.features.active"] = torch.ones(1, 8, 8)

    def maps(loss, output, end, target, **given):
        network = Classifier("f", Answering(end), (1, 8, 8), output=output)
        method = kind(layer="scalar.features", loss=loss, beta=0.1, steps=8, learning_rate=0.5, smoothing=0.0)
        method.check(network)
        context = Context(sample_generators(0, "iba", [0]), fitted=found, **given)
        return method.attribute(network, torch.ones(1, 1, 8, 8), torch.tensor([target]), context)

    expected = maps("cross_entropy", "logit", lambda f: torch.cat([0 * f, f], 1), 1)
    among = maps("binary_cross_entropy", "sigmoid", lambda f: torch.cat([f, 3 - 5 * f], 1), 0)
    alone = maps("binary_cross_entropy", "raw", torch.sigmoid, 0, labels=torch.tensor([1]))
    torch.testing.assert_close(among, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-6)
    other = maps("binary_cross_entropy", "raw", torch.sigmoid, 0, labels=torch.tensor([0]))
    assert not torch.allclose(other, expected, rtol=0.1)
    with pytest.raises(Refusal, match="no class excludes another"):
        maps("cross_entropy", "sigmoid", lambda f: torch.cat([f, -f], 1), 0)


@pytest.mark.parametrize("labels", [torch.tensor([-4.0, 0.5, 4.0]), torch.tensor([-4, 0, 4])])
@pytest.mark.parametrize("kind", [IBA, IBAInverse, IBAMultilayer])
def test_without_a_value_each_sample_aims_at_its_own_label(kind, labels):
    """One sample after the other, with its label as the number, gives the same maps."""
    network, inputs = Classifier("scalar", Scalar().double(), (1, 8, 8)), torch.ones(3, 1, 8, 8).double()
    layer = {"layers": ["features"], "thresholds": [None]} if kind is IBAMultilayer else {"layer": "features"}
    found = {"features.mean": torch.zeros(1, 8, 8), "features.std": torch.ones(1, 8, 8)}
    found["features.active"] = torch.ones(1, 8, 8)

    def maps(ids, **keywords):
        method = kind(**layer, loss="squared_error", beta=0.1, smoothing=0.0, **keywords)
        generators, targets = sample_generators(0, "iba", ids), torch.zeros(len(ids), dtype=torch.int64)
        given = {"fitted": found} if keywords else {"fitted": found, "labels": labels[ids]}
        return method.attribute(network, inputs[ids], targets, Context(generators, **given))

    alone = torch.cat([maps([i], value=float(labels[i])) for i in range(3)])
    torch.testing.assert_close(maps([0, 1, 2]), alone, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(alone[0], alone[2], rtol=0.1)
    method = kind(**layer, loss="squared_error")
    with pytest.raises(Refusal, match="labels"):
        method.attribute(
            network, inputs[:1], torch.tensor([0]), Context(sample_generators(0, "iba", [0]), fitted=found)
        )


def test_multilayer_maps_shrink_with_every_layer():
    network, inputs = classifier(VGGLike()), seeded(3)
    found = fitted(IBAMultilayer(layers=["features.0", LAYER, "features.5"], thresholds=[None] * 3), network)
    first = maps_of(IBA(layer="features.0"), network, inputs, range(3), fitted=found)
    one = IBAMultilayer(layers=["features.0"], thresholds=[None])
    torch.testing.assert_close(maps_of(one, network, inputs, range(3), fitted=found), first)
    two = maps_of(
        IBAMultilayer(layers=["features.0", LAYER], thresholds=[None, 1.0]), network, inputs, range(3), fitted=found
    )
    three = maps_of(
        IBAMultilayer(layers=["features.0", LAYER, "features.5"], thresholds=[None, 1.0, 1.0]),
        network,
        inputs,
        range(3),
        fitted=found,
    )
    support = [float((maps > 0).double().mean()) for maps in (first, two, three)]
    assert support[0] > support[1] > support[2] > 0
    assert ((two == 0) | (two == first)).all() and ((three == 0) | (three == two)).all()
    binary = maps_of(
        IBAMultilayer(layers=["features.0", LAYER], thresholds=[1.0, 1.0]), network, inputs, range(3), fitted=found
    )
    assert set(binary.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kept", [0.25, 0.5, 0.9])
def test_noisy_features_keep_the_layers_mean_and_not_its_variance(kept):
    """Schulz et al. 2020, appendix E: over the data, a fixed mask leaves lambda^2 + (1 - lambda)^2 of the variance."""
    network = classifier(VGGLike())
    found = fitted(IBA(layer=LAYER, min_std=1e-6, min_active=0.0), network)
    values = activations(network, [LAYER], torch.cat([batch.inputs for batch in samples()]).double())[LAYER]
    bottleneck = layer_noise(Bottleneck, values, found, LAYER, 1e-6, 0.0)
    z = bottleneck.sample(torch.full_like(values, 1 - kept), 50, sample_generators(0, "iba", range(len(values))))
    varied = found[f"{LAYER}.std"] > 1e-3
    standardised = ((z - found[f"{LAYER}.mean"]) / found[f"{LAYER}.std"])[:, varied]
    # Of 2000 draws a feature's mean is off by (1 - lambda) / sqrt(2000) in the root mean square.
    assert standardised.mean(0).square().mean().sqrt() == pytest.approx((1 - kept) / math.sqrt(2000), rel=0.1)
    expected = kept**2 * 39 / 40 + (1 - kept) ** 2  # the layer's own is of 40 images, unbiased
    assert standardised.var(0).mean() == pytest.approx(expected, rel=0.01)


def test_the_sum_of_layers_weighs_each_map_by_its_norm():
    """Against numpy's norms of the single layers' maps, whose noise is drawn one after the other."""
    network, inputs, layers = classifier(VGGLike()), seeded(3), ["features.0", LAYER]
    method = IBAMultilayer(layers=layers, thresholds=[None, 1.0], combine="sum")
    found = fitted(method, network)
    targets = torch.tensor([i % 5 for i in range(3)])
    context = Context(sample_generators(0, "iba", range(3)), fitted=found)
    parts = [IBA(layer=layer).attribute(network, inputs, targets, context).numpy() for layer in layers]
    expected = sum(part / np.sqrt((part**2).sum((1, 2, 3), keepdims=True)) for part in parts)
    total = maps_of(method, network, inputs, range(3), fitted=found)
    np.testing.assert_allclose(total.numpy(), expected, rtol=1e-10)
    assert not normalised(torch.zeros(2, 1, 4, 4)).any()
    with pytest.raises(ValueError, match="did you mean 'sum'"):
        IBAMultilayer(combine="sums")


def test_agreement_is_the_released_threshold_at_224_pixels():
    maps = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0)) ** 4
    normalised = maps / maps.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.equal(agreement(maps, 0.006 * 224), (normalised >= 0.006).float())
    assert (agreement(torch.zeros(1, 1, 8, 8), 1.0) == 0).all()
    assert agreement(maps, None) is maps


def test_cost_counts_the_passes_of_the_part_behind_the_layer():
    network = classifier(VGGLike())
    assert IBA(layer=LAYER).cost(network) == (101, 100)
    assert IBA(layer=LAYER, loss="deviation").cost(network) == (102, 100)
    assert IBAMultilayer(layers=["features.0", LAYER], thresholds=[None, 1.0], steps=2, copies=3).cost(network) == (
        14,
        12,
    )
    rows = {"features.0": 0, "head": 0}
    for name in rows:
        network.module.get_submodule(name).register_forward_hook(
            lambda module, arguments, output, name=name: rows.update({name: rows[name] + len(arguments[0])})
        )
    found = fitted(IBA(layer=LAYER), network)
    rows.update(dict.fromkeys(rows, 0))
    maps_of(IBA(layer=LAYER), network, seeded(6), range(6), fitted=found)
    # Besides the 6 images, checking the cut costs one row and twice two, once per call, whatever the size.
    assert rows == {"features.0": 6 + 3, "head": 600 + 4}


def test_what_cannot_be_served_is_refused():
    network = classifier(VGGLike(), layers={})
    with pytest.raises(Refusal, match=r"set method\.layer=<module path>"):
        IBA().check(network)
    with pytest.raises(Refusal, match=r"set method\.layers=<module path>"):
        IBAMultilayer().check(network)
    with pytest.raises(Refusal, match="did you mean"):
        IBA(layer="featurs.3").check(network)
    with pytest.raises(Refusal, match="runs 2 times"):
        IBA(layer="features.4").check(network)
    with pytest.raises(Refusal, match="scalar output"):
        IBA(layer=LAYER, loss="deviation").check(network)
    with pytest.raises(Refusal, match="one output"):
        IBA(layer="features").check(Classifier("scalar", Scalar(), (1, 8, 8)))
    IBA().check(classifier(VGGLike(), layers={"bottleneck": LAYER}))


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"min_std": 0.0}, IBA),
        ({"min_active": 1.0}, IBA),
        ({"beta": -1.0}, IBAInverse),
        ({"layers": []}, IBAMultilayer),
        ({"thresholds": [-1.0, None, None]}, IBAMultilayer),
        ({"steps": 0}, IBAMultilayer),
    ],
)
def test_bad_parameters_are_refused(wrong, kind):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)
