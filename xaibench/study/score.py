"""The responses of a study against its key: accuracies, and the battery of tests of Sixt 2022, chapter 6."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from . import statistics
from .exclusions import Excluded, Limits, exclude, kappa
from .responses import Participant, Responses
from .statistics import DIRECTIONS, Alternative, Found

ALPHA = 0.05
ALL = "all"
OVERALL = "overall"


@dataclass(frozen=True)
class Plan:
    """What is asked of a study, fixed before it.

    baseline: the condition that the others are compared with; None: no comparisons between conditions.
    expected: condition -> "higher" or "lower" than the baseline, of one-sided tests; those not named are two-sided.
    attributes: conditions whose single questions are compared with the baseline's too; None: all.
    pairs: questions of which the first is expected to be answered right more often by the same people.
    """

    baseline: str | None = None
    expected: Mapping[str, str] = field(default_factory=dict)
    attributes: Sequence[str] | None = None
    pairs: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Tested:
    """A test of the battery. groups: who is compared; about: the question, or overall accuracy.

    corrected: p by Bonferroni over the tests of this name that the plan has; holm: by Holm over the Kruskal-Wallis
    test, the rank sums and the attributes together. planned: whether the plan, which goes by the assumptions that
    hold, looks at it.
    """

    test: str
    groups: str
    about: str
    alternative: str
    found: Found
    planned: bool = True
    corrected: float = math.nan
    holm: float = math.nan


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers of a condition (or all) to a question (or overall): right out of n answers.

    stratum: of those who say that they belong to it alone; '' for everybody.
    """

    condition: str
    question: str
    right: int
    n: int
    collected: int
    people: int
    stratum: str = ""


@dataclass(frozen=True)
class Scored:
    """A scored study. kappa: of the annotators, with how many both labelled; None without annotators. strata: overall
    accuracies by condition and stratum; none where the responses have no such column."""

    accuracies: list[Accuracy]
    tests: list[Tested]
    exclusions: list[Excluded]
    kappa: tuple[float, int] | None
    kept: list[Participant]
    strata: list[Accuracy]


def score(responses: Responses, key: Mapping[str, bool], limits: Limits, plan: Plan) -> Scored:
    """Score everybody whom the rules keep. Raises UserError for questions that are not those of the key, conditions of
    the plan that are not there, and a condition that nobody is left of."""
    _check_questions(responses, key)
    kept, exclusions = exclude(responses, limits)
    conditions = list(dict.fromkeys(person.condition for person in responses.participants))
    right = {
        condition: np.array(
            [[person.answers[question] == key[question] for question in key] for person in kept_of(kept, condition)]
        )
        for condition in conditions
    }
    for condition, answers in right.items():
        if not len(answers):
            raise UserError(f"condition '{condition}': the rules leave nobody; see the exclusions with other limits")
    plan = _checked(plan, conditions, list(key))
    tests = [*_pairs(right, list(key), plan), *_between(right, list(key), plan)]
    return Scored(
        _accuracies(right, list(key), responses),
        tests,
        exclusions,
        kappa(responses.participants),
        kept,
        _strata(kept, key, responses),
    )


def kept_of(people: Sequence[Participant], condition: str) -> list[Participant]:
    """Those of one condition."""
    return [person for person in people if person.condition == condition]


def _check_questions(responses: Responses, key: Mapping[str, bool]) -> None:
    asked = dict.fromkeys(question for person in responses.participants for question in person.answers)
    for question in asked:
        if question not in key:
            raise UserError(f"question '{question}' is not in the key: {nearest(question, key)}")
    for question in key:
        if question not in asked:
            raise UserError(f"nobody answers the key's question '{question}': {nearest(question, asked)}")


