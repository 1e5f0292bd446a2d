"""What goes wrong with sentences: a sentence that says so, or the right number."""

import csv

import pytest

from xaibench.config import compose_job
from xaibench.engine import runner
from xaibench.errors import UserError


@pytest.fixture
def job(here):
    """job(overrides): a cell of lstm_planted, unless they say otherwise."""

    def make(overrides: str):
        given = {"model": "lstm_planted", "metric": "sparseness", "paths.cache": "cache", "paths.results": "results"}
        given |= dict(word.split("=", 1) for word in overrides.split())
        return compose_job([f"{key}={value}" for key, value in given.items()])

    return make


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("dataset=shapes", "the model reads sentences, and the data set has none"),
        ("model=smallcnn dataset=planted_words", "the data set's inputs are sentences: expected a model for them"),
        ("dataset=planted_words metric=degradation metric.fill=blur", "metric.fill=blur is made of pixels"),
        (
            "dataset=planted_words metric=degradation",
            "metric.tile=8 is a square of pixels .metric.tile=1 is a place.: the",
        ),
        ("dataset=planted_words metric=region_perturbation metric.fill=zero", "metric.tile=9 is a square of pixels"),
        (
            "dataset=planted_words metric=sensitivity_n metric.sizes=percent metric.tile=2",
            "inputs of lstm_planted are words",
        ),
        ("model=mlp model.weights=random dataset=friedman1 metric=degradation metric.output=logit", "mlp are columns"),
        ("dataset=planted_words metric=sensitivity_n", "set metric.sizes=percent"),
        ("dataset=planted_words metric=insertion_deletion", "metric.insertion_fill=blur is made of pixels"),
        ("dataset=planted_words metric=roar", "retraining lstm_planted without some words is not built"),
        ("model=smallcnn dataset=shapes metric=degradation metric.fill=unknown", "smallcnn reads no words"),
        ("dataset=planted_words dataset.shortest=0", "expected 1 <= shortest <= longest"),
        ("dataset=reviews dataset.root=nowhere", "dataset.root=nowhere"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(job, overrides, said):
    with pytest.raises(UserError, match=said):
        runner.run(job(f"{overrides} dataset.limit=2"))


def test_unknown_words_alone_have_right_numbers(job, here):
    """Two sentences of two unknown words are one sentence to the network."""
    (here / "f.neg").write_text("zork blah\n")
    (here / "f.pos").write_text("splendid\n\nqux zork\n")
    common = f"dataset=reviews dataset.root={here} dataset.split=train target=fixed:1"
    outcome = runner.run(job(common))
    with open(outcome.rows, newline="") as file:
        rows = {row["sample"]: row for row in csv.DictReader(file) if row["statistic"] == "sparseness"}
    # Sorted by class: zork blah; splendid; qux zork.
    assert len(rows) == 3 and all(row["status"] == "ok" for row in rows.values())
    assert rows["0"]["value"] == rows["2"]["value"]


def test_sentences_of_one_word_leave_nothing_to_correlate(job):
    common = "dataset=planted_words dataset.shortest=1 dataset.longest=1 dataset.limit=2 metric.sets=4"
    outcome = runner.run(job(f"{common} metric=sensitivity_n metric.sizes=percent"))
    with open(outcome.rows, newline="") as file:
        found = [row["value"] for row in csv.DictReader(file) if row["statistic"] == "sensitivity_n"]
    assert found == ["", ""] or found == ["nan", "nan"]
