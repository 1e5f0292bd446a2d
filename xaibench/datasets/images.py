"""The decoded pixels of a split, as trainings ask for them: kept in memory where they fit, augmented batch by batch."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..models.labelled import Augment
from ..models.questions import paint
from ..rng import seed_of
from .base import HasQuestions, Samples, decoders

MEMORY = 2 << 30  # bytes of pixels that are decoded once and kept
SHIFT = 4  # pixels, as He et al. 2016 for CIFAR


class Images:
    """The samples' pixels [C,H,W] after resizing and cropping, and their labels, decoded once.

    Where the data set asks questions, the network's inputs have them painted behind the image (`models.questions`).

    vectors: whether their labels are the vectors [L] that examples carry, not the explained ones; labels, int64, or
    float32 where they are real or vectors. identity: of the samples and what is made of them, for the checkpoint of a
    training. Pixels are kept in memory as long as they take at most 2 GiB, otherwise decoded anew for every batch.
    Raises UserError if there are no samples, or no vectors where they are wanted.
    """

    def __init__(self, samples: Samples, vectors: bool = False) -> None:
        if not len(samples):
            raise UserError("there is nothing to train on: the data set's split is empty")
        self.samples, self.vectors = samples, vectors
        self.identity = str(seed_of(samples.dataset.fingerprint, samples.preprocessing, samples.ids))
        first, label = self._decode(0)
        self.shape, self._dtype = first.shape, first.dtype
        self._like = label
        fits = first.nbytes * len(samples) <= MEMORY
        self._kept = self._decode_all(range(len(samples))) if fits else None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> torch.Tensor:
        """Those of all samples, [N] or [N,L]."""
        return self.load(torch.arange(len(self)))[1]

    def load(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [B,C,H,W], uint8 or float in [0, 1], and labels [B] or [B,L] of the samples at these positions."""
        if self._kept is None:
            return self._decode_all(positions.tolist())
        return self._kept[0][positions], self._kept[1][positions]

    def batch(
        self,
        positions: torch.Tensor,
        like: torch.Tensor,
        augment: Augment = "none",
        random: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Network inputs [B,C,H,W] of the type and on the device of `like`, augmented if so wanted, and labels."""
        pixels, labels = self.load(positions)
        if augment == "crop_flip":
            pixels = crop_flip(pixels, random)
        inputs = self.samples.preprocessing.inputs(pixels, like)
        if isinstance(self.samples.dataset, HasQuestions):
            inputs = paint(inputs, self._questions(positions))
        return inputs, labels.to(like.device)

    def _questions(self, positions: torch.Tensor) -> torch.Tensor:
        """What is asked of the samples at these positions, [B,Q]."""
        dataset = cast(HasQuestions, self.samples.dataset)
        return dataset.questions[[dataset.question_of(self.samples.ids[place]) for place in positions.tolist()]]

    def _decode_all(self, positions: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.empty(len(positions), *self.shape, dtype=self._dtype)
        labels = torch.empty(len(positions), *self._like.shape, dtype=self._like.dtype)

        def decode(part: slice) -> None:
            for place, position in enumerate(positions[part], part.start):
                image, labels[place] = self._decode(position)
                if image.shape != self.shape:
                    raise UserError(
                        f"the images differ in size ({list(self.shape)} and {list(image.shape)}): "
                        "set model.resize and model.crop"
                    )
                pixels[place] = image

        # A few images per task: one task per image of MNIST would cost more than the image.
        list(decoders().map(decode, (slice(start, start + 16) for start in range(0, len(positions), 16))))
        return pixels, labels

    def _decode(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        example = self.samples.dataset[self.samples.ids[position]]
        if self.vectors and example.labels is None:
            kind = type(self.samples.dataset).__name__
            raise UserError(
                f"model.recipe.loss: it reads vectors of labels, and the examples of {kind} have none\n"
                "dataset=chest and dataset=brixia have; a loss of one label is cross_entropy or squared_error"
            )
        found = torch.as_tensor(example.labels if self.vectors else example.label)
        return self.samples.preprocessing.pixels(example.image), found.float() if found.is_floating_point() else found


def crop_flip(pixels: torch.Tensor, random: torch.Generator | None) -> torch.Tensor:
    """Pixels [B,C,H,W], each image shifted by up to 4 pixels, black at the border, and half of them mirrored."""
    count, _, height, width = pixels.shape
    padded = F.pad(pixels, (SHIFT,) * 4)
    top, left = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=random)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(count, generator=random) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    batch = torch.arange(count)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
