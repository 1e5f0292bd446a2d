"""Tables: rows of features with a value or a class to predict, generated or read from a CSV file.

A row is an input [1,1,d]: its features are places, not channels. Features are standardised (mean 0, variance 1) by the
training rows of the fold, so that 0 is a feature's mean; labels keep their unit.
"""

import csv
import functools
import gzip
import hashlib
import io
import logging
import math
from collections.abc import Sequence
from typing import Literal

import torch

from ..errors import UserError, nearest
from ..rng import generator
from ..store.files import existing
from .base import Dataset, Example

log = logging.getLogger(__name__)

VERSION = 1  # raised when any value of any row changes
SPLITS = ("train", "validation", "test")
_Content = tuple[list[str], list[list[str]], Sequence[int], str]
DIABETES = "diabetes"  # the word for the table that scikit-learn brings


class Rows(Dataset):
    """The rows of one split of one fold.

    Rows are dealt to `folds` parts of nearly equal size, in an order that the table's own seed draws. The part of
    number `fold` is the test split; of the rows of the others the first share `validation` is the validation split, and
    the rest are the training rows. Sample ids count the rows of a split, in the order of the table.

    Attributes:
        features: The features' names, in the order of places.
        mean, std: [d], of the training rows, float64. A feature that is constant there has std 1, so that it is 0.
        inputs: [n,d] float32, standardised. labels: [n] float64, or int64 classes.
        rows: [n] int64, which rows of the table they are.
    """

    def __init__(
        self,
        table: torch.Tensor,
        labels: torch.Tensor,
        features: Sequence[str],
        *,
        split: str,
        fold: int,
        folds: int,
        validation: float,
        seed: int,
    ) -> None:
        _check_split(split, fold, folds, validation, len(table))
        self.features = tuple(features)
        order = torch.randperm(len(table), generator=generator("folds", seed))
        test = torch.arange(len(table)) % folds == fold
        rest = order[~test]
        held = round(validation * len(rest))
        parts = {"test": order[test], "validation": rest[:held], "train": rest[held:]}
        if len(parts["train"]) < 2:
            raise UserError(
                f"dataset.folds={folds}: of the table's {len(table)} rows {len(parts['train'])} are left to train on: "
                "expected at least 2"
            )
        train = table[parts["train"]]
        self.mean, self.std = train.mean(0), train.std(0, correction=0)
        # What only rounding tells from a constant is one.
        self.constant = self.std <= 1e-12 * train.abs().amax(0)
        self.std = self.std.masked_fill(self.constant, 1.0)
        self.rows = parts[split].sort().values
        self.inputs = ((table[self.rows] - self.mean) / self.std).masked_fill(self.constant, 0.0).float()
        self.labels = labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        label = self.labels[index].item()
        return Example(self.inputs[index].view(1, 1, -1), label, self.mask(index))

    def mask(self, index: int) -> torch.Tensor | None:
        """The truth about a row [1,d], where there is one."""
        return None

    def original(self, index: int) -> torch.Tensor:
        """A row's features as the table has them: float64 [d]."""
        return self.inputs[index].double() * self.std + self.mean


class Friedman1(Rows):
    """Friedman's first problem: y = 10 sin(pi x0 x1) + 20 (x2 - 0.5)^2 + 10 x3 + 5 x4 + noise, x uniform in 0 to 1.

    Friedman 1991, as scikit-learn's `make_friedman1` has it. The truth is known: features 0 to 4 matter, the others do
    not, and how much each matters at a row is the gradient.

    samples: rows of the table, of all folds. features: at least 5. noise: standard deviation of what is added to y.
    truth: what masks are: the `features` that matter, or the absolute `gradient` of y at the row, per standard
        deviation of each feature (graded).
    generator_seed: another value is another table. split, fold, folds, validation: see `Rows`.
    """

    has_masks = True

    def __init__(
        self,
        split: str = "test",
        samples: int = 5000,
        features: int = 10,
        noise: float = 0.0,
        truth: Literal["features", "gradient"] = "features",
        fold: int = 0,
        folds: int = 10,
        validation: float = 0.0,
        generator_seed: int = 0,
    ) -> None:
        if features < 5:
            raise UserError(f"dataset.features={features}: expected at least 5, of which y is made")
        if samples < 2:
            raise UserError(f"dataset.samples={samples}: expected at least 2")
        if noise < 0:
            raise UserError(f"dataset.noise={noise}: expected 0 or more")
        draw = generator("friedman1", generator_seed)
        self.table = torch.rand(samples, features, generator=draw, dtype=torch.float64)
        added = noise * torch.randn(samples, generator=draw, dtype=torch.float64)
        super().__init__(
            self.table,
            friedman1(self.table) + added,
            [f"x{index}" for index in range(features)],
            split=split,
            fold=fold,
            folds=folds,
            validation=validation,
            seed=generator_seed,
        )
        self.truth, self.graded_masks = truth, truth == "gradient"
        self.fingerprint = f"friedman1-{VERSION}"

    def mask(self, index: int) -> torch.Tensor:
        if self.graded_masks:
            return self.gradient(index).abs().float()[None]
        return (torch.arange(len(self.features)) < 5)[None]

    def gradient(self, index: int) -> torch.Tensor:
        """The gradient of y without noise at a row, per standard deviation of each feature: float64 [d]."""
        x = self.table[self.rows[index]]
        found = torch.zeros_like(x)
        found[0] = 10 * math.pi * x[1] * torch.cos(math.pi * x[0] * x[1])
        found[1] = 10 * math.pi * x[0] * torch.cos(math.pi * x[0] * x[1])
        found[2], found[3], found[4] = 40 * (x[2] - 0.5), 10.0, 5.0
        return found * self.std


