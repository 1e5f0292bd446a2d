"""Tiny ImageNet from a folder like the one that it is distributed in, made here of flat colours."""

from pathlib import Path

import pytest
from PIL import Image

from xaibench.datasets.tiny_imagenet import TinyImageNet
from xaibench.errors import UserError

CLASSES = {"n01443537": ("goldfish, Carassius auratus", 200), "n02056570": ("king penguin", 100)}


@pytest.fixture
def root(tmp_path) -> Path:
    """Ten pictures of each class in train and two in val, each of one grey that says which it is."""
    (tmp_path / "words.txt").write_text("".join(f"{wnid}\t{names}\n" for wnid, (names, _) in CLASSES.items()))
    annotations = []
    for wnid, (_, grey) in CLASSES.items():
        images = tmp_path / "train" / wnid / "images"
        images.mkdir(parents=True)
        boxes = []
        for number in range(10):
            Image.new("RGB", (64, 64), (grey + number,) * 3).save(images / f"{wnid}_{number}.JPEG", quality=100)
            boxes.append(f"{wnid}_{number}.JPEG\t{number}\t5\t{number + 3}\t63\n")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(boxes))
    (tmp_path / "val" / "images").mkdir(parents=True)
    for number, (wnid, (_, grey)) in enumerate([*CLASSES.items()] * 2):
        Image.new("RGB", (64, 64), (grey,) * 3).save(tmp_path / "val" / "images" / f"val_{number}.JPEG")
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t{number}\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(annotations))
    return tmp_path


def test_train_is_dealt_four_to_one_by_class_and_val_is_the_test(root):
    train, validation, test = (TinyImageNet(str(root), split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (16, 4, 4)
    assert train.class_names == ("goldfish", "king penguin")
    greys = [[example.image.getpixel((9, 9))[0] for example in split] for split in (train, validation)]
    assert sorted(greys[0] + greys[1]) == [*range(100, 110), *range(200, 210)]
    for split, count in ((train, 8), (validation, 2)):
        assert [example.label for example in split] == [0] * count + [1] * count
    assert [(e.label, e.image.getpixel((9, 9))[0]) for e in test] == [(0, 200), (0, 200), (1, 100), (1, 100)]
    assert [split.fingerprint for split in (train, validation, test)] == [
        TinyImageNet(str(root), split).fingerprint for split in ("train", "validation", "test")
    ]
    assert len({train.fingerprint, validation.fingerprint, test.fingerprint}) == 3


def test_the_mask_is_the_box_its_last_row_and_column_included(root):
    for example in TinyImageNet(str(root), "train"):
        number = example.image.getpixel((9, 9))[0] % 100
        assert example.mask.nonzero().tolist() == [[y, x] for y in range(5, 64) for x in range(number, number + 4)]
    assert [int(example.mask.sum()) for example in TinyImageNet(str(root), "test")] == [64, 192, 128, 256]


def test_what_is_not_as_it_is_distributed_is_named(root, tmp_path):
    with pytest.raises(UserError, match=r"no class folder train/n.*words\.txt"):
        TinyImageNet(str(root / "val"))
    table = root / "val" / "val_annotations.txt"
    table.write_text("val_0.JPEG\tn01443537\t0\t0\t63\n")
    with pytest.raises(UserError, match=r"val_annotations\.txt, line 1: expected 6 fields"):
        TinyImageNet(str(root))
    table.write_text("val_0.JPEG\tn0\t0\t0\t63\t63\n")
    with pytest.raises(UserError, match=r"val_0\.JPEG is of class n0, and there is no folder train/n0"):
        TinyImageNet(str(root))
    boxes = root / "train" / "n01443537" / "n01443537_boxes.txt"
    boxes.write_text("")
    with pytest.raises(UserError, match=r"n01443537_boxes\.txt beside it has no box for it"):
        TinyImageNet(str(root), "train")
    boxes.unlink()
    with pytest.raises(UserError, match=r"n01443537_boxes\.txt: it cannot be read"):
        TinyImageNet(str(root), "train")
