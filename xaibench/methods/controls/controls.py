"""Controls: maps that explain nothing, or know the answer. A metric under which they win or lose wrongly is suspect."""

import torch
from torch.nn import functional

from ...errors import Refusal, nearest
from ...models.classifier import Classifier
from ..base import Method
from ..context import Context


class Control(Method):
    """A map that does not ask the network: no passes."""

    sign_of_logit = False

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (0, 0)


class Random(Control):
    """Independent standard normal values, one per pixel: [B,1,H,W], signed."""

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        size = (1, *inputs.shape[2:])
        return torch.stack([torch.randn(size, generator=g) for g in context.generators]).to(inputs)


class Constant(Control):
    """Ones everywhere: [B,1,H,W]. Ranked by ties alone, so it scores like `random`."""

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        return torch.ones_like(inputs[:, :1])


class LastPlace(Control):
    """1 at the last place, 0 elsewhere: [B,1,H,W]. What a network that reads from left to right could be said to do."""

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = torch.zeros_like(inputs[:, :1])
        maps[..., -1, -1] = 1
        return maps


class Position(Control):
    """Each place's number, row by row, from 1 on, over how many there are: [B,1,H,W], in (0, 1]."""

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        places = inputs[0, 0].numel()
        ramp = torch.arange(1, places + 1, device=inputs.device).to(inputs) / places
        return ramp.view(1, 1, *inputs.shape[2:]).repeat(len(inputs), 1, 1, 1)


class Sobel(Control):
    """Edge magnitude of the grey image: [B,1,H,W], never negative, in normalised units per pixel.

    The grey value is the mean over the channels of the normalised input; the two Sobel kernels are scaled to be
    derivatives (divided by 8), and the border pixels are repeated outwards.
    """

    def check(self, classifier: Classifier) -> None:
        classifier.require_pictures("sobel looks for edges")

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        across = inputs.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
        grey = functional.pad(inputs.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        slopes = functional.conv2d(grey, torch.stack([across, across.T])[:, None])
        return slopes.square().sum(1, keepdim=True).sqrt()


class Input(Control):
    """The normalised input itself: [B,C,H,W], signed."""

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        return inputs.clone()


class Oracle(Control):
    """The ground-truth mask as a map: [B,1,H,W], 1 inside and 0 outside, or how much each pixel matters where the
    masks are graded. Refused where a data set has no masks."""

    needs_mask = True

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        if context.masks is None:
            raise Refusal("oracle needs ground-truth masks: this data set has none")
        return context.masks[:, None].to(inputs)


class Centre(Control):
    """A Gaussian blob in the middle of the image: [B,1,H,W], 1 in its centre; things tend to lie there.

    width: the standard deviation, as a share of the height and of the width.
    """

    def __init__(self, width: float = 0.25) -> None:
        if not width > 0:
            raise ValueError(f"width={width}: expected a positive share of the image's side")
        self.width = width

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        axes = [(torch.arange(side).to(inputs) + 0.5) / side - 0.5 for side in inputs.shape[2:]]
        rows, columns = (torch.exp(-(axis**2) / (2 * self.width**2)) for axis in axes)
        return (rows[:, None] * columns).expand(len(inputs), 1, -1, -1).clone()


class Row(Control):
    """The number of each pixel's row, from 0 at the top: [B,1,H,W]. In X-rays, what is lower tends to be worse."""

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        height, width = inputs.shape[2:]
        return torch.arange(height).to(inputs)[:, None].expand(len(inputs), 1, height, width).clone()


class Region(Control):
    """A region of the image that the data set knows, as a map: [B,1,H,W], 1 inside and 0 outside.

    name: of the region, such as `lungs`. Refused where the data set has no such region.
    """

    own_samples_only = True

    def __init__(self, name: str = "lungs") -> None:
        self.name = name

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        dataset = context.data.dataset if context.data is not None else None
        known = dataset.regions(context.samples[:1]) if hasattr(dataset, "regions") else {}
        if self.name not in known:
            near = nearest(self.name, known) if known else "it has none, as dataset=chest and dataset=brixia do"
            raise Refusal(f"method.name={self.name}: no region of the data set: {near}")
        return context.data.region(self.name, context.samples)[:, None].to(inputs)
