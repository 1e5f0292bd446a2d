"""Input IBA: Proposition 3, the generator's game, and its limits."""

import pytest
import torch
from scipy.integrate import quad
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from tests.methods.helpers import LAYER, fitted
from tests.methods.helpers import settings as yaml_of
from tests.methods.nets import SIZE, VGGLike, classifier, seeded
from xaibench.build import build
from xaibench.errors import Refusal
from xaibench.methods.bottleneck._bottleneck import Bottleneck, Optimisation, find_mask, information
from xaibench.methods.bottleneck.input_iba import (
    InputBottleneck,
    InputIBA,
    critic_network,
    input_information,
    prior_noise,
)
from xaibench.methods.context import Context
from xaibench.models.classifier import Classifier
from xaibench.rng import sample_generators

DOUBLE = torch.float64
QUICK = {"target_samples": 12, "batch_size": 5, "epochs": 2, "steps": 4, "copies": 3, "feature_steps": 3}


def quick(**changes) -> InputIBA:
    return InputIBA(**({"layer": LAYER} | QUICK | changes))


def maps_of(method, network, inputs, ids, found):
    targets = torch.tensor([i % 5 for i in ids])
    return method.attribute(
        network, inputs[list(ids)], targets, Context(sample_generators(0, "iba", ids), fitted=found)
    )


def test_proposition_3_is_the_divergence_of_the_two_normals():
    image, mean, std = torch.linspace(-4, 4, 9, dtype=DOUBLE)[:, None, None], 0.7, 1.9
    noise = torch.linspace(1e-4, 1, 12, dtype=DOUBLE)[:, None]
    generated = torch.linspace(0, 0.999, 7, dtype=DOUBLE)
    found = input_information((image - mean) / std, noise, generated)
    kept = 1 - noise
    prior = Normal(generated * kept * image + (1 - generated * kept) * mean, (1 - generated * kept) * std)
    expected = kl_divergence(Normal(kept * image + noise * mean, noise * std), prior)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (found > -1e-12).all()


def test_proposition_3_by_numerical_integration():
    p, q = Normal(torch.tensor(0.8 * 1.5, dtype=DOUBLE), 0.2), Normal(torch.tensor(0.4 * 0.8 * 1.5, dtype=DOUBLE), 0.68)

    def integrand(z: float) -> float:
        z = torch.tensor(z, dtype=DOUBLE)
        return float(p.log_prob(z).exp() * (p.log_prob(z) - q.log_prob(z)))

    found = input_information(torch.tensor(1.5, dtype=DOUBLE), torch.tensor(0.2, dtype=DOUBLE), 0.4)
    assert float(found) == pytest.approx(quad(integrand, -2, 5, limit=200)[0], abs=1e-9)


def test_limits_of_the_prior():
    r, noise = torch.randn(100, dtype=DOUBLE), torch.rand(100, dtype=DOUBLE)
    torch.testing.assert_close(input_information(r, noise, 0.0), information(r, noise))  # nothing known: the IBA's
    torch.testing.assert_close(input_information(r, noise, 1.0), torch.zeros_like(r))  # all known: nothing to say
    assert (input_information(r, torch.ones_like(r), 0.3) == 0).all()


def test_samples_have_the_distribution_of_remark_1_and_2():
    torch.manual_seed(0)
    image = torch.full((1, 1, 2, 2), 3.0, dtype=DOUBLE)
    mean, std = torch.full((1, 1, 1, 1), -1.0, dtype=DOUBLE), torch.full((1, 1, 1, 1), 2.0, dtype=DOUBLE)
    generated, noise = torch.full_like(image, 0.5), torch.full_like(image, 0.5)
    for through, share in [(True, 0.75), (False, 0.5)]:
        z = InputBottleneck(image, mean, std, generated, through).sample(noise, 20000, sample_generators(0, "iba", [0]))
        # One noise for Z_G and for the bottleneck: the deviation is 1 - lambda_G Lambda, not a sum of squares.
        assert float(z.std()) == pytest.approx(2.0 * share, rel=0.02)
        assert float(z.mean()) == pytest.approx((1 - share) * 3.0 - share, abs=0.05)
    torch.testing.assert_close(prior_noise(noise, generated), torch.full_like(noise, 0.75))


