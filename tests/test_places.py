"""Inputs that differ in size: nothing looks at padding, whatever stands there and however much of it there is."""

import csv

import pytest
import torch

from tests import text
from tests.methods.helpers import settings
from xaibench.build import build
from xaibench.config import compose_job
from xaibench.engine import runner
from xaibench.engine.scoring import _read_at
from xaibench.methods.context import Context
from xaibench.models.sentences import Sentences
from xaibench.rng import sample_generators

LINES = ("a b c", "d", "e f g h i", "k a b", "c d e f g h i j k a b c", "b")
# What optimises, fits, samples coalitions and draws at random; and what ranks, removes, draws sets and takes areas.
PAIRS = {
    "iba_text method.steps=2": "insertion_deletion metric.insertion_fill=zero",
    "shapley_sampling method.samples=2": "sensitivity_n metric.sizes=percent metric.sets=5 metric.points=4",
    "random": "mass_accuracy",
}


@pytest.fixture
def scores(tmp_path):
    """scores(folder, method, metric, *more): the rows of the score file, and the maps of the samples."""

    def score(folder, method, metric, *more):
        root = tmp_path / folder
        words = [
            f"method={method}",
            f"metric={metric}",
            "runner.batch_size=32 model=lstm_planted dataset=planted_words dataset.limit=4",
        ]
        given = " ".join([*words, "fit.limit=8", f"paths.cache={root}", f"paths.results={root}/results", *more])
        outcome = runner.run(compose_job(given.split()))
        with open(outcome.rows, newline="") as file:
            return list(csv.DictReader(file))

    return score


def garbage(monkeypatch):
    """From now on padding is full of numbers."""
    clean = Sentences.image

    def image(self, words):
        inputs, real = clean(self, words), self.valid(words)
        return inputs.where(real[None], torch.randn_like(inputs) * 100)

    monkeypatch.setattr(Sentences, "image", image)


def test_parts_of_a_batch_hold_every_sample_once_and_no_padding():
    net = text.network()
    batch = text.batch(net, *LINES)
    rows = torch.cat([rows for rows, _ in batch.alike()])
    assert sorted(rows.tolist()) == list(range(len(LINES)))
    for rows, part in batch.alike():
        for row, one in zip(rows.tolist(), range(len(rows))):
            words = LINES[row].split()
            expected = net.table.weight[[net.places([word])[0][0] for word in words]].T[:, None]
            assert torch.equal(part.inputs[one], expected)
            assert part.masks[one].sum() == 1 and part.masks[one].shape == (1, len(words))
            assert (part.samples[one], part.targets[one]) == (row, row % 3)
            assert part.valid is None


def test_parts_of_joined_and_cut_batches():
    batch = text.batch(text.network(), *LINES)
    again = type(batch).joined([batch[:2], batch[2:]])
    for (rows, part), (other_rows, other) in zip(batch.alike(), again.alike()):
        assert rows.tolist() == other_rows.tolist() and torch.equal(part.inputs, other.inputs)


def test_checksums_of_inputs_are_those_of_real_places(monkeypatch):
    before = text.batch(text.network(), *LINES).crc
    assert text.batch(text.network(length=40), *LINES).crc == before
    garbage(monkeypatch)
    assert text.batch(text.network(), *LINES).crc == before


@pytest.mark.parametrize("method", PAIRS)
def test_padding_changes_no_bit(scores, monkeypatch, method):
    """Neither what stands in it nor how much of it there is."""
    before, longer = (scores(f"{length}", method, PAIRS[method], f"model.length={length}") for length in (20, 24))
    values = [[row["value"] for row in rows if "curve" not in row["statistic"]] for rows in (before, longer)]
    assert values[0] == values[1]
    garbage(monkeypatch)
    assert scores("garbage", method, PAIRS[method], "model.length=20") == before


@pytest.mark.parametrize("method", ["random", "integrated_gradients"])
def test_a_sentence_alone_and_among_others(method):
    net = text.network(dtype=torch.float64)
    classifier, made = text.classifier(net), build(settings(method), "method")
    batch = text.batch(net, *LINES)

    def maps(part):
        context = Context(sample_generators(0, "method", part.samples))
        return made.attribute(classifier.sized(part.inputs), part.inputs.double(), part.targets, context)

    together = {sample: found for _, part in batch.alike() for sample, found in zip(part.samples, maps(part))}
    for sample in range(len(LINES)):
        ((_, alone),) = batch[sample : sample + 1].alike()
        assert maps(alone)[0].numpy() == pytest.approx(together[sample].numpy(), abs=1e-9)


def test_curves_are_read_in_straight_lines():
    own, wanted = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.25, 0.5, 0.8, 1.0])
    assert _read_at(torch.tensor([[0.0, 1.0, 3.0]]), own, wanted)[0].tolist() == pytest.approx([0, 0.5, 1, 2.2, 3])
