"""From a module to its steps, by torch.fx: `tracer` runs it on stand-ins, `builder` makes steps of what they saw."""

import inspect
from dataclasses import replace

import torch
from torch import nn

from ...errors import Refusal, first_line
from ..classifier import Classifier
from .builder import Builder
from .steps import Step
from .tracer import Tracer, Untraceable


def trace(classifier: Classifier) -> tuple[list[Step], dict[str, list[int]], bool]:
    """The steps of a classifier's network, where each module's outputs are, see `Graph`, and whether they are for the
    size of its inputs alone.

    Tried on a random input against the network itself. Raises Refusal for a network that cannot be traced, or whose
    trace does something else than the network.
    """
    name, module = classifier.name, classifier.module
    classifier.refuse_torchscript()
    if (count := len(_required(module))) > 1:
        raise Refusal(f"{name} takes {count} inputs: a backward pass by rules needs a network of one")
    tracer = Tracer(classifier)
    try:
        nodes = tracer.trace_steps(module)
    except Exception as error:
        place = f" at '{tracer.failed}'" if tracer.failed else ""
        said = str(error) if isinstance(error, Untraceable) else first_line(error)
        raise Refusal(f"{name} cannot be traced by torch.fx{place}: {said}") from error
    # Two samples, so that a step which mixes them or takes the batch for a channel is seen.
    probe = classifier.probe(2)
    builder = Builder(name, module, nodes[0], probe)
    for node in nodes:
        builder.add(node)
    outputs = {path: [node for node in found if node in builder.places] for path, found in tracer.outputs.items()}
    places = {path: [builder.places[node] for node in found] for path, found in outputs.items()}
    with torch.no_grad():
        expected = module(probe.clone())
    found = builder.values[builder.output]
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    ):
        raise Refusal(f"the steps of {name} that torch.fx finds do not give its logits: it does something else as well")
    return *_without_the_unread(builder.steps, places, builder.output), tracer.sized


def _required(module: nn.Module) -> list[str]:
    """The arguments that a forward pass has no defaults for."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return [one.name for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty]


def _without_the_unread(
    steps: list[Step], places: dict[str, list[int]], output: int
) -> tuple[list[Step], dict[str, list[int]]]:
    """Steps and places without steps that neither the output (the last one, then) nor a module's output needs."""
    needed = {0, output, *(place for found in places.values() for place in found if place <= output)}
    for place in range(output, 0, -1):
        if place in needed:
            needed.update(steps[place - 1].sources)
    moved = {place: now for now, place in enumerate(sorted(needed))}
    kept = [
        replace(steps[place - 1], sources=tuple(moved[source] for source in steps[place - 1].sources))
        for place in sorted(needed - {0})
    ]
    return kept, {path: [moved[place] for place in found if place in moved] for path, found in places.items()}
