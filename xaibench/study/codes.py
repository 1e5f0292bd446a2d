"""Codes that people gave to free texts: how often each occurs, and whether coders agree (Sixt 2022, chapter 6).

What is required of a row are `participant` and `text` (which of their texts, such as a question), `coder` and `code`. A
text with several codes has a row for each; one that a coder read and gave no code has one row without a code.
`condition`, which is optional, is the participant's.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .statistics import cohens_kappa, krippendorffs_alpha
from .table import read_rows

REQUIRED = ("participant", "text", "coder", "code")
ALL = "all"


@dataclass(frozen=True)
class Text:
    """A free text: whose it is, and of each coder who read it the codes that it was given."""

    participant: str
    name: str
    condition: str
    codes: dict[str, frozenset[str]]


@dataclass(frozen=True)
class Coded:
    """The texts of a file in their order, and the names of codes, coders and conditions, sorted."""

    texts: Sequence[Text]
    codes: Sequence[str]
    coders: Sequence[str]
    conditions: Sequence[str]


def read(path: Path) -> Coded:
    """The codes of a CSV file.

    Raises UserError with the line for an empty name, one that is `all`, a code given twice or beside a row without one,
    and a participant of two conditions; and for a file without any code.
    """
    rows, _ = read_rows(path, "codes", REQUIRED, ("condition",))
    given: dict[tuple[str, str], dict[str, list[str]]] = {}
    condition_of: dict[str, str] = {}
    for line, row in rows:
        participant, text, coder, code = (row[name] for name in REQUIRED)
        if not (participant and text and coder):
            raise UserError(f"{path} line {line}: participant, text and coder must not be empty")
        condition = row.get("condition", "")
        if ALL in (coder, code, condition):
            raise UserError(f"{path} line {line}: '{ALL}' is what the tables call all together: take another name")
        if condition_of.setdefault(participant, condition) != condition:
            raise UserError(
                f"{path} line {line}: participant '{participant}' has condition '{condition}', and "
                f"'{condition_of[participant]}' before: expected one"
            )
        own = given.setdefault((participant, text), {}).setdefault(coder, [])
        if code in own:
            raise UserError(f"{path} line {line}: '{coder}' gives this text of '{participant}' the code '{code}' twice")
        if own and "" in (code, *own):
            raise UserError(
                f"{path} line {line}: '{coder}' gives this text of '{participant}' a code, and none in another row"
            )
        own.append(code)
    texts = [
        Text(*key, condition_of[key[0]], {coder: frozenset(codes) - {""} for coder, codes in by_coder.items()})
        for key, by_coder in given.items()
    ]
    codes = sorted({code for text in texts for own in text.codes.values() for code in own})
    if not codes:
        raise UserError(f"{path}: no text has a code")
    coders, conditions = {coder for text in texts for coder in text.codes}, {text.condition for text in texts} - {""}
    return Coded(texts, codes, sorted(coders), sorted(conditions))


def counts(coded: Coded) -> Iterator[dict[str, Any]]:
    """A row for each code, of all texts and of those of each condition: how many texts any of their coders gave it, how
    many all of them, and out of how many texts."""
    for condition in (ALL, *coded.conditions):
        texts = [text for text in coded.texts if condition in (ALL, text.condition)]
        for code in coded.codes:
            given = [[code in own for own in text.codes.values()] for text in texts]
            yield {
                "condition": condition,
                "code": code,
                "any_coder": sum(map(any, given)),
                "all_coders": sum(map(all, given)),
                "texts": len(texts),
            }


def agreement(coded: Coded) -> Iterator[dict[str, Any]]:
    """A row for each pair of coders (Cohen's kappa), over the texts that both have read, and for all of them
    (Krippendorff's alpha), over those that several have: of each code, whether a text was given it; of `all`, which set
    of codes it was given."""
    for code in (ALL, *coded.codes):
        units = [{coder: _label(own, code) for coder, own in text.codes.items()} for text in coded.texts]
        for pair in itertools.combinations(coded.coders, 2):
            both = [[unit[coder] for coder in pair] for unit in units if set(pair) <= set(unit)]
            if both:
                kappa = cohens_kappa(*zip(*both))
                yield {"code": code, "coders": " and ".join(pair), "statistic": "cohens_kappa", "texts": len(both),
                       "value": kappa}  # fmt: skip
        several = [list(unit.values()) for unit in units if len(unit) > 1]
        if several:
            alpha = krippendorffs_alpha(several)
            yield {"code": code, "coders": ALL, "statistic": "krippendorffs_alpha", "texts": len(several),
                   "value": alpha}  # fmt: skip


def _label(codes: frozenset[str], code: str) -> str:
    return str(sorted(codes)) if code == ALL else str(code in codes)