class Table(Rows):
    """A CSV file with a column to predict; the other columns are the features.

    path: of the file, plain or gzip, UTF-8 with or without a byte-order mark; `diabetes` is the table of 442 patients
        that scikit-learn brings (it needs scikit-learn).
    target: the column to predict, by name, or by number from 0 or, from the end, from -1.
    task: `regression`, a real value; `classification`, a class, whose names are the column's values in order.
    header: whether the first line names the columns; None: it does unless all its cells are numbers.
    separator: between columns. fold_seed: another value deals the rows in another order.
    split, fold, folds, validation: see `Rows`.

    Raises UserError, with the place in the file, for a column that is missing or holds something that is no number, for
    missing values, for lines of different lengths, for a target that has one value only, and for too few rows. A
    feature that is constant among the training rows is kept as 0, and that is said.
    """

    def __init__(
        self,
        path: str,
        split: str = "test",
        target: str | int = -1,
        task: Literal["regression", "classification"] = "regression",
        header: bool | None = None,
        separator: str = ",",
        fold: int = 0,
        folds: int = 10,
        validation: float = 0.0,
        fold_seed: int = 0,
    ) -> None:
        names, cells, lines, digest = _read(path, header, separator)
        place = _place(target, names)
        features = [name for at, name in enumerate(names) if at != place]
        if not features:
            raise UserError(f"dataset.path={path}: it has one column, '{names[0]}': expected the target and features")
        columns = [
            _numbers(path, name, [row[at] for row in cells], lines) for at, name in enumerate(names) if at != place
        ]
        answers = [row[place] for row in cells]
        if task == "classification":
            self.class_names = _classes(path, names[place], answers, lines)
            labels = torch.tensor([self.class_names.index(_class(answer)) for answer in answers])
        else:
            labels = torch.tensor(_numbers(path, names[place], answers, lines), dtype=torch.float64)
        if (labels == labels[0]).all():
            raise UserError(
                f"dataset.target={target}: the column '{names[place]}' of {path} has one value only, {answers[0]}: "
                "there is nothing to predict"
            )
        super().__init__(
            torch.tensor(columns, dtype=torch.float64).T.contiguous(),
            labels,
            features,
            split=split,
            fold=fold,
            folds=folds,
            validation=validation,
            seed=fold_seed,
        )
        for name, constant in zip(features, self.constant.tolist()):
            if constant:
                _warn_constant(path, name)
        self.fingerprint = f"table-{VERSION}:{digest}"


def friedman1(x: torch.Tensor) -> torch.Tensor:
    """Friedman's first function of features [n,d] in 0 to 1, without noise: [n]."""
    return 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]


def _check_split(split: str, fold: int, folds: int, validation: float, rows: int) -> None:
    if split not in SPLITS:
        raise UserError(f"dataset.split={split}: {nearest(split, SPLITS)}")
    if folds < 2:
        raise UserError(f"dataset.folds={folds}: expected at least 2")
    if not 0 <= fold < folds:
        raise UserError(f"dataset.fold={fold}: expected 0 to {folds - 1}, of {folds} folds")
    if not 0 <= validation < 1:
        raise UserError(f"dataset.validation={validation}: expected a share of the training rows from 0 to below 1")
    if rows < folds:
        raise UserError(
            f"dataset.folds={folds}: the table has {rows} rows, expected at least one for each fold: "
            "give it more, or set dataset.folds"
        )
    if split == "validation" and not validation:
        raise UserError("dataset.split=validation: no rows are held out: set dataset.validation=0.1")


