"""Local linearity of the path network: how far from the input is it one linear function?"""

import copy
import dataclasses
import math
from collections.abc import Sequence

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...methods.pathways._pathway_neurons import Neurons, altered, ceilings, observe, require_neurons, watched
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ._shares import joined


class PathLinearity(Metric):
    """The radius within which the path network, the others at their constants, is one linear function.

    Khakzar et al. 2021, propositions 4 and 5: its neurons keep their activity while ||d|| is at most the least
    |z| / ||dz/dx|| over the path's neurons with a gradient, z the value before the ReLU (of ReLU6, whichever of 0 and 6
    is nearer). In units of the normalised input, L2. Every network has such a radius, so that its size says something
    only beside that of the whole network: `ratio`, higher is better. In float64: radii are small.

    neurons: how many to look at, drawn by the sample from the path, and from the whole network: the radius found is
        then an upper bound of the radius, of both networks. null looks at all: exact, one backward pass for each.
    directions: random ones in which linearity is tried at .99 of the radius.

    Columns: radius; ratio, to the whole network's; error, the largest |f(x + d) - f(x) - grad d| over the directions,
    divided by the largest |grad d|. In theory 0 where all neurons were looked at and ReLUs are all that is not linear;
    max pooling has corners of its own, which the radius knows nothing of. NaN where no neuron has a gradient, or the
    map is 0.
    """

    reads_maps = False
    reads_paths = 1
    statistics = (
        Statistic("path_linearity", "higher", "ratio", kind="median", low=0, unit="radius / the network's"),
        Statistic("path_radius", "higher", "radius", kind="median", low=0, unit="normalised input, L2"),
        Statistic("path_linearity_error", "lower", "error", kind="median", low=0, unit="of the linear change"),
    )

    def __init__(self, neurons: int | None = 256, directions: int = 8) -> None:
        if neurons is not None and neurons < 1:
            raise ValueError(f"neurons={neurons}: expected at least 1, or null for all")
        if directions < 1:
            raise ValueError(f"directions={directions}: expected at least 1")
        self.neurons, self.directions = neurons, directions

    def check(self, classifier: Classifier) -> None:
        require_neurons(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """Of the sampled neurons; without sampling, of every neuron of the network twice, which is the most."""
        neurons = self.neurons or sum(layer.numel() for layer in observe(classifier, classifier.blank)[1])
        return (4 + self.directions, 1 + 2 * neurons)

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        exact = dataclasses.replace(classifier, module=copy.deepcopy(classifier.module).double())
        parts = [self._part(classifier, exact, batch, part, context) for part in classifier.chunks(len(batch.inputs))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part(self, classifier: Classifier, exact: Classifier, batch: Batch, part: slice, context: Context) -> Columns:
        inputs, targets, generators = batch.inputs[part], batch.targets[part], context.generators[part]
        path = context.path(inputs, targets, part)
        inputs = inputs.double()
        constants = observe(exact, inputs)[1]
        whole = [torch.ones_like(layer) for layer in path]
        radius, of_network = (
            radii(exact, inputs, on, constants, _chosen(joined(on), self.neurons, generators)) for on in (path, whole)
        )
        return {
            "radius": radius,
            "ratio": radius / of_network,
            "error": self._error(exact, inputs, targets, path, constants, radius, generators),
        }

    def _error(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        path: Neurons,
        constants: Neurons,
        radius: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """The largest departure from the linear function [B], as a share of the largest linear change."""
        drawn = torch.stack([torch.randn(self.directions, *inputs.shape[1:], generator=g) for g in generators])
        steps = drawn.to(inputs)
        steps *= (0.99 * radius[:, None] / steps.flatten(2).norm(dim=2))[..., None, None, None]
        with altered(classifier.module, lambda call, output: torch.where(path[call], output, constants[call])):
            gradient = classifier.gradient(inputs, targets)
            before = classifier.scores(inputs, targets)
            after = torch.stack([classifier.scores(inputs + step, targets) for step in steps.unbind(1)], 1)
        linear = (gradient[:, None] * steps).flatten(2).sum(2)
        size = linear.abs().amax(1)
        return (after - before[:, None] - linear).abs().amax(1) / size.where(size > 0, torch.nan)


def radii(
    classifier: Classifier, inputs: torch.Tensor, path: Neurons, constants: Neurons, chosen: torch.Tensor
) -> torch.Tensor:
    """The least distance [B] in the linear map at x of the chosen neurons [B,n] from their corners; NaN without any.

    The neurons off the path are at their constants. chosen: places among all neurons, -1 for none. At most
    `batch_size` inputs; as many neurons side by side as it allows.
    """
    if not chosen.shape[1]:
        return inputs.new_full((len(inputs),), math.nan)
    found: list[torch.Tensor] = []
    x = inputs.detach().requires_grad_(True)
    with (
        torch.enable_grad(),
        altered(classifier.module, lambda call, output: torch.where(path[call], output, constants[call])),
        watched(classifier.module, lambda relu, z: found.append(z)),
    ):
        classifier.module(x)
        before = torch.cat([z.flatten(1) for z in found], 1)
        tops = torch.cat([before.new_full((z[0].numel(),), top) for z, top in zip(found, ceilings(classifier))])
    nearest = torch.minimum(before.abs(), (before - tops).abs()).detach()
    least = inputs.new_full((len(inputs),), math.inf)
    for places in chosen.split(max(classifier.batch_size // len(inputs), 1), dim=1):
        at = places.clamp(min=0)
        each = torch.eye(at.shape[1], dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
        with torch.enable_grad():
            (gradients,) = torch.autograd.grad(
                before.gather(1, at), x, each, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )
        slopes = gradients.flatten(2).norm(dim=2).T
        distances = (nearest.gather(1, at) / slopes).masked_fill((slopes == 0) | (places < 0), math.inf)
        least = torch.minimum(least, distances.amin(1))
    return least.where(least.isfinite(), torch.nan)


def _chosen(path: torch.Tensor, most: int | None, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """At most so many neurons of each path [B,N], drawn by the sample; all for None: places [B,n], -1 for none."""
    rows = []
    for on, generator in zip(path, generators):
        places = torch.nonzero(on)[:, 0]
        if most is not None and len(places) > most:
            places = places[torch.randperm(len(places), generator=generator)[:most].to(places.device)]
        rows.append(places)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
