"""LIME and the Shapley methods equal Captum's, given the same players and the same draws."""

import math

import pytest
import torch

from tests.methods.nets import SIZE, VGGLike, classifier, seeded
from xaibench.methods.context import Context
from xaibench.methods.removal._coalitions import every_coalition, grid_shape
from xaibench.methods.removal.exact_shapley import ExactShapley
from xaibench.methods.removal.kernel_shap import KernelShap
from xaibench.methods.removal.lime import Lime
from xaibench.methods.removal.shapley_sampling import ShapleySampling
from xaibench.perturb.fills import filled
from xaibench.rng import generator, sample_generators

captum = pytest.importorskip("captum.attr")
linear_model = pytest.importorskip("captum._utils.models.linear_model")

PLAYERS, FILL, BATCH = 9, "channel_mean", 2


@pytest.fixture(scope="module")
def network():
    """In double precision; Captum keeps logits and sums in single precision, and what is left are small differences."""
    torch.manual_seed(0)
    return classifier(VGGLike(), batch_size=64)


@pytest.fixture(scope="module")
def batch():
    return seeded(BATCH), torch.tensor([3, 1])


def settings(network, batch):
    """Captum's names for our players, fills and targets. Ours give each pixel its share of a player's value."""
    inputs, _ = batch
    labels = ExactShapley(players=PLAYERS).labels(network, inputs)
    sizes = torch.bincount(labels[0].flatten())[labels[0]]
    keywords = {"baselines": filled(inputs, FILL, network.preprocessing), "feature_mask": labels[:1, None].long()}
    return keywords, sizes


def ours(method, network, batch):
    inputs, targets = batch
    return method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(BATCH))))


def theirs(oracle, network, batch, **more):
    """Captum's map, one image at a time: its LIME and KernelSHAP take no more."""
    keywords, sizes = settings(network, batch)
    maps = []
    for sample, (image, target) in enumerate(zip(*batch)):
        extra = {name: value(sample) if callable(value) else value for name, value in more.items()}
        baseline = keywords["baselines"][sample : sample + 1]
        explainer = oracle(sample)
        found = explainer.attribute(
            image[None], baselines=baseline, target=int(target), feature_mask=keywords["feature_mask"], **extra
        )
        maps.append(found[:, :1] / sizes)
    return torch.cat(maps)


def assert_equal(maps, expected, tolerance):
    assert maps.shape == expected.shape
    error = (maps - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative difference {error:.2g}"


def test_exact_shapley(network, batch):
    players = 6  # Captum asks every order's coalitions anew: 720 orders.
    inputs, targets = batch
    method = ExactShapley(players=players, fill=FILL)
    labels = method.labels(network, inputs)
    assert math.prod(grid_shape(players, *SIZE[1:])) == int(labels.max()) + 1 == 6
    expected = captum.ShapleyValues(network.module).attribute(
        inputs,
        baselines=filled(inputs, FILL, network.preprocessing),
        target=targets,
        feature_mask=labels[:1, None],
        perturbations_per_eval=64,
    )
    sizes = torch.bincount(labels[0].flatten())[labels[0]]
    assert_equal(ours(method, network, batch), expected[:, :1] / sizes, 1e-5)


@pytest.mark.parametrize("antithetic", [False, True])
def test_shapley_sampling_given_the_same_orders(network, batch, antithetic):
    method = ShapleySampling(players=PLAYERS, samples=5, antithetic=antithetic, fill=FILL)

    def oracle(sample):
        explainer = captum.ShapleyValueSampling(network.module)
        places = method._places(PLAYERS, generator(0, "maps", sample))
        explainer.permutation_generator = lambda features, samples: iter(places.argsort(dim=1).tolist())
        return explainer

    assert_equal(ours(method, network, batch), theirs(oracle, network, batch, n_samples=5), 1e-5)


@pytest.mark.parametrize("antithetic", [False, True])
def test_kernel_shap_given_the_same_coalitions(network, batch, antithetic):
    """Captum gives the two ends a large weight, we fit them exactly."""
    method = KernelShap(players=PLAYERS, samples=60, antithetic=antithetic, fill=FILL)

    def oracle(sample):
        chosen, weights = method._coalitions(PLAYERS, 60, generator(0, "maps", sample))
        assert (weights == 1).all()
        ends = torch.tensor([[True], [False]]).expand(2, PLAYERS)
        explainer = captum.KernelShap(network.module)
        explainer.perturb_func = one_by_one(torch.cat([ends, chosen]))
        return explainer

    assert_equal(ours(method, network, batch), theirs(oracle, network, batch, n_samples=62), 1e-4)


def test_lime_given_the_same_coalitions(network, batch):
    method = Lime(players=PLAYERS, segments="grid", samples=50, kernel_width=0.3, ridge=0.7, fill=FILL)

    def similarity(original, perturbed, present, **keywords):
        distance = 1 - math.sqrt(present.double().mean())
        return math.exp(-0.5 * (distance / 0.3) ** 2)

    def oracle(sample):
        draws = torch.rand(49, PLAYERS, generator=generator(0, "maps", sample)) < 0.5
        present = torch.cat([torch.ones(1, PLAYERS), draws])
        return captum.Lime(
            network.module,
            interpretable_model=linear_model.SkLearnLinearModel("linear_model.Ridge", alpha=0.7),
            similarity_func=similarity,
            perturb_func=one_by_one(present),
        )

    assert_equal(ours(method, network, batch), theirs(oracle, network, batch, n_samples=50), 1e-5)


def test_captums_kernel_shap_of_all_coalitions_is_our_exact_shapley(network, batch):
    def oracle(sample):
        coalitions = every_coalition(PLAYERS)

        def kernel(original, perturbed, present, **keywords):
            size = int(present.sum())
            ends = size in (0, PLAYERS)
            return 1e6 if ends else 1 / (math.comb(PLAYERS, size) * size * (PLAYERS - size))

        explainer = captum.KernelShap(network.module)
        explainer.perturb_func, explainer.similarity_func = one_by_one(coalitions), kernel
        return explainer

    exact = ours(ExactShapley(players=PLAYERS, fill=FILL), network, batch)
    assert_equal(exact, theirs(oracle, network, batch, n_samples=2**PLAYERS), 1e-4)


def one_by_one(coalitions):
    """Coalitions [X,M] as the generator function that Captum wants."""

    def generate(original, **keywords):
        yield from coalitions.long()[:, None]

    return generate
