"""How many ReLUs a network has, however they are written: seen from outside, operation by operation."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .classifier import Classifier

RELUS = (nn.ReLU, nn.ReLU6)


def count_rectifiers(classifier: Classifier) -> tuple[int, int]:
    """How many ReLUs of one forward pass are calls of RELUS modules on whole tensors, and how many are not.

    `x * (x > 0)` and `torch.maximum(x, 0)` are not seen.
    """
    seen = _Rectifiers()
    relus = [module for module in classifier.module.modules() if isinstance(module, RELUS)]
    handles = [relu.register_forward_pre_hook(seen.enter) for relu in relus]
    handles += [relu.register_forward_hook(seen.leave) for relu in relus]
    try:
        # With gradients, as in a real pass: without them some modules take a fused path that hides its ReLU.
        with torch.enable_grad(), seen:
            classifier.module(classifier.blank.requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()
    return seen.reached, seen.missed


class _Rectifiers(TorchDispatchMode):
    """Sees every tensor operation while active; counts those that cut at 0, inside and outside of ReLU modules."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.missed, self.in_module = 0, 0, False

    def __torch_dispatch__(self, operation: Any, kinds: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if _rectifies(operation, arguments, keywords):
            self.reached += self.in_module
            self.missed += not self.in_module
        return operation(*arguments, **keywords)

    def enter(self, *_: Any) -> None:
        self.in_module = True

    def leave(self, module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        self.in_module = False
        # In place on a part of a tensor: who reads the whole goes around a hook on the part.
        whole = output._base
        if module.inplace and whole is not None and output._is_view() and output.numel() < whole.numel():
            self.reached, self.missed = self.reached - 1, self.missed + 1


def _rectifies(operation: Any, arguments: Any, keywords: Any) -> bool:
    """Whether an ATen operation is a ReLU: relu, or a clamp, hardtanh or threshold whose lower bound is 0."""
    name = operation.overloadpacket.__name__.removesuffix("_")
    if name in ("relu", "relu6"):
        return True
    if name in ("clamp", "clamp_min", "hardtanh", "threshold"):
        bounds = [*arguments[1:2], *(keywords.get(key) for key in ("min", "min_val", "threshold"))]
        return any(isinstance(bound, int | float) and bound == 0 for bound in bounds)
    return False
