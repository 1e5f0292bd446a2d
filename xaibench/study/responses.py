"""The responses file of a study: a row per participant and question, read strictly. Nothing is dropped here.

What is required of a row are `participant`, `condition`, `question`, `answer` (relevant, irrelevant) and `seconds` that
the answer took. The columns of FACTS are optional, are about the participant, and say the same in each of their rows;
exclusions read them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .table import read_rows

REQUIRED = ("participant", "condition", "question", "answer", "seconds")
ANSWERS = {"relevant": True, "irrelevant": False}
YES_NO = {"yes": True, "no": False}
LABELS = ("include", "unsure", "exclude")


@dataclass(frozen=True)
class Participant:
    """One person: what they answered (question -> relevant or not), in how many seconds, and FACTS by column.

    Of somebody who did not finish (`finished` is no), answers and seconds may be missing.
    """

    name: str
    condition: str
    answers: Mapping[str, bool]
    seconds: Mapping[str, float]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Responses:
    """A responses file: its participants in their order, the columns of FACTS it has, the columns that nobody reads,
    and whether the participants are simulated."""

    participants: tuple[Participant, ...]
    facts: tuple[str, ...]
    unread: tuple[str, ...]
    simulated: bool


def _not_negative(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return value


def _yes_no(text: str) -> bool:
    return YES_NO[text]


def _label(text: str) -> str:
    if text and text not in LABELS:
        raise ValueError
    return text


def _word(text: str) -> str:
    if not text:
        raise ValueError
    return text


# Column -> how a value is read, and what is expected of it.
FACTS: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("consent", "finished", "retake", "videos", "simulated"), (_yes_no, "yes or no")),
    **dict.fromkeys(("minutes", "comprehension_failures", "screen_pixels"), (_not_negative, "a number from 0 on")),
    **dict.fromkeys(("annotator_1", "annotator_2", "decision"), (_label, f"{', '.join(LABELS)}, or nothing")),
    "stratum": (_word, "a word, such as novice"),
}


def read(path: Path) -> Responses:
    """The responses of a CSV file. Raises UserError with the line, the value and what was expected."""
    rows, columns = read_rows(path, "responses", REQUIRED, tuple(FACTS))
    facts = tuple(name for name in FACTS if name in columns)
    of_participant: dict[str, list[tuple[int, Mapping[str, str]]]] = {}
    for line, row in rows:
        if not row["participant"]:
            raise UserError(f"{path} line {line}: the participant is missing")
        of_participant.setdefault(row["participant"], []).append((line, row))
    people = tuple(_participant(path, name, own, facts) for name, own in of_participant.items())
    _check_complete(path, people)
    simulated = {person.facts.get("simulated", False) for person in people}
    if len(simulated) > 1:
        raise UserError(f"{path}: some participants are simulated and some are not: score them apart")
    unread = tuple(name for name in columns if name not in (*REQUIRED, *FACTS))
    return Responses(people, facts, unread, simulated.pop())


def _participant(
    path: Path, name: str, rows: Sequence[tuple[int, Mapping[str, str]]], columns: Sequence[str]
) -> Participant:
    at, first = rows[0]
    first_of: dict[str, int] = {}
    answers, seconds = {}, {}
    facts = {column: _fact(path, at, column, first[column]) for column in columns}
    for line, row in rows:
        for column in ("condition", *columns):
            if row[column] != first[column]:
                raise UserError(
                    f"{path} line {line}: participant '{name}' has {column} '{row[column]}', and '{first[column]}' in "
                    f"line {at}: expected one"
                )
        question = row["question"]
        if question in first_of:
            raise UserError(
                f"{path} line {line}: participant '{name}' answers '{question}' a second time (line "
                f"{first_of[question]})\nsomebody who took part again gets another name, and retake=yes"
            )
        if not question or not row["condition"]:
            raise UserError(f"{path} line {line}: participant '{name}': question and condition must not be empty")
        first_of[question] = line
        may_lack = facts.get("finished") is False
        if row["answer"] or not may_lack:
            answers[question] = _answer(path, line, name, row)
        if row["seconds"] or not may_lack:
            seconds[question] = _seconds(path, line, name, row)
    return Participant(name, first["condition"], answers, seconds, facts)


def _answer(path: Path, line: int, name: str, row: Mapping[str, str]) -> bool:
    if row["answer"] not in ANSWERS:
        asked = f"{path} line {line}: participant '{name}', question '{row['question']}'"
        said = f"answer '{row['answer']}': expected {' or '.join(ANSWERS)}"
        missing = "the answer is missing; only who has finished=no may leave one out"
        raise UserError(f"{asked}: {said if row['answer'] else missing}")
    return ANSWERS[row["answer"]]


def _seconds(path: Path, line: int, name: str, row: Mapping[str, str]) -> float:
    try:
        return _not_negative(row["seconds"])
    except ValueError:
        raise UserError(
            f"{path} line {line}: participant '{name}', question '{row['question']}': seconds '{row['seconds']}': "
            "expected a number from 0 on"
        ) from None


def _fact(path: Path, line: int, column: str, text: str) -> Any:
    convert, expected = FACTS[column]
    try:
        return convert(text)
    except (ValueError, KeyError):
        raise UserError(f"{path} line {line}: {column} '{text}': expected {expected}") from None


def _check_complete(path: Path, people: Sequence[Participant]) -> None:
    """Raise for somebody who finished and lacks the answer to a question that others have."""
    questions = dict.fromkeys(question for person in people for question in person.answers)
    for person in people:
        lacking = [question for question in questions if question not in person.answers]
        if lacking and person.facts.get("finished", True):
            raise UserError(
                f"{path}: participant '{person.name}' has no answer to '{lacking[0]}'\n"
                "only who has finished=no may leave one out"
            )
