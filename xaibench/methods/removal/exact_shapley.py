"""Exact Shapley values: what each player adds, averaged over all coalitions that it can join."""

import math
from dataclasses import dataclass

import torch

from ...models.classifier import Classifier
from ..context import Context
from ._coalitions import Coalitions, every_coalition, shares

MOST = 16


@dataclass(kw_only=True, eq=False)
class ExactShapley(Coalitions):
    """The Shapley value of each player of an image (Shapley 1953), from all 2^M coalitions: [B,1,H,W], signed.

    phi_i = sum over S without i of |S|! (M - |S| - 1)! / M! (v(S + i) - v(S)); v, players and how values become a map
    are described in `Coalitions`. In units of the explained output per pixel, and complete: a map sums to
    f(x) - f(fill).

    players: at most 16, that is 65536 passes. Raises ValueError for more.
    """

    players: int = 9

    def __post_init__(self) -> None:
        if self.players > MOST:
            raise ValueError(f"players={self.players}: expected at most {MOST}: all 2^players coalitions are asked")
        super().__post_init__()

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.versions * 2 ** self.most_players(classifier), 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        labels = self.labels(classifier, inputs)
        # Where there are fewer superpixels, the players that are missing add nothing and take nothing.
        coalitions = every_coalition(self.most_players(classifier))[None]
        return shares(
            shapley_values(self.answers(classifier, inputs, targets, labels, coalitions, context)), labels, inputs
        )


def shapley_values(answers: torch.Tensor) -> torch.Tensor:
    """Shapley values [B,M] of games given by v of all coalitions [B,2^M], in the order of `every_coalition`."""
    players = answers.shape[1].bit_length() - 1
    sizes = every_coalition(players).sum(1)
    weights = answers.new_tensor(joining_weights(players))
    values = []
    for player in range(players):
        # Without and with the player: bit `player` of the coalition's number.
        shape = -1, 2, 2**player
        without, joined = answers.view(len(answers), *shape).unbind(2)
        weight = weights[sizes.view(shape)[:, 0]]
        values.append(((joined - without) * weight).sum((1, 2)))
    return torch.stack(values, dim=1)


def joining_weights(players: int) -> list[float]:
    """What a player's joining a coalition of s others counts, for s = 0 to M - 1: s! (M - s - 1)! / M!."""
    return [1 / (players * math.comb(players - 1, size)) for size in range(players)]
