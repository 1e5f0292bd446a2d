"""Shapley values estimated from random orders of the players."""

from typing import Any

import torch

from ...models.classifier import Classifier
from ...perturb.fills import Fill
from ._coalitions import Coalitions, Segments, shares


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

    def __init__(
        self,
        players: int = 49,
        segments: Segments = "grid",
        samples: int = 20,
        antithetic: bool = True,
        fill: Fill = "zero",
        sigma: float = 5.0,
    ) -> None:
        super().__init__(players, segments, fill, sigma)
        if samples < 1:
            raise ValueError(f"samples={samples}: expected at least 1 order")
        self.samples, self.antithetic = samples, antithetic

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (2 + self.samples * (self.most_players(classifier) - 1), 0)

    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        **context: Any,
    ) -> torch.Tensor:
        batch, players = len(inputs), self.most_players(classifier)
        labels = self.labels(classifier, inputs)
        places = torch.stack([self._places(players, generator) for generator in generators])
        # Of each order the coalitions of its first 1 to M - 1 players; none and all are the same for every order.
        first = places[:, :, None] < torch.arange(1, players)[:, None]
        ends = torch.tensor([False, True])[:, None].expand(batch, 2, players)
        coalitions = torch.cat([ends, first.flatten(1, 2)], dim=1)
        answers = self.answers(classifier, inputs, targets, labels, coalitions)
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
