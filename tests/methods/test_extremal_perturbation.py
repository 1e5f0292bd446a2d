"""Extremal perturbation: each part against its definition, the whole against automatic differentiation of it."""

import math

import pytest
import torch
from torch import nn

from tests.methods.nets import SIZE, VGGLike, classifier, seeded
from xaibench.errors import UserError
from xaibench.methods.context import Context
from xaibench.methods.removal.extremal_perturbation import ExtremalPerturbation, SmoothMask, area_gradient
from xaibench.perturb.fills import blurred, filled

LIKE = torch.zeros(1, dtype=torch.float64)


def dense_mask(values, size, spacing, width):
    """Equation 9 over all parameters at once, [h,w] -> mask with its margin; nothing beyond the grid, like zeros."""
    sigma = width * spacing
    reach = 1 + math.ceil(sigma / spacing)
    padding = 1 + math.ceil(2 * sigma / spacing)
    rows = []
    outer = [spacing * (math.ceil(side / spacing) + 2 * (padding - reach) - 1) + 1 for side in size]
    for y in range(outer[0]):
        for x in range(outer[1]):
            products = []
            for row in range(y // spacing - padding, y // spacing - padding + 2 * reach + 1):
                for column in range(x // spacing - padding, x // spacing - padding + 2 * reach + 1):
                    inside = 0 <= row < values.shape[0] and 0 <= column < values.shape[1]
                    distance = math.hypot(y - sigma - spacing * row, x - sigma - spacing * column) / sigma
                    kernel = math.exp(-2 * max(distance - 0.5, 0) ** 2)
                    products.append(kernel * values[row, column] if inside else values.sum() * 0)
            products = torch.stack(products)
            rows.append((products * (20 * products).softmax(0)).sum())
    return torch.stack(rows).view(outer)


@pytest.mark.parametrize(("size", "spacing", "width"), [((6, 9), 2, 1.5), ((5, 5), 1, 2.0), ((7, 4), 3, 1.0)])
def test_smooth_mask_and_its_gradient_are_those_of_the_definition(size, spacing, width):
    smooth = SmoothMask(size, spacing, width, LIKE)
    values = torch.rand(2, *smooth.grid, dtype=torch.float64)
    masks, weights = smooth.forward(values)
    slope = torch.randn_like(masks)
    gradient = smooth.backward(masks, weights, slope)
    for row in range(2):
        parameters = values[row].clone().requires_grad_()
        expected = dense_mask(parameters, size, spacing, width)
        torch.testing.assert_close(masks[row], expected.detach(), rtol=1e-12, atol=1e-14)
        (expected * slope[row]).sum().backward()
        torch.testing.assert_close(gradient[row], parameters.grad, rtol=1e-10, atol=1e-12)


def test_the_sizes_are_those_of_the_authors_at_224_pixels():
    smooth = SmoothMask((224, 224), None, 3.0, LIKE)
    assert (smooth.spacing, smooth.margin, smooth.grid, smooth.outer) == (7, 21, (32, 32), (260, 260))


def test_one_parameter_is_a_disc_where_it_is():
    smooth = SmoothMask((40, 40), 4, 3.0, LIKE)
    values = torch.zeros(1, *smooth.grid, dtype=torch.float64)
    values[0, 3, 6] = 1
    mask = smooth.crop(smooth.forward(values)[0])[0]
    assert mask.shape == (40, 40) and mask[12, 24] == mask.max() and mask.max() > 0.99
    assert torch.allclose(mask[12, 24 - 10 : 24 + 11], mask[12 - 10 : 12 + 11, 24])
    assert mask[12, 30] > 0.99 and mask[30, 5] < 1e-6


def test_area_gradient_is_that_of_the_sorted_squares():
    masks = torch.rand(3, 5, 7, dtype=torch.float64, requires_grad=True)
    areas = [0.1, 0.5, 0.93]
    for mask, area in zip(masks, areas):
        reference = torch.ones(35, dtype=torch.float64)
        reference[: int(35 * (1 - area))] = 0
        (mask.flatten().sort().values - reference).square().mean().backward()
    torch.testing.assert_close(area_gradient(masks.detach(), areas), masks.grad, rtol=1e-12, atol=1e-14)


def test_level_pixels_share_what_is_left():
    masks = torch.full((1, 2, 5), 0.5, dtype=torch.float64)
    masks[0, 0, 0] = 0.9
    noisy = masks + 1e-7 * torch.randn_like(masks)
    gradient = area_gradient(noisy, [0.4])
    # Four of ten pixels: the highest, and three among nine.
    expected = torch.full_like(masks, 2 / 10 * (0.5 - 3 / 9))
    expected[0, 0, 0] = 2 / 10 * (0.9 - 1)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)


def by_autograd(method, network, image, target, area):
    """One mask by automatic differentiation of the whole energy, and torch's own SGD."""
    size = image.shape[1:]
    smooth = SmoothMask(size, method.spacing, method.width, LIKE)
    images = {"blur": lambda left: layered(image, left, method.levels, method.sigma)}.get(
        method.fill, lambda left: torch.lerp(filled(image[None], method.fill, network.preprocessing), image, left)
    )
    values = torch.ones(smooth.grid, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([values], method.learning_rate, method.momentum, dampening=method.momentum)
    weight = method.area_weight
    for step in range(method.steps):
        mask = dense_mask(values, size, smooth.spacing, method.width)
        inside = smooth.crop(mask[None])[0]
        reward = 0
        for sign, left in [(1, inside)] * (method.variant != "delete") + [(-1, 1 - inside)] * (
            method.variant != "preserve"
        ):
            shown = images(left)
            shown = shown.flip(3) if method.flip and step % 2 == 0 else shown
            reward = reward + sign * network.module(shown)[0, target]
        with torch.no_grad():
            excess = area_gradient(mask[None], [area])[0]
        optimizer.zero_grad()
        (-reward + weight * (mask * excess).sum()).backward()
        optimizer.step()
        values.data.clamp_(0, 1)
        weight *= method.area_growth
    return inside.detach()


def layered(image, left, levels, sigma):
    """Hat functions of how much is left pick out the levels of blur."""
    stages = [blurred(image[None], sigma * (1 - i / (levels - 1))) for i in range(levels - 1)] + [image[None]]
    return sum((1 - (left * (levels - 1) - i).abs()).clamp(min=0) * stage for i, stage in enumerate(stages))


@pytest.mark.parametrize(
    ("variant", "fill", "flip"),
    [("preserve", "blur", True), ("delete", "black", True), ("dual", "blur", False), ("preserve", "zero", False)],
)
def test_a_map_is_the_mean_over_areas_of_masks_by_autograd(variant, fill, flip):
    size = (3, 4, 5)
    network = strong(size, batch_size=3)
    inputs, targets = seeded(2, size), torch.tensor([2, 0])
    settings = {"spacing": 2, "width": 1.0, "sigma": 1.5, "levels": 4, "learning_rate": 0.5, "area_weight": 2.0}
    method = ExtremalPerturbation([0.2, 0.6], variant, fill, steps=5, flip=flip, **settings)
    maps = method.attribute(network, inputs, targets, Context())
    for sample in range(2):
        masks = [by_autograd(method, network, inputs[sample], targets[sample], area) for area in (0.2, 0.6)]
        torch.testing.assert_close(maps[sample, 0], torch.stack(masks).mean(0), rtol=0, atol=1e-8)
        assert masks[0].max() - masks[0].min() > 0.05
        assert (masks[0] - masks[1]).abs().max() > 0.05


def strong(size, **settings):
    """A network whose logits move by about one."""
    network = classifier(VGGLike(), size, **settings)
    for layer in network.module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return network


class Window(nn.Module):
    """100 times the mean of one quarter of the image: all evidence is there."""

    def forward(self, inputs):
        return 100 * inputs[:, :, 8:, :8].mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_the_mask_finds_the_evidence_and_has_its_area(variant):
    network = classifier(Window())
    inputs = torch.ones(1, *SIZE, dtype=torch.float64)
    settings = {"width": 1.5, "steps": 120, "learning_rate": 0.03, "flip": False}
    weight = 200.0 if variant == "dual" else 100.0  # the reward of both sides is twice that of one
    method = ExtremalPerturbation([0.15], variant, "zero", area_weight=weight, **settings)
    mask = method.attribute(network, inputs, torch.zeros(1, dtype=torch.long), Context())[0, 0]
    assert mask[10:14, 2:6].min() > 0.9 and mask[:6].max() < 0.1 and mask[:, 10:].max() < 0.1
    # The area is a share of image and margin: 21^2 pixels here.
    assert mask.sum().item() == pytest.approx(0.15 * 21**2, rel=0.25)


class Halves(nn.Module):
    """Of images of ones, in this order: a neuron of the right half, which answers; one that is silent until the right
    half is hidden, and then answers fifteen times as much; one of the left half that answers a little."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([[0.0, 1.0], [0.0, -15.0], [0.2, 0.0]])[:neurons])
        self.bias = nn.Parameter(torch.tensor([0.0, 14.9, 0.0])[:neurons])
        self.relu = nn.ReLU()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        halves = torch.stack([half.mean((1, 2, 3)) for half in inputs.chunk(2, dim=3)], dim=1)
        return 100 * self.relu(halves @ self.weights.T + self.bias).sum(1, keepdim=True)


def of_halves(neurons: int, within: str | None, flip: bool = False, **settings) -> torch.Tensor:
    """Masks [2,H,W] of an image of ones and of one that varies a little, for Halves of so many neurons."""
    inputs = torch.ones(2, *SIZE, dtype=torch.float64)
    inputs[1] += 0.02 * seeded(1)[0].abs().clamp(max=1)
    method = ExtremalPerturbation(
        [0.2], "preserve", "zero", width=1.5, steps=60, learning_rate=0.05, flip=flip, within=within, **settings
    )
    network = classifier(Halves(neurons), batch_size=1)
    method.check(network)
    return method.attribute(network, inputs, torch.zeros(2, dtype=torch.long), Context())[:, 0]


def test_within_the_active_part_a_mask_wakes_no_silent_neuron():
    """The whole network is fooled: its mask shows the left half. Within the active part the mask is that of a network
    without the silent neuron, and shows the right half."""
    fooled, active, alone = of_halves(2, None), of_halves(2, "pathway_active"), of_halves(1, None)
    assert torch.equal(active, alone)
    left, right = slice(0, 6), slice(10, 16)
    assert (fooled[:, :, right].mean((1, 2)) < 0.05).all() and (fooled[:, :, left].mean((1, 2)) > 0.3).all()
    assert (active[:, :, left].mean((1, 2)) < 0.05).all() and (active[:, :, right].mean((1, 2)) > 0.3).all()
    mirrored = [of_halves(neurons, "pathway_active", flip=True) for neurons in (2, 1)]
    assert torch.equal(*mirrored) and not torch.equal(mirrored[0], active)


def test_within_a_path_the_other_neurons_stay_as_they_are():
    """Of two active neurons the path has the one that contributes more: the mask is that of a network of it alone."""
    assert torch.equal(of_halves(3, "neuron_mct", sparsity=0.66), of_halves(1, None))
    both = of_halves(3, "pathway_active")
    assert not torch.equal(both, of_halves(1, None))


def test_cost_within_a_part():
    """The path is looked for in each area's images, mirrored ones too."""
    network, calls = classifier(VGGLike(), batch_size=4), []
    method = ExtremalPerturbation([0.1, 0.2], steps=3, within="neuron_mct")
    network.module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    method.attribute(network, seeded(3), torch.zeros(3, dtype=torch.long), Context())
    assert method.cost(network) == (3 * 2 + 4 * 2, 3 * 2 + 4)
    assert sum(calls) == 3 * method.cost(network)[0] and max(calls) <= 4


def test_cost():
    network = classifier(VGGLike())
    assert ExtremalPerturbation().cost(network) == (800, 800)
    assert ExtremalPerturbation([0.1, 0.2], "dual", steps=5).cost(network) == (20, 20)


@pytest.mark.parametrize("variant", ["preserve", "dual"])
@pytest.mark.parametrize(("samples", "batch_size"), [(10, 4), (1, 4), (5, 32), (3, 1)])
def test_each_step_calls_the_network_as_rarely_as_it_can(samples, batch_size, variant):
    network = classifier(VGGLike(), batch_size=batch_size)
    method, calls = ExtremalPerturbation([0.1, 0.3], variant, steps=3), []
    network.module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    method.attribute(network, seeded(samples), torch.zeros(samples, dtype=torch.long), Context())
    sides = 2 if variant == "dual" else 1
    assert max(calls) <= batch_size and sum(calls) == samples * method.cost(network)[0]
    assert len(calls) == 3 * sides * math.ceil(2 * samples / batch_size)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("areas", [], r"areas=\[\]: expected one or more"),
        ("areas", [0.1, 1.0], r"areas=\[0.1, 1.0\]: expected"),
        ("variant", "keep", "variant=keep"),
        ("fill", "grey", "fill=grey"),
        ("sigma", 0, "sigma=0.0: expected a positive"),
        ("spacing", 0, "spacing=0: expected a positive"),
        ("width", 0, "width=0.0: expected more than 0"),
        ("levels", 1, "levels=1: expected at least 2"),
        ("steps", 0, "steps=0: expected at least 1"),
        ("momentum", 1, "momentum=1.0: expected"),
        ("learning_rate", 0, "learning_rate=0.0"),
        ("area_growth", 0, "area_growth=0.0"),
        ("area_weight", -1, "area_weight=-1.0"),
        ("within", "pathway_random", "within=pathway_random: .*pathway"),
        ("within", "active", "within=active: .*pathway_active"),
    ],
)
def test_bad_parameters_are_named(parameter, value, message, make):
    with pytest.raises(UserError, match=message):
        make("extremal_perturbation", **{parameter: value})
