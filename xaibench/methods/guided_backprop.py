"""Guided backpropagation: the gradient with negative parts dropped at every ReLU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import Refusal
from ..models.classifier import Classifier
from .base import Method

RELUS = (nn.ReLU, nn.ReLU6)


class GuidedBackprop(Method):
    """Gradient in which every ReLU passes back only what is positive: [B,C,H,W], signed.

    Springenberg et al. 2015: at a ReLU y = max(x, 0) the signal R becomes (x > 0) (R > 0) R. ReLU6 is a
    ReLU with its own derivative: (0 < x < 6) (R > 0) R. (Captum's rule leaves ReLU6 alone, which on MobileNet is the
    plain gradient.) Everything else, other activations included, keeps its derivative.

    The rule is applied to the ReLU modules. A network that rectifies in any other way (F.relu, clamp), or not at
    all, is refused: its map would silently be nearly a plain gradient. In-place and shared ReLU modules are served.
    """

    def check(self, classifier: Classifier) -> None:
        reached, missed = count_rectifiers(classifier)
        if missed:
            raise Refusal(
                f"guided_backprop cannot reach {missed} of the {reached + missed} ReLUs of {classifier.name}: they are "
                "calls such as F.relu instead of nn.ReLU or nn.ReLU6 modules, or work in place on a slice"
            )
        if not reached:
            raise Refusal(f"guided_backprop needs ReLU modules: {classifier.name} has none in its forward pass")

    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        **context: Any,
    ) -> torch.Tensor:
        with _hooked(classifier.module, after=_pass_positive):
            return classifier.gradient(inputs, targets)


def _pass_positive(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
    # A hook on the output tensor sees the sum over everything that reads it. It belongs to this call's value, so a
    # module called twice gets two, and an in-place operation that follows does not move it.
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.clamp(min=0))


@contextmanager
def _hooked(module: nn.Module, before: Any = None, after: Any = None) -> Iterator[None]:
    """Hooks before and after every call of a ReLU module; removed at the end, whatever happens."""
    relus = [m for m in module.modules() if isinstance(m, RELUS)]
    handles = [relu.register_forward_pre_hook(before) for relu in relus if before]
    handles += [relu.register_forward_hook(after) for relu in relus if after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Rectifiers(TorchDispatchMode):
    """Sees every tensor operation while active; counts those that cut at 0, as the hooks reach them or miss them."""

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
        # In place on a part of a tensor: who reads the whole goes around the hook on the part.
        if module.inplace and output._is_view() and output.numel() < output._base.numel():
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


def count_rectifiers(classifier: Classifier) -> tuple[int, int]:
    """How many ReLUs of one forward pass the hooks reach, and how many they miss."""
    probe = torch.zeros(1, *classifier.input_size, dtype=classifier.dtype, device=classifier.device)
    # With gradients, as in the real pass: without them some modules take a fused path that hides its ReLU.
    with torch.enable_grad(), _Rectifiers() as seen, _hooked(classifier.module, seen.enter, seen.leave):
        classifier.module(probe.requires_grad_(True))
    return seen.reached, seen.missed