def _read(path: str, header: bool | None, separator: str) -> _Content:
    """Column names, the cells of each row, its line in the file, and a digest of the content."""
    if path == DIABETES:
        return _diabetes()
    file = existing(path, "dataset.path")
    if not file.is_file():
        raise UserError(f"dataset.path={path}: it is a folder, expected a CSV file")
    return _parsed(path, file.read_bytes(), header, separator)


@functools.lru_cache(maxsize=4)  # the folds and splits of a sweep parse a file once
def _parsed(path: str, content: bytes, header: bool | None, separator: str) -> _Content:
    digest = hashlib.sha256(content).hexdigest()
    try:
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise UserError(f"dataset.path={path}: expected a CSV file in UTF-8, plain or gzip ({error})") from error
    if len(separator) != 1:
        raise UserError(f"dataset.separator={separator!r}: expected one character, such as ;")
    lines = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text), delimiter=separator), 1) if row]
    if not lines:
        raise UserError(f"dataset.path={path}: the file is empty")
    if header is None:
        header = not all(_is_number(cell) for cell in lines[0][1])
    width = len(lines[0][1])
    names = [name.strip() for name in lines[0][1]] if header else [f"c{index}" for index in range(width)]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"dataset.path={path}: two columns are called '{doubled[0]}': expected different names")
    rows = lines[1:] if header else lines
    if not rows:
        raise UserError(f"dataset.path={path}: below the names of the columns there are no rows")
    for number, row in rows:
        if len(row) != width:
            raise UserError(f"dataset.path={path}: line {number} has {len(row)} cells, the first one {width}")
    if width == 1 and ";" in lines[0][1][0] + rows[0][1][0]:
        raise UserError(f"dataset.path={path}: one column by commas, but there are semicolons: dataset.separator=';'")
    return names, [row for _, row in rows], [number for number, _ in rows], digest


def _diabetes() -> _Content:
    """The table that scikit-learn brings: ten features of 442 patients and the progression of their diabetes."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise UserError(
            "dataset.path=diabetes: it comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    found = load_diabetes(scaled=False)
    rows = [[*map(repr, row), repr(answer)] for row, answer in zip(found.data.tolist(), found.target.tolist())]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    return [*found.feature_names, "progression"], rows, range(1, len(rows) + 1), digest


def _place(target: str | int, names: Sequence[str]) -> int:
    """Where the target stands among the columns."""
    if str(target) in names:
        return names.index(str(target))
    if isinstance(target, int) or target.lstrip("-").isdecimal():
        if -len(names) <= int(target) < len(names):
            return int(target) % len(names)
        raise UserError(f"dataset.target={target}: the table has columns 0 to {len(names) - 1}, or -1 for the last")
    raise UserError(f"dataset.target={target}: the table has no such column: {nearest(target, names)}")


def _numbers(path: str, name: str, cells: Sequence[str], lines: Sequence[int]) -> list[float]:
    """A column's numbers. lines: where each of them stands."""
    try:
        found = [float(cell) for cell in cells]
    except ValueError:
        found = [math.nan]
    if all(map(math.isfinite, found)):
        return found
    line, cell = next((at, cell) for at, cell in zip(lines, cells) if not _is_number(cell))
    what = f"'{cell.strip()}' is no number" if cell.strip() else "a value is missing"
    many = sum(not _is_number(cell) for cell in cells)
    raise UserError(
        f"dataset.path={path}: column '{name}', line {line}: {what} ({many} of {len(cells)} rows)\n"
        "expected numbers: leave the rows or the column out, or give each class a column of 0 and 1"
    )


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _classes(path: str, name: str, cells: Sequence[str], lines: Sequence[int]) -> tuple[str, ...]:
    """The names of the classes: in order of their numbers where they are numbers, else of their letters."""
    for line, cell in zip(lines, cells):
        if not cell.strip():
            raise UserError(f"dataset.path={path}: column '{name}', line {line}: a class is missing")
    found = sorted({_class(cell) for cell in cells})
    if len(found) > 1000:
        raise UserError(f"dataset.task=classification: column '{name}' has {len(found)} values: is it a regression?")
    return tuple(sorted(found, key=float) if all(map(_is_number, found)) else found)


def _class(cell: str) -> str:
    """A class as it is called: 1 and 1.0 are the same."""
    return f"{float(cell):g}" if _is_number(cell) else cell.strip()


@functools.cache
def _warn_constant(path: str, name: str) -> None:
    log.warning("dataset.path=%s: column '%s' is constant among the training rows: it is taken as 0", path, name)
