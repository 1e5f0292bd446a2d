"""Meaningful perturbation: beside a plain loop over its objective, and on a network whose evidence is known."""

import math

import pytest
import torch
from torch import nn

from tests.methods.nets import SIZE, VGGLike, classifier, seeded
from xaibench.errors import Refusal, UserError
from xaibench.methods.context import Context
from xaibench.methods.removal.meaningful_perturbation import MeaningfulPerturbation
from xaibench.perturb.fills import blurred, filled
from xaibench.rng import generator, sample_generators


def attribute(method, network, inputs, targets):
    return method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(len(inputs)))))


def started(network, image, fill, target, spacing, smoothing):
    """The authors' start, disc by disc, seen at the middle of each cell: the first that leaves 1 percent."""

    def probability(coarse):
        mask = nn.functional.interpolate(coarse[None, None], image.shape[1:], mode="bilinear")
        mask = blurred(mask, smoothing)[0, 0]
        return float(network.module((mask * image + (1 - mask) * fill)[None])[0].softmax(0)[target])

    height, width = image.shape[1:]
    masks = []
    for radius in range(5, 171, 5):
        disc = torch.zeros(1, 1, height, width, dtype=torch.float64)
        for row in range(height):
            for column in range(width):
                distance = math.hypot(row - (height - 1) / 2, column - (width - 1) / 2)
                disc[..., row, column] = distance <= radius * max(height, width) / 224
        mask = 1 - blurred(disc, 10 * max(height, width) / 224)[0, 0]
        cells = [
            [int((i + 0.5) * size / -(-size // spacing)) for i in range(-(-size // spacing))] for size in mask.shape
        ]
        masks.append(mask[cells[0]][:, cells[1]])
    whole, last = probability(torch.ones_like(masks[0])), probability(masks[-1])
    taken = [mask for mask in masks if probability(mask) - last <= 0.01 * (whole - last)]
    return taken[0] if taken else masks[-1]


def test_a_network_that_is_sure_leaves_no_map_empty():
    """From 1 a softmax of logits 40 apart has no slope in single precision, and the map would be 0."""

    class Sure(Corner):
        def forward(self, inputs):
            return 10 * super().forward(inputs)

    network = classifier(Sure(), dtype=torch.float32)
    inputs, targets = torch.ones(1, *SIZE), torch.zeros(1, dtype=torch.long)
    assert network.scores(inputs, targets, "probability") == 1
    method = MeaningfulPerturbation("zero", spacing=2, smoothing=1.0, l1=3e-3, tv=1e-3, jitter=0)
    maps = attribute(method, network, inputs, targets)
    # Nothing of the evidence is left (one of two classes), and little else is taken.
    assert network.scores(inputs * (1 - maps), targets, "probability") < 0.6
    assert maps[0, 0, 10:, :6].mean() > 0.9 and maps[0, 0, :4].mean() < 0.1


@pytest.mark.parametrize(("fill", "jitter"), [("blur", 3), ("white", 0)])
def test_a_map_is_one_plain_optimisation(fill, jitter):
    """Image by image, pixel by pixel where the objective sums over them, with Adam's equations written out."""
    size = (3, 9, 13)
    network = classifier(VGGLike(), size, batch_size=2)
    nn.init.normal_(network.module.head[-1].weight, std=3)
    inputs, targets = seeded(3, size), torch.tensor([2, 0, 4])
    method = MeaningfulPerturbation(
        fill, 2.0, spacing=4, smoothing=1.0, l1=1e-4, tv=0.01, tv_power=2.5, steps=6, jitter=jitter
    )
    maps = attribute(method, network, inputs, targets)
    fills = filled(inputs, fill, network.preprocessing, 2.0)
    for sample in range(3):
        draw = generator(0, "maps", sample)
        coarse = started(network, inputs[sample], fills[sample], int(targets[sample]), 4, 1.0)
        assert coarse.shape == (3, 4)
        first, second = torch.zeros_like(coarse), torch.zeros_like(coarse)
        rows, columns = torch.arange(9), torch.arange(13)
        for step in range(1, 7):
            down, right = torch.randint(jitter + 1, (2,), generator=draw).tolist()
            place = (rows + down).clamp(max=8)[:, None], (columns + right).clamp(max=12)
            coarse = coarse.detach().requires_grad_()
            mask = nn.Upsample(size=(9, 13), mode="bilinear", align_corners=False)(coarse[None, None])
            mask = blurred(mask, 1.0)[0, 0]
            shown = mask * inputs[sample][:, *place] + (1 - mask) * fills[sample][:, *place]
            loss = network.module(shown[None])[0].softmax(0)[targets[sample]]
            for i in range(3):
                for j in range(4):
                    loss = loss + 1e-4 * (1 - coarse[i, j])
                    if i:
                        loss = loss + 0.01 * (coarse[i, j] - coarse[i - 1, j]).abs() ** 2.5
                    if j:
                        loss = loss + 0.01 * (coarse[i, j] - coarse[i, j - 1]).abs() ** 2.5
            (slope,) = torch.autograd.grad(loss, coarse)
            # Where the mask is 1, |1 - m| has no slope: 0 is taken, as for any of its subgradients.
            slope = slope + 1e-4 * (coarse.detach() == 1)
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            speed = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            coarse = (coarse.detach() - 0.1 * speed).clamp(0, 1)
        expected = 1 - blurred(nn.functional.interpolate(coarse[None, None], (9, 13), mode="bilinear"), 1.0)
        torch.testing.assert_close(maps[sample], expected[0], rtol=0, atol=1e-8)
        assert maps[sample].max() > 0.1 and maps[sample].std() > 0.01


class Corner(nn.Module):
    """Two logits: the first is the brightness of one quarter of the image."""

    def forward(self, inputs):
        evidence = 4 * inputs[:, :, 8:, :8].mean((1, 2, 3))
        return torch.stack([evidence, torch.zeros_like(evidence)], dim=1)


def test_the_evidence_goes_and_little_else():
    network = classifier(Corner())
    inputs = torch.ones(1, *SIZE, dtype=torch.float64)
    method = MeaningfulPerturbation("zero", spacing=2, smoothing=1.0, l1=3e-3, tv=1e-3, steps=150, jitter=0)
    maps = attribute(method, network, inputs, torch.zeros(1, dtype=torch.long))[0, 0]
    assert maps[10:, :6].min() > 0.9 and maps[:4].max() < 0.1 and maps[:, 12:].max() < 0.1


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 4), (1, 4), (5, 32)])
def test_each_step_calls_the_network_as_rarely_as_it_can(samples, batch_size):
    network = classifier(VGGLike(), batch_size=batch_size)
    method, calls = MeaningfulPerturbation(steps=3), []
    network.module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    attribute(method, network, seeded(samples), torch.zeros(samples, dtype=torch.long))
    assert max(calls) <= batch_size and sum(calls) == samples * method.cost(network)[0]
    parts = [min(batch_size, samples - first) for first in range(0, samples, batch_size)]
    assert len(calls) == 3 * len(parts) + sum(-(-35 * part // batch_size) for part in parts)


def test_refuses_a_network_without_classes():
    with pytest.raises(Refusal, match="lowers a class's probability"):
        MeaningfulPerturbation().check(classifier(VGGLike(), output="raw"))


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("fill", "grey", "fill=grey"),
        ("sigma", 0, "sigma=0.0: expected more than 0"),
        ("spacing", 0, "spacing=0: expected at least 1"),
        ("smoothing", 0, "smoothing=0.0: expected more than 0"),
        ("l1", -1, "l1=-1.0: expected 0 or more"),
        ("tv", -1, "tv=-1.0: expected 0 or more"),
        ("tv_power", 0.5, "tv_power=0.5: expected at least 1"),
        ("steps", 0, "steps=0: expected at least 1"),
        ("learning_rate", 0, "learning_rate=0.0: expected more than 0"),
        ("jitter", -1, "jitter=-1: expected 0 or more"),
    ],
)
def test_bad_parameters_are_named(parameter, value, message, make):
    with pytest.raises(UserError, match=message):
        make("meaningful_perturbation", **{parameter: value})
