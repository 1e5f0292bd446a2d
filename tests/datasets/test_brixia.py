"""X-rays from folders: cases and folds, zones, boxes, and what is said of files that are not as they should be."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xaibench.datasets.brixia import Brixia, case_of, folds_of
from xaibench.datasets.nih import COLUMNS, FINDINGS, NIH
from xaibench.errors import UserError

ZONES = "ABCDEF"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 90x60 with two lungs as blocks of three grey stripes; two of a case; one without a mask."""
    root = tmp_path_factory.mktemp("brixia")
    (root / "images").mkdir()
    (root / "lungs").mkdir()
    with open(root / "scores.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *(f"{r}-{zone}" for r in "SJ" for zone in ZONES), "source_file"])
        for k in range(12):
            severities = [(k + place) % 4 for place in range(6)]
            table.writerow([f"{k:03}.png", *severities, *[0] * 6, f"covid-19-pneumonia-{k // 2}-day{k}.jpg"])
            pixels, lungs = np.full((60, 90), 200, np.uint8), np.zeros((60, 90), bool)
            for place, severity in enumerate(severities):
                left, top = (10, 50)[place // 3], 9 + 14 * (place % 3)
                pixels[top : top + 14, left : left + 30], lungs[top : top + 14, left : left + 30] = 40 * severity, True
            Image.fromarray(pixels).save(root / "images" / f"{k:03}.png")
            if k != 5:
                Image.fromarray(lungs).save(root / "lungs" / f"{k:03}.png")
    return root


def test_names_of_one_case():
    same = [
        ("covid-19-pneumonia-58-day-9.jpg", "covid-19-pneumonia-58-day-10.jpg", "covid-19-pneumonia-58-prior.jpg"),
        ("lancet-case2a.jpg", "lancet-case2b.jpg"),
        ("16654_4_1.jpg", "16654_1_1.png"),
        ("extubation-1.jpg", "extubation-8.jpg"),
        ("nejmoa2001191_f3-PA.jpeg", "nejmoa2001191_f4.jpeg"),
        ("covid-19-pneumonia-20.jpg", "covid-19-pneumonia-20-pa-on-admission.jpg"),
    ]
    cases = [{case_of(name) for name in names} for names in same]
    assert all(len(case) == 1 for case in cases) and len(set().union(*cases)) == len(same)
    apart = ("covid-19-pneumonia-7-PA.jpg", "covid-19-pneumonia-12.jpg", "radiol.2020200274.fig3d.png",
             "radiol.2020200490.fig3.jpeg", "7EF28E12-F628-4BEC-A8C5-E6277C2E4F60.png")  # fmt: skip
    assert len({case_of(name) for name in apart}) == len(apart)


def test_folds_keep_cases_together_and_are_even():
    cases = [f"case {k // 3}" for k in range(30)]
    folds = folds_of(cases, 5, seed=1)
    assert [folds.count(fold) for fold in range(5)] == [6] * 5
    assert all(len({fold for fold, own in zip(folds, cases) if own == case}) == 1 for case in cases)
    assert folds != folds_of(cases, 5, seed=2)


def test_a_training_and_its_test_share_no_case(folder):
    seen = []
    for fold in range(3):
        parts = [Brixia(str(folder), split, folds=3, fold=fold, regions=False) for split in ("train", "test")]
        train, test = ({part.picture_of(k)[1] for k in range(len(part))} for part in parts)
        assert not train & test and len(train | test) == 6 and not parts[1].has_masks
        seen += [parts[1].picture_of(k)[0] for k in range(len(parts[1]))]
    assert sorted(seen) == [f"{k:03}.png" for k in range(12)]
    # Dealt out at random, some case is on both sides.
    random = [Brixia(str(folder), split, folds=3, grouping="random", regions=False) for split in ("train", "test")]
    names = [{int(part.picture_of(k)[0][:3]) // 2 for k in range(len(part))} for part in random]
    assert names[0] & names[1]


def test_zones_lie_where_the_severities_are_to_be_seen(folder, caplog):
    counted = 0
    for fold in range(2):
        data = Brixia(str(folder), folds=2, fold=fold, side=90)
        for index in range(len(data)):
            example, regions = data[index], data.regions([index])
            grey = torch.from_numpy(np.array(example.image.convert("L"))).float()
            for zone, severity in zip(ZONES, example.labels.tolist()):
                region = regions[zone][0]
                # Pictures are squeezed with some blur, masks without: medians do not mind the borders.
                assert grey[region].median() == 40 * severity
                assert example.mask[region].unique().tolist() == pytest.approx([severity / 3])
            assert example.label == sum(example.labels) and not example.mask[~regions["lungs"][0]].any()
            counted += 1
    assert counted == 11 and "005.png" in caplog.text
    detector = Brixia(str(folder), folds=2, side=90, task="detector:3")
    assert all(example.label == 2 and example.labels[2] == 1 for example in (detector[k] for k in range(3)))


def test_what_is_wrong_with_a_folder_is_said_in_a_sentence(folder, tmp_path):
    with pytest.raises(UserError, match=r"dataset.root=.*nowhere"):
        Brixia(str(folder / "nowhere"))
    table = (folder / "scores.csv").read_text()
    (tmp_path / "images").symlink_to(folder / "images")
    for was, becomes, message in (
        ("S-C", "S_C", r"no column 'S-C'"),
        ("source_file", "file", r"no column 'source_file'.*grouping=random"),
        ("000.png,0,", "000.png,7,", r"000.png: S-A=7: expected a severity of 0 to 3"),
        ("011.png", "111.png", r"111.png"),
    ):
        (tmp_path / "scores.csv").write_text(table.replace(was, becomes, 1))
        with pytest.raises(UserError, match=message) as caught:
            [Brixia(str(tmp_path), folds=2, fold=fold, regions=False) for fold in range(2)]
        assert len(str(caught.value).splitlines()) <= 2
    with pytest.raises(UserError, match="expected 0 to 4"):
        Brixia(str(folder), fold=5)


def test_the_public_pictures(shared):
    root = str(shared / "data" / "brixia-public")
    folds = [Brixia(root, fold=fold, side=32) for fold in range(5)]
    assert sum(len(fold) for fold in folds) == 147
    assert sum(len(fold.left_out["without lung mask"]) for fold in folds) == 181 - 147
    assert len(set(folds[0].cases)) == 127
    junior = [Brixia(root, fold=fold, reader="junior", regions=False, side=32) for fold in range(5)]
    senior = [Brixia(root, fold=fold, regions=False, side=32) for fold in range(5)]
    labels = [np.array([data._severities[i] for data in reader for i in data._images]).sum(1) for reader in
              (senior, junior)]  # fmt: skip
    assert abs(labels[0] - labels[1]).mean() == pytest.approx(1.89, abs=0.005)
    assert abs(labels[0] - labels[0].mean()).mean() == pytest.approx(3.84, abs=0.005)


def nih_folder(root: Path) -> Path:
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(root / "images" / f"0000{k}_000.png")
    rows = [COLUMNS, ("00000_000.png", "Mass", 10.2, 20, 30.5, 5), ("00000_000.png", "Effusion", 1, 1, 9, 9),
            ("00001_000.png", "Infiltrate", 0, 40, 64, 24), ("00009_000.png", "Nodule", 1, 2, 3, 4)]  # fmt: skip
    with open(root / "BBox_List_2017.csv", "w", newline="") as file:
        csv.writer(file).writerows([*row, "", "", ""] for row in rows)
    entries = [("Image Index", "Finding Labels"), ("00000_000.png", "Mass|Effusion|Hernia"),
               ("00001_000.png", "Infiltration"), ("00002_000.png", "No Finding")]  # fmt: skip
    with open(root / "Data_Entry_2017.csv", "w", newline="") as file:
        csv.writer(file).writerows(entries)
    return root


def test_a_sample_for_each_box_of_the_nih(tmp_path, caplog):
    data = NIH(str(nih_folder(tmp_path)))
    assert [FINDINGS[data[k].label] for k in range(len(data))] == ["Mass", "Effusion", "Infiltrate"]
    assert data.left_out == {"not there": 1} and "00009_000.png" in caplog.text
    inside = data[0].mask.nonzero()
    # The pixels whose centres lie in [10.2, 40.7) x [20, 25).
    assert (inside.amin(0).tolist(), inside.amax(0).tolist()) == ([20, 10], [24, 40])
    assert data[1].labels.nonzero().flatten().tolist() == [2, 4] and data[2].labels.nonzero().tolist() == [[3]]
    train = NIH(str(tmp_path), "train")
    assert len(train) == 1 and train[0].mask is None and not train[0].labels.any()


@pytest.mark.parametrize(
    ("file", "was", "becomes", "message"),
    [
        ("BBox_List_2017.csv", "Bbox [x", "x", r"no column 'Bbox \[x'"),
        ("BBox_List_2017.csv", "Mass", "Masss", r"line 2: Finding Label=Masss: did you mean 'Mass'"),
        ("BBox_List_2017.csv", "30.5", "-3", r"line 2: expected x, y and a positive width"),
        ("BBox_List_2017.csv", "0000", "1000", r"none of the pictures .* such as 1000"),
    ],
)
def test_mistakes_in_the_tables_of_the_nih(tmp_path, file, was, becomes, message):
    path = nih_folder(tmp_path) / file
    path.write_text(path.read_text().replace(was, becomes))
    with pytest.raises(UserError, match=message) as caught:
        NIH(str(tmp_path))
    assert len(str(caught.value).splitlines()) <= 2
