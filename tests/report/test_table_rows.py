"""Table rows in the report: each feature with its value, and a bar for each method as wide as its score."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from xaibench.datasets.tables import Table
from xaibench.report import gallery
from xaibench.scores import leaderboard


class Features(HTMLParser):
    """The rows of the tables of features: the texts of their cells, and of each bar its style and title."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.inside = found.get("class") == "features" if tag == "table" else self.inside
        if self.inside and tag == "tr":
            self.rows.append([])
        if self.inside and tag == "span" and "--share" in (found.get("style") or ""):
            self.rows[-1].append((found["class"], float(found["style"].split(":")[1]), found["title"]))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "table"

    def handle_data(self, data):
        if self.inside and self.rows and data.strip():
            self.rows[-1].append(data.strip())


@pytest.fixture
def page(xaibench, here):
    lines = [f"{n % 7},{(n * 5) % 11},{3 * (n % 7) - (n * 5) % 11}" for n in range(60)]
    (here / "t.csv").write_text("\n".join(["<b>a</b>,{{ 7 * 7 }},y", *lines]))
    table = ("model=linear", "model.input_size=[1,1,2]", "dataset=table", "dataset.path=t.csv", "dataset.limit=2")
    assert xaibench("run", "-m", *table, "method=gradient,saliency", "metric=sparseness")[0] == 0
    assert xaibench("report")[0] == 0
    return (here / "results" / "report" / "index.html").read_text()


def test_features_have_values_and_bars_as_wide_as_their_scores(page):
    found = Features(page).rows
    shown = gallery.collect(leaderboard.read_cells(Path("results")), Path("cache"))
    data = Table("t.csv")
    assert len(shown.rows) == 2 and len(found) == 2 * 3
    for number, row in enumerate(shown.rows):
        assert row.features == ("<b>a</b>", "{{ 7 * 7 }}")  # text, and no markup
        assert row.label == f"{data.labels[row.sample]:g}" and float(row.predicted) == pytest.approx(
            float(row.label), abs=0.02
        )
        for place, cells in enumerate(found[3 * number + 1 : 3 * number + 3]):
            texts = [cell for cell in cells if isinstance(cell, str)]
            bars = [cell for cell in cells if not isinstance(cell, str)]
            assert texts[:2] == [row.features[place], f"{data.original(row.sample)[place]:.4g}"]
            for column, (kind, share, title) in zip(shown.columns, bars):
                scores = column.maps[number][0]
                assert share == pytest.approx(abs(scores[place]) / abs(scores).max(), abs=6e-4)
                assert title.startswith(f"{scores[place]:.4g}, rank ")
                assert ("signed" in kind) is column.signed and ("against" in kind) is bool(scores[place] < 0)
