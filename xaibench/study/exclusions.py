"""Who is left out of a study, by rules that are fixed before it (Sixt 2022, appendix: the preregistration); counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UserError
from .responses import Participant, Responses
from .statistics import cohens_kappa

ANNOTATORS = ("annotator_1", "annotator_2")


@dataclass(frozen=True)
class Limits:
    """What the rules allow: minutes at most for everything, seconds at least for all answers together, failures of one
    comprehension test that are too many, and the fewest pixels of the smaller side of a screen."""

    minutes: float = 77
    seconds: float = 30
    failures: float = 2
    pixels: float = 600


@dataclass(frozen=True)
class Rule:
    """A rule: its name, the columns of the responses without which it is not applied, and whom it leaves out."""

    name: str
    columns: tuple[str, ...]
    excludes: Callable[[Participant, Limits], bool]


RULES = (
    Rule("no consent", ("consent",), lambda person, limits: not person.facts["consent"]),
    Rule("unfinished", ("finished",), lambda person, limits: not person.facts["finished"]),
    Rule("took part before", ("retake",), lambda person, limits: person.facts["retake"]),
    Rule("over time", ("minutes",), lambda person, limits: person.facts["minutes"] > limits.minutes),
    Rule("videos skipped", ("videos",), lambda person, limits: not person.facts["videos"]),
    Rule(
        "comprehension test failed",
        ("comprehension_failures",),
        lambda person, limits: person.facts["comprehension_failures"] >= limits.failures,
    ),
    Rule("small screen", ("screen_pixels",), lambda person, limits: person.facts["screen_pixels"] < limits.pixels),
    Rule("answered in haste", (), lambda person, limits: sum(person.seconds.values()) < limits.seconds),
    Rule("annotators", ANNOTATORS, lambda person, limits: _decision(person) == "exclude"),
)


@dataclass(frozen=True)
class Excluded:
    """What a rule did: how many it met, how many it was the first to leave out, by condition; None: not applied."""

    rule: str
    met: int | None
    first: Mapping[str, int]


def exclude(responses: Responses, limits: Limits) -> tuple[list[Participant], list[Excluded]]:
    """Who stays, and what each rule did, in the order of RULES. Each who goes is counted at the first rule alone.

    Raises UserError where annotators disagree about somebody whom no other rule leaves out, and no decision is given.
    """
    kept, found = list(responses.participants), []
    for rule in RULES:
        if any(column not in responses.facts for column in rule.columns):
            found.append(Excluded(rule.name, None, {}))
            continue
        among = kept if rule.columns == ANNOTATORS else responses.participants
        met = {person.name for person in among if rule.excludes(person, limits)}
        gone = [person.condition for person in kept if person.name in met]
        found.append(Excluded(rule.name, len(met), {name: gone.count(name) for name in dict.fromkeys(gone)}))
        kept = [person for person in kept if person.name not in met]
    return kept, found


def _decision(person: Participant) -> str:
    """What becomes of somebody: what both annotators say, or what was decided after they disagreed."""
    said = {person.facts[name] for name in ANNOTATORS}
    if len(said) == 1 and said <= {"include", "exclude"}:
        return str(said.pop())
    decision = str(person.facts.get("decision", ""))
    if decision not in ("include", "exclude"):
        labels = " and ".join(f"'{person.facts[name]}'" for name in ANNOTATORS)
        raise UserError(
            f"participant '{person.name}': annotators say {labels}, and the decision is '{decision}': "
            "expected include or exclude"
        )
    return decision


def kappa(participants: Sequence[Participant]) -> tuple[float, int] | None:
    """Cohen's kappa of the annotators' labels and of how many participants, those with both; None without any."""
    labels = [[str(person.facts.get(name, "")) for name in ANNOTATORS] for person in participants]
    both = [pair for pair in labels if all(pair)]
    return (cohens_kappa(*zip(*both)), len(both)) if both else None
