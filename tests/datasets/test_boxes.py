"""Bounding boxes of a folder of images: both formats, masks by hand, what is left out, identity, mistakes."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from xaibench.build import build
from xaibench.datasets.base import Samples
from xaibench.datasets.boxes import Boxes
from xaibench.datasets.imagefolder import ImageFolder
from xaibench.errors import UserError
from xaibench.models.preprocessing import Preprocessing

HEADER = ("file", "xmin", "ymin", "xmax", "ymax")


@pytest.fixture
def root(tmp_path):
    """Two classes of two images of 20 x 10 pixels, which name themselves by their red value."""
    for number, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png")):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / "pets" / name)
    return tmp_path / "pets"


@pytest.fixture
def table(tmp_path):
    def write(*rows, columns=HEADER):
        with open(tmp_path / "boxes.csv", "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        return str(tmp_path / "boxes.csv")

    return write


@pytest.fixture
def annotate(tmp_path):
    """Write the annotation of one image; corners as text goes in as it is."""

    def write(name, *boxes, size=(20, 10), text=None):
        objects = "".join(
            "<object><name>n01</name><difficult>0</difficult><bndbox>"
            + "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(HEADER[1:], box))
            + "</bndbox></object>"
            for box in boxes
        )
        extent = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
        path = tmp_path / "xml" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or f"<annotation><filename>{name}</filename>{extent}{objects}</annotation>")
        return str(tmp_path / "xml")

    return write


def rectangle(*corners, width=20, height=10):
    """The union of boxes by slices, in whole pixels."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    for xmin, ymin, xmax, ymax in corners:
        mask[ymin:ymax, xmin:xmax] = True
    return mask


def numbers(dataset):
    """Which images are in the data set, by their red value."""
    return [dataset[i].image.getpixel((0, 0))[0] for i in range(len(dataset))]


def test_a_table_with_several_boxes_of_one_image(root, table):
    rows = [("cat/a.png", 2, 1, 6, 4), ("dog/d.png", 0, 0, 3, 9), ("cat/a.png", 5, 3, 12, 6)]
    dataset = ImageFolder(str(root), boxes=table(*rows))
    assert dataset.has_masks and numbers(dataset) == [0, 3]
    assert [dataset[i].label for i in (0, 1)] == [0, 1]
    assert dataset[0].mask.equal(rectangle((2, 1, 6, 4), (5, 3, 12, 6)))
    assert dataset[1].mask.equal(rectangle((0, 0, 3, 9)))
    assert dataset.class_names == ("cat", "dog")


def test_xml_files_flat_or_in_class_folders(root, annotate):
    annotate("a", (2, 1, 6, 4), (5, 3, 12, 6))
    boxes = annotate("dog/d", (0, 0, 3, 9))
    dataset = ImageFolder(str(root), boxes=boxes)
    assert numbers(dataset) == [0, 3]
    assert dataset[0].mask.equal(rectangle((2, 1, 6, 4), (5, 3, 12, 6)))
    assert dataset[1].mask.equal(rectangle((0, 0, 3, 9)))


def test_boxes_drawn_in_a_picture_of_another_size_are_scaled(root, annotate):
    annotate("a", (10, 15, 30, 20), size=(100, 50))  # five times as large
    annotate("b", (1, 1, 2, 2), size=(10, 10))  # twice as wide for the image
    boxes = annotate("c", (2, 3, 6, 4), size=None)
    dataset = ImageFolder(str(root), boxes=boxes)
    assert dataset[0].mask.equal(rectangle((2, 3, 6, 4)))
    assert dataset[1].mask.equal(rectangle((2, 1, 4, 2)))
    assert dataset[2].mask.equal(rectangle((2, 3, 6, 4)))


def test_a_pixel_belongs_to_a_box_if_its_centre_does():
    mask = Boxes(((0.4, 0.5, 2.5, 1.6),)).mask(4, 3)
    assert mask.equal(rectangle((0, 0, 2, 2), width=4, height=3))
    assert Boxes(((-5, -5, 2, 99),)).mask(4, 3).equal(rectangle((0, 0, 2, 3), width=4, height=3))  # cut off
    assert not Boxes(((7, 0, 9, 3),)).mask(4, 3).any()


@pytest.mark.parametrize("name", ["cat/a.png", "cat/a", "a.png", "a", "./cat/a.png", " cat\\a.png"])
def test_names_of_images(root, table, name):
    assert numbers(ImageFolder(str(root), boxes=table((name, 2, 1, 6, 4)))) == [0]


