"""Bottleneck capacity: how much information IBA keeps, and what the network still recognises with it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...datasets.base import Batch
from ...methods.bottleneck._bottleneck import Optimisation, require_layer, require_loss
from ...methods.bottleneck.iba import IBA, Solution
from ...models.classifier import Classifier
from ._capacity import Capacity


@dataclass(kw_only=True, eq=False)
class BottleneckCapacity(Capacity, Optimisation):
    """Information kept and accuracy with the per-sample bottleneck in force, over beta (Schulz et al. 2020, Table 4).

    It scores no map but the network and the bottleneck's parameters: maps are not looked at. For every beta the
    masks are found anew, with the same noise, and the network is then run with each mask and `copies` draws of noise.

    Information is L_I / k, the mean over the k features of the layer, in nats. (At the start, alpha = 5, the closed
    form is about 5.0 for standardised features; the thesis prints 2.500, half of it, for reasons unknown. Compare how
    it falls with beta.)

    betas, beta, and the columns: see `Capacity`. layer and the others: as for `IBA`.
    """

    version = 2

    fit_parameters = ("layer",)

    def __post_init__(self) -> None:
        super().__post_init__()
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Optimisation)}
        self.iba = IBA(layer=self.layer, **shared)

    def check(self, classifier: Classifier) -> None:
        require_layer(classifier, self.layer, "metric.layer")
        require_loss(classifier, "cross_entropy")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        forwards, backwards = self.iba.cost(classifier)
        masks = len(self.all_betas)
        return (1 + self.copies + masks * (forwards + self.copies), masks * backwards)

    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The moments of the layer, as for `IBA`."""
        return self.iba.fit(classifier, samples, generator)

    def solutions(
        self,
        classifier: Classifier,
        batch: Batch,
        beta: float,
        draws: Sequence[torch.Generator],
        fitted: Mapping[str, torch.Tensor],
    ) -> Iterator[Solution]:
        """The masks that IBA finds."""
        return dataclasses.replace(self.iba, beta=beta).solve(classifier, batch.inputs, batch.targets, draws, fitted)
