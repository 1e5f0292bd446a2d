"""Every method and metric runs on tables or says in a sentence why not: as docs/tables.md has it."""

import pytest

from tests import table_support


@pytest.fixture(scope="module")
def rows():
    return table_support.rows()


def test_the_page_says_what_runs(rows):
    page = table_support.PAGE.read_text()
    assert page.endswith(table_support.MARK + table_support.markdown(rows)), "run: python -m tests.table_support"


def test_what_does_not_run_says_why_in_a_sentence(rows):
    for _, name, runs, words in rows:
        assert runs or (20 < len(words) < 250 and "not foreseen" not in words), (name, words)
    for group, least in (("method", 25), ("metric", 20)):
        assert sum(runs for kind, _, runs, _ in rows if kind == group) >= least
