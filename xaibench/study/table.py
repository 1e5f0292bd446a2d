"""CSV files that people bring to a study, read strictly: every required column, and no column by a wrong name."""

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError, first_line, nearest
from ..store.files import existing


def read_rows(
    path: Path, what: str, required: Sequence[str], optional: Sequence[str]
) -> tuple[list[tuple[int, Mapping[str, str]]], Sequence[str]]:
    """(line, row) of each row, its values stripped, and the columns; what: the file's rows are, in messages.

    Raises UserError for a file that is absent, no CSV or empty, a required column that is not there, a column twice or
    nearly named like one of ours, and a row with more values than columns.
    """
    try:
        with open(existing(path, what), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, restval="", restkey="")
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a CSV file in UTF-8: {first_line(error)}") from error
    _check_columns(path, columns, required, (*required, *optional))
    for line, row in rows:
        if "" in row:
            raise UserError(f"{path} line {line}: more values than the {len(columns)} columns")
    if not rows:
        raise UserError(f"{path}: there are no {what}, the file has no rows")
    return [(line, {name: (value or "").strip() for name, value in row.items()}) for line, row in rows], columns


def _check_columns(path: Path, columns: Sequence[str], required: Sequence[str], known: Sequence[str]) -> None:
    for name in required:
        if name not in columns:
            others = [column for column in columns if column not in known]
            raise UserError(f"{path}: there is no column '{name}'; {nearest(name, others) or 'each row needs it'}")
    for name in columns:
        if columns.count(name) > 1:
            raise UserError(f"{path}: there are two columns '{name}'")
        # A renamed column would switch off what reads it.
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
        if name not in known and close:
            raise UserError(f"{path}: nobody reads the column '{name}': did you mean '{close[0]}'?")
