"""MNIST, Fashion-MNIST, CIFAR-10, Food-101, CelebA and ImageNet through torchvision's own classes and downloads."""

import contextlib
import sys
from pathlib import Path
from typing import Any, Literal

from torchvision import datasets
from torchvision.datasets import imagenet

from ..errors import UserError, first_line, nearest, one_of
from ..store.files import existing, fingerprint
from ..store.memo import contents
from . import pictures
from .base import Dataset, Example
from .pictures import PictureFolder

Split = Literal["train", "validation", "test"]


def _opened(source: type, root: str, download: bool, **half: Any) -> Any:
    """A torchvision data set from the files in root, fetched if they are not there and `download` says so.

    half: which half of it, as its class is asked. Raises UserError if the files are damaged, or not to be had.
    """
    name = source.__name__
    try:
        # First without the download: a folder that has the files may be read-only.
        return source(root, **half)
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        if "not found" not in str(error):
            raise UserError(
                f"dataset.root={root}: the files of {name} there are damaged, remove them ({first_line(error)})"
            ) from error
    if not download:
        raise UserError(f"dataset.root={root}: {name} is not there; set dataset.root, or dataset.download=true")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, and torchvision prints
            return source(root, **half, download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"dataset.root={root}: {name} is not there and could not be downloaded ({first_line(error)})\n"
            "set dataset.root to the folder that holds it"
        ) from error


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
        self._data = _opened(self.source, root, download, train=split != "test")
        total = len(self._data)
        tail = total - self.held_out
        self._ids = {"train": range(tail), "validation": range(tail, total), "test": range(total)}[split]
        self.class_names = tuple(self._data.classes)
        files = contents(Path(root), sorted(Path(root).glob(self.files)))
        self.fingerprint = fingerprint(files, self.source.__name__, split)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        image, label = self._data[self._ids[index]]
        return Example(image, label)


class MNIST(_TrainAndTest):
    """Handwritten digits, 28x28 grey: 55 000 train, 5 000 validation, 10 000 test."""

    source, files, held_out = datasets.MNIST, "MNIST/raw/*-ubyte", 5000


class FashionMNIST(_TrainAndTest):
    """Articles of clothing, 28x28 grey: 55 000 train, 5 000 validation, 10 000 test."""

    source, files, held_out = datasets.FashionMNIST, "FashionMNIST/raw/*-ubyte", 5000


class CIFAR10(_TrainAndTest):
    """Small photographs, 32x32 colour: 45 000 train, 5 000 validation, 10 000 test."""

    source, files, held_out = datasets.CIFAR10, "cifar-10-batches-py/*_batch*", 5000


class Food101(PictureFolder):
    """Photographs of 101 dishes (Bossard et al. 2014): 75 750 train, 25 250 test, of up to 512 pixels a side.

    root: the folder that torchvision looks in. download: fetch the files (5 GB) if they are not there.
    split: there is no validation split, so that trainings have what Loreth 2021 trained on; `validation` is refused.
    classes: only the first so many classes, by name; None: all.
    Raises UserError if the files are neither there nor to be had.
    """

    def __init__(
        self, root: str = "data", split: Split = "test", classes: int | None = None, download: bool = True
    ) -> None:
        if split == "validation":
            raise UserError("dataset.split=validation: Food-101 has none, use dataset.split=test")
        found = _opened(datasets.Food101, str(Path(root).expanduser()), download, split=split)
        count = len(found.classes) if classes is None else classes
        if not 2 <= count <= len(found.classes):
            raise UserError(f"dataset.classes={classes}: expected 2 to {len(found.classes)}, or null for all")
        pairs = zip(found._image_files, found._labels)  # torchvision has no other name for them
        samples = [(str(path), label) for path, label in pairs if label < count]
        self.class_names = tuple(name.replace("_", " ") for name in found.classes[:count])
        super().__init__(Path(root).expanduser() / "food-101" / "images", samples, {})
        self.fingerprint = fingerprint(self._digests, "food101", pictures.VERSION, split, count)


