"""Counterfactuals against the closed form of a linear flow, and against what they promise of any flow."""

import logging

import pytest
import torch

from tests.methods.helpers import Noise
from tests.methods.nets import VGGLike, classifier
from xaibench.build import build
from xaibench.datasets.base import Samples
from xaibench.errors import Refusal, UserError
from xaibench.methods.baselines import Baselines
from xaibench.methods.context import Context
from xaibench.methods.counterfactual.counterfactual import Counterfactual
from xaibench.methods.gradients.expected_gradients import ExpectedGradients
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.rules.deeplift import DeepLIFT
from xaibench.models.classifier import Classifier
from xaibench.models.glow import Glow
from xaibench.models.invertible import Line
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import generator, sample_generators

SIDE = 8
METHOD = {"_target_": "xaibench.methods.counterfactual.counterfactual.Counterfactual"}


def network(linear: bool = False, classes: int = 3, **settings) -> Classifier:
    """A flow in float64: of one step without any coupling, or of several with a fade-out."""
    shape = dict(steps=(1,), widths=(4,), tap=1) if linear else dict(steps=(1, 2), widths=(6, 6), tap=1)
    torch.manual_seed(0)
    net = Glow(**shape, side=SIDE, channels=3, num_classes=classes)
    draw = generator("flow")
    for name, parameter in net.named_parameters():
        if not (linear and ".net." in name):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return Classifier("flow", net.double(), (3, SIDE, SIDE), **settings)


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=generator("images"), dtype=torch.float64)


def contrast(logits: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(logits))
    return logits[rows, first] - logits[rows, second]


def test_of_a_linear_flow_it_is_the_solution_of_a_linear_system():
    net, x, targets = network(linear=True), images(3), torch.tensor([2, 0, 1])
    maps = Counterfactual("logit:1.5").attribute(net, x, targets, Context())
    encode = net.module.encode
    matrix = torch.autograd.functional.jacobian(lambda v: encode(v.view(1, 3, SIDE, SIDE))[0].flatten(), x[0].flatten())
    logits, weight = net.logits(x), net.module.head.weight
    for row, target in enumerate(targets.tolist()):
        other = max((k for k in range(3) if k != target), key=lambda k: logits[row, k].item())
        w = weight[target] - weight[other]
        step = (1.5 - (logits[row, target] - logits[row, other])) / (w @ w) * w
        torch.testing.assert_close(maps[row].flatten(), torch.linalg.solve(matrix, step))


@pytest.mark.parametrize("goal", ["flip", "logit:-2.5", "quantile:0.8"])
def test_the_logit_is_as_wanted_and_what_left_the_flow_stays(goal):
    net, x, targets = network(batch_size=2), images(5), torch.tensor([0, 1, 2, 0, 1])
    samples = Samples(Noise(30, (3, SIDE, SIDE)), Preprocessing(), range(30))
    method = Counterfactual(goal)
    fitted = {k: v for k, v in (method.fit(net, samples, generator(0)) if method.fit else {}).items()}
    changed = x + method.attribute(net, x, targets, Context(fitted=fitted))
    before, after = net.logits(x), net.logits(changed)
    others = torch.stack([row.argmax() for row in before.scatter(1, targets[:, None], -torch.inf)])
    value, found = contrast(before, targets, others), contrast(after, targets, others)
    if goal == "flip":
        wanted = -value
    elif goal == "logit:-2.5":
        wanted = torch.full_like(value, -2.5)
    else:
        tops = net.logits(samples.load(range(30)).inputs.double()).topk(2, dim=1).values
        wanted = -value.sign() * (tops[:, 0] - tops[:, 1]).quantile(0.8)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    for left, stayed in zip(net.module.encode(changed)[1], net.module.encode(x)[1], strict=True):
        torch.testing.assert_close(left, stayed, rtol=0, atol=1e-9)