def test_large_boxes_are_left_out(root, table, annotate):
    """Of 200 pixels: 60, the union of 60 and 60 that share 54 (66), 80, and 100."""
    boxes = {"a": [(0, 0, 10, 6)], "b": [(0, 0, 10, 6), (1, 0, 11, 6)], "c": [(0, 0, 10, 8)], "d": [(0, 0, 10, 10)]}
    rows = [(name, *corners) for name, found in boxes.items() for corners in found]
    for name, found in boxes.items():
        folder = annotate(name, *found)
    for path in (table(*rows), folder):
        assert numbers(ImageFolder(str(root), boxes=path)) == [0, 1]
        assert numbers(ImageFolder(str(root), boxes=path, max_box=0.3)) == [0]
        assert numbers(ImageFolder(str(root), boxes=path, max_box=0.4)) == [0, 1, 2]
        assert numbers(ImageFolder(str(root), boxes=path, max_box=None)) == [0, 1, 2, 3]
        with pytest.raises(UserError, match=r"dataset\.max_box=0\.2: the boxes of all 4 images cover more"):
            ImageFolder(str(root), boxes=path, max_box=0.2)


def test_the_mask_goes_through_the_geometry_of_the_image(root, table):
    """The box is painted white: where the model sees white, the mask has to be, except at resampled borders."""
    box = (4, 2, 9, 8)
    image = Image.new("RGB", (20, 10))
    image.paste((255, 255, 255), box)
    image.save(root / "cat" / "a.png")
    dataset = ImageFolder(str(root), boxes=table(("a", *box)))
    batch = Samples(dataset, Preprocessing(resize=40, crop=36), [0]).load([0])
    assert batch.masks.shape == (1, 36, 36) and batch.inputs.shape == (1, 3, 36, 36)
    # Four times as large: 80 x 40, of which columns 22 to 57 and rows 2 to 37 remain.
    assert batch.masks[0].equal(rectangle((16, 8, 36, 32), width=80, height=40)[2:38, 22:58])
    inside = batch.inputs[0, 0] > 0.5
    assert (inside == batch.masks[0]).float().mean() > 0.98 and inside.any()


def test_train_may_have_no_boxes_and_keeps_its_images(root, tmp_path, table):
    root.rename(tmp_path / "val")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (20, 10), (9, 0, 0)).save(tmp_path / "train" / "cat" / "z.png")
    (tmp_path / "train" / "dog").mkdir()
    Image.new("RGB", (20, 10), (10, 0, 0)).save(tmp_path / "train" / "dog" / "y.png")
    boxes = table(("cat/a.png", 2, 1, 6, 4))
    assert numbers(ImageFolder(str(tmp_path), "validation", boxes=boxes)) == [0]
    train = ImageFolder(str(tmp_path), "train", boxes=boxes)
    assert numbers(train) == [9, 10] and not train.has_masks and train[0].mask is None
    boxes = table(("cat/a.png", 2, 1, 6, 4), ("z", 2, 1, 6, 4))
    assert numbers(ImageFolder(str(tmp_path), "train", boxes=boxes)) == [9]


def test_the_fingerprint_covers_the_boxes_and_not_their_file(root, table, annotate, tmp_path):
    plain = ImageFolder(str(root)).fingerprint
    assert ImageFolder(str(root), max_box=None).fingerprint == plain  # without boxes it selects nothing
    rows = [("a", 2, 1, 6, 4), ("c", 0, 0, 10, 8)]
    first = ImageFolder(str(root), boxes=table(*rows))
    assert numbers(first) == [0] and first.fingerprint != plain
    assert ImageFolder(str(root), boxes=table(*rows), max_box=None).fingerprint != first.fingerprint
    assert ImageFolder(str(root), boxes=table(("cat/a.png", 2.0, 1, 6, 4))).fingerprint == first.fingerprint
    assert ImageFolder(str(root), boxes=table(("a", 3, 1, 6, 4))).fingerprint != first.fingerprint
    annotate("a", (2, 1, 6, 4), size=None)
    assert ImageFolder(str(root), boxes=str(tmp_path / "xml")).fingerprint == first.fingerprint
    annotate("a", (2, 1, 6, 4), size=(40, 20))
    assert ImageFolder(str(root), boxes=str(tmp_path / "xml")).fingerprint != first.fingerprint


def test_the_yaml_names_the_defaults(root):
    spec = {"_target_": "xaibench.datasets.imagefolder.ImageFolder", "root": str(root), "max_box": 2}
    with pytest.raises(UserError, match=r"dataset\.max_box=2\.0: expected a share"):
        build(spec, "dataset")


