"""Full-gradient representation: what input and biases contribute to a logit, exactly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from torch.nn import functional

from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ..base import Method
from ..context import Context

Psi = Literal["rescaled", "released", "absolute", "signed"]

AFFINE = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
# Activations with an intercept at the tangent. Those without (ReLU, leaky ReLU) pass on no more than their input.
CURVED = (
    nn.Hardswish, nn.Hardsigmoid, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh,
)  # fmt: skip

# Of `released`, as in its code.
EPSILON = 1e-6

# What may be missing of the logit, relative to the sum of absolute contributions: rounding in single precision.
TOLERANCE = 1e-4


class FullGrad(Method):
    """x times its gradient, and each bias times the gradient where it is added, as one map: [B,1,H,W].

    Srinivas & Fleuret 2019, eq. 3 and 6: f(x) = sum_i x_i df/dx_i + sum_b b df/db, b over the biases of all layers at
    all places. Implicit biases count: batch normalisation's b - mean w / std, and the intercept s(z) - s'(z) z of
    activations that are not piecewise linear through 0 (ReLU6, sigmoid...).

    psi: what is done to the contributions of a channel before they are enlarged bilinearly and summed over channels
        and layers. `rescaled`: absolute values, shifted and scaled to 0..1 (the paper's); `released`: the same for all
        channels of a layer at once, divided by the maximum + 1e-6, and enlarged with aligned corners (the authors'
        code, github.com/idiap/fullgrad-saliency, `_postProcess`); `absolute`: absolute values; `signed`: nothing, and
        enlarging keeps sums, so that a map sums to the logit. Biases without a place (linear layers) are left out of
        all but the last, as in the authors' code, and spread evenly in the last.

    A network whose contributions do not add up to its logit is refused: it adds or bends something that is not one of
    these modules (functional activations other than ReLU, attention, products of features). Batches are tested too.
    Raises ValueError for another psi.
    """

    sign_of_logit = False

    def __init__(self, psi: Psi = "rescaled") -> None:
        one_of("psi", psi, get_args(Psi))
        self.psi = psi

    def check(self, classifier: Classifier) -> None:
        if classifier.explains_probability:
            raise Refusal("fullgrad takes a logit apart, a probability has no such parts: set output=logit")
        classifier.refuse_torchscript()
        target = torch.zeros(1, dtype=torch.int64, device=classifier.device)
        self.attribute(classifier, classifier.probe(1), target, Context())

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        return torch.cat(
            [self._maps(classifier, inputs[part], targets[part]) for part in classifier.chunks(len(inputs))]
        )

    def _maps(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # Layers of one size are added up before they are enlarged, which is linear.
        by_size: dict[torch.Size, torch.Tensor] = {}
        total: Any = 0
        size: Any = 0

        def add(gradient: torch.Tensor, bias: torch.Tensor) -> None:
            """The contributions of a layer, gradient [B,k,...] times bias [k]."""
            nonlocal total, size
            places = gradient.shape[2:]
            values = gradient.flatten(2) if places else gradient[..., None]
            absolute = values.abs()
            # Products with a vector: no pass over the values for each channel's sum.
            signed, sizes = bias @ values, bias.abs() @ absolute
            total, size = total + signed.sum(1), size + sizes.sum(1)
            if len(places) == 2:
                share = {
                    "signed": lambda: signed,
                    "absolute": lambda: sizes,
                    "rescaled": lambda: rescaled(absolute, bias),
                    "released": lambda: rescaled_together(absolute, bias),
                }[self.psi]()
            elif self.psi == "signed":
                places, share = torch.Size((1, 1)), signed.sum(1, keepdim=True)
            else:
                return
            by_size[places] = by_size.get(places, 0) + share

        inputs = inputs.detach().requires_grad_(True)
        with torch.enable_grad(), _contributions(classifier.module, add):
            explained = classifier.select(classifier.module(inputs), targets)
        gradient = torch.autograd.grad(explained.sum(), inputs)[0]
        add(inputs.detach() * gradient, gradient.new_ones(gradient.shape[1]))
        missing = (explained.detach() - total).abs()
        if (missing > TOLERANCE * size).any():
            worst = int((missing - TOLERANCE * size).argmax())
            raise Refusal(
                f"fullgrad finds contributions of {total[worst]:.5g} in a logit of {explained[worst]:.5g} of "
                f"{classifier.name}: something adds to it or bends it that is not a module known to fullgrad"
            )
        enlarge: Callable[..., torch.Tensor] = enlarged
        if self.psi in ("signed", "released"):
            enlarge = spread_out if self.psi == "signed" else partial(enlarged, align_corners=True)
        maps = (enlarge(values.view(-1, 1, *places), inputs.shape[2:]) for places, values in by_size.items())
        return cast(torch.Tensor, sum(maps))


def rescaled(absolute: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Absolute values [B,k,places], of each channel shifted and scaled to 0..1, summed over channels whose bias [k] is
    not 0, since scaling cancels all others: [B,places]. Overwrites the values."""
    low, high = absolute.amin(2, keepdim=True), absolute.amax(2, keepdim=True)
    absolute -= low
    weights = (bias != 0)[:, None] / (high - low).clamp(min=torch.finfo(low.dtype).tiny)
    return (weights.mT @ absolute)[:, 0]


def rescaled_together(absolute: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Absolute values [B,k,places] times |bias| [k], of each sample shifted and scaled to 0..1, summed over channels:
    [B,places]."""
    sizes = absolute * bias.abs()[:, None]
    low, high = sizes.amin((1, 2), keepdim=True), sizes.amax((1, 2), keepdim=True)
    return ((sizes - low) / (high - low + EPSILON)).sum(1)


def enlarged(values: torch.Tensor, size: torch.Size, align_corners: bool = False) -> torch.Tensor:
    """Maps [B,1,h,w] enlarged bilinearly to [B,1,H,W]."""
    return functional.interpolate(values, size=size, mode="bilinear", align_corners=align_corners)


def spread_out(values: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Maps [B,1,h,w] enlarged bilinearly to [B,1,H,W], each value divided by the sum of its copies: sums are kept."""
    with torch.enable_grad():
        one = torch.ones_like(values[:1], requires_grad=True)
        shares = enlarged(one, size).sum()
        (weight,) = torch.autograd.grad(shares, one)
    return enlarged(values / weight, size)


@contextmanager
def _contributions(network: nn.Module, add: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """While active, a forward pass prepares its backward pass to `add` the gradient where a bias is added, and it."""
    intercepts: list[torch.Tensor] = []

    def after_affine(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        bias = bias_of(module)
        if bias is not None and output.requires_grad:
            channels = -1 if isinstance(module, nn.Linear) else 1
            # On the value that the module has returned: what is done to it in place afterwards does not matter.
            output.register_hook(lambda gradient: add(gradient.movedim(channels, 1), bias))

    def before_curved(module: nn.Module, arguments: Any) -> None:
        # Before, because the module may work in place; `forward` calls no hooks.
        with torch.enable_grad():
            z = arguments[0].detach().clone().requires_grad_(True)
            value = module.forward(z.clone())
            (slope,) = torch.autograd.grad(value.sum(), z)
        intercepts.append((value - slope * z).detach())

    def after_curved(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        add_each(output, intercepts.pop())

    def after_clamping(module: nn.Hardtanh, arguments: Any, output: torch.Tensor) -> None:
        values = output.detach()
        if values.amax() >= module.max_val or (module.min_val != 0 and values.amin() <= module.min_val):
            add_each(output, flat_ends(module, values))

    def add_each(output: torch.Tensor, intercept: torch.Tensor) -> None:
        if output.requires_grad:
            one = intercept.new_ones(intercept.shape[1])
            output.register_hook(lambda gradient: add(gradient * intercept, one))

    handles = []
    for module in network.modules():
        if isinstance(module, AFFINE):
            handles.append(module.register_forward_hook(after_affine))
        elif isinstance(module, nn.Hardtanh):
            handles.append(module.register_forward_hook(after_clamping))
        elif isinstance(module, CURVED):
            handles += [module.register_forward_pre_hook(before_curved), module.register_forward_hook(after_curved)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def flat_ends(module: nn.Hardtanh, values: torch.Tensor) -> torch.Tensor:
    """The intercepts of ReLU6 and its like, by their output: the value at either flat end, 0 between them."""
    # Thresholds, since comparisons and choices take a CPU ten times as long.
    intercept = torch.zeros_like(values)
    for sign, end in ((1, module.max_val), (-1, module.min_val)):
        if end != 0:
            before = torch.nextafter(values.new_tensor(sign * end), values.new_tensor(-torch.inf)).item()
            intercept += sign * functional.threshold(sign * values, before, 0)
    return intercept


def bias_of(module: nn.Module) -> torch.Tensor | None:
    """What a layer adds to each channel [k]: its bias, of batch normalisation what it makes of 0."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
        return cast("torch.Tensor | None", module.bias)
    mean, variance = module.running_mean, module.running_var
    zero = torch.zeros_like(mean)[None]
    return functional.batch_norm(zero, mean, variance, module.weight, module.bias, eps=module.eps)[0]
