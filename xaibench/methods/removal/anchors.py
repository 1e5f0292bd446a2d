"""Anchors: the fewest regions whose presence holds a network to its prediction."""

from dataclasses import dataclass

import torch

from ...errors import Refusal
from ...models.classifier import Classifier
from ..context import Context
from ._coalitions import Coalitions, every_coalition
from .exact_shapley import MOST


@dataclass(kw_only=True, eq=False)
class Anchors(Coalitions):
    """1 in the regions of the anchor, 0 elsewhere: [B,1,H,W], the rule "if these are there, it predicts the same".

    Ribeiro, Singh & Guestrin 2018. The precision of a set of players is the share of all coalitions that contain it,
    each as likely as another, to which the network gives the class that it gives the image. The anchor is the smallest
    set whose precision is at least `precision`; of several of one size the most precise one, and of these the first.
    Few players make few coalitions: all are asked, so that precisions are exact and no search is needed, where the
    authors sample coalitions and search greedily among many superpixels. How a coalition is shown is described in
    `Coalitions`; by `background` a precision is a mean over the samples, too.

    It is the predicted class that is held, whatever class is explained: the two are the same by target=predicted. An
    empty anchor, a map of 0, says that the network predicts the class of most coalitions anyway.

    players: at most 16, that is 65536 passes. precision: more than 0 and up to 1.
    Raises ValueError for more players, and for another precision.
    """

    players: int = 9
    precision: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.players > MOST:
            raise ValueError(f"players={self.players}: expected at most {MOST}: all 2^players coalitions are asked")
        if not 0 < self.precision <= 1:
            raise ValueError(f"precision={self.precision}: expected more than 0 and up to 1")

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        if not classifier.has_classes or classifier.outputs == 1:
            raise Refusal(f"anchors hold the network to the class that it predicts, {classifier.name} has none")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """All coalitions, and the image itself, of which the prediction is known first."""
        return (1 + self.versions * 2 ** self.most_players(classifier), 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        labels = self.labels(classifier, inputs)
        coalitions = every_coalition(self.most_players(classifier))
        predicted = classifier.logits(inputs).argmax(1)
        same = self.answers(classifier, inputs, predicted, labels, coalitions[None], context, output="accuracy")
        chosen = coalitions[smallest(precisions(same), self.precision)].to(labels.device)
        return chosen.gather(1, labels.flatten(1)).view(len(labels), 1, *labels.shape[1:]).to(inputs)


def precisions(same: torch.Tensor) -> torch.Tensor:
    """Of each set of players the mean of `same` [B,2^M] over the coalitions that contain it: [B,2^M], both in the order
    of `every_coalition`."""
    players = same.shape[1].bit_length() - 1
    found = same
    for player in range(players):
        without, joined = found.view(len(same), -1, 2, 2**player).unbind(2)
        # Of a set without the player, half of the coalitions that contain it have the player.
        found = torch.stack([(without + joined) / 2, joined], dim=2).view_as(same)
    return found


def smallest(precision: torch.Tensor, least: float) -> torch.Tensor:
    """The number [B] of the smallest set with at least that precision [B,2^M], then the most precise, then the first.
    That of all players has it, or nothing has."""
    sizes = every_coalition(precision.shape[1].bit_length() - 1).sum(1)
    order = torch.where(precision >= least, 2 * sizes - precision, torch.inf)
    return order.sort(dim=1, stable=True).indices[:, 0]