def _checked(plan: Plan, conditions: Sequence[str], questions: Sequence[str]) -> Plan:
    if plan.baseline is None and (plan.expected or plan.attributes):
        raise UserError(f"--expect and --attributes compare with a baseline: say --baseline {conditions[0]}")
    for name in (plan.baseline or conditions[0], *plan.expected, *(plan.attributes or ())):
        if name not in conditions:
            raise UserError(f"condition '{name}' is not in the responses: {nearest(name, conditions)}")
    for question in itertools.chain(*plan.pairs):
        if question not in questions:
            raise UserError(f"--pair: question '{question}' is not in the key: {nearest(question, questions)}")
    if plan.baseline is not None and len(conditions) == 1:
        raise UserError(f"--baseline {plan.baseline}: it is the only condition, there is nothing to compare it with")
    return replace(plan, attributes=conditions if plan.attributes is None else plan.attributes)


def _accuracies(right: Mapping[str, np.ndarray], questions: Sequence[str], responses: Responses) -> list[Accuracy]:
    """Of each condition and, of several, of all together: overall and question by question."""
    collected = [person.condition for person in responses.participants]
    groups = {name: (answers, collected.count(name)) for name, answers in right.items()}
    if len(right) > 1:
        groups[ALL] = (np.concatenate(list(right.values())), len(collected))
    return [
        Accuracy(name, question, int(part.sum()), part.size, count, len(answers))
        for name, (answers, count) in groups.items()
        for question, part in ((OVERALL, answers), *zip(questions, answers.T))
    ]


def _strata(kept: Sequence[Participant], key: Mapping[str, bool], responses: Responses) -> list[Accuracy]:
    """Overall, of each condition (and, of several, of all together) and stratum. No test: nobody is dealt to strata."""
    if "stratum" not in responses.facts:
        return []
    conditions = list(dict.fromkeys(person.condition for person in responses.participants))
    found = []
    for condition in (*conditions, *([ALL] if len(conditions) > 1 else [])):
        for stratum in dict.fromkeys(person.facts["stratum"] for person in responses.participants):
            collected, people = (
                [p for p in some if p.facts["stratum"] == stratum and condition in (ALL, p.condition)]
                for some in (responses.participants, kept)
            )
            right = sum(person.answers[question] == key[question] for person in people for question in key)
            answers = len(people) * len(key)
            found.append(Accuracy(condition, OVERALL, right, answers, len(collected), len(people), stratum))
    return found


def _pairs(right: Mapping[str, np.ndarray], questions: Sequence[str], plan: Plan) -> list[Tested]:
    """McNemar's test of each pair of questions in each condition, with Bonferroni over them."""
    tests = [
        Tested(
            "mcnemar",
            condition,
            f"{first} > {second}",
            "greater",
            statistics.mcnemar(answers[:, questions.index(first)], answers[:, questions.index(second)], "greater"),
        )
        for condition, answers in right.items()
        for first, second in plan.pairs
    ]
    return _with(tests, corrected=statistics.bonferroni([test.found.p for test in tests]))


def _between(right: Mapping[str, np.ndarray], questions: Sequence[str], plan: Plan) -> list[Tested]:
    """The tests between conditions: assumptions, all groups together, each against the baseline."""
    if plan.baseline is None:
        return []
    shares = {name: answers.mean(axis=1) for name, answers in right.items()}
    normality = [Tested("shapiro", name, OVERALL, "two-sided", statistics.shapiro(v)) for name, v in shares.items()]
    groups, every = list(shares.values()), " ".join(shares)
    spread = statistics.levene(groups)
    # What cannot be tested is not taken for granted.
    normal, even = all(test.found.p >= ALPHA for test in normality), spread.p >= ALPHA
    together = [
        Tested("kruskal", every, OVERALL, "two-sided", statistics.kruskal(groups), not normal),
        Tested("levene", every, OVERALL, "two-sided", spread, normal),
        Tested("anova", every, OVERALL, "two-sided", statistics.anova(groups), normal and even),
        Tested("welch_anova", every, OVERALL, "two-sided", statistics.welch(groups), normal and not even),
    ]
    others = [name for name in shares if name != plan.baseline]
    sums = [_rank_sum(shares, name, plan, OVERALL, DIRECTIONS.get(plan.expected.get(name, ""))) for name in others]
    sums = _with(sums, corrected=statistics.bonferroni([test.found.p for test in sums]))
    single = [
        _rank_sum({c: answers[:, at] for c, answers in right.items()}, name, plan, question, None)
        for name in others
        if name in (plan.attributes or ())
        for at, question in enumerate(questions)
    ]
    family = _with_holm([together[0], *sums, *single])
    return [*normality, family[0], *together[1:], *family[1:]]