@pytest.mark.parametrize("through", [True, False])
def test_without_prior_knowledge_the_input_bottleneck_is_the_ibas(through):
    torch.manual_seed(0)
    inputs, readout = torch.randn(2, 3, 6, 6, dtype=DOUBLE), nn.Linear(108, 4).double()
    mean, std = torch.zeros(2, 3, 1, 1, dtype=DOUBLE), torch.ones(2, 3, 1, 1, dtype=DOUBLE)

    def solve(bottleneck: Bottleneck) -> torch.Tensor:
        def losses(z, copies):
            return F.cross_entropy(readout(z.flatten(1)), torch.ones(len(z), dtype=torch.long), reduction="none")

        return find_mask(
            bottleneck,
            losses,
            Optimisation(beta=2, steps=8, learning_rate=1, copies=4, smoothing=1, initial=5),
            sample_generators(0, "iba", [0, 1]),
            99,
        )

    if through:
        # Z_G of lambda_G = 0 is noise: samples that go through it hold nothing of the image.
        z = InputBottleneck(inputs, mean, std, torch.zeros_like(inputs), True).sample(
            torch.full_like(inputs, 0.1), 2, sample_generators(0, "iba", [0, 1])
        )
        noise = Bottleneck(inputs, mean, std).sample(torch.ones_like(inputs), 2, sample_generators(0, "iba", [0, 1]))
        torch.testing.assert_close(z, noise)
    else:
        found = solve(InputBottleneck(inputs, mean, std, torch.zeros_like(inputs), False))
        torch.testing.assert_close(found, solve(Bottleneck(inputs, mean, std)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["input_iba", "input_iba_released"])
def test_maps_do_not_depend_on_the_batch_or_the_order(name):
    method = build(yaml_of(name) | {"layer": LAYER} | QUICK, "method")
    network, inputs = classifier(VGGLike(), batch_size=64), seeded(5)
    method.check(network)
    found = fitted(method, network)
    state, before = torch.get_rng_state(), inputs.clone()
    whole = maps_of(method, network, inputs, range(5), found)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(inputs, before)
    assert whole.shape == (5, 1, 16, 16) and (whole >= 0).all() and (whole <= 1).all() and whole.std() > 0
    split = classifier(network.module, batch_size=4)
    order = [4, 2, 0, 3, 1]
    parts = torch.cat(
        [maps_of(method, split, inputs, order[:3], found), maps_of(method, split, inputs, order[3:], found)]
    )
    torch.testing.assert_close(parts, whole[order], rtol=1e-8, atol=1e-8)
    assert all(parameter.grad is None for parameter in network.module.parameters())


def test_the_generator_moves_its_features_towards_the_target():
    """The layer is the image itself, so the best generator has the mean and deviation of Z*."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Identity(), nn.Linear(3, 4)

        def forward(self, x):
            return self.head(self.features(x).mean((2, 3)))

    network = Classifier("net", Net(), SIZE, batch_size=64)
    network.layers = {"bottleneck": "features"}
    rates = {"critic_learning_rate": 1e-3, "mask_rate": 0.003, "mean_rate": 0.1, "std_rate": 0.05}
    method = InputIBA(epochs=12, critic_every=1, weight_clip=0.1, feature_beta=1000.0, **rates)
    shape = {"features.mean": torch.full(SIZE, 2.0), "features.std": torch.full(SIZE, 0.5)}
    found = {name.replace("features", "bottleneck"): t for name, t in shape.items()}
    found["bottleneck.active"] = torch.ones(SIZE)
    image, generators = torch.zeros(1, *SIZE), sample_generators(0, "iba", [0])
    solution = next(iter(method.feature.solve(network, image, torch.tensor([0]), generators, found)))
    assert float(solution.noise.min()) > 0.9  # Z* is nearly N(2, 0.5^2), which no image is needed for
    learned = method.generate(network, solution, 0, image[0], generators[0])
    centre = ((1 - learned.mask) * learned.mean).mean()
    assert 1.0 < float(centre) < 3.0


def test_both_schedules_train_whom_they_say():
    network, inputs = classifier(VGGLike()), seeded(1)
    method = quick(target_samples=30, batch_size=5, epochs=1)  # six batches: the critic is trained on 0 and 5
    assert method.cost(network) == (1 + 9 + 30 + 12, 9 + 30 + 12)
    released = quick(target_samples=30, batch_size=5, epochs=1, critic_every=1, generator_every=5)
    assert released.cost(network) == (1 + 9 + 30 + 12, 9 + 10 + 12)
    found = fitted(method, network)
    rows = []
    network.module.get_submodule("features.0").register_forward_hook(lambda m, a, output: rows.append(len(output)))
    maps_of(released, network, inputs, [0], found)
    # 3 rows check the cut, 1 is the clean pass, 30 are generated, 12 are the input bottleneck's.
    assert sum(rows) == 3 + 1 + 30 + 12


def test_the_critic_has_three_convolutions_and_the_named_linear_layers():
    for widths, linear in [((512,), 2), ((512, 256), 3)]:
        critic = critic_network((6, 14, 7), widths)
        assert critic(torch.randn(3, 6, 14, 7)).shape == (3, 1)
        assert sum(isinstance(layer, nn.Conv2d) for layer in critic) == 3
        assert sum(isinstance(layer, nn.Linear) for layer in critic) == linear


def test_what_cannot_be_served_is_refused():
    with pytest.raises(Refusal, match=r"set method\.layer="):
        InputIBA().check(classifier(VGGLike(), layers={}))
    small = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    small(torch.zeros(1, *SIZE))
    with pytest.raises(Refusal, match="the critic needs 4x4"):
        InputIBA(layer="0").check(Classifier("small", small, SIZE))
    for wrong in ({"epochs": 0}, {"weight_clip": 0.0}, {"target_samples": 33}, {"beta": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            InputIBA(**wrong)
