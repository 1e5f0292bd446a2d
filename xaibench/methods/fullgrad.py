"""Full-gradient representation: what input and biases contribute to a logit, exactly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from .. import rng
from ..errors import Refusal, nearest
from ..models.classifier import Classifier
from .base import Method

Psi = Literal["rescaled", "absolute", "signed"]

AFFINE = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
# Activations with an intercept at the tangent. Those without (ReLU, leaky ReLU) pass on no more than their input.
CURVED = (
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh,
)  # fmt: skip

# What may be missing of the logit, relative to the sum of absolute contributions: rounding in single precision.
TOLERANCE = 1e-4


class FullGrad(Method):
    """x times its gradient, and each bias times the gradient where it is added, as one map: [B,1,H,W].

    Srinivas & Fleuret 2019, eq. 3 and 6: f(x) = sum_i x_i df/dx_i + sum_b b df/db, b over the biases of all layers at
    all places. Implicit biases count: batch normalisation's b - mean w / std, and the intercept s(z) - s'(z) z of
    activations that are not piecewise linear through 0 (ReLU6, sigmoid...).

    psi: what is done to the contributions of a channel before they are enlarged bilinearly and summed over channels
        and layers. `rescaled`: absolute values, shifted and scaled to 0..1 (the paper's); `absolute`: absolute values;
        `signed`: nothing, and enlarging keeps sums, so that a map sums to the logit. Biases without a place (linear
        layers) are left out of the first two, as in the authors' code, and spread evenly in the last.

    A network whose contributions do not add up to its logit is refused: it adds or bends something that is not one of
    these modules (functional activations other than ReLU, attention, products of features). Batches are tested too.
    Raises ValueError for another psi.
    """

    def __init__(self, psi: Psi = "rescaled") -> None:
        if psi not in get_args(Psi):
            raise ValueError(f"psi={psi}: {nearest(psi, get_args(Psi))}")
        self.psi = psi

    def check(self, classifier: Classifier) -> None:
        if classifier.output == "probability":
            raise Refusal("fullgrad takes a logit apart, a softmax probability has no such parts: set output=logit")
        probe = torch.randn(1, *classifier.input_size, generator=rng.generator("fullgrad"))
        target = torch.zeros(1, dtype=torch.int64, device=classifier.device)
        self.attribute(classifier, probe.to(classifier.device, classifier.dtype), target, [])

    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        **context: Any,
    ) -> torch.Tensor:
        return torch.cat(
            [self._maps(classifier, inputs[part], targets[part]) for part in classifier.chunks(len(inputs))]
        )

    def _maps(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros_like(inputs[:, :1])
        total, size = (inputs.new_zeros(len(inputs)) for _ in range(2))

        def add(contributions: torch.Tensor) -> None:
            nonlocal maps, total, size
            total, size = total + contributions.flatten(1).sum(1), size + contributions.flatten(1).abs().sum(1)
            maps = maps + self._map(contributions, inputs.shape[2:])

        inputs = inputs.detach().requires_grad_(True)
        with torch.enable_grad(), _contributions(classifier.module, add):
            explained = classifier.select(classifier.module(inputs), targets)
        gradient = torch.autograd.grad(explained.sum(), inputs)[0]
        add((inputs * gradient).detach())
        missing = (explained.detach() - total).abs()
        if (missing > TOLERANCE * size).any():
            worst = int((missing - TOLERANCE * size).argmax())
            raise Refusal(
                f"fullgrad finds contributions of {total[worst]:.5g} in a logit of {explained[worst]:.5g} of "
                f"{classifier.name}: something adds to it or bends it that is not a module known to fullgrad"
            )
        return maps

    def _map(self, contributions: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Contributions [B,k,h,w], or [B,...] without places, as their share of the map [B,1,H,W]."""
        if contributions.dim() != 4:
            if self.psi != "signed":
                return contributions.new_zeros(len(contributions), 1, 1, 1)
            contributions = contributions.flatten(1)[:, :, None, None]
        if self.psi == "signed":
            return spread_out(contributions.sum(1, keepdim=True), size)
        values = contributions.abs()
        if self.psi == "rescaled":
            values = values - values.amin((2, 3), keepdim=True)
            values = values / values.amax((2, 3), keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        return functional.interpolate(values.sum(1, keepdim=True), size=size, mode="bilinear", align_corners=False)


def spread_out(values: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Maps [B,1,h,w] enlarged bilinearly to [B,1,H,W], each value divided by the sum of its copies: sums are kept."""
    with torch.enable_grad():
        one = torch.ones_like(values[:1], requires_grad=True)
        shares = functional.interpolate(one, size=size, mode="bilinear", align_corners=False).sum()
        (weight,) = torch.autograd.grad(shares, one)
    return functional.interpolate(values / weight, size=size, mode="bilinear", align_corners=False)


@contextmanager
def _contributions(network: nn.Module, add: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """While active, a forward pass prepares its backward pass to `add` every bias times its gradient."""
    intercepts: list[torch.Tensor] = []

    def when_differentiated(output: torch.Tensor, bias: torch.Tensor) -> None:
        # On the value that the module has returned: what is done to it in place afterwards does not matter.
        if output.requires_grad:
            output.register_hook(lambda gradient: add(gradient * bias))

    def after_affine(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        bias = bias_of(module)
        if bias is not None:
            places = (1,) * (output.dim() - 2)
            when_differentiated(output, bias if isinstance(module, nn.Linear) else bias.view(-1, *places))

    def before_curved(module: nn.Module, arguments: Any) -> None:
        # Before, because the module may work in place; `forward` calls no hooks.
        with torch.enable_grad():
            z = arguments[0].detach().clone().requires_grad_(True)
            value = module.forward(z.clone())
            (slope,) = torch.autograd.grad(value.sum(), z)
        intercepts.append((value - slope * z).detach())

    def after_curved(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        when_differentiated(output, intercepts.pop())

    handles = []
    for module in network.modules():
        if isinstance(module, AFFINE):
            handles.append(module.register_forward_hook(after_affine))
        elif isinstance(module, CURVED):
            handles += [module.register_forward_pre_hook(before_curved), module.register_forward_hook(after_curved)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def bias_of(module: nn.Module) -> torch.Tensor | None:
    """What a layer adds to each channel [k]: its bias, of batch normalisation what its statistics shift besides."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.bias
    if module.running_mean is None:
        return module.bias
    shift = -module.running_mean / (module.running_var + module.eps).sqrt()
    shift = shift if module.weight is None else shift * module.weight
    return shift if module.bias is None else shift + module.bias