def _rank_sum(
    values: Mapping[str, np.ndarray], name: str, plan: Plan, about: str, direction: Alternative | None
) -> Tested:
    assert plan.baseline is not None  # as `_between` asks
    alternative = direction or "two-sided"
    found = statistics.rank_sum(values[name].astype(float), values[plan.baseline].astype(float), alternative)
    test = "rank_sum" if about == OVERALL else "rank_sum_attribute"
    return Tested(test, f"{name} {plan.baseline}", about, alternative, found)


def _with(tests: Sequence[Tested], corrected: Sequence[float]) -> list[Tested]:
    return [replace(test, corrected=p) for test, p in zip(tests, corrected)]


def _with_holm(tests: Sequence[Tested]) -> list[Tested]:
    return [replace(test, holm=p) for test, p in zip(tests, statistics.holm([test.found.p for test in tests]))]


# ---- tables ----------------------------------------------------------------------------------------------------------


def tables(scored: Scored, simulated: bool) -> dict[str, list[dict[str, Any]]]:
    """File name -> rows. Each row says in `participants` whether they are people or simulated."""
    who = {"participants": "simulated" if simulated else "people"}
    found = {
        "accuracy": _accuracy_rows(scored.accuracies),
        "tests": _test_rows(scored),
        "exclusions": _exclusion_rows(scored.exclusions),
    }
    if scored.strata:
        found["strata"] = _stratum_rows(scored.strata)
    return {name: [who | row for row in rows] for name, rows in found.items()}


def _accuracy_rows(accuracies: Sequence[Accuracy]) -> Iterator[dict[str, Any]]:
    for one in accuracies:
        yield {
            "condition": one.condition,
            "collected": one.collected,
            "kept": one.people,
            "question": one.question,
            "right": one.right,
            "answers": one.n,
            "accuracy": one.right / one.n if one.n else math.nan,
        }


def _stratum_rows(strata: Sequence[Accuracy]) -> Iterator[dict[str, Any]]:
    for one, row in zip(strata, _accuracy_rows(strata)):
        yield {"stratum": one.stratum, **row}


def _test_rows(scored: Scored) -> Iterator[dict[str, Any]]:
    for one in scored.tests:
        found = one.found
        yield {
            "test": one.test,
            "groups": one.groups,
            "about": one.about,
            "alternative": one.alternative,
            "n": found.n,
            "statistic": found.statistic,
            "p": found.p,
            "p_bonferroni": one.corrected,
            "p_holm": one.holm,
            "r": found.r,
            "planned": "yes" if one.planned else "no",
            "status": "ok" if found.p == found.p else "undefined",
        }
    if scored.kappa is not None:
        value, count = scored.kappa
        same = {"test": "cohens_kappa", "groups": "annotators", "about": "exclusions", "alternative": "none"}
        undefined = dict.fromkeys(("p", "p_bonferroni", "p_holm", "r"), math.nan)
        status = {"planned": "yes", "status": "ok" if value == value else "undefined"}
        yield {**same, "n": count, "statistic": value, **undefined, **status}


def _exclusion_rows(exclusions: Sequence[Excluded]) -> Iterator[dict[str, Any]]:
    """A row per rule and condition that it left somebody out of; of rules without effect or without column, one."""
    for one in exclusions:
        applied = "yes" if one.met is not None else "no, the responses lack its column"
        for condition, count in (one.first or {ALL: 0}).items():
            yield {"rule": one.rule, "condition": condition, "applied": applied, "excluded": count, "met": one.met}