def test_baselines_change_the_places_of_the_two_likeliest_classes():
    net, x = network(), images(4)
    turned, surer = Baselines(["counterfactual", "counterfactual_same"], 5, 0.5, 1).of(net, x, Context())
    before = net.logits(x)
    first, second = before.topk(2, dim=1).indices.T
    value = contrast(before, first, second)
    torch.testing.assert_close(contrast(net.logits(turned), first, second), -value, rtol=0, atol=1e-6)
    torch.testing.assert_close(contrast(net.logits(surer), first, second), 3 * value, rtol=0, atol=1e-6)
    z, there, elsewhere = (net.module.encode(images)[0] for images in (x, turned, surer))
    torch.testing.assert_close((there - z), (z - elsewhere), rtol=0, atol=1e-9)


def test_integrated_gradients_from_a_counterfactual_add_up_to_what_the_logit_changed():
    net, x = network(), images(2)
    targets = net.logits(x).argmax(1)
    method = IntegratedGradients(30, "counterfactual", "gausslegendre")
    maps = method.attribute(net, x, targets, Context())
    (start,) = method.baselines.of(net, x, Context())
    expected = net.scores(x, targets) - net.scores(start, targets)
    torch.testing.assert_close(maps.flatten(1).sum(1), expected, rtol=1e-3, atol=1e-4)
    assert method.cost(net) == (32, 30)


def test_a_logit_out_of_reach_has_no_map_and_the_best_is_said(caplog):
    """Of pixels from 0 to 1 no image comes half of the way: the best is what the clipped ones have."""
    net, x, targets = network(), images(2), torch.tensor([0, 1])
    before = net.logits(x)
    others = torch.stack([row.argmax() for row in before.scatter(1, targets[:, None], -torch.inf)])
    line = Line.of(net, x, targets, "test")
    changed = line.at(torch.full((2,), 1e3, dtype=torch.float64)).clamp(0, 1)
    best = contrast(net.logits(changed), targets, others).max()
    with caplog.at_level(logging.WARNING):
        maps = Counterfactual("logit:1000").attribute(net, x, targets, Context())
    assert maps.isnan().all()
    said = f"method.goal=logit:1000: out of reach for 2 of 2 images, the best reached is {best:.3g}"
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.parametrize(
    "refused",
    [
        Counterfactual(),
        IntegratedGradients(baseline="counterfactual"),
        ExpectedGradients(baseline=["black", "counterfactual_same"]),
        DeepLIFT(baseline="counterfactual"),
    ],
    ids=["counterfactual", "integrated_gradients", "expected_gradients", "deeplift"],
)
def test_networks_without_an_inverse_are_refused(refused):
    with pytest.raises(Refusal, match=r"counterfactual(_same)? runs the network backwards, and \w+ has no inverse"):
        refused.check(classifier(VGGLike()))


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ("flop", "goal=flop: did you mean 'flip'"),
        ("logit", "goal=logit: expected a number, such as logit:3"),
        ("logit:inf", "goal=logit:inf: expected a number"),
        ("quantile:90", "goal=quantile:90: expected a share between 0 and 1"),
        ("flip:3", "goal=flip:3"),
    ],
)
def test_other_goals_are_refused(goal, message):
    with pytest.raises(UserError, match=message):
        build({**METHOD, "goal": goal}, "method")


def test_a_random_step_is_as_long_and_the_samples_own():
    net, x, targets = network(), images(3), torch.tensor([0, 1, 2])
    line = Line.of(net, x, targets, "test")
    step = line.step(torch.zeros(3))
    first = line.randomly(step, sample_generators(0, "m", [4, 5, 6]))
    torch.testing.assert_close(first.flatten(1).norm(dim=1), step.flatten(1).norm(dim=1))
    alone = Line.of(net, x[1:2], targets[1:2], "test")
    again = alone.randomly(alone.step(torch.zeros(1)), sample_generators(0, "m", [5]))
    torch.testing.assert_close(again, first[1:2])
