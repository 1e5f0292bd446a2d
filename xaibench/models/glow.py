"""A classifier that runs backwards: a Glow-type flow whose latent feeds a linear head (Sixt 2022, chapter 6)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import nearest
from .losses import LEVELS


class FlowLayer(nn.Module, ABC):
    """An invertible map of [B,C,H,W]. `forward` is `transform` without the log-determinant, so that hooks see it."""

    @abstractmethod
    def transform(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The output, and log|det| of the map's Jacobian for each input [B], in nats."""

    @abstractmethod
    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """The input that has this output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.transform(x)[0]


class Squeeze(FlowLayer):
    """[B,C,H,W] -> [B,4C,H/2,W/2]: each 2x2 square of places becomes one (Dinh et al. 2017, figure 3)."""

    def transform(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(y, 2)


class ActNorm(FlowLayer):
    """y = exp(log_scale) (x + shift) per channel (Kingma and Dhariwal 2018, section 3.1).

    The first batch that it sees in training mode sets both, so that each channel of its output has mean 0 and variance
    1 there; until then it is the identity. A first batch of a single value per channel sets the shift alone.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.initialised: torch.Tensor
        self.register_buffer("initialised", torch.tensor(False))

    def transform(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training and not self.initialised:
            self._initialise(x.detach())
        log_det = self.log_scale.sum() * x[0, 0].numel()
        return self.log_scale.exp() * (x + self.shift), log_det.expand(len(x))

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        return y * (-self.log_scale).exp() - self.shift

    @torch.no_grad()
    def _initialise(self, x: torch.Tensor) -> None:
        deviation, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
        self.shift.copy_(-mean[:, None, None])
        if x[:, 0].numel() > 1:
            self.log_scale.copy_(-deviation.clamp_min(1e-6).log()[:, None, None])
        self.initialised.fill_(True)


class InvertibleConv(FlowLayer):
    """y = W x at each place, W = P L (U + diag(s)) as in Kingma and Dhariwal 2018, eq. 10; at first a random rotation.

    P stays; the strict triangles of L and U lie in one matrix, and s is a fixed sign times exp(log_s).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels))[0])
        diagonal = upper.diagonal()
        self.triangles = nn.Parameter(lower.tril(-1) + upper.triu(1))
        self.log_s = nn.Parameter(diagonal.abs().log())
        self.order: torch.Tensor
        self.sign: torch.Tensor
        self.register_buffer("order", permutation.argmax(1))  # row i of P L is row order[i] of L
        self.register_buffer("sign", diagonal.sign())

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """P L and U + diag(s), [C,C] each: their product is W."""
        lower = self.triangles.tril(-1) + torch.eye(len(self.log_s)).to(self.triangles)
        return lower[self.order], self.triangles.triu(1) + torch.diag(self.sign * self.log_s.exp())

    def transform(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lower, upper = self.factors()
        log_det = self.log_s.sum() * x[0, 0].numel()
        return F.conv2d(x, (lower @ upper)[:, :, None, None]), log_det.expand(len(x))

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        lower, upper = self.factors()
        values = y.transpose(0, 1).flatten(1)[self.order.argsort()]  # P' y
        values = torch.linalg.solve_triangular(lower[self.order.argsort()], values, upper=False, unitriangular=True)
        values = torch.linalg.solve_triangular(upper, values, upper=True)
        return values.view(y.shape[1], len(y), *y.shape[2:]).transpose(0, 1)


class AffineCoupling(FlowLayer):
    """(a, b) -> (a, s(a) b + t(a)), halves of the channels, with s = sigmoid + 0.5, so between 0.5 and 1.5.

    s and t come from three convolutions with `width` channels between them, each but the last followed by an ActNorm
    and a ReLU; the last is 0 at first, where the coupling is the identity. kernel: of the first and the last one.
    """

    def __init__(self, channels: int, width: int, kernel: int = 3) -> None:
        super().__init__()
        half = channels // 2
        last = nn.Conv2d(width, 2 * (channels - half), kernel, padding=kernel // 2)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.staying = half
        self.net = nn.Sequential(
            nn.Conv2d(half, width, kernel, padding=kernel // 2, bias=False),
            ActNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            ActNorm(width),
            nn.ReLU(),
            last,
        )

    def scale_and_shift(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """s and t of the half that stays."""
        scale, shift = self.net(a).chunk(2, dim=1)
        return scale.sigmoid() + 0.5, shift

    def transform(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = x[:, : self.staying], x[:, self.staying :]
        scale, shift = self.scale_and_shift(a)
        return torch.cat([a, scale * b + shift], dim=1), scale.log().flatten(1).sum(1)

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        a, b = y[:, : self.staying], y[:, self.staying :]
        scale, shift = self.scale_and_shift(a)
        return torch.cat([a, (b - shift) / scale], dim=1)


class FadeOut(nn.Module):
    """Half of the channels leave the flow: what stays is its output, what leaves is kept for the way back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : x.shape[1] // 2]

    def leaving(self, x: torch.Tensor) -> torch.Tensor:
        """The channels that leave."""
        return x[:, x.shape[1] // 2 :]


class Glow(nn.Module):
    """Images [B,C,S,S] in [0, 1] -> logits [B,num_classes], through a latent z from which the image can be had back.

    Blocks of steps (ActNorm, InvertibleConv, AffineCoupling), each block behind a Squeeze and, but for the first one, a
    FadeOut. The classifier is linear in z, the output of the `tap`-th step of the last block; the steps behind it, an
    ActNorm and an InvertibleConv carry z on to the prior N(0, I), which the channels that left have too. (Sixt 2022
    has 7 blocks of 32 steps at 128 pixels, 687 layers and 261 million parameters, z behind layer 641.)

    steps, widths: of each block, and of its couplings; the last block's have kernels of 1x1.
    tap: steps of the last block before z. side, channels: of the images. num_classes: outputs.
    """

    def __init__(
        self,
        steps: Sequence[int] = (1, 3, 3, 3, 4),
        widths: Sequence[int] = (16, 24, 40, 64, 96),
        tap: int = 2,
        side: int = 64,
        channels: int = 3,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        if len(steps) != len(widths):
            raise ValueError(f"steps={list(steps)} and widths={list(widths)}: expected one of each per block")
        if side % 2 ** len(steps):
            raise ValueError(
                f"side={side}: {len(steps)} blocks halve it as often, expected a multiple of {2 ** len(steps)}"
            )
        if not 0 <= tap <= steps[-1]:
            raise ValueError(f"tap={tap}: the last block has {steps[-1]} steps, expected 0 to {steps[-1]}")
        self.flow, self.tail = nn.ModuleList(), nn.ModuleList()
        for block, (count, width) in enumerate(zip(steps, widths)):
            last = block == len(steps) - 1
            if block:
                self.flow.append(FadeOut())
                channels //= 2
            self.flow.append(Squeeze())
            channels, side = 4 * channels, side // 2
            for number in range(count):
                part = self.tail if last and number >= tap else self.flow
                part.extend(_step(channels, width, kernel=1 if last else 3))
        self.tail.extend([ActNorm(channels), InvertibleConv(channels)])
        self.head = nn.Linear(channels * side**2, num_classes)
        # Cross-entropy never changes the mean of the logits: from 0 on they sum to 0, and the logits of two classes are
        # f and -f, so that a map of one explains their difference.
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight -= self.head.weight.mean(0)
        self.latent_shape = (channels, side, side)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.flow:
            x = layer(x)
        return self.head(x.flatten(1))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """z [B,c,h,w], the channels that left on the way, and log|det dz,kept/dx| [B] in nats."""
        kept, log_det = [], x.new_zeros(len(x))
        for layer in self.flow:
            if isinstance(layer, FadeOut):
                kept.append(layer.leaving(x))
                x = layer(x)
            else:
                x, change = cast(FlowLayer, layer).transform(x)
                log_det = log_det + change
        return x, kept, log_det

    def decode(self, z: torch.Tensor, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """The images [B,C,S,S] whose `encode` this is; not clipped to [0, 1]."""
        return _back(z, kept, list(self.flow))

    def decode_from(self, path: str, values: torch.Tensor, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """The images that have these values at the output of a layer of the flow, such as `flow.3`.

        Raises ValueError for another layer.
        """
        places = {f"flow.{place}": place for place in range(len(self.flow))}
        if path not in places:
            raise ValueError(f"{path} is not in the flow: {nearest(path, places)}")
        return _back(values, kept, list(self.flow)[: places[path] + 1])

    def answers_and_bits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B,K], and bits per dimension [B] of images with levels of 1/255 to which U(0, 1/255) was added."""
        z, kept, log_det = self.encode(x)
        logits, u = self.head(z.flatten(1)), z
        for layer in self.tail:
            u, change = cast(FlowLayer, layer).transform(u)
            log_det = log_det + change
        log_prior = sum(_log_normal(part) for part in (u, *kept))
        size = x[0].numel()
        return logits, math.log2(LEVELS) - (log_prior + log_det) / (size * math.log(2))


def _back(x: torch.Tensor, kept: Sequence[torch.Tensor], layers: Sequence[nn.Module]) -> torch.Tensor:
    """The input of these layers that has the output x; what had left before them is not needed."""
    waiting = list(kept)[: sum(isinstance(layer, FadeOut) for layer in layers)]
    for layer in reversed(layers):
        if isinstance(layer, FadeOut):
            x = torch.cat([x, waiting.pop()], dim=1)
        else:
            x = cast(FlowLayer, layer).inverse(x)
    return x


def _step(channels: int, width: int, kernel: int) -> list[nn.Module]:
    return [ActNorm(channels), InvertibleConv(channels), AffineCoupling(channels, width, kernel)]


def _log_normal(values: torch.Tensor) -> torch.Tensor:
    """log N(values; 0, I) of each row [B], in nats."""
    return -0.5 * (values.square() + math.log(2 * math.pi)).flatten(1).sum(1)