def refusal(root, boxes):
    with pytest.raises(UserError) as refused:
        ImageFolder(str(root), boxes=boxes)
    lines = str(refused.value).splitlines()
    assert len(lines) <= 2
    return " | ".join(lines)


def test_mistakes_in_a_table(root, table, tmp_path):
    assert "there is no 'boxen.csv'" in refusal(root, str(tmp_path / "boxen.csv"))
    assert "no column 'ymax' | expected a CSV with the columns file,xmin" in refusal(root, table(columns=HEADER[:4]))
    assert "no column 'file'" in refusal(root, table(columns=("image", *HEADER[1:])))
    assert "holds no box" in refusal(root, table())
    good = ("a", 2, 1, 6, 4)
    assert "line 3: ymin=top: expected a number" in refusal(root, table(good, ("b", 1, "top", 3, 4)))
    assert "line 3: ymax=: expected a number" in refusal(root, table(good, ("b", 1, 2, 3)))
    assert "line 2: xmax=nan: expected a number" in refusal(root, table(("b", 1, 2, "nan", 3)))
    assert "line 2: expected the name of an image" in refusal(root, table(("", 1, 2, 3, 4)))
    assert "line 2: expected xmin < xmax and ymin < ymax, not 6,1,2,4" in refusal(root, table(("a", 6, 1, 2, 4)))
    unknown = refusal(root, table(("e.png", 2, 1, 6, 4), ("f.png", 2, 1, 6, 4)))
    assert "names no image of" in unknown and "such as 'cat/a.png' | it names 'e.png' and 1 others" in unknown
    (tmp_path / "boxes.csv").write_bytes(b"\xff\xfe\x00\x80")
    assert "boxes.csv: not a readable CSV file" in refusal(root, str(tmp_path / "boxes.csv"))
    assert "not a readable CSV file" in refusal(root, str(root / "cat" / "a.png"))
    (root / "dog" / "a.png").write_bytes((root / "cat" / "a.png").read_bytes())
    assert "'a' may mean cat/a.png or dog/a.png | name images with their class" in refusal(root, table(good))


@pytest.mark.parametrize(
    "text, message",
    [
        ("<annotation><object>", "a.xml: not a readable XML file (no element found: line 1"),
        ("<boxes></boxes>", "expected Pascal VOC's <annotation>, not <boxes>"),
        ("<annotation><object><name>n01</name></object></annotation>", "expected a <bndbox> in every <object>"),
        ("<annotation><size><width>20</width></size></annotation>", "height=: expected a number"),
        (
            "<annotation><size><width>0</width><height>10</height></size></annotation>",
            "expected a positive width and height, not 0 and 10",
        ),
        (
            "<annotation><object><bndbox><xmin>1</xmin><ymin>x</ymin></bndbox></object></annotation>",
            "ymin=x: expected a number",
        ),
        ("<annotation></annotation>", "holds no box"),
        (
            '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;">]><annotation>&y;</annotation>',
            "it declares a document type",
        ),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>',
            "it declares a document type",
        ),
    ],
)
def test_mistakes_in_xml(root, annotate, text, message):
    assert message in refusal(root, annotate("a", text=text))


def test_a_folder_without_annotations(root, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no box: expected a CSV file or a folder of Pascal VOC XML" in refusal(root, str(tmp_path / "empty"))


def test_inverted_corners_in_xml(root, annotate):
    assert "a.xml: expected xmin < xmax and ymin < ymax, not 6,1,6,4" in refusal(root, annotate("a", (6, 1, 6, 4)))


def test_from_the_command_line(xaibench, root, table):
    """Without boxes the pairing is refused; under them the oracle is perfect, on the images that are left."""
    folder = ("dataset=imagefolder", f"dataset.root={root}", "runner.classes=any")
    common = ["run", *folder, "method=oracle", "metric=rank_accuracy"]
    common += ["model.resize=64", "model.crop=64"]
    code, _, error = xaibench(*common)
    assert code == 2 and "needs ground-truth masks" in error
    boxes = table(("a", 6, 2, 12, 9), ("c", 4, 4, 8, 8), ("d", 0, 0, 20, 10))
    code, _, error = xaibench(*common, f"dataset.boxes={boxes}")
    assert code == 0, error
    code, _, error = xaibench("leaderboard")
    assert code == 0, error
    (row,) = csv.DictReader(Path("results/leaderboard.csv").read_text().splitlines())
    assert (row["dataset"], float(row["value"]), row["n"], row["excluded"]) == ("imagefolder", 1, "2", "0")
