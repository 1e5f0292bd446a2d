"""torchvision's data sets: its own images, a validation split apart from train, files that cannot be had."""

import gzip
import hashlib
import json
import pickle
import shutil
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import datasets

from xaibench.build import build
from xaibench.datasets.base import Samples
from xaibench.datasets.images import Images
from xaibench.datasets.torchvision_sets import CIFAR10, MNIST, CelebA, FashionMNIST, Food101, ImageNet
from xaibench.errors import UserError
from xaibench.models.preprocessing import Preprocessing

CONF = Path(__file__).parents[2] / "conf" / "dataset"
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10


def write_idx(folder: Path, count: int = 20) -> None:
    """The files of MNIST's format: 20 train and 20 test images."""
    folder.mkdir(parents=True)
    for half in ("train", "t10k"):
        head = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(head + PIXELS[:count].tobytes())
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + LABELS[:count].tobytes())


def write_cifar(folder: Path, monkeypatch) -> None:
    """The files of CIFAR-10's format, one train batch of 20 and a test batch, and torchvision told their checksums."""
    folder.mkdir(parents=True)
    data = np.random.default_rng(1).integers(0, 256, (20, 3072), dtype=np.uint8)
    content = {
        "data_batch_1": {"data": data, "labels": LABELS.tolist()},
        "test_batch": {"data": data[::-1].copy(), "labels": LABELS[::-1].tolist()},
        "batches.meta": {"label_names": list("abcdefghij")},
    }
    sums = {}
    for name, thing in content.items():
        (folder / name).write_bytes(pickle.dumps(thing))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


@pytest.fixture(params=[MNIST, FashionMNIST, CIFAR10])
def source(request, tmp_path, monkeypatch):
    """A data set class with small files in its format, and their root."""
    monkeypatch.setattr(request.param, "held_out", 5)
    if request.param is CIFAR10:
        write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch)
    else:
        write_idx(tmp_path / request.param.__name__ / "raw")
    return request.param, str(tmp_path)


def test_splits_are_torchvisions_with_the_tail_of_train_held_out(source):
    make, root = source
    theirs = make.source(root, train=True)
    train, validation, test = (make(root, split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (15, 5, 20)
    ours = [train[i] for i in range(15)] + [validation[i] for i in range(5)]
    for example, (image, label) in zip(ours, theirs, strict=True):
        assert example.image.tobytes() == image.tobytes() and example.label == label and example.mask is None
    for i, (image, label) in enumerate(make.source(root, train=False)):
        assert test[i].image.tobytes() == image.tobytes() and test[i].label == label
    assert train.class_names == tuple(theirs.classes) and len(train.class_names) == 10
    assert train[0].image.mode == ("RGB" if make is CIFAR10 else "L")


def test_the_fingerprint_depends_on_split_and_files_but_not_on_the_place(source, tmp_path):
    make, root = source
    prints = {make(root, split).fingerprint for split in ("train", "validation", "test")}
    assert len(prints) == 3
    shutil.copytree(root, tmp_path / "elsewhere")
    assert make(str(tmp_path / "elsewhere"), "test", download=False).fingerprint in prints
    if make is not CIFAR10:  # whose files torchvision checks itself
        for path in (tmp_path / "elsewhere" / make.__name__ / "raw").iterdir():
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        assert make(str(tmp_path / "elsewhere")).fingerprint in prints, "a kept archive is no difference"
        shutil.rmtree(tmp_path / "elsewhere")
        write_idx(tmp_path / "elsewhere" / make.__name__ / "raw", count=19)
        assert make(str(tmp_path / "elsewhere")).fingerprint not in prints


@pytest.mark.parametrize("make", [MNIST, FashionMNIST, CIFAR10, Food101, CelebA])
def test_missing_files(make, tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    with pytest.raises(UserError, match=rf"dataset\.root=.*{make.__name__} is not there") as refused:
        make(str(tmp_path), download=False)
    assert "dataset.download=true" in str(refused.value)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    with pytest.raises(UserError, match="could not be downloaded") as refused:
        make(str(tmp_path))
    assert len(str(refused.value).splitlines()) == 2
    assert capsys.readouterr().out == ""


def test_files_cut_short_are_said_to_be(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="files of MNIST there are damaged"):
        MNIST(str(tmp_path))


def test_imagenet_through_torchvision(tmp_path):
    wnids = {"n01": ("tench", "Tinca"), "n02": ("goldfish",)}
    torch.save((wnids, ["n02", "n01"]), tmp_path / "meta.bin")
    for wnid, shade in (("n01", 10), ("n02", 20)):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        Image.new("L", (8, 6), shade).save(tmp_path / "val" / wnid / "a.JPEG")
    dataset = ImageNet(str(tmp_path), "validation")
    assert len(dataset) == 2 and dataset.class_names == ("tench", "goldfish")
    assert dataset[1].label == 1 and dataset[1].image.getpixel((0, 0)) == (20, 20, 20)
    with pytest.raises(UserError, match=r"use dataset\.split=validation"):
        ImageNet(str(tmp_path), "test")
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar"):
        ImageNet(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"dataset\.root=.*there is no"):
        ImageNet(str(tmp_path / "nowhere"))


def test_food_101_from_its_folders(tmp_path):
    listed = {"pho": ["pho/1", "pho/2"], "apple_pie": ["apple_pie/7"], "tacos": ["tacos/3"]}
    (tmp_path / "food-101" / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))
    for shade, name in enumerate(name for names in listed.values() for name in names):
        path = tmp_path / "food-101" / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (50 * shade,) * 3).save(path)
    dataset = Food101(str(tmp_path), "train")
    assert dataset.class_names == ("apple pie", "pho", "tacos")
    theirs = datasets.Food101(str(tmp_path), "train")
    assert [(e.label, e.image.getpixel((0, 0))) for e in dataset] == [(y, x.getpixel((0, 0))) for x, y in theirs]
    few = Food101(str(tmp_path), "train", classes=2)
    assert few.class_names == ("apple pie", "pho") and [example.label for example in few] == [1, 1, 0]
    assert len({dataset.fingerprint, few.fingerprint, Food101(str(tmp_path)).fingerprint}) == 3
    with pytest.raises(UserError, match=r"dataset\.split=validation: Food-101 has none"):
        Food101(str(tmp_path), "validation")
    with pytest.raises(UserError, match=r"dataset\.classes=4: expected 2 to 3, or null for all"):
        Food101(str(tmp_path), classes=4)


ATTRIBUTES = ("Bald", "Eyeglasses", "Pale_Skin", "Smiling")
# Of each photograph: its split (0, 1, 2: train, validation, test) and whether it has each attribute.
FACES = [(0, "1001"), (0, "0000"), (0, "0110"), (1, "1111"), (1, "0000"), (2, "0101"), (2, "0010")]


def write_celeba(folder: Path, monkeypatch) -> None:
    """The files of CelebA's format, and torchvision told their checksums."""
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, len(FACES) + 1)]
    for number, name in enumerate(names):
        Image.new("RGB", (9, 11), (30 * number,) * 3).save(folder / "img_align_celeba" / name)
    values = [" ".join(" 1" if one == "1" else "-1" for one in has) for _, has in FACES]
    tables = {
        "list_eval_partition": [str(split) for split, _ in FACES],
        "identity_CelebA": ["7"] * len(FACES),
        "list_attr_celeba": [len(FACES), " ".join(ATTRIBUTES) + " ", *values],
        "list_bbox_celeba": [len(FACES), "image_id x_1 y_1 width height", *["1 2 3 4"] * len(FACES)],
        "list_landmarks_align_celeba": [len(FACES), "lefteye_x lefteye_y", *["1 2"] * len(FACES)],
    }
    for name, lines in tables.items():
        head, rows = lines[: -len(FACES)], lines[-len(FACES) :]
        rows = [f"{file} {row}" for file, row in zip(names, rows)]
        (folder / f"{name}.txt").write_text("\n".join(map(str, [*head, *rows])) + "\n")
    sums = [(None, hashlib.md5(path.read_bytes()).hexdigest(), path.name) for path in folder.glob("*.txt")]
    monkeypatch.setattr(datasets.CelebA, "file_list", sums)


