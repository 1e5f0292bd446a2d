"""Decoding a path: the input that the network restricted to a path answers to most."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...models.classifier import Classifier
from ._pathway_neurons import Neurons, altered, contributions


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


@dataclass(frozen=True)
class Units:
    """A channel of one layer for each of B inputs. call: of a ReLU, counted from 0. channels: [B]."""

    call: int
    channels: torch.Tensor

    def answers(self, output: torch.Tensor) -> torch.Tensor:
        """The mean of each input's channel over its places [B], of the output [B,C,H,W] of the call."""
        return output[torch.arange(len(output)), self.channels].flatten(1).mean(1)


def top_units(classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, path: Neurons) -> Units | None:
    """The channels of the path's neurons with the largest |a df/da| in the last layer with places; None without one.

    That is the score of NeuronMCT, whichever method chose the path; an empty path in that layer has channel 0.
    """
    scores = contributions(classifier, inputs, targets)
    calls = [call for call, layer in enumerate(scores) if layer.dim() == 4]
    if not calls:
        return None
    ranked = (scores[calls[-1]].abs() * path[calls[-1]]).flatten(2).amax(2)
    return Units(calls[-1], ranked.argmax(1))


def decoded(
    classifier: Classifier,
    targets: torch.Tensor,
    path: Neurons,
    others: Neurons,
    generators: Sequence[torch.Generator],
    how: Decoding,
    units: Units | None = None,
) -> torch.Tensor:
    """Pixels [B,C,H,W] in 0 to 1 at which the explained output of the path network is large, or a unit of each input.

    Khakzar et al. 2021, section 4. The neurons off the path have the values of `others`, 0 or those for an input; at
    most `batch_size` inputs at a time. Each starts from its generator's noise, whose amplitude falls with the
    frequency; pixels are the sigmoid of the inverse transform.
    """
    size = classifier.input_size
    spectrum = torch.stack([torch.randn(*_spectrum(size), generator=g) for g in generators])
    spectrum = (0.01 * spectrum).to(path[0].device, classifier.dtype).requires_grad_(True)
    adam = torch.optim.Adam([spectrum], how.learning_rate)
    heard: Neurons = []

    def on_path(call: int, output: torch.Tensor) -> torch.Tensor:
        output = torch.where(path[call], output, others[call])
        if units is None or call != units.call:
            return output
        heard.append(output)
        # The network goes on with a clone: it may write into what it gets.
        return output.clone()

    with altered(classifier.module, on_path):
        for _ in range(how.steps):
            with torch.enable_grad():
                inputs = classifier.preprocessing.normalise(_pixels(spectrum, size))
                shifted = torch.stack([_shifted(x, how.jitter, g) for x, g in zip(inputs, generators)])
                logits = classifier.module(shifted)
                answers = classifier.select(logits, targets) if units is None else units.answers(heard.pop())
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
