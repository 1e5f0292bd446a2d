"""A folder in Broden's format: numbers in colours, whole-picture labels, splits, mistakes."""

import csv

import numpy as np
import pytest
from PIL import Image

from xaibench.datasets.base import Samples
from xaibench.datasets.broden import Broden
from xaibench.errors import UserError
from xaibench.models.preprocessing import Preprocessing

LABELS = [
    ("number", "name", "category", "frequency"),
    (1, "sky", "object(2)", 2),
    (300, "dog", "object(3)", 3),
    (7, "fur", "part(1)", 1),
    (8, "street", "scene(1)", 9),
]


def numbers(path, codes):
    codes = np.array(codes)
    Image.fromarray(np.stack([codes % 256, codes // 256, 0 * codes], -1).astype(np.uint8)).save(path)


def write(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 4 x 2 pixels; concepts are drawn at half of that, in two categories."""
    root = tmp_path / "broden"
    (root / "images" / "a").mkdir(parents=True)
    for k in range(3):
        Image.new("RGB", (4, 2), (50 * k, 0, 0)).save(root / "images" / "a" / f"{k}.png")
    numbers(root / "images" / "a" / "0_object.png", [[1, 300]])
    numbers(root / "images" / "a" / "1_object.png", [[300, 0]])
    numbers(root / "images" / "a" / "1_part.png", [[7, 7]])
    write(root / "label.csv", LABELS)
    write(
        root / "index.csv",
        [
            ("image", "split", "ih", "iw", "sh", "sw", "object", "part", "scene"),
            ("a/0.png", "val", 2, 4, 1, 2, "a/0_object.png", "", "8"),
            ("a/1.png", "train", 2, 4, 1, 2, "a/1_object.png", "a/1_part.png", ""),
            ("a/2.png", "val", 2, 4, 1, 2, "", "", "8;7"),
        ],
    )
    return root


def test_numbers_are_red_and_256_green_at_the_size_of_the_picture(folder):
    dataset = Broden(str(folder))
    assert len(dataset) == 2 and dataset[1].image.getpixel((0, 0)) == (100, 0, 0) and dataset[1].label == 0
    assert dataset.concept_names == ("street", "dog", "sky", "fur")  # by frequency
    found = {name: marked.int().tolist() for name, marked in dataset.concepts([0, 1]).items()}
    none, everywhere = [[0] * 4] * 2, [[1] * 4] * 2
    assert found == {
        "sky": [[[1, 1, 0, 0]] * 2, none],
        "dog": [[[0, 0, 1, 1]] * 2, none],
        "fur": [none, everywhere],
        "street": [everywhere, everywhere],
    }
    samples = Samples(dataset, Preprocessing(crop=2), [])
    assert samples.concepts([0], ["sky"]).tolist() == [[[[True, False]] * 2]]


def test_splits_categories_and_concepts_can_be_chosen(folder):
    train = Broden(str(folder), "train", categories=["part"], concepts=["fur", "sky"])
    assert len(train) == 1 and train.concept_names == ("fur", "sky")
    found = train.concepts([0])
    assert found["fur"].all() and not found["sky"].any()
    assert Broden(str(folder), most=2).concept_names == ("street", "dog")
    assert Broden(str(folder), "validation").fingerprint != Broden(str(folder)).fingerprint


def test_a_column_names_classes(folder):
    rows = list(csv.reader((folder / "index.csv").read_text().splitlines()))
    write(folder / "index.csv", [[*rows[0], "class"], *([*row, name] for row, name in zip(rows[1:], "bab"))])
    dataset = Broden(str(folder))
    assert dataset.class_names == ("a", "b") and [dataset[k].label for k in range(2)] == [1, 1]
    assert Broden(str(folder), "train")[0].label == 0


def test_content_is_identity(folder):
    before = Broden(str(folder)).fingerprint
    numbers(folder / "images" / "a" / "0_object.png", [[1, 1]])
    assert Broden(str(folder)).fingerprint != before


@pytest.mark.parametrize(
    ("change", "parameters", "said"),
    [
        (None, {"split": "tests"}, "dataset.split=tests: did you mean 'test'"),
        (None, {"categories": ["objects"]}, "dataset.categories: objects is no column of .*did you mean 'object'"),
        (None, {"concepts": ["dogs"]}, "dataset.concepts: dogs is not in .*did you mean 'dog'"),
        (("label.csv", [("number", "names")]), {}, "there is no column 'name'"),
        (("label.csv", [("number", "name"), ("x", "dog")]), {}, "label.csv: line 2: expected a whole number"),
        (("index.csv", [("image", "split"), ("a/0.png", "val")]), {"split": "train"}, "only val"),
        (("index.csv", [("image", "split"), ("a/9.png", "val")]), {}, "9.png"),
        (
            ("index.csv", [("image", "split", "class"), ("a/0.png", "val", "x"), ("a/2.png", "val", "")]),
            {},
            "2.png has",
        ),
    ],
)
def test_mistakes_are_named(folder, change, parameters, said):
    if change:
        write(folder / change[0], change[1])
    with pytest.raises(UserError, match=said) as refused:
        Broden(str(folder), **parameters)
    assert len(str(refused.value).splitlines()) <= 2


def test_a_damaged_file_is_named_where_it_is_met(folder):
    (folder / "images" / "a" / "0_object.png").write_bytes(b"no picture")
    dataset = Broden(str(folder))
    with pytest.raises(UserError, match=r"0_object\.png: not a readable PNG"):
        dataset.concepts([0])


def test_units_are_compared_with_its_concepts(folder, xaibench):
    code, out, said = xaibench(
        "run", "metric=network_dissection", "dataset=broden", f"dataset.root={folder}", "model.weights=random",
        "model.resize=64", "model.crop=64", "runner.classes=any", "fit.limit=4", "metric.concepts=[sky,dog]",
    )  # fmt: skip
    assert code == 0, said
    _, out, _ = xaibench("leaderboard", "--metric", "network_dissection", "--csv")
    assert "ceiling_sky" in out and "detectors_dog" in out and "street" not in out
