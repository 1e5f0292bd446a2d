"""What a data set is to xaibench, and how a batch of it reaches methods and metrics."""

import functools
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from PIL import Image

from ..errors import UserError
from ..models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Example:
    """One sample: an image or a sentence, its label, and the mask of what the label is about.

    Args:
        image: PIL's, or a tensor [C,H,W] (uint8, or float in [0, 1]); of a sentence its words.
        label: A class, or for a network with a scalar output the value that is wanted, which may be real.
        mask: [H,W], bool, or, of a data set with `graded_masks`, float32: how much each pixel matters; of a sentence
            [1,words].
        labels: [L], float32, of a data set whose images have several labels each, all of them: 1 for what is present,
            or the level of each zone. Trainings and the metric `quality` read them; `label` is the explained one.
        question: [Q], float32, of a data set that asks something of each image (`HasQuestions`): the label answers it.
    """

    image: Image.Image | torch.Tensor | tuple[str, ...]
    label: int | float
    mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    question: torch.Tensor | None = None


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

    @property
    def concept_names(self) -> tuple[str, ...]:
        """What `concepts` marks: the classes, of a data set whose masks mark regions; nothing in others."""
        return tuple(dict.fromkeys(self.class_names)) if self.has_masks and not self.graded_masks else ()

    def concepts(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Where each concept is in some images of one size.

        By default a class is where the mask of an image with this label is, and nowhere in the others.

        Args:
            indices: Ids of the samples.

        Returns:
            Name -> bool [N,H,W], for every one of `concept_names`; several may mark one pixel.
        """
        examples = [self[index] for index in indices]
        masks = torch.stack([torch.as_tensor(example.mask) for example in examples])
        labels = [self.class_names[int(example.label)] for example in examples]
        return {
            name: masks & torch.tensor([label == name for label in labels])[:, None, None]
            for name in self.concept_names
        }


@runtime_checkable
class HasWords(Protocol):
    """A data set of sentences."""

    def words(self) -> Iterator[tuple[str, ...]]:
        """The words of each sentence."""


@runtime_checkable
class HasQuestions(Protocol):
    """A data set that asks something of each image.

    questions: [N,Q], float32, all that it asks. categories: the labels that answer the same sort of question, such as
    yes and no, in groups.
    """

    questions: torch.Tensor
    categories: Sequence[Sequence[int]]

    def question_of(self, index: int) -> int:
        """Which of `questions` a sample asks."""

    def words_of(self, index: int) -> str:
        """The question of a sample, for people."""


@dataclass(frozen=True)
class Batch:
    """Samples as methods and metrics get them.

    Args:
        samples: Their ids.
        inputs: [B,C,H,W], preprocessed, on the device.
        labels: [B], int64, or float32 where they are real-valued.
        targets: [B], int64, which output is explained; 0 for a scalar one.
        masks: [B,H,W], bool (float32 where they are graded), in input geometry, or None.
        crc: CRC32 of each input's bytes, those of its real places.
        vectors: [B,L], float32, all labels of each sample, or None where samples have one.
        valid: [B,H,W], bool: which places are real, where inputs have fewer than there is room for, such as sentences.
            The real ones of an input are the first rows and columns, the others are padding. None: all are.
        questions: [B,Q], float32, what is asked of each sample, or None where nothing is.
    """

    samples: tuple[int, ...]
    inputs: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    masks: torch.Tensor | None
    crc: tuple[int, ...]
    vectors: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    questions: torch.Tensor | None = None

    def __getitem__(self, part: slice) -> "Batch":
        """Some neighbouring samples, as views."""
        masks, *others = (
            None if rows is None else rows[part] for rows in (self.masks, self.vectors, self.valid, self.questions)
        )
        rows = (self.inputs[part], self.labels[part], self.targets[part], masks)
        return Batch(self.samples[part], *rows, self.crc[part], *others)

    @classmethod
    def joined(cls, batches: "Sequence[Batch]") -> "Batch":
        """One batch of the samples of several."""
        inputs, labels, targets = (torch.cat([getattr(b, n) for b in batches]) for n in ("inputs", "labels", "targets"))
        names = ("masks", "vectors", "valid", "questions")
        masks, *others = (_joined([getattr(b, name) for b in batches]) for name in names)
        samples, crc = (tuple(value for b in batches for value in getattr(b, n)) for n in ("samples", "crc"))
        return cls(samples, inputs, labels, targets, masks, crc, *others)

    @property
    def is_alike(self) -> bool:
        """Whether all inputs are of one size by construction, and nothing is asked of them: its own only part."""
        return self.valid is None and self.questions is None

    def alike(self) -> "Iterator[tuple[torch.Tensor, Batch]]":
        """Batches of inputs of one size without padding, smaller ones first, of each of which the same is asked, and
        which rows [b] of this one they are.

        What is handed one of these meets real places only, whatever it ranks, removes, draws or counts, and one
        network, that of the question (`Classifier.asked`).
        """
        if self.is_alike:
            yield torch.arange(len(self.samples)), self
            return
        columns = [torch.tensor(self.inputs.shape[2:]).expand(len(self.samples), 2)]
        if self.valid is not None:
            columns = [torch.stack([self.valid.any(2).sum(1), self.valid.any(1).sum(1)], 1).cpu()]
        if self.questions is not None:
            columns.append(self.questions.cpu())
        kinds = torch.cat([column.double() for column in columns], 1)
        for kind in kinds.unique(dim=0):
            height, width = kind[:2].long().tolist()
            rows = (kinds == kind).all(1).nonzero()[:, 0]
            samples, crc = (tuple(values[row] for row in rows.tolist()) for values in (self.samples, self.crc))
            masks = None if self.masks is None else self.masks[rows, :height, :width]
            vectors, questions = (None if one is None else one[rows] for one in (self.vectors, self.questions))
            inputs = self.inputs[rows, :, :height, :width].contiguous()
            targets = self.targets[rows]
            yield rows, Batch(samples, inputs, self.labels[rows], targets, masks, crc, vectors, None, questions)


def _joined(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """What all batches have, or none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


@functools.cache
def decoders() -> ThreadPoolExecutor:
    """The threads of this process that decode: one pool, whatever the data set."""
    return ThreadPoolExecutor(max_workers=4, thread_name_prefix="decode")


os.register_at_fork(after_in_child=decoders.cache_clear)  # the threads stay with the parent


def moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on a device. To a GPU it goes from memory that is pinned, so that nothing waits until it is there."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Samples:
    """Chosen samples of a data set as preprocessed batches, decoded in threads. Iterating gives batches of 64.

    Where inputs differ in size, so do batches, without padding, and where questions are asked, a batch has one of them
    (`Batch.alike`): each 64 samples in such batches.

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
        """All samples, in order, but for inputs that differ in size.

        Args:
            size: The most samples of a batch.

        Yields:
            Batches of at most `size` samples.
        """
        for start in range(0, len(self.ids), size):
            for _, batch in self.load(self.ids[start : start + size]).alike():
                yield batch

    def load(self, ids: Sequence[int]) -> Batch:
        """The named samples as one batch.

        Args:
            ids: Of the samples.

        Returns:
            The batch, in the order of `ids`, with padding (`Batch.valid`) where inputs differ in size.
        """
        return self.batch(ids, self.begin(ids))

    def begin(self, ids: Sequence[int]) -> "list[Future[Row]]":
        """Begin to decode the named samples, for `batch`."""
        return [decoders().submit(self._row, index) for index in ids]

    def batch(self, ids: Sequence[int], begun: "Sequence[Future[Row]]") -> Batch:
        """The named samples as `load` returns them, from what `begin` returned for each."""
        rows = [row.result() for row in begun]
        inputs = torch.stack([row.input for row in rows])
        labels = torch.stack([torch.as_tensor(row.label) for row in rows])
        labels = moved(labels.float() if labels.is_floating_point() else labels.long(), self.device)
        masks, vectors, valid, questions = (_stacked(column) for column in list(zip(*rows))[2:])
        if valid is None:
            real = list(inputs)
        else:
            real = [image[:, places.any(1)][..., places.any(0)] for image, places in zip(inputs, valid)]
        return Batch(
            samples=tuple(int(i) for i in ids),
            inputs=moved(inputs, self.device),
            labels=labels,
            targets=labels,
            masks=moved(masks, self.device) if masks is not None and self.dataset.has_masks else None,
            crc=tuple(zlib.crc32(image.numpy().tobytes()) for image in real),
            vectors=None if vectors is None else moved(vectors.float(), self.device),
            valid=None if valid is None else moved(valid, self.device),
            questions=None if questions is None else moved(questions, self.device),
        )

    def asking(self, question: int) -> "Samples":
        """Those that ask one question.

        Args:
            question: Which of the data set's `questions`.

        Returns:
            The samples of the same data set that do.

        Raises:
            UserError: If none does.
        """
        dataset = cast(HasQuestions, self.dataset)
        ids = [sample for sample in self.ids if dataset.question_of(sample) == question]
        if not ids:
            raise UserError(
                f"none of the {len(self.ids)} samples to fit on asks question {question} of {len(dataset.questions)}: "
                "set a larger fit.limit"
            )
        return Samples(self.dataset, self.preprocessing, ids, self.device)

    def region(self, name: str, ids: Sequence[int]) -> torch.Tensor:
        """A region of the named samples' images, as a data set with `regions(ids)` knows it.

        Args:
            name: Of the region.
            ids: Of the samples.

        Returns:
            Bool [B,H,W], in input geometry.
        """
        regions: Mapping[str, torch.Tensor] = self.dataset.regions(ids)  # type: ignore[attr-defined]
        return moved(torch.stack([self.preprocessing.mask(mask) for mask in regions[name]]), self.device)

    def concepts(self, ids: Sequence[int], names: Sequence[str]) -> torch.Tensor:
        """Where concepts are in the named samples, as the network sees these.

        Args:
            ids: Of the samples.
            names: Some of the data set's `concept_names`.

        Returns:
            Bool [N,K,H,W], in the order of `ids` and `names`, in input geometry.
        """

        def marked(index: int) -> torch.Tensor:
            found = self.dataset.concepts([index])
            return torch.stack([self.preprocessing.mask(found[name][0]) for name in names])

        # One after the other: pictures of a folder have sizes of their own.
        return moved(torch.stack(list(decoders().map(marked, ids))), self.device)

    def _row(self, index: int) -> "Row":
        example = self.dataset[index]
        if example.mask is None and self.dataset.has_masks:
            raise UserError(f"{type(self.dataset).__name__} has masks (has_masks), but sample {index} has none")
        preprocessing = self.preprocessing
        mask = None if example.mask is None else preprocessing.truth(example.mask, example.image)
        image, valid = preprocessing.image(example.image), preprocessing.valid(example.image)
        return Row(image, example.label, mask, example.labels, valid, example.question)


class Row(NamedTuple):
    """One sample of a Batch, whose names these are, decoded."""

    input: torch.Tensor
    label: int | float
    mask: torch.Tensor | None
    vector: torch.Tensor | None
    valid: torch.Tensor | None
    question: torch.Tensor | None


def _stacked(column: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """A row for each sample, if they have one."""
    found = [row for row in column if row is not None]
    return torch.stack(found) if found else None
