"""What replaces pixels: the fill and baseline words, which mean one thing in every method and metric."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch.nn import functional

from ..errors import Refusal, nearest
from ..models.classifier import Classifier
from ..models.preprocessing import Preprocessing
from ..models.sentences import Sentences

Fill = Literal["zero", "black", "white", "value", "channel_mean", "blur", "unknown"]
FILLS: tuple[str, ...] = get_args(Fill)
# What is a colour, or made of neighbouring pixels; `linear` is the imputer.
OF_PIXELS = ("black", "white", "value", "blur", "noise", "reference", "linear")
OF_WORDS = ("unknown",)
# Mean and standard deviation of a `background`, in pixel values (Khakzar et al. 2022, released code).
BACKGROUND = (0.5, 0.1)


def filled(
    inputs: torch.Tensor, word: str, preprocessing: Preprocessing, sigma: float = 5.0, value: float = 0.5
) -> torch.Tensor:
    """The completely replaced version of normalised inputs [B,C,H,W]: a new tensor like them.

    word: `zero` is 0 after normalisation, `black` and `white` are the pixel values 0 and 1, `value` is one pixel value
        for all, `channel_mean` is the image's own mean per channel, `blur` is the image under a Gaussian; `unknown` is
        the vector that a network of sentences has for unknown words.
    preprocessing: the classifier's; it gives pixel values their normalised values.
    sigma: of the blur, in pixels of the input. value: from 0 to 1. Raises ValueError for another word.
    """
    if word == "zero":
        return torch.zeros_like(inputs)
    if word == "black":
        return preprocessing.normalise(torch.zeros_like(inputs))
    if word == "white":
        return preprocessing.normalise(torch.ones_like(inputs))
    if word == "value":
        return preprocessing.normalise(torch.full_like(inputs, value))
    if word == "channel_mean":
        return inputs.mean((2, 3), keepdim=True).expand_as(inputs).clone()
    if word == "blur":
        return blurred(inputs, sigma)
    if word == "unknown" and isinstance(preprocessing, Sentences):
        return preprocessing.unknown.to(inputs).view(-1, 1, 1).expand_as(inputs).clone()
    raise ValueError(f"fill={word}: {nearest(word, FILLS)}")


def check_fill(word: str, classifier: Classifier, parameter: str) -> None:
    """Raise Refusal for a word that means nothing for the inputs of a network. parameter: what was set to the word."""
    if word in OF_PIXELS:
        classifier.require_pictures(f"{parameter}={word} is made of pixels (zero is not)")
    if word in OF_WORDS and classifier.places != "words":
        raise Refusal(f"{parameter}={word} is the vector of unknown words, and {classifier.name} reads no words")


def noise(inputs: torch.Tensor, preprocessing: Preprocessing, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """The word `noise`: independent uniform pixel values for normalised inputs [B,C,H,W], from a generator for each."""
    pixels = [torch.rand(inputs.shape[1:], generator=g) for g in generators]
    return preprocessing.normalise(torch.stack(pixels).to(inputs))


def background(size: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Normal noise around grey, cut to pixel values: [C,H,W] in 0 to 1. The scenes of `metrics.scenes` lie on it."""
    mean, deviation = BACKGROUND
    return (mean + deviation * torch.randn(tuple(size), generator=generator)).clamp(0, 1)


def reference(
    inputs: torch.Tensor, preprocessing: Preprocessing, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """The word `reference`: a `background` for each of normalised inputs [B,C,H,W], from a generator for each."""
    return preprocessing.normalise(torch.stack([background(inputs.shape[1:], g) for g in generators]).to(inputs))


def blurred(inputs: torch.Tensor, sigma: float) -> torch.Tensor:
    """Inputs [B,C,H,W] under a Gaussian of `sigma` pixels, cut at 3 sigma, the border pixels repeated outwards."""
    if not sigma > 0:
        raise ValueError(f"sigma={sigma}: expected a positive number of pixels")
    radius = math.ceil(3 * sigma)
    places = torch.arange(-radius, radius + 1, dtype=inputs.dtype, device=inputs.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = inputs.flatten(0, 1)[:, None]
    planes = functional.conv2d(functional.pad(planes, (radius, radius, 0, 0), "replicate"), kernel.view(1, 1, 1, -1))
    planes = functional.conv2d(functional.pad(planes, (0, 0, radius, radius), "replicate"), kernel.view(1, 1, -1, 1))
    return planes.view_as(inputs)
