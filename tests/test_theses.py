"""docs/theses.csv: what became of each system of the theses. Its commands compose; its files and tests are there."""

import csv
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from xaibench import listing
from xaibench.config import compose_job
from xaibench.errors import UserError
from xaibench.scores import compare

ROOT = Path(__file__).parent.parent
with (ROOT / "docs" / "theses.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
PLACES = list(dict.fromkeys(place for row in ROWS for place in row["where"].split("; ") if place))
# Of these names alone nothing can be wrong but that they do not exist: each yaml is composed by other tests.
NAMED = re.compile(r"(model|dataset|method|metric|experiment)=([\w,]+)")
NAMES = {group: {item.name for item in listing.items(group)} for group in listing.LISTED}


def first_cell(words: list[str]) -> list[str]:
    """The overrides of the first cell of a sweep."""
    return [re.sub(r"^([^\[]*?=[^,\[]*),.*", r"\1", word) for word in words if word != "-m"]


def check(place: str, xaibench) -> None:
    """Raise where a command does not compose or a file is not there."""
    words = shlex.split(place)
    if words[0] != "xaibench":
        assert (ROOT / place).is_file(), place
    elif words[1] not in ("run", "train"):
        if words[1] == "compare":
            assert words[2] in compare.experiments() and (ROOT / words[4]).is_file(), place
        code, _, said = xaibench(*[word for word in words[1:] if word != "--help"], "--help")
        assert code == 0, f"{place}\n{said}"
    else:
        for word in words[2:]:
            if found := NAMED.fullmatch(word):
                assert set(found[2].split(",")) <= NAMES[found[1]], f"{place}: {word}"
        if not all(map(NAMED.fullmatch, first_cell(words[2:]))):
            compose_job(first_cell(words[2:]))


def test_every_row_says_what_its_status_asks_for():
    """A test of what works and of what differs, the difference of what differs, the reason of what is not built."""
    assert len(ROWS) > 480
    twice = {key: count for key, count in Counter((row["thesis"], row["id"]) for row in ROWS).items() if count > 1}
    assert not twice
    for row in ROWS:
        named = {name for name in ("where", "test", "difference", "reason") if row[name]}
        asked = {"works": {"where", "test"}, "differs": {"where", "test", "difference"}, "not built": {"reason"}}
        assert asked[row["status"]] <= named and row["system"], row
        assert ("test" in named) == (row["status"] != "not built"), row
        assert ("difference" in named) == (row["status"] == "differs"), row


def test_every_test_that_is_named_is_there():
    named = {test for row in ROWS for test in row["test"].split("; ") if test}
    defined = set()
    for path in {test.partition("::")[0] for test in named}:
        code = (ROOT / path).read_text(encoding="utf-8")
        defined |= {f"{path}::{test}" for test in re.findall(r"^def (test_\w+)", code, flags=re.M)}
    assert len(named) > 150 and named <= defined, named - defined


def test_every_command_composes_and_every_file_is_there(xaibench):
    assert len(PLACES) > 200
    for place in PLACES:
        check(place, xaibench)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("xaibench run method=gradcan metric=roar", AssertionError),
        ("xaibench run method=iba method.betta=1", UserError),
        ("xaibench compare iba_table2 --leaderboard results/reference/iba_table1.csv", AssertionError),
        ("xaibench reports", AssertionError),
        ("scripts/no.py", AssertionError),
    ],
)
def test_a_command_or_file_that_is_not_there_is_noticed(place, error, xaibench):
    with pytest.raises(error):
        check(place, xaibench)
