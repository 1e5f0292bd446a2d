"""Decoded noise: nothing where the mask lets all through, the closed form of a linear flow, and its control."""

import pytest
import torch

from tests.methods.nets import VGGLike, classifier
from tests.methods.test_counterfactual import SIDE, images, network
from xaibench.datasets.base import Samples
from xaibench.errors import Refusal
from xaibench.methods.bottleneck.iba_inverted import IBAInverted, constant_noise
from xaibench.methods.context import Context
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators

from .helpers import Noise


def fitted(method, net):
    data = Samples(Noise(20, (3, SIDE, SIDE)), Preprocessing(), range(20))
    return {name: tensor.double() for name, tensor in method.fit(net, data, None).items()}


def maps_of(method, net, x, ids=range(3)):
    context = Context(sample_generators(0, "iba", ids), fitted=fitted(method, net))
    return method.attribute(net, x, torch.tensor([i % 3 for i in ids]), context)


def solved(method, net, x):
    count = len(x)
    draws = sample_generators(0, "iba", range(count))
    targets = torch.tensor([i % 3 for i in range(count)])
    return next(iter(method.solve(net, x, targets, draws, fitted(method, net)))), draws


def test_a_mask_of_1_gives_no_deviation_and_the_image_itself():
    net, x = network(), images(3)
    settings = dict(layer="flow.7", beta=0.0, initial=80.0, steps=1, copies=2, samples=5)
    assert maps_of(IBAInverted(**settings), net, x).abs().max() < 1e-9
    torch.testing.assert_close(maps_of(IBAInverted(**settings, statistic="mean"), net, x), x, rtol=0, atol=1e-9)


def test_of_a_linear_flow_the_deviation_has_a_closed_form():
    """x_k = M Z_k, Z of independent Gaussians with deviations s sigma: std_i = sqrt(sum_j (M_ij s_j sigma_j)^2)."""
    net, x = network(linear=True), images(1)
    method = IBAInverted(layer="flow.2", steps=3, copies=2, samples=4000)
    found = -maps_of(method, net, x, range(1))
    solution, _ = solved(method, net, x)

    def decode(values: torch.Tensor) -> torch.Tensor:
        return net.module.decode_from("flow.2", values.view(1, 12, SIDE // 2, SIDE // 2), []).flatten()

    matrix = torch.autograd.functional.jacobian(decode, solution.noise[0].flatten())
    expected = (matrix.square() @ (solution.noise * solution.bottleneck.std).flatten().square()).sqrt()
    assert expected.std() > 0.05 * expected.mean()
    # The relative error of a deviation of 4000 draws is 1.1 %.
    torch.testing.assert_close(found.flatten(), expected, rtol=0.06, atol=0)


def test_samples_are_those_of_the_mask_decoded_with_what_left_before_the_layer():
    net, x = network(batch_size=5), images(3)
    method = IBAInverted(layer="flow.7", steps=2, copies=2, samples=7)
    solution, draws = solved(method, net, x[:2])
    decoded = torch.stack(
        [
            net.module.decode_from(
                "flow.7", solution.bottleneck.sample(solution.noise, 1, draws), net.module.encode(x[:2])[1]
            )
            for _ in range(7)
        ]
    )
    torch.testing.assert_close(maps_of(method, net, x)[:2], -decoded.std(0, correction=0))
    mean = IBAInverted(layer="flow.7", steps=2, copies=2, samples=7, statistic="mean")
    torch.testing.assert_close(maps_of(mean, net, x)[:2], decoded.mean(0))


def test_the_control_lets_as_many_bits_through_everywhere_alike():
    net, x = network(), images(3)
    solution, _ = solved(IBAInverted(layer="flow.7", steps=4, copies=2), net, x)
    noise = constant_noise(solution)
    bits = [solution.bottleneck.information(share).flatten(1).sum(1) for share in (noise, solution.noise)]
    torch.testing.assert_close(*bits, rtol=1e-9, atol=0)
    assert (noise == noise[:, :1, :1, :1]).all() and (solution.noise.flatten(1).std(1) > 0).all()
    found, control = (
        maps_of(IBAInverted(layer="flow.7", steps=4, copies=2, samples=4, mask=mask), net, x)
        for mask in ("found", "constant")
    )
    assert not torch.allclose(found, control)


def test_maps_do_not_depend_on_the_batch():
    x = images(3)
    settings = dict(layer="flow.7", steps=2, copies=2, samples=5)
    whole = maps_of(IBAInverted(**settings), network(), x)
    parts = maps_of(IBAInverted(**settings), network(batch_size=2), x)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(Refusal, match="method=iba_inverted runs the network backwards, and VGGLike has no inverse"):
        IBAInverted(layer="features.3").check(classifier(VGGLike()))
    with pytest.raises(
        Refusal, match=r"method\.layer=flow\.8\.net\.0: flow decodes nothing from there: flow\.8\.net\.0 is not in"
    ):
        IBAInverted(layer="flow.8.net.0").check(network())
    IBAInverted(layer="flow.7").check(network())
