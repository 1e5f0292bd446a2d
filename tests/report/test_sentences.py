"""Sentences in the report: words in the colours of their scores, and markup in them is text."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from xaibench.datasets.reviews import Reviews
from xaibench.report import gallery
from xaibench.scores import leaderboard

LINES = 'A <script>alert("x")</script> splendid night.\n{{ 7 * 7 }} & a <b>dreadful</b> film\n'


class Words(HTMLParser):
    """The words of each description (`dd`) with their titles, and how many scripts there are."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.scripts, self.inside, self.title = [], 0, False, None
        self.feed(page)
        self.rows = [row for row in self.rows if row]  # other descriptions have no titles

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        if tag == "dd":
            self.inside, row = True, []
            self.rows.append(row)
        self.title = dict(attributes).get("title") if self.inside and tag == "span" else None

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "dd"
        self.title = None

    def handle_data(self, data):
        if self.title is not None:
            self.rows[-1].append((data, self.title))


@pytest.fixture
def page(xaibench, here):
    for name in ("neg", "pos"):
        (here / f"films.{name}").write_text(LINES * 5)
    common = ("model=lstm_planted", "dataset=reviews", f"dataset.root={here}", "dataset.split=train", "dataset.limit=3")
    assert xaibench("run", "-m", *common, "method=gradient,saliency", "metric=sparseness")[0] == 0
    assert xaibench("report")[0] == 0
    return (here / "results" / "report" / "index.html").read_text()


def test_words_have_colours_and_numbers_and_markup_is_text(page, here):
    found = Words(page)
    assert found.scripts == 2  # the page's own
    shown = gallery.collect(leaderboard.read_cells(Path("results")), Path("cache"))
    dataset = Reviews(str(here), "train")
    assert len(found.rows) == 6 and len(shown.sentences) == 3
    for number, sentence in enumerate(shown.sentences):
        assert sentence.words == dataset[sentence.sample].image
        for column, row in zip(shown.columns, found.rows[2 * number : 2 * number + 2]):
            assert [word for word, _ in row] == list(sentence.words)
            scores = torch.from_numpy(column.maps[number][0, : len(sentence.words)])
            first = int(scores.argmax())
            share = float(scores[first].abs() / scores.abs().sum())
            assert row[first][1] == f"{scores[first]:.4g}, rank 1 of {len(scores)}, {share:.0%} of all"
