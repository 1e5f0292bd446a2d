"""Which files are pictures and what pixels they hold, on real files: the kinds that users stumbled over."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from xaibench.datasets import pictures
from xaibench.datasets.imagefolder import ImageFolder
from xaibench.datasets.torchvision_sets import ImageNet
from xaibench.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def photos(here):
    """Two classes of two pictures."""
    for label, name in enumerate(("cat", "dog")):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (64, 64), (100 * label, 50 * number, 9)).save(here / "photos" / name / f"{number}.png")
    return here / "photos"


def names(dataset, root):
    return [Path(path).relative_to(root).as_posix() for path, _ in dataset._samples]


ALL = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]


def pixels(folder, save, name="x.png"):
    """What a data set makes of one picture, which `save` writes."""
    (folder / "a").mkdir(parents=True)
    save(folder / "a" / name)
    return np.asarray(ImageFolder(str(folder))[0].image)


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_the_upper_half_of_16_bits_counts(tmp_path, name):
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    found = pixels(tmp_path, Image.fromarray(values).save, name)
    assert found.tolist() == [[[v] * 3 for v in (0, 0, 1, 128, 255)]]


def test_floats_are_shares_of_white(tmp_path):
    values = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert pixels(tmp_path, Image.fromarray(values).save, "x.tif")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [200.0, -0.1, np.nan, np.inf])
def test_floats_that_may_mean_anything_are_not_guessed_at(tmp_path, value):
    with pytest.raises(UserError, match=r"x\.tif: not a readable image \(its pixels are floats outside of 0 to 1"):
        pixels(tmp_path, Image.fromarray(np.array([[0, value]], dtype=np.float32)).save, "x.tif")


def test_whole_numbers_of_32_bits_are_not_guessed_at(tmp_path):
    with pytest.raises(UserError, match="whole numbers of 32 bits"):
        pixels(tmp_path, Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save, "x.tif")


def test_what_is_transparent_lies_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1))
    for column, alpha in enumerate((255, 0, 51)):
        image.putpixel((column, 0), (10, 20, 30, alpha))
    expected = [[10, 20, 30], [255, 255, 255], [206, 208, 210]]  # 0.2 of the colour, 0.8 of white
    assert pixels(tmp_path / "rgba", image.save)[0].tolist() == expected
    grey = Image.fromarray(np.array([[[0, 255], [0, 0]]], dtype=np.uint8))
    assert grey.mode == "LA" and pixels(tmp_path / "la", grey.save)[0, :, 0].tolist() == [0, 255]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    palette.putpalette([*RED, *BLUE])
    found = pixels(tmp_path / "p", lambda path: palette.save(path, transparency=0))
    assert found[0].tolist() == [[255, 255, 255], [*BLUE]]


def corners():
    """2 x 3 pixels, each of another red."""
    return np.stack([np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, *[np.zeros((2, 3), np.uint8)] * 2], axis=-1)


# What each value of the EXIF tag does to rows and columns, written down apart from Pillow's names for it.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("tag", SHOWN)
def test_pictures_are_turned_as_exif_says(tmp_path, tag, ending):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = tag
    options = {"exif": exif} | ({"lossless": True} if ending == "webp" else {})
    found = pixels(tmp_path, lambda path: Image.fromarray(corners()).save(path, **options), f"x.{ending}")
    np.testing.assert_array_equal(found, SHOWN[tag](corners()))


def test_damaged_exif_turns_nothing(tmp_path):
    image = Image.fromarray(corners())
    found = pixels(tmp_path, lambda path: image.save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"))
    np.testing.assert_array_equal(found, corners())


@pytest.fixture(params=[6, 8])
def turned(tmp_path, request):
    """A photograph of 48 x 64 pixels that is stored as 64 x 48; what is shown is red in the rows 0 to 15."""
    shown = np.zeros((64, 48, 3), dtype=np.uint8)
    shown[:16] = RED
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = request.param
    (tmp_path / "x" / "a").mkdir(parents=True)
    stored = SHOWN[14 - request.param](shown)  # 6 and 8 undo each other
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x" / "a" / "0.jpg", exif=exif, quality=95)
    # Where the red is in the stored picture.
    left = 0 if request.param == 6 else 48
    return tmp_path, (left, 0, left + 16, 48)


def is_red_where_the_mask_is(example):
    red = np.asarray(example.image)[..., 0] > 128
    return example.image.size == (48, 64) and (red == example.mask.numpy()).mean() > 0.99


def test_boxes_lie_on_what_is_shown(turned):
    folder, _ = turned
    (folder / "boxes.csv").write_text("file,xmin,ymin,xmax,ymax\na/0.jpg,0,0,48,16\n")
    dataset = ImageFolder(str(folder / "x"), boxes=str(folder / "boxes.csv"), max_box=0.26)
    assert is_red_where_the_mask_is(dataset[0])


def test_boxes_drawn_in_the_picture_before_it_is_turned_are_turned_too(turned):
    folder, box = turned
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    size = "<size><width>64</width><height>48</height></size>"
    text = f"<annotation>{size}<object><bndbox>{corners}</bndbox></object></annotation>"
    (folder / "xml").mkdir()
    (folder / "xml" / "0.xml").write_text(text)
    assert is_red_where_the_mask_is(ImageFolder(str(folder / "x"), boxes=str(folder / "xml"))[0])


# ---- which files -----------------------------------------------------------------------------------------------------


def test_hidden_names_and_system_folders_are_neither_classes_nor_images(photos, caplog):
    clean = ImageFolder(str(photos))
    for folder in (".ipynb_checkpoints", "__MACOSX", "cat/.thumbnails", "dog/@eaDir"):
        (photos / folder).mkdir()
        (photos / folder / "0.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    (photos / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    dataset = ImageFolder(str(photos), unreadable="skip")
    assert dataset.class_names == ("cat", "dog") and names(dataset, photos) == ALL
    assert [dataset[i].label for i in range(4)] == [0, 0, 1, 1]
    assert dataset.fingerprint == clean.fingerprint and not dataset.left_out and not caplog.text


def test_numbered_folders_are_in_the_order_that_is_asked_for(tmp_path, caplog):
    for number in range(12):
        (tmp_path / "n" / f"{number}").mkdir(parents=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "n" / f"{number}" / "x.png")
    text = ImageFolder(str(tmp_path / "n"))
    assert text.class_names == ("0", "1", "10", "11", *"23456789") and text[2].image.getpixel((0, 0))[0] == 10
    assert "'10' is class 2; dataset.sort=natural counts '2' as class 2" in caplog.text
    caplog.clear()
    natural = ImageFolder(str(tmp_path / "n"), sort="natural")
    assert natural.class_names == tuple(str(number) for number in range(12))
    assert [(natural[i].label, natural[i].image.getpixel((0, 0))[0]) for i in range(12)] == [(i, i) for i in range(12)]
    assert natural.fingerprint != text.fingerprint and not caplog.text


def test_sorting_that_changes_nothing_changes_no_key(photos):
    assert ImageFolder(str(photos), sort="natural").fingerprint == ImageFolder(str(photos)).fingerprint
    assert pictures._sorted(["b2", "a10", "a9", "2", "10", "a", "02"], "natural") == [
        *("02", "2", "10", "a", "a9", "a10", "b2")
    ]


def test_files_of_other_endings_are_counted(photos, caplog):
    Image.new("RGB", (4, 4)).save(photos / "cat" / "2.gif")
    (photos / "dog" / "notes.txt").touch()
    (photos / "dog" / "LICENSE").touch()
    Image.new("RGB", (4, 4)).save(photos / "stray.png")
    dataset = ImageFolder(str(photos))
    assert names(dataset, photos) == ALL
    assert dataset.left_out == {
        "other endings": {".gif": 1, ".txt": 1, "no ending": 1},
        "outside of class folders": 1,
    }
    assert "3 files (1 .gif, 1 .txt, 1 no ending) in its class folders are not read as pictures" in caplog.text
    assert "1 pictures beside the class folders are in no class" in caplog.text
    (photos / "emu").mkdir()
    Image.new("RGB", (4, 4)).save(photos / "emu" / "0.gif")
    with pytest.raises(
        UserError, match=r"no picture in the class folder 'emu', only 1 files \(1 \.gif\)\npictures are"
    ):
        ImageFolder(str(photos))


def test_links_that_lead_back_are_not_followed(photos, tmp_path, caplog):
    (photos / "cat" / "up").symlink_to("..", target_is_directory=True)
    (photos / "cat" / "same").symlink_to(".", target_is_directory=True)
    (photos / "loop").symlink_to(".", target_is_directory=True)
    (photos / "cat" / "itself").symlink_to("itself")
    dataset = ImageFolder(str(photos))
    assert names(dataset, photos) == ALL and dataset.class_names == ("cat", "dog")
    assert dataset.left_out["links that lead back"] == 3 and "did not follow 3 links" in caplog.text


def test_links_to_other_folders_are_followed_once(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "7.png")
    (photos / "emu").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "cat" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "cat" / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "dog" / "2.png").symlink_to("0.png")
    dataset = ImageFolder(str(photos))
    assert names(dataset, photos) == [*ALL[:2], "cat/again/7.png", *ALL[2:], "dog/2.png", "emu/7.png"]


# ---- what cannot be read ---------------------------------------------------------------------------------------------


def text_chunk(path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("prompt", "x" * 3_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def cut(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def broken(path):
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"I\x00AT"))


BAD = {
    "text": (text_chunk, "Decompressed data too large"),
    "bomb": (lambda path: Image.new("1", (20000, 9500)).save(path), r"190000000 pixels\) exceeds limit"),
    "cut": (cut, "truncated"),
    "empty": (lambda path: path.touch(), "it is empty, damaged or of a format that Pillow does not know"),
    "broken": (broken, "damaged or of a format"),
    "other": (lambda path: path.write_bytes(b"GIF no, nor anything else"), "of a format that Pillow does not know"),
    "fifo": (os.mkfifo, "it is no file, but a FIFO"),
    "dangling": (lambda path: path.symlink_to("nothing"), "a link to nothing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_named_or_skipped_and_counted(photos, kind, caplog):
    """Of three pictures of a class, the one in the middle."""
    make, reason = BAD[kind]
    clean = ImageFolder(str(photos), unreadable="skip")
    make(photos / "cat" / "00.png")  # after 0.png and before 1.png
    with pytest.raises(UserError, match=rf"cat/00\.png: not a readable image \(.*{reason}") as refused:
        refusing = ImageFolder(str(photos))
        [refusing[i] for i in range(len(refusing))]
    assert "dataset.unreadable=skip" in str(refused.value) and len(str(refused.value).splitlines()) == 2
    dataset = ImageFolder(str(photos), unreadable="skip")
    assert names(dataset, photos) == ALL
    assert [dataset[i].image.getpixel((0, 0)) for i in range(4)] == [clean[i].image.getpixel((0, 0)) for i in range(4)]
    assert list(dataset.left_out["unreadable"]) == ["cat/00.png"]
    assert "left out 1 of 5 pictures (dataset.unreadable=skip): cat/00.png (" in caplog.text
    again = ImageFolder(str(photos), unreadable="skip")
    assert again.left_out == dataset.left_out and again.fingerprint == dataset.fingerprint != clean.fingerprint


def test_where_nothing_is_unreadable_skipping_changes_no_key(photos):
    assert ImageFolder(str(photos), unreadable="skip").fingerprint == ImageFolder(str(photos)).fingerprint


def test_nothing_left_and_boxes_of_what_is_left(photos):
    (photos / "cat" / "0.png").write_bytes(b"")
    (photos.parent / "boxes.csv").write_text("file,xmin,ymin,xmax,ymax\ncat/0.png,0,0,9,9\ndog/1.png,0,0,9,9\n")
    dataset = ImageFolder(str(photos), boxes=str(photos.parent / "boxes.csv"), unreadable="skip")
    assert names(dataset, photos) == ["dog/1.png"] and dataset[0].mask.sum() == 81
    with pytest.raises(UserError, match=r"cat/0\.png: not a readable image \(it is empty, damaged"):
        ImageFolder(str(photos), boxes=str(photos.parent / "boxes.csv"))
    for name in ALL:
        (photos / name).write_bytes(b"")
    with pytest.raises(UserError, match="none of its 4 pictures can be read"):
        ImageFolder(str(photos), unreadable="skip")


def test_imagenet_reads_by_the_same_rules(tmp_path, caplog):
    import torch

    wnids = {"n01": ("tench", "Tinca"), "n02": ("goldfish",)}
    torch.save((wnids, ["n02", "n01"]), tmp_path / "meta.bin")
    for wnid in ("n01", "n02", ".ipynb_checkpoints"):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "val" / wnid / "a.png")
    (tmp_path / "val" / "n01" / "b.JPEG").touch()
    dataset = ImageNet(str(tmp_path), unreadable="skip")
    assert dataset.class_names == ("tench", "goldfish") and len(dataset) == 2
    assert dataset[0].image.getpixel((0, 0)) == (255, 255, 255)
    assert list(dataset.left_out["unreadable"]) == ["n01/b.JPEG"] and "left out 1 of 3" in caplog.text
    with pytest.raises(UserError, match=r"n01/b\.JPEG: not a readable image"):
        ImageNet(str(tmp_path))[1]
    (tmp_path / "val" / "n03").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "val" / "n03" / "a.png")
    with pytest.raises(UserError, match=r"n03 is no class of ImageNet\n.*did you mean 'n0"):
        ImageNet(str(tmp_path), unreadable="skip")


# ---- identity --------------------------------------------------------------------------------------------------------


def test_the_identity_is_the_content(photos):
    path = photos / "cat" / "0.png"
    first, old = ImageFolder(str(photos)), path.read_bytes()
    stat = path.stat()
    path.write_bytes(old[:-1] + b"\x00")  # the same name, size, inode and time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert ImageFolder(str(photos)).fingerprint != first.fingerprint
    with pytest.raises(UserError, match=r"cat/0\.png: changed after this run began"):
        first[0]
    path.write_bytes(old)
    os.utime(path, (1, 1))
    assert ImageFolder(str(photos)).fingerprint == first.fingerprint and first[0].image.size == (64, 64)


FOLDER = ("dataset=imagefolder", "dataset.root=photos", "runner.classes=any")
RUN = ("run", *FOLDER, "method=gradient", "metric=sparseness")


def scores(folder):
    """The one score file of a results folder: its values by sample, and the card."""
    (card,) = Path(folder, "scores").rglob("[!.]*.json")  # not the record of a cell that was refused
    rows = csv.DictReader(card.with_suffix(".csv").read_text().splitlines())
    return [float(row["value"]) for row in rows], json.loads(card.read_text())


def noise(photos, seed):
    for number, name in enumerate(ALL):
        random = np.random.default_rng(seed + number)
        path = photos / name.replace("png", "bmp")
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        (photos / name).unlink(missing_ok=True)


def test_images_replaced_under_the_same_names_and_sizes_are_scored_anew(xaibench, photos):
    noise(photos, 0)
    assert xaibench(*RUN)[0] == 0
    old = scores("results")
    for path in photos.rglob("*.bmp"):
        os.utime(path)
    assert xaibench(*RUN, "runner.reuse=only-cache")[0] == 0, "a touch is no change"
    sizes = [path.stat().st_size for path in sorted(photos.rglob("*.bmp"))]
    noise(photos, 100)
    assert [path.stat().st_size for path in sorted(photos.rglob("*.bmp"))] == sizes
    code, _, said = xaibench(*RUN, "runner.reuse=only-cache")
    assert code == 2 and "only-cache" in said
    assert xaibench(*RUN, "paths.results=new")[0] == 0
    assert xaibench(*RUN, "paths.results=fresh", "paths.cache=fresh-cache")[0] == 0
    new, fresh = scores("new"), scores("fresh")
    assert new[0] == fresh[0] != old[0]
    assert new[1]["keys"] == fresh[1]["keys"] and new[1]["keys"]["data_key"] != old[1]["keys"]["data_key"]


def test_the_score_card_and_stderr_say_what_was_left_out(xaibench, photos):
    (photos / "cat" / "00.png").touch()
    Image.new("RGB", (4, 4)).save(photos / "cat" / "2.gif")
    code, _, said = xaibench(*RUN)
    assert code == 2 and "cat/00.png: not a readable image" in said and "dataset.unreadable=skip" in said
    code, _, said = xaibench(*RUN, "dataset.unreadable=skip")
    assert code == 0 and "left out 1 of 5 pictures" in " ".join(said.split()) and "1 .gif" in said
    values, card = scores("results")
    assert len(values) == card["n"] == 4
    assert card["left_out"] == {
        "other endings": {".gif": 1},
        "unreadable": {"cat/00.png": "it is empty, damaged or of a format that Pillow does not know"},
    }


def test_a_second_run_opens_no_picture(photos, monkeypatch):
    """The interpreter itself reports what it opens."""
    code = (
        "import sys; from xaibench.datasets.imagefolder import ImageFolder\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "ImageFolder('photos', unreadable='skip')\n"
        "print(sum(name.endswith('.png') for name in opened))"
    )
    monkeypatch.setenv("XAIBENCH_MEMO", str(photos.parent / "memo"))
    time.sleep(2.1)
    opened = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)]
    assert opened == ["8\n", "0\n"], "to see whether it is readable, and for its digest; then neither"
