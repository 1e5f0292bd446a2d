"""DASP: Shapley values from means and variances of random coalitions, sent through the network."""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.tracing.graph import Graph
from ..context import Context
from ._coalitions import Coalitions, counts_of, shares
from ._moments import check_moments, linear_steps, mean_logits


@dataclass(kw_only=True, eq=False)
class DASP(Coalitions):
    """Deep approximate Shapley propagation (Ancona, Oztireli & Gross 2019): [B,1,H,W], signed.

    The Shapley value of a player is the mean, over the sizes k = 0 to M - 1 of coalitions of the others, of what it
    adds to a random coalition of that size: phi_i = 1/M sum over k of E[v(S + i)] - E[v(S)], |S| = k. Both expectations
    are one pass of a mean and a variance each, and no coalition is drawn. Behind the first layers, as long as these
    are affine, both moments are exact: of the contributions c of the n = M - 1 other players the mean of a sum of k is
    k/n sum(c), and its variance, drawn without replacement, k (n - k) / (n - 1) times the variance of c. From there on
    values count as independent and normal: affine layers send on w m and w^2 v, a ReLU has the moments of a rectified
    normal variable, maximum pooling those of pairwise maxima (Clark 1961), means over windows add variances up.

    Exact where the network is linear; else an approximation, of which a map need not sum to f(x) - f(fill) either. It
    serves chains of such layers alone and refuses other networks with the name of the layer. Players, fills and how
    values become a map are described in `Coalitions`; by `background` expectations are averaged over the samples. In
    units of the explained output per pixel.

    sizes: how many of the M sizes are taken, evenly spaced; null is all.
    Raises ValueError for no sizes.
    """

    players: int = 25
    sizes: int | None = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sizes is not None and self.sizes < 1:
            raise ValueError(f"sizes={self.sizes}: expected at least 1 size of coalitions, or null for all")

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        if classifier.explains_probability:
            raise Refusal("dasp has the mean of a logit, and not that of a probability: set output=logit")
        check_moments(classifier, "dasp")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """A mean and a variance for each player, size, and whether the player is there. What the first layers alone
        take is not counted."""
        players = self.most_players(classifier)
        return (self.versions * 4 * players * len(self._sizes(players)), 0)

    @torch.no_grad()
    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        labels = self.labels(classifier, inputs)
        counts, fills = counts_of(labels), self.fills(classifier, inputs, context)
        values = torch.zeros(len(inputs), max(counts), dtype=torch.float64)
        for sample, players in enumerate(counts):
            for fill in fills:
                found = self._values(classifier, inputs[sample], fill[sample], labels[sample], targets[sample], players)
                values[sample, :players] += found.double().cpu() / len(fills)
        return shares(values, labels, inputs)

    def _values(
        self,
        classifier: Classifier,
        image: torch.Tensor,
        fill: torch.Tensor,
        labels: torch.Tensor,
        target: torch.Tensor,
        players: int,
    ) -> torch.Tensor:
        """The values [M] of the players of one image [C,H,W]."""
        graph = Graph.of(classifier)
        front = replace(graph, steps=graph.steps[: linear_steps(graph)])
        masks = functional.one_hot(labels, players).permute(2, 0, 1)[:, None].to(image)
        nothing = front.run(fill[None])[-1]

        def contributions(which: torch.Tensor) -> torch.Tensor:
            """What each of some players alone adds behind the first layers."""
            return front.run(torch.lerp(fill, image, masks[which]))[-1] - nothing

        everyone = torch.arange(players, device=image.device)
        total, squares = torch.zeros_like(nothing), torch.zeros_like(nothing)
        for part in classifier.chunks(players):
            found = contributions(everyone[part])
            total += found.sum(0)
            squares += found.square().sum(0)

        sizes = torch.tensor(self._sizes(players), device=image.device)
        rows = torch.cartesian_prod(everyone, sizes, torch.arange(2, device=image.device))
        others, means = players - 1, []
        for part in classifier.chunks(len(rows)):
            player, size, there = rows[part].T
            count = size.to(image).view(-1, *[1] * (nothing.dim() - 1))
            share = (size / max(others, 1)).to(image).view(-1, 1, 1, 1)
            shown = torch.lerp(share, there.to(image).view(-1, 1, 1, 1), masks[player])
            values = front.run(torch.lerp(fill, image, shown))
            own = contributions(player)
            spread = (squares - own.square() - (total - own).square() / max(others, 1)) / max(others, 1)
            variance = (count * (others - count) / max(others - 1, 1) * spread).clamp(min=0)
            logits = mean_logits(graph, values, variance)
            means.append(classifier.select(logits, target.expand(len(logits))))
        return torch.cat(means).view(players, -1, 2).diff(dim=2).mean((1, 2))

    def _sizes(self, players: int) -> list[int]:
        """The sizes of coalitions: the middle of each of equal parts of 0 to M - 1."""
        count = players if self.sizes is None else min(self.sizes, players)
        return [(2 * part + 1) * players // (2 * count) for part in range(count)]