def test_celeba_from_its_files(tmp_path, monkeypatch):
    write_celeba(tmp_path / "celeba", monkeypatch)
    train, validation, test, whole = (
        CelebA(str(tmp_path), *options) for options in (["train"], ["validation"], ["test"], ["test", "images"])
    )
    assert train.class_names == ("Bald", "Eyeglasses", "Pale Skin", "Smiling") and train.multi_label
    for ours, half in ((train, "train"), (whole, "test")):
        theirs = datasets.CelebA(str(tmp_path), half)
        for example, (image, attributes) in zip(ours, theirs, strict=True):
            assert example.image.tobytes() == image.tobytes() and example.mask is None
            assert example.labels.tolist() == attributes.tolist()
    assert [example.label for example in train] == [0, 0, 1] and [example.label for example in whole] == [1, 2]
    assert [example.label for example in validation] == [0, 1, 2, 3]
    shown = [(example.image.getpixel((0, 0))[0] // 29, example.label) for example in test]
    assert shown == [(5, 1), (5, 3), (6, 2)], "a sample for each attribute that there is"
    kept = Images(Samples(train, Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3), range(3)), vectors=True)
    assert kept.labels.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert len({one.fingerprint for one in (train, validation, test, whole)}) == 4


@pytest.mark.parametrize(
    "name", ["mnist", "fashion_mnist", "cifar10", "food101", "celeba", "tiny_imagenet", "imagenet", "imagefolder"]
)
def test_yamls_fit_their_classes(name, tmp_path):
    spec = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert (spec.pop("limit"), spec.pop("seed")) == (None, 0)
    assert spec.pop("filter") == {"correct": False, "min_probability": 0.0}
    spec |= {"root": str(tmp_path)} | ({"download": False} if "download" in spec else {})
    with pytest.raises(UserError, match=r"dataset\.root="):  # every parameter is known, the files are not there
        build(spec, "dataset")


@pytest.mark.shared
def test_the_whole_of_mnist_from_a_folder_that_must_not_be_written(shared):
    root = str(shared / "data" / "mnist")
    train, validation, test = (MNIST(root, split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (55_000, 5_000, 10_000)
    theirs = datasets.MNIST(root, train=True)
    for ours, index in ((train[54_999], 54_999), (validation[0], 55_000), (validation[4_999], 59_999)):
        assert ours.image.tobytes() == theirs[index][0].tobytes() and ours.label == theirs[index][1]
    assert [test[i].label for i in range(5)] == [7, 2, 1, 0, 4]
