"""RISE: its masks by the authors' recipe, its maps by a plain loop, and what is known of a linear model."""

import math

import pytest
import torch
from skimage.transform import resize

from tests.methods.nets import SIZE, Linear, VGGLike, classifier, seeded
from xaibench.errors import UserError
from xaibench.methods.context import Context
from xaibench.methods.removal.rise import Rise
from xaibench.perturb.fills import filled
from xaibench.rng import generator, sample_generators


def attribute(method, network, inputs, targets):
    return method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(len(inputs)))))


def authors_masks(method, draw, height, width):
    """Each mask by itself, enlarged by scikit-image as in the authors' code (mode apart), from the same draws."""
    grids = torch.rand(method.samples, method.cells, method.cells, generator=draw) < method.probability
    cells = [math.ceil(side / method.cells) for side in (height, width)]
    tops, lefts = (torch.randint(cell, (method.samples,), generator=draw).tolist() for cell in cells)
    enlarged = [(method.cells + 1) * cell for cell in cells]
    for grid, top, left in zip(grids.double().numpy(), tops, lefts):
        mask = resize(grid, enlarged, order=1, mode="edge", anti_aliasing=False)
        yield torch.from_numpy(mask)[top : top + height, left : left + width]


@pytest.mark.parametrize(("size", "cells"), [(SIZE, 7), ((3, 9, 20), 4), ((1, 1, 2), 2)])
def test_a_map_is_a_plain_loop_over_the_authors_masks(size, cells):
    network = classifier(Linear(size), size, batch_size=11, preprocessing=classifier(Linear()).preprocessing)
    if size[0] == 1:
        network = classifier(Linear(size), size, batch_size=11, preprocessing=network.preprocessing.__class__())
    fill = "channel_mean"
    inputs, targets = seeded(2, size), torch.tensor([1, 4])
    method = Rise(samples=150, cells=cells, probability=0.3, fill=fill)
    maps = attribute(method, network, inputs, targets)
    fills = filled(inputs, fill, network.preprocessing)
    for sample in range(2):
        total = torch.zeros(size[1:], dtype=torch.float64)
        for mask in authors_masks(method, generator(0, "maps", sample), *size[1:]):
            image = mask * inputs[sample] + (1 - mask) * fills[sample]
            total += network.scores(image[None], targets[sample : sample + 1]) * mask
        torch.testing.assert_close(maps[sample, 0], total / 150 / 0.3, rtol=1e-9, atol=1e-12)


def test_a_constant_output_gives_its_value_everywhere():
    """The mean of the masks is p at every pixel, which is what the normalisation by N p is for."""
    network = classifier(Linear((3, 12, 12)), (3, 12, 12), batch_size=256)
    network.module.layer.weight.zero_()
    network.module.layer.bias.fill_(2.5)
    maps = attribute(
        Rise(samples=20000, probability=0.4), network, seeded(1, (3, 12, 12)), torch.zeros(1, dtype=torch.long)
    )
    # A mask's value has a standard deviation of at most sqrt(p (1 - p)).
    error = 2.5 * math.sqrt(0.4 * 0.6) / 0.4 / math.sqrt(20000)
    assert (maps - 2.5).abs().max() < 4.5 * error
    assert (maps.mean() - 2.5).abs() < 3 * error


def test_open_masks_leave_the_image_as_it_is():
    network = classifier(VGGLike())
    inputs, targets = seeded(3), torch.arange(3)
    maps = attribute(Rise(samples=5, probability=1), network, inputs, targets)
    expected = network.scores(inputs, targets).view(3, 1, 1, 1).expand_as(maps)
    torch.testing.assert_close(maps, expected, rtol=1e-12, atol=0)


def test_what_matters_stands_out():
    """A linear model of one pixel: f(x through m) = w x m there, so that the map is the covariance of masks with it."""
    network = classifier(Linear(), batch_size=512)
    network.module.layer.weight.zero_()
    network.module.layer.bias.zero_()
    network.module.layer.weight.view(5, *SIZE)[:, :, 4, 11] = 1
    inputs = torch.ones(1, *SIZE, dtype=torch.float64)
    maps = attribute(Rise(samples=2000), network, inputs, torch.zeros(1, dtype=torch.long))[0, 0]
    near = maps[3:6, 10:13].mean()
    far = maps[10:, :6].mean()
    # E[m^2] / p near the pixel, E[m] where masks are independent of it.
    assert far.item() == pytest.approx(3 * 0.5, rel=0.1) and near > 1.2 * far


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("samples", 0, "samples=0: expected at least 1 mask"),
        ("cells", 0, "cells=0: expected at least 1"),
        ("probability", 0, "probability=0.0: expected more than 0"),
        ("probability", 1.5, "probability=1.5: expected more than 0"),
        ("fill", "grey", "fill=grey"),
        ("sigma", 0, "sigma=0.0: expected a positive number"),
    ],
)
def test_bad_parameters_are_named(parameter, value, message, make):
    with pytest.raises(UserError, match=message):
        make("rise", **{parameter: value})
