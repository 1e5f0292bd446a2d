"""Means and variances through a network of one chain of layers: what it answers on average to inputs of which only
these are known."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ... import rng
from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.tracing.graph import Graph
from ...models.tracing.steps import (
    Affine,
    Average,
    Choice,
    Constant,
    Convolution,
    Dense,
    Elementwise,
    Maximum,
    Other,
    Pooling,
    Rectifier,
    Route,
    Scale,
    Step,
)

# Beyond so many deviations a normal variable is larger than another one for certain.
CERTAIN = 50.0


def linear_steps(graph: Graph) -> int:
    """How many of the first steps are affine or move values: through these parts of an input add up exactly."""
    count = 0
    for place, step in enumerate(graph.steps, 1):
        if isinstance(step, Affine) or (isinstance(step, Route) and not isinstance(step, Maximum)):
            count = place
        elif isinstance(step, Choice) or not isinstance(step, Constant):
            break
    return count


def check_moments(classifier: Classifier, method: str) -> None:
    """Raise Refusal, with the name of the step, for a network that `mean_logits` does not serve."""
    graph = Graph.of(classifier)
    values, front, last = graph.run(classifier.blank), linear_steps(graph), 0
    for place, step in enumerate(graph.steps, 1):
        if isinstance(step, Constant):
            continue
        reason = None if place <= front else _unserved(step, values)
        if _moving(graph, step) != [last]:
            reason = "it does not read the step before it alone, and the network is no single chain of layers"
        if reason is not None:
            raise Refusal(
                f"{method} has no moments of '{step.name}' of {classifier.name}: {reason}\n"
                "it has those of convolutions, linear layers, batch normalisation by kept statistics, ReLUs, maximum "
                "pooling without padding and means over windows that do not overlap, one after the other"
            )
        last = place


def mean_logits(graph: Graph, values: Sequence[Any], variance: torch.Tensor) -> torch.Tensor:
    """The mean of the logits [R,K] where the values of one place have a mean and a variance.

    values: of the mean input, up to that place, which is the last one. variance: of its values, [R,...]. From one step
    to the next the values of a place count as independent and normal.
    """
    values = [*values]
    for step in graph.steps[len(values) - 1 :]:
        inputs = [values[source] for source in step.sources]
        if isinstance(step, Constant):
            values.append(None if isinstance(step, Choice) else step(*inputs))
            continue
        mean, variance = _through(step, inputs, variance, _moving(graph, step)[0])
        values.append(mean)
    found: torch.Tensor = values[-1]
    return found


def larger(
    mean: torch.Tensor, variance: torch.Tensor, other_mean: torch.Tensor, other_variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the larger of two independent normal variables (Clark 1961), of any shapes that broadcast.

    Of one that is 0 for certain these are the moments of a rectified normal variable.
    """
    spread = (variance + other_variance).sqrt()
    gap = mean - other_mean
    ratio = (gap / spread.clamp(min=torch.finfo(gap.dtype).tiny)).clamp(-CERTAIN, CERTAIN)
    first, second = torch.special.ndtr(ratio), torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    found = other_mean + gap * first + spread * density
    # The second moment less the square of the first, with what cancels taken out.
    between = ratio.square() * first * second + ratio * density * (second - first) - density.square()
    return found, (variance * first + other_variance * second + spread.square() * between).clamp(min=0)


def _through(
    step: Step, inputs: list[torch.Tensor], variance: torch.Tensor, source: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance behind a step. inputs: the means and constants that it reads."""
    if isinstance(step, Average):
        return step(*inputs), step.linear((variance * _weight_of_places(step, inputs[0]),), step.weight)
    if isinstance(step, Affine):
        return step(*inputs), step.linear((variance,), step.weight.square())
    if isinstance(step, Rectifier):
        zero = inputs[0].new_zeros(())
        return larger(inputs[0], variance, zero, zero)
    if isinstance(step, Pooling):
        return _largest(step, inputs[0], variance)
    moved, blank = (
        step(*(value if place == source else x for place, x in zip(step.sources, inputs)))
        for value in (variance, torch.zeros_like(variance))
    )
    return step(*inputs), moved - blank  # what a step puts in as a constant has no variance


def _largest(step: Pooling, mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the windows of a maximum pooling: halves of a window are compared one by one, then halves of what is left."""
    kernel, stride, _, dilation, _ = step.windows
    shape = step(mean).shape
    means, variances = (
        functional.unfold(x, kernel, dilation, 0, stride).view(*shape[:2], math.prod(kernel), -1)
        for x in (mean, variance)
    )
    while (count := means.shape[2]) > 1:
        halves = [count // 2, count // 2, count % 2]
        (mean, other_mean, rest), (variance, other_variance, its_variance) = (
            x.split(halves, dim=2) for x in (means, variances)
        )
        mean, variance = larger(mean, variance, other_mean, other_variance)
        means, variances = torch.cat([mean, rest], 2), torch.cat([variance, its_variance], 2)
    return means.view(shape), variances.view(shape)


def _weight_of_places(step: Average, like: torch.Tensor) -> torch.Tensor:
    """What each place of one sample weighs in the mean that it is part of: [1,...]."""
    (weights,) = step.transposed(torch.ones_like(step(like[:1])), step.weight, (like[:1],))
    return weights


def _moving(graph: Graph, step: Step) -> list[int]:
    """The places that a step reads which depend on the input."""
    return [s for s in step.sources if s == 0 or not isinstance(graph.steps[s - 1], Constant)]


def _unserved(step: Step, values: Sequence[Any]) -> str | None:
    """Why there are no moments behind a step, None where there are. values: of a pass of one input."""
    if isinstance(step, Convolution) and step.around is not None and step.around["mode"] != "constant":
        return "its padding repeats values"
    if isinstance(step, Average):
        return "its windows overlap" if _overlap(step, values[step.sources[0]]) else None
    if isinstance(step, Rectifier):
        return None if math.isinf(step.ceiling) else f"it saturates at {step.ceiling:g}"
    if isinstance(step, Maximum):
        if not isinstance(step, Pooling):
            return "its windows are not known (nn.MaxPool2d's are)"
        _, _, padding, _, ceil_mode = step.windows
        return "its windows reach beyond the edge" if any(padding) or ceil_mode else None
    if isinstance(step, Elementwise):
        return "it is an activation that is no ReLU"
    known = Convolution | Dense | Scale | Route
    if isinstance(step, known):
        return None
    return f"it is {step.what}" if isinstance(step, Other) else "it is none of those below"


def _overlap(step: Average, like: torch.Tensor) -> bool:
    """Whether a value is part of several means: then what it gets back of a random signal s is not w s for one w."""
    signal = torch.randn(step(like).shape, generator=rng.generator("overlap")).to(like)
    back, squares = (step.transposed(s, step.weight, (like,))[0] for s in (signal, signal.square()))
    return not torch.allclose(back.square(), squares * _weight_of_places(step, like), rtol=1e-3, atol=1e-6)
