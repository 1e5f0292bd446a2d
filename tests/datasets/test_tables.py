"""Tables: what is read from a CSV file, how rows are dealt to folds, and Friedman's problem with its truth."""

import gzip

import numpy as np
import pytest
import torch

from xaibench.datasets.base import Samples
from xaibench.datasets.tables import SPLITS, Friedman1, Table, friedman1
from xaibench.errors import UserError
from xaibench.models.preprocessing import Preprocessing

ROWS = [(0.5 * row, (row * 7) % 5, row % 3, 2.5 * row + 1) for row in range(12)]


def text(rows=ROWS, header="a,b,c,y", separator=","):
    lines = [separator.join(map(str, row)) for row in rows]
    return "\n".join([header.replace(",", separator), *lines] if header else lines) + "\n"


@pytest.fixture
def table(tmp_path):
    """Write a file and read it: table(text, split="train", ...)."""

    def make(content, name="t.csv", **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Table(str(path), **{"folds": 3, **settings})

    return make


@pytest.mark.parametrize(
    "build", [lambda split, fold: Friedman1(split, samples=101, fold=fold, folds=7, validation=0.2)]
)
def test_folds_share_out_the_rows_and_standardise_by_their_training_rows(build):
    tested = []
    for fold in range(7):
        parts = {split: build(split, fold) for split in SPLITS}
        rows = {split: part.rows.tolist() for split, part in parts.items()}
        assert sorted(row for part in rows.values() for row in part) == list(range(101))
        tested += rows["test"]
        train = parts["train"].table[rows["train"]].numpy()
        for part in parts.values():
            expected = (part.table[part.rows].numpy() - train.mean(0)) / train.std(0)
            np.testing.assert_allclose(part.inputs, expected, atol=1e-5)
            np.testing.assert_allclose(part.original(3), part.table[part.rows[3]], atol=1e-6)
    assert sorted(tested) == list(range(101))


def test_friedman1_is_scikit_learns_and_its_gradient_autograds():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.make_friedman1(50, 8, noise=0, random_state=0)
    np.testing.assert_allclose(friedman1(torch.from_numpy(x)), y)
    data = Friedman1(features=8, samples=300, truth="gradient")
    row = data.table[data.rows[4]][None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(friedman1(row).sum(), row)
    torch.testing.assert_close(data.gradient(4), slope[0] * data.std)
    torch.testing.assert_close(data[4].mask.double(), (slope * data.std).abs(), atol=1e-6, rtol=1e-6)
    assert data[4].label == pytest.approx(friedman1(row).item())
    noisy = Friedman1(features=8, samples=20_000, noise=2.0, folds=2)
    added = noisy.labels - friedman1(noisy.table[noisy.rows])
    assert float(added.std()) == pytest.approx(2, abs=0.05) and float(added.mean()) == pytest.approx(0, abs=0.06)
    assert Friedman1()[0].mask.tolist() == [[True] * 5 + [False] * 5]


def test_every_way_to_write_a_table_is_the_same_table(table):
    plain = table(text())
    assert plain.features == ("a", "b", "c") and plain.class_names == ()
    others = [
        table(b"\xef\xbb\xbf" + text().encode()),
        table(gzip.compress(text().encode()), "t.csv.gz"),
        table(text(header=None)),
        table(text(separator=";"), separator=";"),
        table(text().replace("\n", "\r\n").replace("y\r\n", "y\r\n\r\n")),
        table(text([(row[3], *row[:3]) for row in ROWS], "y,a,b,c"), target="y"),
        table(text([(row[3], *row[:3]) for row in ROWS], "y,a,b,c"), target=0),
    ]
    for other in others:
        assert other.rows.equal(plain.rows) and other.inputs.equal(plain.inputs) and other.labels.equal(plain.labels)
    assert others[2].features == ("c0", "c1", "c2") and others[0].features == plain.features
    assert plain.labels.tolist() == [ROWS[row][3] for row in plain.rows]
    assert plain.fingerprint != table(text(ROWS[::-1])).fingerprint
    batch = Samples(plain, Preprocessing(), range(4)).load(range(4))
    assert batch.inputs.shape == (4, 1, 1, 3) and batch.labels.dtype == torch.float32


def test_diabetes_is_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    found, data = datasets.load_diabetes(scaled=False), Table("diabetes", fold=2)
    np.testing.assert_array_equal(data.labels, found.target[data.rows])
    np.testing.assert_allclose(data.original(7), found.data[data.rows[7]], rtol=1e-6)


def test_classes_are_the_columns_values(table):
    rows = [(*row[:3], ("yes", "no", " maybe")[number % 3]) for number, row in enumerate(ROWS)]
    data = table(text(rows), task="classification")
    assert data.class_names == ("maybe", "no", "yes")
    assert [data.class_names[data[i].label] for i in range(len(data))] == [rows[row][3].strip() for row in data.rows]
    assert table(
        text([(*r[:3], f"{10 - n % 2}.0") for n, r in enumerate(ROWS)]), task="classification"
    ).class_names == (
        "9",
        "10",
    )


def test_a_constant_column_is_0_and_said(table, caplog):
    rows = [(*row[:2], 0.1, row[3]) for row in ROWS]
    data = table(text(rows))
    assert (
        (data.inputs[:, 2] == 0).all() and data.inputs[:, :2].std() > 0.5 and data.original(0)[2] == pytest.approx(0.1)
    )
    assert "column 'c' is constant among the training rows: it is taken as 0" in caplog.text


def test_two_rows_are_a_table_of_which_nothing_can_be_trained(table):
    with pytest.raises(UserError, match="folds=2: of the table's 2 rows 1 are left to train on: expected at least 2"):
        table(text(ROWS[:2]), folds=2)
    assert len(table(text(ROWS[:3]), split="train")) == 2


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "the file is empty"),
        ("a,b,y\n", {}, "below the names of the columns there are no rows"),
        (text(), {"target": "yy"}, "target=yy: the table has no such column: did you mean 'y'"),
        (text(), {"target": 4}, "target=4: the table has columns 0 to 3"),
        (text(ROWS[:2]), {"folds": 10}, "folds=10: the table has 2 rows, expected at least one for each fold"),
        (text([*ROWS, (1, "red", 2, 3)]), {}, "column 'b', line 14: 'red' is no number \\(1 of 13 rows\\)"),
        (text([*ROWS, (1, "", 2, 3)]), {}, "column 'b', line 14: a value is missing"),
        (text([*ROWS, (1, "nan", 2, 3)]), {}, "column 'b', line 14: 'nan' is no number"),
        (text([*ROWS, (1, 2, 2, "high")]), {}, "column 'y', line 14: 'high' is no number"),
        (text([*ROWS, (1, 2, 2)]), {}, "line 14 has 3 cells, the first one 4"),
        (text([(*row[:3], 5) for row in ROWS]), {}, "column 'y' .*has one value only, 5: there is nothing to predict"),
        (text([(*row[:3], "a") for row in ROWS]), {"task": "classification"}, "has one value only, a"),
        (text([(*row[:3], " ") for row in ROWS]), {"task": "classification"}, "column 'y', line 2: a class is missing"),
        (text(header="a,a,c,y"), {}, "two columns are called 'a'"),
        (text(separator=";"), {}, "there are semicolons: dataset.separator=';'"),
        (text([(row[3],) for row in ROWS], "y"), {}, "it has one column, 'y'"),
        (text(), {"separator": ";;"}, "separator=';;': expected one character"),
        (b"\x00\xff\xfe", {}, "expected a CSV file in UTF-8"),
        (b"\x1f\x8bno gzip", {}, "expected a CSV file in UTF-8, plain or gzip"),
        (text(), {"fold": 3}, "fold=3: expected 0 to 2"),
        (text(), {"folds": 1}, "folds=1: expected at least 2"),
        (text(), {"split": "tset"}, "did you mean 'test'"),
        (text(), {"split": "validation"}, "no rows are held out: set dataset.validation=0.1"),
        (text(), {"validation": 1.0}, "validation=1.0"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(content, settings, message, table):
    with pytest.raises(UserError, match=message) as caught:
        table(content, **settings)
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize("settings", [{"features": 4}, {"samples": 1}, {"noise": -1.0}])
def test_friedman1_refuses_what_is_no_table(settings):
    with pytest.raises(UserError, match=f"dataset.{next(iter(settings))}="):
        Friedman1(**settings)


def test_a_file_that_is_not_there_is_named_with_the_nearest(tmp_path):
    (tmp_path / "mine.csv").write_text(text())
    with pytest.raises(UserError, match=r"did you mean 'mine\.csv'"):
        Table(str(tmp_path / "mien.csv"))
    with pytest.raises(UserError, match="it is a folder"):
        Table(str(tmp_path))