class CelebA(Dataset):
    """Faces with forty attributes, each there or not (Liu et al. 2015): 162 770 train, 19 867 validation, 19 962 test.

    Photographs are aligned, of 178x218 pixels.

    root: the folder that torchvision looks in. download: fetch the files (1.4 GB, by the package gdown) if they are not
        there.
    split: the official ones.
    samples: `labels`: a sample is a photograph and an attribute that it has, so that each is explained; but in `train`
        every photograph is one sample, since trainings read the vector of all its attributes. `images`: it is in every
        split, for `target=fixed:<k>`. The label of such a sample is the first attribute that it has, or 0.
    Raises UserError if the files are neither there nor to be had.
    """

    multi_label = True

    def __init__(
        self,
        root: str = "data",
        split: Split = "test",
        samples: Literal["labels", "images"] = "labels",
        download: bool = True,
    ) -> None:
        one_of("samples", samples, ("labels", "images"))
        found = _opened(
            datasets.CelebA, str(Path(root).expanduser()), download, split="valid" if split == "validation" else split
        )
        folder = Path(root).expanduser() / found.base_folder
        self.class_names = tuple(name.replace("_", " ") for name in found.attr_names if name)
        self._attributes = found.attr.float()
        self._paths = [folder / "img_align_celeba" / name for name in found.filename]
        whole = split == "train" or samples == "images"
        present = [row.nonzero()[:, 0].tolist() for row in found.attr]
        self._samples = [
            (image, label) for image, own in enumerate(present) for label in (own[:1] or [0] if whole else own)
        ]
        tables = [folder / name for name in ("list_attr_celeba.txt", "list_eval_partition.txt")]
        digests = contents(folder, [*self._paths, *tables])
        self._digests = list(digests.values())
        self.fingerprint = fingerprint(digests, "celeba", pictures.VERSION, split, whole)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Example:
        image, label = self._samples[index]
        picture = pictures.read(self._paths[image], self._digests[image])
        return Example(picture.image, label, labels=self._attributes[image])


class ImageNet(PictureFolder):
    """ImageNet's 2012 challenge: `root` holds the archives that the user got from image-net.org, or torchvision's
    folders made from them (`train`, `val`, `meta.bin`), which `pictures` lists and decodes.

    split: `validation` is the official one; the test labels are not public, and `test` is refused.
    unreadable: as of `imagefolder.ImageFolder`.
    Raises UserError if the files are not there, and for a folder that is none of the classes.
    """

    def __init__(
        self, root: str = "data", split: Split = "validation", unreadable: pictures.Unreadable = "refuse"
    ) -> None:
        if split == "test":
            raise UserError("dataset.split=test: ImageNet's test labels are not public, use dataset.split=validation")
        folder = existing(root, "dataset.root")
        try:
            names = _names_of_imagenet(folder, split)
        except (RuntimeError, OSError) as error:
            raise UserError(f"dataset.root={root}: {first_line(error)}") from error
        split_folder = folder / ("val" if split == "validation" else "train")
        listing = pictures.listing(split_folder, unreadable=unreadable)
        pictures.warn(split_folder, listing)
        if unknown := [wnid for wnid in listing.classes if wnid not in names]:
            raise UserError(
                f"dataset.root={root}: the folder {split_folder / unknown[0]} is no class of ImageNet\n"
                f"remove it, or use dataset=imagefolder: {nearest(unknown[0], names)}"
            )
        self.class_names = tuple(names[wnid][0] for wnid in listing.classes)
        super().__init__(split_folder, [(str(path), label) for path, label in listing.files], listing.left_out)
        unread = sorted(listing.left_out.get("unreadable", ()))
        self.fingerprint = fingerprint(self._digests, "ImageNet", pictures.VERSION, split, listing.classes, unread)


def _names_of_imagenet(folder: Path, split: Split) -> dict[str, tuple[str, ...]]:
    """The names of each class by its wnid; archives are unpacked where their folders are missing, by torchvision."""
    if not (folder / imagenet.META_FILE).is_file():
        imagenet.parse_devkit_archive(folder)
    if split == "train" and not (folder / "train").is_dir():
        imagenet.parse_train_archive(folder)
    if split == "validation" and not (folder / "val").is_dir():
        imagenet.parse_val_archive(folder)
    return imagenet.load_meta_file(folder)[0]
