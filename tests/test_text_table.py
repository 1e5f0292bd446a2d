"""docs/runs-on-text.csv says of every method and metric whether it runs on sentences, or why it does not."""

import re

from tests import text_table


def without_decimals(rows):
    """Numbers that a network computed differ by rounding between machines."""
    return [tuple(re.sub(r"-?\d+\.\d+(e-?\d+)?", "#", value) for value in row) for row in rows]


def test_every_method_and_metric_runs_on_sentences_or_says_why_not():
    found = text_table.rows()
    committed = [tuple(row.values()) for row in text_table.read()]
    assert without_decimals(found) == without_decimals(committed), "python -m tests.text_table writes it anew"
    running = [kind for kind, *_, said in found if said == "runs"]
    assert running.count("method") >= 25 and running.count("metric") >= 20
    assert all(said for *_, said in found)
