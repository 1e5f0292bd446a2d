"""Decoding a path: the input that the network restricted to a path answers to most."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...models.classifier import Classifier
from ._pathway_neurons import Neurons, altered


@dataclass(frozen=True)
class Decoding:
    """How an input is found, by Adam on its Fourier coefficients (Olah et al. 2017).

    steps, learning_rate: of Adam. jitter: the largest shift in pixels before each step, so that no single pixel counts.
    """

    steps: int = 128
    learning_rate: float = 0.05
    jitter: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1")
        if self.jitter < 0:
            raise ValueError(f"jitter={self.jitter}: expected a number of pixels, 0 for none")


def decoded(
    classifier: Classifier,
    targets: torch.Tensor,
    path: Neurons,
    others: Neurons,
    generators: Sequence[torch.Generator],
    how: Decoding,
) -> torch.Tensor:
    """Pixels [B,C,H,W] in 0 to 1 at which the explained output of the path network is large.

    Khakzar et al. 2021, section 4. The neurons off the path have the values of `others`, 0 or those for an input; at
    most `batch_size` inputs at a time. Each starts from its generator's noise, whose amplitude falls with the
    frequency; pixels are the sigmoid of the inverse transform.
    """
    size = classifier.input_size
    spectrum = torch.stack([torch.randn(*_spectrum(size), generator=g) for g in generators])
    spectrum = (0.01 * spectrum).to(path[0].device, classifier.dtype).requires_grad_(True)
    adam = torch.optim.Adam([spectrum], how.learning_rate)
    with altered(classifier.module, lambda call, output: torch.where(path[call], output, others[call])):
        for _ in range(how.steps):
            with torch.enable_grad():
                inputs = classifier.preprocessing.normalise(_pixels(spectrum, size))
                shifted = torch.stack([_shifted(x, how.jitter, g) for x, g in zip(inputs, generators)])
                answers = classifier.select(classifier.module(shifted), targets)
            (spectrum.grad,) = torch.autograd.grad(-answers.sum(), spectrum)
            adam.step()
    return _pixels(spectrum, size).detach()


def _spectrum(size: tuple[int, int, int]) -> tuple[int, int, int, int]:
    channels, height, width = size
    return channels, height, width // 2 + 1, 2


def _pixels(spectrum: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Coefficients [B,C,H,W/2+1,2] -> pixels [B,C,H,W]; one of a frequency f weighs 1 / f, so that steps are even."""
    _, height, width = size
    frequencies = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    weights = 1 / frequencies.clamp(min=1 / max(height, width)) * (height * width) ** 0.5 / 4
    scaled = torch.view_as_complex(spectrum.contiguous()) * weights.to(spectrum)
    return torch.fft.irfft2(scaled, s=(height, width)).sigmoid()


def _shifted(image: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """An image [C,H,W] rolled by up to `most` pixels each way."""
    down, across = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return image.roll((down, across), (1, 2))
