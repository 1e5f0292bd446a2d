"""Peekies and Stretchies: generated animals of eight blocks whose every factor, and every bias, is known.

Two4Two (Schuessler, Weiss and Sixt 2020), the data set of the user study in Sixt 2022, chapter 6, with a renderer of
our own. What a network trained on it uses can be measured by changing one factor of an image and nothing else.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import UserError, nearest
from ..rng import seed_of
from .base import Dataset, Example
from .two4two_renderer import BLOCKS, render
from .two4two_sampler import CLASSES, FACTORS, Sampler

VERSION = 1  # raised when any pixel of any image changes
SPLITS = {"train": range(0, 20_000), "validation": range(60_000, 65_000), "test": range(65_000, 70_000)}
AT_ONCE = 64  # images rendered together: the fastest, and 20 MB


class Two4Two(Dataset):
    """Images of one animal each before a wall; the label is its class, peeky (0) or stretchy (1).

    A Peeky has its moving pair of legs drawn in, a Stretchy has it stretched out; with legs in the middle an image may
    be either (about 8 % of the images, so that 96.2 % is the most that the legs alone tell).

    Images come from one infinite sequence. Image k depends on (generator_seed, bias, k) alone; a split is a range of k,
    in which ids start at 0. The mask is the animal, everything that the label could depend on.

    split: train (20000 images; the study has 60000), validation (5000) or test (5000).
    bias: factor -> distribution, see `two4two_sampler.parse`. Factors that are not named are unbiased.
    side: of the images in pixels.
    generator_seed: another value is another sequence.
    """

    has_masks = True
    class_names = CLASSES

    def __init__(
        self, split: str = "test", bias: dict[str, Any] | None = None, side: int = 64, generator_seed: int = 0
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"dataset.split={split}: {nearest(split, SPLITS)}")
        if not 16 <= side <= 512:
            raise UserError(f"dataset.side={side}: expected 16 to 512 pixels, such as 64 or 128")
        self.split, self.side, self.generator_seed = split, side, generator_seed
        self.sampler = Sampler(bias or {})
        words = json.dumps(bias or {}, sort_keys=True)
        self.fingerprint = f"two4two-{VERSION}:generator_seed={generator_seed}:split={split}:side={side}:bias={words}"

    def __len__(self) -> int:
        return len(SPLITS[self.split])

    def __getitem__(self, index: int) -> Example:
        labels, factors = self.scenes([index])
        images, blocks = self.draw(factors)
        return Example(images[0], int(labels[0]), blocks[0] > 0)

    def scenes(self, indices: Sequence[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Labels int64 [N] and the ten factors, float64 [N] each, of these samples."""
        return self.sampler.draw(self._noise("scene", indices, 1 + len(FACTORS)))

    def intervened(self, indices: Sequence[int], factor: str) -> dict[str, np.ndarray]:
        """The factors of the partners of these samples, which differ from them in one factor: see `Sampler.redraw`.

        factor: several at once are joined by +, as in `shape+color+background`: each is drawn as by itself.
        """
        _, factors = self.scenes(indices)
        noise = {name: self._noise(f"intervention {name}", indices, 3) for name in factor.split("+")}
        return {**factors, **{name: self.sampler.redraw(name, drawn, factors) for name, drawn in noise.items()}}

    def draw(self, factors: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 [N,3,S,S] of factors [N] each, and each pixel's block, uint8 [N,S,S]: 0 is the wall."""
        tensors = {name: torch.from_numpy(values) for name, values in factors.items()}
        parts = [tensor.split(AT_ONCE) for tensor in tensors.values()]
        pictures = [render(dict(zip(tensors, part)), self.side) for part in zip(*parts)]
        images, blocks = (torch.cat(part) for part in zip(*pictures))
        return images, blocks

    def regions(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The parts of these images by name, bool [N,S,S] each: the kinds of blocks, the whole animal, and the wall."""
        _, blocks = self.draw(self.scenes(indices)[1])
        parts = {name: torch.isin(blocks, torch.tensor(numbers)) for name, numbers in BLOCKS.items()}
        return parts | {"animal": blocks > 0, "background": blocks == 0}

    @property
    def concept_names(self) -> tuple[str, ...]:
        return (*BLOCKS, "animal", "background")

    def concepts(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """As `regions`."""
        return self.regions(indices)

    def _noise(self, purpose: str, indices: Sequence[int], count: int) -> np.ndarray:
        positions = SPLITS[self.split]
        seeds = [seed_of("two4two", self.generator_seed, purpose, positions[index]) for index in indices]
        return np.stack([np.random.Generator(np.random.PCG64(seed)).random(count) for seed in seeds])
