"""LRP with a choice of what becomes of relevance at attention and gates."""

from typing import get_args

from ...errors import one_of
from ._attention import AttentionName
from ._modified_backprop import Start
from .lrp import LRP, First, Residual
from .rules import AffineRule


class AttentionLRP(LRP):
    """Relevance of every input value through the attention of a transformer and the gates of a convolutional network:
    [B,C,H,W], signed.

    attention: `attnlrp`, factors get half each, and a softmax its Taylor expansion, so that queries and keys get
        relevance (Achtibat et al. 2024); relevance is not conserved at a softmax. `conservative`, attention and gates
        are weights that are held, so that values get everything (Ali et al. 2022); conserved but for biases,
        position embeddings and class tokens. Both take a normalisation's deviation for a constant.
    Everything else as in `LRP`. Raises ValueError for another word.
    """

    def __init__(
        self,
        rule: AffineRule,
        dense: AffineRule | None = None,
        attention: AttentionName = "attnlrp",
        residual: Residual = "rule",
        first: First = "same",
        start: Start = "logit",
    ) -> None:
        super().__init__(rule, dense, residual, first, start)
        self.attention = one_of("attention", attention, get_args(AttentionName))
