"""How much a forward pass computes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .classifier import Classifier


def forward_flops(classifier: Classifier) -> int:
    """Floating-point operations of one forward pass of one input, by the formulas of `torch.utils.flop_counter`: those
    of convolutions, matrix products and attention; the rest counts nothing."""
    with torch.no_grad(), _Counter() as counter:
        classifier.module(classifier.blank)
    return counter.total


class _Counter(TorchDispatchMode):
    """Adds up the operations that run under it. Torch's own counter imports `torch._dynamo` first, which takes as long
    as to import torch, to keep compilation out of what is not compiled."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # brings Triton, where that is installed

        super().__init__()
        self.formulas, self.total = flop_registry, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = self.formulas.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out
