"""The right answers to the questions of a study: what `factor_importance` found that the network uses."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line, nearest
from ..scores.cells import read_cell
from ..scores.summary import summary
from ..store.files import existing
from .responses import ANSWERS

METRIC, STATISTIC = "factor_importance", "r_squared_"
# Question -> the factors that it asks about together, as the study asked (Sixt 2022, section 6.3).
QUESTIONS: Mapping[str, Sequence[str]] = {
    "legs": ("legs",),
    "color": ("color",),
    "background": ("background",),
    "shape": ("shape",),
    "rotation": ("yaw", "roll", "pitch", "bending"),
}
THRESHOLD = 0.1


@dataclass(frozen=True)
class Answer:
    """A question and its right answer: relevant if the R squared of any of its factors reaches the threshold.

    r_squared, low, high: of the factor that has most, with its 95 % interval. network: of which model, data set and
    score file that is so.
    """

    question: str
    factors: tuple[str, ...]
    r_squared: float
    low: float
    high: float
    threshold: float
    network: tuple[str, str, str]

    @property
    def relevant(self) -> bool:
        """Whether the network uses it."""
        return self.r_squared >= self.threshold

    @property
    def is_close(self) -> bool:
        """Whether the threshold lies in the interval: other samples might give another answer."""
        return self.low < self.threshold <= self.high


def make(score_file: Path, questions: Mapping[str, Sequence[str]], threshold: float) -> list[Answer]:
    """The answer to each question by a score file of `factor_importance`, its .csv or .json.

    threshold: of R squared, in (0,1]. Raises UserError for the score file of another metric, a factor that it lacks,
    and an R squared that is undefined; Damaged for a file that is not as a run wrote it.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: expected an R squared above 0 and up to 1")
    cell = read_cell(existing(score_file, "score file").with_suffix(".csv"))
    if cell.card["metric"] != METRIC:
        raise UserError(f"{score_file}: scores of {cell.card['metric']}: expected those of {METRIC}")
    estimates = summary(cell).estimates
    found = {name.removeprefix(STATISTIC): estimates[name] for name in estimates if name.startswith(STATISTIC)}
    network = (cell.card["model"], cell.card["dataset"], cell.card["keys"]["score_key"])
    answers = []
    for question, factors in questions.items():
        for factor in factors:
            if factor not in found:
                raise UserError(f"{question}: {score_file} has no factor '{factor}': {nearest(factor, found)}")
            if math.isnan(found[factor][0]):
                raise UserError(f"{question}: the R squared of '{factor}' is undefined in {score_file}")
        value, low, high, _ = max((found[factor] for factor in factors), key=lambda estimate: estimate[0])
        answers.append(Answer(question, tuple(factors), value, low, high, threshold, network))
    return answers


def parse_question(text: str) -> tuple[str, tuple[str, ...]]:
    """`rotation=yaw+roll` as a question and its factors. Raises UserError."""
    name, _, factors = text.partition("=")
    if not name or not all(factors.split("+")):
        raise UserError(f"--question {text}: expected NAME=FACTOR or NAME=FACTOR+FACTOR, such as rotation=yaw+roll")
    return name, tuple(factors.split("+"))


def rows(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """A key as the rows of its CSV file."""
    words = {relevant: word for word, relevant in ANSWERS.items()}
    return [
        {
            "question": answer.question,
            "answer": words[answer.relevant],
            "r_squared": answer.r_squared,
            "low": answer.low,
            "high": answer.high,
            "threshold": answer.threshold,
            "factors": "+".join(answer.factors),
            **dict(zip(("model", "dataset", "score_key"), answer.network)),
        }
        for answer in answers
    ]


def read(path: Path) -> dict[str, bool]:
    """Question -> whether it is relevant, of a key file: its columns `question` and `answer` are read.

    Raises UserError for a missing column, a question that is there twice, and another answer.
    """
    try:
        reader = csv.DictReader(io.StringIO(existing(path, "--key").read_text(encoding="utf-8-sig")))
        found = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a key as `xaibench study key` writes it: {first_line(error)}") from error
    for name in ("question", "answer"):
        if name not in (reader.fieldnames or ()):
            raise UserError(f"{path}: a key has a column '{name}'; {nearest(name, reader.fieldnames or ())}")
    key: dict[str, bool] = {}
    for row in found:
        if row["question"] in key:
            raise UserError(f"{path}: the question '{row['question']}' is there twice")
        if row["answer"] not in ANSWERS:
            raise UserError(
                f"{path}: question '{row['question']}', answer '{row['answer']}': expected {' or '.join(ANSWERS)}"
            )
        key[row["question"]] = ANSWERS[row["answer"]]
    if not key:
        raise UserError(f"{path}: a key of no question")
    return key
