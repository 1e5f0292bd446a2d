"""KernelSHAP: Shapley values as a weighted least-squares fit to what the network answers to coalitions."""

import math
from dataclasses import dataclass

import torch

from ...models.classifier import Classifier
from ..context import Context
from ._coalitions import Coalitions, counts_of, every_coalition, shares


@dataclass(kw_only=True, eq=False)
class KernelShap(Coalitions):
    """The additive game that comes closest to v under the Shapley kernel: [B,1,H,W], signed.

    Lundberg & Lee 2017, theorem 2: v(S) is fitted by v(none) + sum over S of phi, with squared errors weighted by
    pi(S) = (M - 1) / (C(M, s) s (M - s)) for s = |S|. The weights of none and all are infinite: these two are fitted
    exactly, so that a map is complete, it sums to f(x) - f(fill). v, players and how values become a map are described
    in `Coalitions`. In units of the explained output per pixel.

    samples: coalitions between none and all. As many as there are, 2^M - 2, or more: each is asked once and the
        result is the exact Shapley value. Fewer: they are drawn, with replacement, in proportion to pi. With less than
        M - 1 different ones the fit is not unique: the one whose values are closest to each other is taken.
    antithetic: every second coalition drawn is the one before it with present and absent swapped (Covert & Lee 2021).
    Raises ValueError for no samples.
    """

    samples: int = 1000
    antithetic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: expected at least 1 coalition")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.versions * (2 + min(self.samples, 2 ** self.most_players(classifier) - 2)), 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        labels = self.labels(classifier, inputs)
        counts, (rows, _) = counts_of(labels), self.cost(classifier)
        coalitions = torch.zeros(len(inputs), rows, max(counts), dtype=torch.bool)
        weights = torch.zeros(len(inputs), rows - 2, dtype=torch.float64)
        for sample, (players, generator) in enumerate(zip(counts, context.generators)):
            chosen, kernel = self._coalitions(players, rows - 2, generator)
            coalitions[sample, 1] = True
            coalitions[sample, 2 : 2 + len(chosen), :players] = chosen
            # Fewer superpixels may have fewer coalitions than there are rows: those left over weigh nothing.
            weights[sample, : len(kernel)] = kernel
        answers = self.answers(classifier, inputs, targets, labels, coalitions, context)
        values = torch.zeros(len(inputs), max(counts), dtype=torch.float64)
        for sample, players in enumerate(counts):
            chosen = coalitions[sample, 2:, :players].double()
            values[sample, :players] = additive_fit(chosen, weights[sample], answers[sample])
        return shares(values, labels, inputs)

    def _coalitions(self, players: int, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """At most `rows` coalitions between none and all, bool [X,M], and what they weigh [X]."""
        sizes = torch.arange(1, players)
        if 2**players - 2 <= rows:
            every = every_coalition(players)[1:-1]
            kernel = [1 / (math.comb(players, size) * size * (players - size)) for size in sizes.tolist()]
            return every, torch.tensor(kernel, dtype=torch.float64)[every.sum(1) - 1]
        draws = (rows + 1) // 2 if self.antithetic else rows
        # All coalitions of one size together weigh 1 / (s (M - s)).
        drawn = 1 + torch.multinomial(1 / (sizes * (players - sizes)).double(), draws, True, generator=generator)
        order = torch.rand(draws, players, generator=generator, dtype=torch.float64).argsort(dim=1).argsort(dim=1)
        coalitions = order < drawn[:, None]
        if self.antithetic:
            coalitions = torch.stack([coalitions, ~coalitions], dim=1).flatten(0, 1)[:rows]
        return coalitions, torch.ones(rows, dtype=torch.float64)


def additive_fit(coalitions: torch.Tensor, weights: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Values [M] that minimise the weighted squared errors over coalitions [X,M] (1.0 present), exact at both ends.

    answers [2+X]: v of none, of all, and of the coalitions. Every solution that is exact at the ends is an equal share
    for each player plus something that sums to 0; the latter is the free part of the fit.
    """
    players = coalitions.shape[1]
    none, everyone, between = answers[0], answers[1], answers[2:]
    equal = (everyone - none) / players
    balanced = coalitions - coalitions.mean(1, keepdim=True)
    left = between - none - equal * coalitions.sum(1)
    gram = balanced.T @ (weights[:, None] * balanced)
    # Singular by its nature: nothing depends on adding the same to all players. The smallest solution sums to 0.
    inverse = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
    return equal + inverse @ (balanced.T @ (weights * left))
