"""Folders of images: splits, the true class indices of a part of ImageNet, identity, mistakes."""

import csv

import pytest
from PIL import Image
from torchvision import datasets

from xaibench.build import build
from xaibench.datasets.imagefolder import ImageFolder
from xaibench.errors import UserError


def fill(folder, classes=("cat", "dog"), count=2, mode="RGB"):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, (4 + i, 3), color=50 * label + i).save(folder / name / f"{i}.png")
    return folder


def table(path, rows, columns=("index", "wnid", "name")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def test_the_root_is_the_split_if_it_has_none_and_training_is_refused(tmp_path):
    root = str(fill(tmp_path / "pets"))
    for split in ("test", "validation"):
        dataset = ImageFolder(root, split)
        assert len(dataset) == 4 and dataset.class_names == ("cat", "dog")
        assert [dataset[i].label for i in range(4)] == [0, 0, 1, 1]
        assert dataset[1].image.size == (5, 3) and dataset[3].image.getpixel((0, 0)) == (51, 0, 0)
    with pytest.raises(UserError, match=r"dataset\.split=train.*without splits") as refused:
        ImageFolder(root, "train")
    assert len(str(refused.value).splitlines()) == 2


def test_split_folders(tmp_path):
    fill(tmp_path / "train", count=3)
    fill(tmp_path / "val", count=1)
    assert len(ImageFolder(str(tmp_path), "train")) == 6 and len(ImageFolder(str(tmp_path), "validation")) == 2
    with pytest.raises(UserError, match=r"dataset\.split=test.*it has train, val"):
        ImageFolder(str(tmp_path), "test")


def test_grey_and_transparent_images_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P"):
        dataset = ImageFolder(str(fill(tmp_path / mode, mode=mode)))
        assert dataset[0].image.mode == "RGB"


def test_a_table_gives_the_true_indices_whatever_column_names_the_folders(tmp_path):
    rows = [(0, "n01", "fish"), (1, "n02", "dog"), (2, "n03", "fox"), (3, "n04", "cat")]
    classes = table(tmp_path / "classes.csv", rows)
    for name, folders in (("wnid", ("n02", "n04")), ("name", ("cat", "dog")), ("index", ("1", "3"))):
        dataset = ImageFolder(str(fill(tmp_path / name, folders)), classes=classes)
        assert dataset.class_names == ("fish", "dog", "fox", "cat")
        assert {dataset.class_names[dataset[i].label] for i in range(4)} == {"dog", "cat"}
        first = {"wnid": 1, "name": 3, "index": 1}[name]
        assert dataset[0].label == first


def test_what_is_wrong_with_a_table_is_named(tmp_path):
    root = str(fill(tmp_path / "data", ("n02", "n04")))

    def refusal(rows, columns=("index", "wnid", "name")):
        with pytest.raises(UserError) as refused:
            ImageFolder(root, classes=table(tmp_path / "c.csv", rows, columns))
        return str(refused.value)

    assert "does not name the folder 'n04': did you mean 'n02'" in refusal([(1, "n02", "dog")])
    assert "names 'n04' twice, for the classes [1, 3]" in refusal([(1, "n04", "a"), (3, "n04", "b"), (2, "n02", "c")])
    assert "column 'index'" in refusal([(1, "n02")], ("number", "wnid"))
    assert "column 'index'" in refusal([("one", "n02")], ("index", "wnid"))
    with pytest.raises(UserError, match=r"dataset\.classes=.*\ndid you mean 'c\.csv'"):
        ImageFolder(root, classes=str(tmp_path / "cc.csv"))


def test_the_fingerprint_is_the_listing_the_sizes_and_the_labels(tmp_path):
    first = ImageFolder(str(fill(tmp_path / "a"))).fingerprint
    other = fill(tmp_path / "b")
    assert ImageFolder(str(other)).fingerprint == first
    classes = table(tmp_path / "classes.csv", [(1, "cat"), (0, "dog")], ("index", "name"))
    assert ImageFolder(str(other), classes=classes).fingerprint != first
    (other / "cat" / "0.png").rename(other / "cat" / "00.png")
    assert ImageFolder(str(other)).fingerprint != first
    (other / "cat" / "00.png").rename(other / "cat" / "0.png")
    with open(other / "cat" / "0.png", "ab") as file:
        file.write(b"x")
    assert ImageFolder(str(other)).fingerprint != first


def test_mistakes(tmp_path):
    fill(tmp_path / "pets")
    with pytest.raises(UserError, match=r"there is no 'pest' in .*\ndid you mean 'pets'"):
        ImageFolder(str(tmp_path / "pest"))
    (tmp_path / "pets" / "emu").mkdir()
    with pytest.raises(UserError, match="emu"):
        ImageFolder(str(tmp_path / "pets"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="class folder"):
        ImageFolder(str(tmp_path / "empty"))
    (tmp_path / "pets" / "emu" / "1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"emu/1\.png: not a readable image"):
        ImageFolder(str(tmp_path / "pets"))[4]
    spec = {"_target_": "xaibench.datasets.imagefolder.ImageFolder", "root": str(tmp_path / "pets")}
    with pytest.raises(UserError, match="split=val"):
        build(spec | {"split": "val"}, "dataset")


@pytest.mark.shared
def test_a_part_of_imagenet_gets_its_true_indices(shared):
    root, classes = shared / "data" / "imagenet-samples", shared / "data" / "imagenet_classes.csv"
    dataset = ImageFolder(str(root), classes=str(classes))
    listing = datasets.ImageFolder(root)
    with open(classes, newline="") as file:
        rows = {row["wnid"]: row for row in csv.DictReader(file)}
    assert len(dataset) == 500 and len(dataset.class_names) == 1000
    for index in (0, 1, 17, 250, 499):
        path, position = listing.samples[index]
        row = rows[listing.classes[position]]
        assert dataset[index].label == int(row["index"]) == 2 * index
        assert dataset.class_names[dataset[index].label] == row["name"]
        assert dataset[index].image.tobytes() == Image.open(path).convert("RGB").tobytes()
