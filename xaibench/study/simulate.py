"""Participants who do not exist: answers drawn at given accuracies, to try an analysis out before a study.

They are no evidence about people. Their file says so in each row, and so does all that is made of it.
"""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import UserError, nearest
from .responses import ANSWERS, REQUIRED

# What each answer is said to have taken: long enough for the rule about haste.
SECONDS = 60


def accuracies(texts: Sequence[str], questions: Sequence[str]) -> dict[str, dict[str, float]]:
    """`inn=0.8` and `inn.legs=1` as condition -> question -> probability of the right answer; a question's own wins.

    Raises UserError for what is no such text, and for a question that stays without accuracy.
    """
    found: dict[str, dict[str, float]] = {}
    single: list[tuple[str, str, float]] = []
    for text in texts:
        name, value = parse_share("--accuracy", text)
        condition, _, question = name.rpartition(".")
        if question in questions and condition:
            single.append((condition, question, value))
        elif condition and condition in [text.partition("=")[0] for text in texts]:
            raise UserError(
                f"--accuracy {text}: question '{question}' is not in the key: {nearest(question, questions)}"
            )
        else:
            found[name] = dict.fromkeys(questions, value)
    for condition, question, value in single:
        found.setdefault(condition, {})[question] = value
    for condition, own in found.items():
        for question in questions:
            if question not in own:
                raise UserError(
                    f"--accuracy: condition '{condition}' has none for '{question}': {condition}.{question}=…"
                )
    if not found:
        raise UserError("--simulate needs the accuracies of conditions, such as --accuracy baseline=0.8")
    return found


def parse_share(option: str, text: str) -> tuple[str, float]:
    """`name=0.8` as a name and a share in [0,1]. Raises UserError."""
    name, _, value = text.partition("=")
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not name or not 0 <= share <= 1:
        raise UserError(f"{option} {text}: expected NAME=SHARE with a share from 0 to 1")
    return name, share


def responses(key: Mapping[str, bool], chances: Mapping[str, Mapping[str, float]], count: int, seed: int) -> str:
    """A responses file of `count` simulated participants in each condition, answers drawn independently."""
    if count < 1:
        raise UserError(f"--simulate {count}: expected a number of participants in each condition")
    generator = np.random.default_rng(seed)
    words = {relevant: word for word, relevant in ANSWERS.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*REQUIRED, "simulated"])
    for condition, own in chances.items():
        right = generator.random((count, len(key))) < [own[question] for question in key]
        for number, answers in enumerate(right):
            for (question, relevant), is_right in zip(key.items(), answers):
                answer = words[relevant == bool(is_right)]
                writer.writerow([f"simulated-{condition}-{number}", condition, question, answer, SECONDS, "yes"])
    return text.getvalue()
