"""MNIST, Fashion-MNIST, CIFAR-10 and ImageNet through torchvision's own classes and downloads."""

import contextlib
import sys
from pathlib import Path
from typing import Any, Literal

from torchvision import datasets

from ..errors import UserError, first_line
from ..store.files import existing, fingerprint
from .base import Dataset, Example

Split = Literal["train", "validation", "test"]


class _TrainAndTest(Dataset):
    """A torchvision data set with a train and a test half.

    root: the folder that torchvision looks in. download: fetch the files if they are not there.
    split: `validation` is the last `held_out` samples of torchvision's train half, which has no such split of its
        own; `train` is the rest of it. Sample ids count from 0 in every split.
    Raises UserError if the files are neither there nor to be had.
    """

    source: type
    files: str  # pattern, below root, of the files that hold the data
    held_out: int

    def __init__(self, root: str = "data", split: Split = "test", download: bool = True) -> None:
        root = str(Path(root).expanduser())
        self._data = self._open(root, split != "test", download)
        total = len(self._data)
        tail = total - self.held_out
        self._ids = {"train": range(tail), "validation": range(tail, total), "test": range(total)}[split]
        self.class_names = tuple(self._data.classes)
        self.fingerprint = fingerprint(Path(root), Path(root).glob(self.files), self.source.__name__, split)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        image, label = self._data[self._ids[index]]
        return Example(image, label)

    def _open(self, root: str, train: bool, download: bool) -> Any:
        name = self.source.__name__
        try:
            # First without the download: a folder that has the files may be read-only.
            return self.source(root, train=train)
        except (RuntimeError, ValueError, AssertionError, OSError) as error:
            if "not found" not in str(error):
                raise UserError(
                    f"dataset.root={root}: the files of {name} there are damaged, remove them ({first_line(error)})"
                ) from error
        if not download:
            raise UserError(f"dataset.root={root}: {name} is not there; set dataset.root, or dataset.download=true")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, and torchvision prints
                return self.source(root, train=train, download=True)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"dataset.root={root}: {name} is not there and could not be downloaded ({first_line(error)})\n"
                "set dataset.root to the folder that holds it"
            ) from error


class MNIST(_TrainAndTest):
    """Handwritten digits, 28x28 grey: 55 000 train, 5 000 validation, 10 000 test."""

    source, files, held_out = datasets.MNIST, "MNIST/raw/*-ubyte", 5000


class FashionMNIST(_TrainAndTest):
    """Articles of clothing, 28x28 grey: 55 000 train, 5 000 validation, 10 000 test."""

    source, files, held_out = datasets.FashionMNIST, "FashionMNIST/raw/*-ubyte", 5000


class CIFAR10(_TrainAndTest):
    """Small photographs, 32x32 colour: 45 000 train, 5 000 validation, 10 000 test."""

    source, files, held_out = datasets.CIFAR10, "cifar-10-batches-py/*_batch*", 5000


class ImageNet(Dataset):
    """ImageNet's 2012 challenge: `root` holds the archives that the user got from image-net.org, or torchvision's
    folders made from them (`train`, `val`, `meta.bin`).

    split: `validation` is the official one; the test labels are not public, and `test` is refused.
    Raises UserError if the files are not there.
    """

    def __init__(self, root: str = "data", split: Split = "validation") -> None:
        if split == "test":
            raise UserError("dataset.split=test: ImageNet's test labels are not public, use dataset.split=validation")
        folder = existing(root, "dataset.root")
        try:
            self._data = datasets.ImageNet(folder, split="val" if split == "validation" else "train")
        except (RuntimeError, OSError) as error:
            raise UserError(f"dataset.root={root}: {first_line(error)}") from error
        self.class_names = tuple(names[0] for names in self._data.classes)
        files = (Path(path) for path, _ in self._data.samples)
        self.fingerprint = fingerprint(folder, files, "ImageNet", split)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        image, label = self._data[index]
        return Example(image, label)
