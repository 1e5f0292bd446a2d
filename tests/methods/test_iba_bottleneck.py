"""The formulas of the information bottleneck against closed forms, integrals and torch's own."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from xaibench.methods.bottleneck._bottleneck import (
    Bottleneck,
    InverseBottleneck,
    Moments,
    Optimisation,
    bits_per_pixel,
    blur,
    find_mask,
    information,
    noise_share,
    seeded,
)
from xaibench.rng import sample_generators

DOUBLE = torch.float64


def settings(**changes) -> Optimisation:
    return Optimisation(
        **({"beta": 10.0, "steps": 10, "learning_rate": 1.0, "copies": 10, "smoothing": 1.0, "initial": 5.0} | changes)
    )


def test_information_is_the_divergence_of_the_two_normals():
    r = torch.linspace(-6, 6, 25, dtype=DOUBLE)[:, None]
    noise = torch.linspace(1e-6, 1, 40, dtype=DOUBLE)
    expected = kl_divergence(Normal((1 - noise) * r, noise), Normal(torch.zeros((), dtype=DOUBLE), 1.0))
    torch.testing.assert_close(information(r, noise), expected, rtol=1e-12, atol=1e-12)
    assert (information(r, noise) >= 0).all()


@pytest.mark.parametrize(("r", "noise"), [(0.0, 0.5), (1.3, 0.2), (-2.0, 0.9)])
def test_information_by_numerical_integration(r, noise):
    """With units: R = 3 + 2 r, so the mean is 3 and the deviation 2; the divergence does not depend on them."""
    mean, std = 3.0, 2.0
    p = Normal(torch.tensor((1 - noise) * (mean + std * r) + noise * mean, dtype=DOUBLE), noise * std)
    q = Normal(torch.tensor(mean, dtype=DOUBLE), std)

    def integrand(z: float) -> float:
        z = torch.tensor(z, dtype=DOUBLE)
        return float(p.log_prob(z).exp() * (p.log_prob(z) - q.log_prob(z)))

    centre, width = float(p.loc), 12 * float(p.scale)
    expected = quad(integrand, centre - width, centre + width, epsabs=1e-11, limit=200)[0]
    assert float(information(torch.tensor(r, dtype=DOUBLE), torch.tensor(noise, dtype=DOUBLE))) == pytest.approx(
        expected, abs=1e-9
    )


def test_limits_of_the_information():
    r = torch.randn(1000, dtype=DOUBLE)
    assert (information(r, torch.ones_like(r)) == 0).all()  # lambda 0: nothing passes, whatever the image
    shares = torch.tensor([1e-2, 1e-6, 1e-30, 1e-300], dtype=DOUBLE)
    assert (information(torch.zeros((), dtype=DOUBLE), shares).diff() > 0).all()  # lambda 1: without bound
    # The closed form at the start, alpha 5, of standardised features: not the 2.500 of the thesis's Table 4.
    start = noise_share(torch.full((1, 1, 3, 3), 5.0, dtype=DOUBLE), 1.0)[0, 0, 0, 0]
    assert float(information(torch.ones((), dtype=DOUBLE), start)) == pytest.approx(5.0001, abs=1e-4)


def test_single_precision_resolves_small_masks():
    """After ten steps most of a mask is at lambda 0.01; the textbook order of terms is off by 1e-3 there."""
    noise = 1 - torch.tensor([0.3, 0.1, 0.03, 0.01, 0.003])
    r = torch.tensor(0.5)
    torch.testing.assert_close(
        information(r, noise).double(), information(r.double(), noise.double()), rtol=1e-4, atol=0
    )
    assert (bits_per_pixel(information(torch.zeros(()), 1 - torch.rand(1, 2, 9, 9) * 1e-4), (9, 9)) >= 0).all()


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    r = torch.randn(1, 2, 4, 5, dtype=DOUBLE)
    alpha = torch.randn(1, 2, 4, 5, dtype=DOUBLE, requires_grad=True)
    readout = nn.Linear(40, 3).double()
    bottleneck = Bottleneck(r, torch.full_like(r, 0.2), torch.full_like(r, 1.5))

    def objective(alpha: torch.Tensor) -> torch.Tensor:
        noise = noise_share(alpha, 1.0)
        z = bottleneck.sample(noise, 3, sample_generators(0, "iba", [0]))
        loss = F.cross_entropy(readout(z.flatten(1)), torch.tensor([1, 1, 1]))
        return loss + 10 * bottleneck.information(noise).mean()

    assert torch.autograd.gradcheck(objective, (alpha,))


def test_moments_in_one_pass_are_torchs():
    torch.manual_seed(0)
    values = torch.randn(200, 3, 4, dtype=DOUBLE) + 1e6  # the textbook formula E[x^2] - E[x]^2 loses this
    values[:150, 0, 0] = 0
    moments = Moments()
    for batch in values.split([64, 64, 1, 7, 64]):
        moments.update(batch)
    torch.testing.assert_close(moments.mean, values.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.std, values.std(0), rtol=1e-9, atol=1e-9)
    assert moments.active[0, 0] == 50 and moments.active[1, 1] == 200


@pytest.mark.parametrize(("height", "width", "sigma"), [(8, 8, 1.0), (5, 9, 0.5), (16, 11, 2.0)])
def test_blur_is_the_reflected_convolution(height, width, sigma):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, height, width, dtype=DOUBLE)
    radius = round(2 * sigma)
    taps = torch.exp(-(torch.arange(-radius, radius + 1, dtype=DOUBLE) ** 2) / (2 * sigma**2))
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    padded = F.pad(maps, [radius] * 4, mode="reflect")
    expected = F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)
    torch.testing.assert_close(blur(maps, sigma), expected, rtol=1e-12, atol=1e-12)


def test_blur_keeps_constants_even_where_the_map_is_smaller_than_the_kernel():
    for size in [(1, 2), (1, 1), (2, 3), (4, 4)]:
        torch.testing.assert_close(blur(torch.full((1, 1, *size), 0.3), 1.0), torch.full((1, 1, *size), 0.3))
    assert blur(maps := torch.randn(1, 1, 3, 3), 0) is maps


def test_the_noise_share_stays_finite_and_keeps_its_gradient_at_full_information():
    alpha = torch.full((1, 1, 5, 5), 40.0, requires_grad=True)
    nats = information(torch.zeros(()), noise_share(alpha, 1.0))
    assert nats.isfinite().all() and float(nats.detach().mean()) == pytest.approx(39.5, abs=1e-3)
    nats.sum().backward()
    torch.testing.assert_close(alpha.grad.mean(), torch.tensor(1.0))  # lambda rounds to 1, its complement does not
    random = torch.randn(1, 2, 6, 6, dtype=DOUBLE)
    torch.testing.assert_close(noise_share(random, 1.0), 1 - blur(torch.sigmoid(random), 1.0))
    assert information(torch.zeros(()), noise_share(torch.full((1, 1, 3, 3), 1e4), 0)).isfinite().all()


@pytest.mark.parametrize(
    ("small", "large"), [((7, 7), (64, 64)), ((8, 8), (64, 64)), ((5, 9), (13, 11)), ((9, 9), (4, 4))]
)
def test_resizing_keeps_the_bits(small, large):
    torch.manual_seed(0)
    nats = torch.rand(3, 4, *small, dtype=DOUBLE)
    nats[2] = 0
    maps = bits_per_pixel(nats, large)
    assert maps.shape == (3, 1, *large) and (maps >= 0).all() and maps.isfinite().all()
    torch.testing.assert_close(maps.sum((1, 2, 3)), nats.sum((1, 2, 3)) / math.log(2))


def test_channels_are_added_or_the_largest_taken():
    nats = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(bits_per_pixel(nats, (6, 6))[0, 0], nats[0].sum(0) / math.log(2))
    torch.testing.assert_close(bits_per_pixel(nats, (6, 6), "max")[0, 0], nats[0].amax(0) / math.log(2))


def test_samples_mix_features_and_noise():
    torch.manual_seed(0)
    features = 5 + torch.randn(1, 2, 3, 3, dtype=DOUBLE)
    mean, std = torch.full((1, 2, 1, 1), -1.0, dtype=DOUBLE), torch.full((1, 2, 1, 1), 2.0, dtype=DOUBLE)
    active = torch.tensor([1.0, 0.0], dtype=DOUBLE).view(1, 2, 1, 1)
    ones, tiny = torch.ones_like(features), torch.full_like(features, 1e-300)
    generators = lambda: sample_generators(0, "iba", [0])  # noqa: E731
    bottleneck = Bottleneck(features, mean, std, active)
    noise = bottleneck.sample(ones, 4000, generators())
    assert (noise[:, 1] == 0).all() and (bottleneck.information(tiny)[:, 1] == 0).all()
    assert float(noise[:, 0].mean()) == pytest.approx(-1.0, abs=0.05)
    assert float(noise[:, 0].std()) == pytest.approx(2.0, abs=0.05)
    torch.testing.assert_close(bottleneck.sample(tiny, 2, generators()), (features * active).expand(2, -1, -1, -1))
    inverse = InverseBottleneck(features, mean, std, active)
    torch.testing.assert_close(inverse.sample(ones, 2, generators()), (features * active).expand(2, -1, -1, -1))
    torch.testing.assert_close(inverse.information(ones), torch.zeros_like(features))


def test_what_an_image_draws_does_not_depend_on_its_neighbours_or_the_precision():
    features = torch.zeros(3, 2, 4, 4)
    share = torch.ones_like(features)
    together = Bottleneck(features, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).sample(
        share, 2, sample_generators(0, "iba", [7, 8, 9])
    )
    alone = Bottleneck(features[:1].double(), torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()).sample(
        share[:1].double(), 2, sample_generators(0, "iba", [8])
    )
    torch.testing.assert_close(together[2:4].double(), alone, rtol=0, atol=0)


@pytest.mark.parametrize("most_rows", [1, 7, 100])
def test_the_copies_of_an_image_may_be_split_over_calls(most_rows):
    torch.manual_seed(0)
    features, readout = torch.randn(2, 2, 5, 5, dtype=DOUBLE), nn.Linear(50, 3).double()
    bottleneck = Bottleneck(features, torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double())
    sizes = []

    def losses(z: torch.Tensor, copies: int) -> torch.Tensor:
        sizes.append(len(z))
        return F.cross_entropy(readout(z.flatten(1)), torch.ones(len(z), dtype=torch.long), reduction="none")

    def solve(rows: int) -> torch.Tensor:
        return find_mask(bottleneck, losses, settings(), sample_generators(0, "iba", [0, 1]), rows)

    torch.testing.assert_close(solve(most_rows), solve(1000), rtol=1e-10, atol=1e-10)
    assert max(sizes[:20]) <= max(most_rows, 2)


def test_new_networks_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second = (seeded(lambda: nn.Linear(3, 3), torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "wrong", [{"beta": -1.0}, {"steps": 0}, {"copies": 0}, {"learning_rate": 0.0}, {"smoothing": -0.5}]
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)
