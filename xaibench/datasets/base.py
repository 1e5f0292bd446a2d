"""What a data set is to xaibench, and how a batch of it reaches methods and metrics."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..errors import UserError
from ..models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Example:
    """One sample: an image, its label, and the mask of what the label is about.

    Args:
        image: PIL's, or a tensor [C,H,W] (uint8, or float in [0, 1]).
        label: A class, or for a network with a scalar output the value that is wanted, which may be real.
        mask: [H,W], bool, or, of a data set with `graded_masks`, float32: how much each pixel matters.
        labels: [L], float32, of a data set whose images have several labels each, all of them: 1 for what is present,
            or the level of each zone. Trainings and the metric `quality` read them; `label` is the explained one.
    """

    image: Image.Image | torch.Tensor
    label: int | float
    mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class Dataset(ABC):
    """One split of a data set. A sample's id is its index in the data set's own order.

    Constructor arguments are the yaml's parameters; `split` is always one of them, so that another split of the
    same data (for what is fitted or retrained) is the same yaml with another `split`.

    Attributes:
        class_names: One per label.
        fingerprint: What identifies the content, such as a digest of the files or of the generator's version.
        left_out: What lies beside the samples and is none, as plain data for the score card: by kind, how many or
            which.
        has_masks: Whether every example carries a ground-truth mask.
        graded_masks: Whether these say how much each pixel matters, instead of marking a region.
        multi_label: Whether an image may have several of `class_names`, each by itself: then the `labels` of every
            example say 1 or 0 for each.
    """

    class_names: tuple[str, ...] = ()
    fingerprint: str = ""
    left_out: Mapping[str, Any] = {}
    has_masks: bool = False
    graded_masks: bool = False
    multi_label: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples of this split."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """The sample with this id."""


@dataclass(frozen=True)
class Batch:
    """Samples as methods and metrics get them.

    Args:
        samples: Their ids.
        inputs: [B,C,H,W], preprocessed, on the device.
        labels: [B], int64, or float32 where they are real-valued.
        targets: [B], int64, which output is explained; 0 for a scalar one.
        masks: [B,H,W], bool (float32 where they are graded), in input geometry, or None.
        crc: CRC32 of each input's bytes.
        vectors: [B,L], float32, all labels of each sample, or None where samples have one.
    """

    samples: tuple[int, ...]
    inputs: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    masks: torch.Tensor | None
    crc: tuple[int, ...]
    vectors: torch.Tensor | None = None

    def __getitem__(self, part: slice) -> "Batch":
        """Some neighbouring samples, as views."""
        masks, vectors = (None if rows is None else rows[part] for rows in (self.masks, self.vectors))
        rows = (self.inputs[part], self.labels[part], self.targets[part], masks)
        return Batch(self.samples[part], *rows, self.crc[part], vectors)

    @classmethod
    def joined(cls, batches: "Sequence[Batch]") -> "Batch":
        """One batch of the samples of several."""
        inputs, labels, targets = (torch.cat([getattr(b, n) for b in batches]) for n in ("inputs", "labels", "targets"))
        masks, vectors = (_joined([getattr(b, name) for b in batches]) for name in ("masks", "vectors"))
        samples, crc = (tuple(value for b in batches for value in getattr(b, n)) for n in ("samples", "crc"))
        return cls(samples, inputs, labels, targets, masks, crc, vectors)


def _joined(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """What all batches have, or none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


class Samples:
    """Chosen samples of a data set as preprocessed batches, decoded in threads. Iterating gives batches of 64.

    A method's `fit` receives one of these (made from `fit.split`, `fit.limit`, `fit.seed`); targets are the labels.

    Args:
        dataset: Where they are from.
        preprocessing: From pixel values to inputs.
        ids: Of the samples, in order.
        device: Where inputs, labels and masks go.
    """

    def __init__(
        self, dataset: Dataset, preprocessing: Preprocessing, ids: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.dataset, self.preprocessing, self.ids, self.device = dataset, preprocessing, tuple(ids), device

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(64)

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples, in order.

        Args:
            size: The most samples of a batch.

        Yields:
            Batches of at most `size` samples.
        """
        for start in range(0, len(self.ids), size):
            yield self.load(self.ids[start : start + size])

    def load(self, ids: Sequence[int]) -> Batch:
        """The named samples as one batch.

        Args:
            ids: Of the samples.

        Returns:
            The batch, in the order of `ids`.
        """
        with ThreadPoolExecutor(max_workers=4) as pool:
            rows = list(pool.map(self._row, ids))
        inputs = torch.stack([row[0] for row in rows])
        labels = torch.stack([torch.as_tensor(row[1]) for row in rows])
        labels = labels.float() if labels.is_floating_point() else labels.long()
        found = [row[2] for row in rows if row[2] is not None]
        masks = torch.stack(found).to(self.device) if self.dataset.has_masks else None
        several = [row[3] for row in rows if row[3] is not None]
        vectors = torch.stack(several).float().to(self.device) if several else None
        crc = tuple(zlib.crc32(image.numpy().tobytes()) for image in inputs)
        labels = labels.to(self.device)
        return Batch(tuple(int(i) for i in ids), inputs.to(self.device), labels, labels, masks, crc, vectors)

    def _row(self, index: int) -> tuple[torch.Tensor, int | float, torch.Tensor | None, torch.Tensor | None]:
        example = self.dataset[index]
        if example.mask is None and self.dataset.has_masks:
            raise UserError(f"{type(self.dataset).__name__} has masks (has_masks), but sample {index} has none")
        mask = None if example.mask is None else self.preprocessing.mask(example.mask)
        return self.preprocessing.image(example.image), example.label, mask, example.labels
