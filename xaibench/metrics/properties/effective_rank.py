"""Effective rank: are the maps of different samples different maps?"""

import torch

from ..base import Columns, PooledMetric, Statistic


class EffectiveRank(PooledMetric):
    """How many directions the maps of all samples take (of gradients: Balduzzi et al. 2017).

    The maps, with their channels, are the rows of a matrix with singular values s_1 >= s_2 >= ...

    effective_rank   sum_k s_k^2 / s_1^2, the squared Frobenius norm by the squared spectral norm (Vershynin 2012)
    entropy_rank     exp(-sum_k p_k log p_k), p_k = s_k / sum_j s_j (Roy and Vetterli 2007)

    Both are 1 where all maps are one map times a number, as those of a rule that has converged (`csc` asks that of the
    classes of one image), and n for n maps of equal size at right angles. Whether different maps are true neither says.

    normalise: each map by its length, so that one of large values does not speak for all; as it is otherwise. Maps of
    zeros then say nothing; with nothing but zeros, or a value that is not finite, both are undefined (NaN).
    """

    statistics = tuple(
        Statistic(name, "higher", name, kind="repeats", low=1, unit="directions", tolerance=0.5)
        for name in ("effective_rank", "entropy_rank")
    )
    collapse = "none"

    def __init__(self, normalise: bool = True) -> None:
        self.normalise = normalise

    def pool(self, maps: torch.Tensor, outputs: torch.Tensor) -> Columns:
        rows = maps.flatten(1).double()
        if self.normalise:
            lengths = rows.norm(dim=1, keepdim=True)
            rows = torch.where(lengths == 0, 0.0, rows / lengths)
        if not rows.isfinite().all() or not rows.any():
            return dict.fromkeys(("effective_rank", "entropy_rank"), rows.new_tensor(torch.nan))
        if rows.shape[0] > rows.shape[1]:
            rows = rows.T
        # Squared singular values, from the smaller of the two products; what is below rounding is none.
        squares = torch.linalg.eigvalsh(rows @ rows.T)
        squares = squares[squares > squares.amax() * len(squares) * torch.finfo(squares.dtype).eps]
        shares = squares.sqrt() / squares.sqrt().sum()
        return {
            "effective_rank": squares.sum() / squares.amax(),
            "entropy_rank": torch.special.entr(shares).sum().exp(),
        }
