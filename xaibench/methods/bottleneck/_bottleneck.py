"""The information bottleneck of Schulz et al. 2020, shared by the methods iba, iba_*, and input_iba.

Features R are mixed with noise, Z = lambda R + (1 - lambda) E, with E drawn from what is known about R without looking
at the image: Q(Z) = N(mean, std^2), per feature. How much of the image still gets through is measured by
KL(P(Z|R) || Q(Z)), which is at least the mutual information of R and Z.

The mask is kept as the share of noise, s = 1 - lambda: near lambda = 1, where the information grows without bound,
floating point resolves s but not lambda. Information is in nats here and in bits in maps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from ...datasets.base import Samples
from ...errors import Refusal
from ...models.classifier import Classifier
from ...models.cut import activations, grid_shape, output_shape
from ...models.tokens import Grid, feature_maps

Network = TypeVar("Network", bound=nn.Module)

LAYER = "bottleneck"
Loss = Literal["cross_entropy", "binary_cross_entropy", "squared_error", "maximisation", "deviation"]
SURE = 1e-7  # how near to 0 and 1 a probability may come in a logarithm


# ---------------------------------------------------------------------------------------------- what is estimated


class Moments:
    """Mean, standard deviation and number of non-zero values of every feature, in one pass over the data.

    Batches are merged as Chan et al. 1979 do (Welford's update for whole batches), in float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = self.active = torch.zeros((), dtype=torch.float64)

    def update(self, batch: torch.Tensor) -> None:
        """Take in features [B,...]."""
        values = batch.detach().cpu().double()
        mean, count = values.mean(0), len(values)
        delta, total = mean - self.mean, self.count + count
        self.squares = self.squares + ((values - mean) ** 2).sum(0) + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.active = self.active + (values != 0).sum(0)
        self.count = total

    @property
    def std(self) -> torch.Tensor:
        """The unbiased standard deviation [...]; 0 after a single sample."""
        return (self.squares / max(self.count - 1, 1)).sqrt()


def estimate(classifier: Classifier, layers: Sequence[str], samples: Samples) -> dict[str, torch.Tensor]:
    """Moments of the named layers over the samples, in one pass: `<layer>.mean`, `.std`, `.active` (share of samples
    with a value other than 0), each of the layer's shape, in the network's precision. Of sentences, no places of which
    belong together, they are those of a channel at any place, [C,1,1]."""
    moments = {layer: Moments() for layer in layers}
    for batch in samples:
        for part in classifier.chunks(len(batch.inputs)):
            for layer, values in activations(classifier, layers, batch.inputs[part].to(classifier.dtype)).items():
                if classifier.places == "words":
                    values = values.movedim(1, -1).flatten(0, -2)[..., None, None]
                moments[layer].update(values)
    found = {}
    for layer, moment in moments.items():
        found[f"{layer}.mean"] = moment.mean.to(classifier.dtype)
        found[f"{layer}.std"] = moment.std.to(classifier.dtype)
        found[f"{layer}.active"] = (moment.active / max(moment.count, 1)).to(classifier.dtype)
    return found


def require_layer(classifier: Classifier, layer: str, parameter: str = "method.layer") -> tuple[int, int, int]:
    """Shape (c,h,w) of the layer's features. Raises Refusal with the way out if the network has no such layer."""
    try:
        return grid_shape(classifier, layer)
    except Refusal as refusal:
        if layer not in classifier.layers and layer.startswith(LAYER):
            message = f"{classifier.name} does not say where its bottleneck belongs: set {parameter}=<module path>"
            raise Refusal(f"{message}, or the alias '{layer}' in model.layers") from refusal
        raise


def require_maps(
    classifier: Classifier, layer: str, method: str, parameter: str = "method.layer"
) -> tuple[int, int, int]:
    """As `require_layer`. Raises Refusal for tokens, too, which `method` cannot serve."""
    shape = require_layer(classifier, layer, parameter)
    if len(output_shape(classifier, layer)) != 3:
        raise Refusal(
            f"layer '{layer}' of {classifier.name} returns tokens, and {method} has convolutions over places read its "
            "features, where a class token has none\n"
            "method=iba serves tokens, the class token included"
        )
    return shape


def require_loss(classifier: Classifier, loss: Loss) -> None:
    """Raises Refusal where the loss says nothing about the network's outputs."""
    outputs = classifier.outputs
    if classifier.rival is not None:
        raise Refusal("a bottleneck keeps what tells one class: set target=fixed:<class>, not a contrast")
    if loss == "cross_entropy" and outputs == 1:
        raise Refusal(f"{classifier.name} has one output, whose cross entropy is always 0: set method.loss=deviation")
    if loss == "cross_entropy" and classifier.output == "sigmoid":
        raise Refusal("by output=sigmoid no class excludes another, as cross entropy has it: binary_cross_entropy fits")
    if loss not in ("cross_entropy", "binary_cross_entropy") and outputs > 1:
        raise Refusal(f"method.loss={loss} is for a scalar output, and {classifier.name} has {outputs}: cross_entropy")


# ------------------------------------------------------------------------------------------------------ formulas


def information(standardised: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """KL(P(Z|R) || Q(Z)) per feature, in nats, >= 0 (Schulz et al. 2020, eq. 6, in closed form).

    standardised: (R - mean) / std. noise: the share of noise s = 1 - lambda in (0, 1].
    (s^2 + lambda^2 r^2 - 1) / 2 - log s, arranged such that little cancels where lambda is small.
    """
    kept = 1 - noise
    return 0.5 * kept * (kept * standardised**2 - 1 - noise) - noise.log()


def blur_matrix(size: int, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """Gaussian smoothing along one axis as a matrix [size,size] whose rows sum to 1.

    The kernel has 2 round(2 sigma) + 1 taps; the border is reflected without repeating the edge value.
    """
    radius = round(2 * sigma)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    period = max(2 * (size - 1), 1)
    sources = (torch.arange(size)[:, None] + offsets) % period
    sources = torch.minimum(sources, period - sources) if size > 1 else sources * 0
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, weights.expand(size, -1)).to(like)


def blur(maps: torch.Tensor, sigma: float, grid: Grid | None = None) -> torch.Tensor:
    """Maps [...,H,W] smoothed over the last two axes; sigma 0 leaves them as they are.

    grid: of tokens [B,n,C], whose patches are smoothed over their places, and the others are left as they are.
    As products with two small matrices, which on the CPU is several times faster than a depthwise convolution.
    """
    if sigma == 0:
        return maps
    if grid is not None:
        return grid.replaced(maps, blur(grid.maps(maps), sigma))
    height, width = maps.shape[-2:]
    return blur_matrix(height, sigma, maps) @ maps @ blur_matrix(width, sigma, maps).T


def noise_share(alpha: torch.Tensor, smoothing: float, grid: Grid | None = None) -> torch.Tensor:
    """s = 1 - blur(sigmoid(alpha)), computed as blur(sigmoid(-alpha)), in (0, 1]. grid: as for `blur`."""
    return blur(torch.sigmoid(-alpha), smoothing, grid).clamp_min(torch.finfo(alpha.dtype).tiny)


def bits_per_pixel(nats: torch.Tensor, size: Sequence[int], channels: str = "sum") -> torch.Tensor:
    """Information [B,C,h,w] in nats, or of tokens [B,n,C], -> map [B,1,H,W] in bits per input pixel.

    channels: `sum`, after which the map adds up to the bits of the whole bottleneck, or `max`. Of tokens those of
    patches count; what passes in a class token has no place in the image. Bilinear (align_corners false); resizing
    keeps each map's total.
    """
    nats = feature_maps(nats, size).clamp_min(0)  # below 0 by rounding only
    maps = (nats.sum(1, keepdim=True) if channels == "sum" else nats.amax(1, keepdim=True)) / math.log(2)
    resized = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    total, found = maps.sum((2, 3), keepdim=True), resized.sum((2, 3), keepdim=True)
    return resized * torch.where(found > 0, total / found, torch.zeros_like(found))


def mean_mask(noise: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The mean over channels of lambda = 1 - noise, noise [B,C,h,w] or of tokens [B,n,C], as a map [B,1,H,W] in [0, 1],
    enlarged bilinearly (align_corners false). Of tokens those of patches count."""
    kept = 1 - feature_maps(noise, size).mean(1, keepdim=True)
    return F.interpolate(kept, size=size, mode="bilinear", align_corners=False)


def prediction_losses(
    name: Loss, classifier: Classifier, logits: torch.Tensor, targets: torch.Tensor, goal: torch.Tensor | float
) -> torch.Tensor:
    """What the bottleneck must keep low, one value per row of logits [N,K].

    `cross_entropy` of the target (Schulz et al. 2020). `binary_cross_entropy` of the target alone, -log sigmoid(logit),
    for classes that exclude no other; of a scalar output y that is a probability itself, of y and the label `goal`
    (Heurich 2021). For networks with a scalar output y (Khakzar 2022, ch. 8):
    `squared_error` (y - goal)^2, goal a number; `maximisation` -y^2; `deviation` (y - goal)^2, goal the
    output without noise.
    """
    if name == "cross_entropy":
        return F.cross_entropy(classifier.softmax_logits(logits), targets, reduction="none")
    output = classifier.select(logits, targets, "raw")
    if name == "binary_cross_entropy":
        if logits.shape[1] > 1:
            return F.softplus(-output)
        wanted = torch.as_tensor(goal).to(output).expand_as(output)
        return F.binary_cross_entropy(output.clamp(SURE, 1 - SURE), wanted, reduction="none")
    return -(output**2) if name == "maximisation" else (output - goal) ** 2


# -------------------------------------------------------------------------------------------------- optimisation


def require(settings: object, at_least: float, *names: str) -> None:
    """Raises ValueError for a setting of these names that is less."""
    for name in names:
        if getattr(settings, name) < at_least:
            raise ValueError(f"{name}={getattr(settings, name)}: expected {at_least} or more")


def require_positive(settings: object, *names: str) -> None:
    """Raises ValueError for a setting of these names that is 0 or less."""
    for name in names:
        if getattr(settings, name) <= 0:
            raise ValueError(f"{name}={getattr(settings, name)}: expected a positive number")


@dataclass(kw_only=True, eq=False)
class Masking:
    """The parameters of every bottleneck: of the mask lambda = blur(sigmoid(alpha)), and of the noise.

    beta: weight of the mean information per feature, L_I / k, so that `beta: 10` is the theses' "10/k" times the sum.
    learning_rate: of Adam.
    smoothing: sigma in features of the Gaussian inside lambda; 0 turns it off.
    initial: where alpha starts; 5 lets nearly everything through (lambda = 0.993).
    min_std: least standard deviation of a feature. min_active: features other than 0 in at most this share of the
        fitted samples are taken out. (The paper's own code has neither, and estimates behind a ReLU with mean 0 and
        the deviation of the non-zero values; these two are the later library's. The thesis does not say.)
    Raises ValueError for figures out of range.
    """

    beta: float = 10.0
    learning_rate: float = 1.0
    smoothing: float = 1.0
    initial: float = 5.0
    min_std: float = 0.01
    min_active: float = 0.01

    def __post_init__(self) -> None:
        require(self, 0, "beta", "smoothing")
        require_positive(self, "learning_rate", "min_std")
        if not 0 <= self.min_active < 1:
            raise ValueError(f"min_active={self.min_active}: expected a share in [0, 1)")


@dataclass(kw_only=True, eq=False)
class Optimisation(Masking):
    """How the mask of a single image is found. steps: of Adam on alpha. copies: noisy copies per step."""

    steps: int = 10
    copies: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 1, "steps", "copies")


class Bottleneck:
    """Noise at the features of B images: Z = lambda R + (1 - lambda) E, E ~ N(mean, std^2).

    features [B,C,H,W], or tokens [B,n,C], of which those that are no patch get noise like the others: what a class
    token knows of the image would pass beside the mask otherwise. mean, std [B or 1,C,H or 1,W or 1], std > 0. active,
    likewise: 1, or 0 for features that carry nothing; those are set to 0 in Z and count as 0 nats.
    grid: of tokens.
    """

    def __init__(
        self,
        features: torch.Tensor,
        mean: torch.Tensor,
        std: torch.Tensor,
        active: torch.Tensor | float = 1.0,
        grid: Grid | None = None,
    ) -> None:
        self.standardised = (features - mean) / std
        self.active, self.grid = active, grid
        self.features, self.mean, self.std = features * active, mean * active, std * active

    def information(self, noise: torch.Tensor) -> torch.Tensor:
        """Information that a mask lets through, per feature, in nats [B,C,H,W]."""
        return information(self.standardised, noise) * self.active

    def share(self, noise: torch.Tensor) -> torch.Tensor:
        """The share of E in Z, given the mask's share of noise."""
        return noise

    def sample(self, noise: torch.Tensor, copies: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Z [B*copies,C,H,W], the copies of one image being neighbours; differentiable in the mask.

        Each copy is one draw of a whole feature map from its image's generator, in float32 on the CPU, so that what
        an image draws depends neither on its neighbours nor on the device or precision.
        """
        draws = torch.empty(len(self.features), copies, *self.features.shape[1:], dtype=torch.float32)
        for rows, generator in zip(draws, generators):
            for row in rows:
                row.normal_(generator=generator)
        draws = draws.to(self.features)
        ends = torch.addcmul(self.mean[:, None], self.std[:, None], draws)
        return torch.lerp(self.features[:, None], ends, self.share(noise)[:, None]).flatten(0, 1)


class InverseBottleneck(Bottleneck):
    """Z = lambda E + (1 - lambda) R: what the mask marks is removed (Khakzar 2022, ch. 8, Inverse IBA)."""

    def share(self, noise: torch.Tensor) -> torch.Tensor:
        return 1 - noise


def layer_noise(
    kind: type[Bottleneck],
    features: torch.Tensor,
    fitted: Mapping[str, torch.Tensor],
    layer: str,
    min_std: float,
    min_active: float,
    grid: Grid | None = None,
) -> Bottleneck:
    """A bottleneck at a layer's features [B,C,H,W], or tokens [B,n,C] with their grid, with the moments that `estimate`
    found."""
    mean, std, active = (fitted[f"{layer}.{name}"].to(features)[None] for name in ("mean", "std", "active"))
    return kind(features, mean, std.clamp_min(min_std), (active > min_active).to(features), grid)


def find_mask(
    bottleneck: Bottleneck,
    losses: Callable[[torch.Tensor, int], torch.Tensor],
    settings: Optimisation,
    generators: Sequence[torch.Generator],
    most_rows: int,
) -> torch.Tensor:
    """alpha [B,C,H,W] that minimises mean loss + beta * mean information, every image for itself.

    losses(z, copies): one value per row of z. The objectives of the images are added up, never averaged, and Adam
    works element by element, so the images of a batch do not see each other. At most `most_rows` rows are run at a
    time, but all copies of an image share one step.
    """
    features = bottleneck.features
    alpha = torch.full_like(features, settings.initial).requires_grad_(True)
    adam = torch.optim.Adam([alpha], lr=settings.learning_rate)
    at_once = max(1, most_rows // len(features))
    for _ in range(settings.steps):
        smoothed = noise_share(alpha, settings.smoothing, bottleneck.grid)
        # The gradient of every part is gathered at the smoothed mask, and goes through the smoothing once.
        noise = smoothed.detach().requires_grad_(True)
        (settings.beta * bottleneck.information(noise).flatten(1).mean(1)).sum().backward()
        for start in range(0, settings.copies, at_once):
            copies = min(at_once, settings.copies - start)
            rows = losses(bottleneck.sample(noise, copies, generators), copies)
            (rows.sum() / settings.copies).backward()
        adam.zero_grad()
        smoothed.backward(noise.grad)
        adam.step()
    return alpha.detach()


def seeded(construct: Callable[[], Network], generator: torch.Generator) -> Network:
    """A new network whose initial weights depend on the generator only; the global one is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        return construct()
