"""Tables of a study, as CSV files and as text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..scores.leaderboard import to_csv
from ..store.files import write_atomically
from .codes import Coded
from .key import Answer
from .power import DRAWS, Point
from .responses import Responses
from .score import OVERALL, Scored, tables

SIMULATED = "SIMULATED PARTICIPANTS: drawn by a computer at given accuracies, no evidence about people"


def write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all."""
    write_atomically(path, data)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, six significant digits, empty where something is undefined."""
    write(path, to_csv(pd.DataFrame(list(rows))))


def key_text(answers: Sequence[Answer]) -> str:
    """A line per question, and of answers that other samples might turn."""
    width = max(len(answer.question) for answer in answers)
    lines = []
    for answer in answers:
        said = "relevant  " if answer.relevant else "irrelevant"
        close = f"; the interval contains the threshold {answer.threshold:g}" if answer.is_close else ""
        found = f"R squared {answer.r_squared:.3f} [{answer.low:.3f}, {answer.high:.3f}] {'+'.join(answer.factors)}"
        lines.append(f"{answer.question:<{width}}  {said}  {found}{close}")
    return "\n".join(lines)


def score_text(scored: Scored, responses: Responses) -> str:
    """Who was left out by which rule, accuracies, and the tests."""
    found = tables(scored, responses.simulated)
    parts = [SIMULATED] if responses.simulated else []
    left_out = len(responses.participants) - len(scored.kept)
    parts.append(f"{len(responses.participants)} participants, {left_out} left out, {len(scored.kept)} scored")
    unapplied = [one.rule for one in scored.exclusions if one.met is None]
    if unapplied:
        parts.append(f"rules without their column, not applied: {', '.join(unapplied)}")
    if responses.unread:
        parts.append(f"columns that nobody reads: {', '.join(responses.unread)}")
    applied = [row for row in found["exclusions"] if row["met"] is not None]
    overall = [row for row in found["accuracy"] if row["question"] == OVERALL]
    shown = {"exclusions": applied, "accuracy": overall, "strata": found.get("strata", []), "tests": found["tests"]}
    return "\n\n".join([*parts, *(_table(name, rows) for name, rows in shown.items() if rows)])


def power_text(points: Sequence[Point]) -> str:
    """The power at each number of people, and whether participants were simulated."""
    lines = [f"{SIMULATED} (where it says so)"] if any(point.how == DRAWS for point in points) else []
    lines += [f"{one.n:>5} people  power {one.power:.3f}  {one.test} {one.effect} ({one.how})" for one in points]
    return "\n".join(lines)


def codes_text(coded: Coded, counted: Sequence[Mapping[str, Any]], agreed: Sequence[Mapping[str, Any]]) -> str:
    """How often each code was given, and how far coders agree."""
    head = f"{len(coded.texts)} texts, {len(coded.coders)} coders, {len(coded.codes)} codes"
    alone = "" if agreed else "no text has two coders: there is no agreement to measure"
    return "\n\n".join(filter(None, [head, _table("codes", counted), _table("agreement", agreed) if agreed else alone]))


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    frame = pd.DataFrame(list(rows)).drop(columns="participants", errors="ignore")
    return f"{name}\n{frame.to_string(index=False, na_rep='', float_format=lambda value: f'{value:.4g}')}"
