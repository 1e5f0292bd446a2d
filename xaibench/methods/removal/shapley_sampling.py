"""Shapley values estimated from random orders of the players."""

from dataclasses import dataclass

import torch

from ...models.classifier import Classifier
from ..context import Context
from ._coalitions import Coalitions, shares


@dataclass(kw_only=True, eq=False)
class ShapleySampling(Coalitions):
    """What each player adds to those before it, averaged over random orders: [B,1,H,W], signed.

    Castro et al. 2009; Strumbelj & Kononenko 2010. Unbiased, and complete for any number of orders: a map sums to
    f(x) - f(fill). v, players and how values become a map are described in `Coalitions`. In units of the explained
    output per pixel.

    samples: random orders, each of M - 1 passes.
    antithetic: every second order is the one before it reversed (Mitchell et al. 2022): exact where players interact
        in pairs at most.
    Raises ValueError for no samples.
    """

    samples: int = 20
    antithetic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: expected at least 1 order")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.versions * (2 + self.samples * (self.most_players(classifier) - 1)), 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        batch, players = len(inputs), self.most_players(classifier)
        labels = self.labels(classifier, inputs)
        places = torch.stack([self._places(players, generator) for generator in context.generators])
        # Of each order the coalitions of its first 1 to M - 1 players; none and all are the same for every order.
        first = places[:, :, None] < torch.arange(1, players)[:, None]
        ends = torch.tensor([False, True])[:, None].expand(batch, 2, players)
        coalitions = torch.cat([ends, first.flatten(1, 2)], dim=1)
        answers = self.answers(classifier, inputs, targets, labels, coalitions, context)
        none, everyone, between = answers.split([1, 1, coalitions.shape[1] - 2], dim=1)
        path = torch.cat(
            [
                none[:, None].expand(-1, self.samples, -1),
                between.view(batch, self.samples, players - 1),
                everyone[:, None].expand(-1, self.samples, -1),
            ],
            dim=2,
        )
        return shares(path.diff(dim=2).gather(2, places).mean(1), labels, inputs)

    def _places(self, players: int, generator: torch.Generator) -> torch.Tensor:
        """The place of each player in each of the orders: int64 [samples,M]."""
        if not self.antithetic:
            return torch.stack([torch.randperm(players, generator=generator) for _ in range(self.samples)])
        drawn = [torch.randperm(players, generator=generator) for _ in range((self.samples + 1) // 2)]
        return torch.stack([places for order in drawn for places in (order, players - 1 - order)])[: self.samples]
