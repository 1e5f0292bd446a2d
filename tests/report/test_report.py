"""`xaibench report`: the page says what the score files say, whatever is in them."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.figure import Figure

from xaibench.metrics.base import Statistic
from xaibench.report import figures
from xaibench.scores import leaderboard, score_files
from xaibench.scores.cells import Curve

REFERENCE = Path(__file__).parent.parent.parent / "results" / "reference"
HOSTILE = '$x^2$<img src=x onerror="alert(1)">&'


def score_file(method, values, metric="metric", repeats=False, curves=None, **labels):
    """A score file in ./results, written as a run writes it: values by sample, or by repeat."""
    values = np.asarray(values, dtype=float)
    columns = {"status": np.zeros(len(values), dtype=int), "value": values, **(curves or {})}
    keys = {name: f"{metric}-key" for name in ("model_key", "data_key", "metric_key", "sample_key")}
    labels = {"model": "net", "dataset": "data", "method_variant": "", "metric_variant": "", **labels}
    record = score_files.Record(
        **labels,
        method=method,
        metric=metric,
        results=Path("results"),
        samples=tuple(range(len(values))),
        filtered={},
        statistics=[Statistic(metric, "higher", "value", kind="repeats" if repeats else "mean")],
        axes={name: np.arange(curve.shape[1]).tolist() for name, curve in (curves or {}).items()},
        keys={**keys, "map_key": "" if method == "none" else f"{method}-maps"},
        computed=True,
        repeats=repeats,
        details={
            "method_cost": (1, 1),
            "seconds": {"maps": 1.0, "scores": 1.0},
            "device": "cpu",
            "threads": 1,
            "collapse": "sum",
            "peak_memory_bytes": 1,
            "config": {"metric": {}, "dataset": {}},
        },
    )
    return score_files.write(record, columns).rows


class Table(HTMLParser):
    """The text of each cell of the leaderboard, as a reader without scripts sees it; and every tag and link."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows, self.tags, self.links, self._inside = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self.links += [found[name] for name in ("href", "src") if name in found]
        self._inside = found.get("class") == "rows" if tag == "table" else self._inside
        if self._inside and tag == "tr":
            self.rows.append([])
        if self._inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self._inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "table"


def read(out="results/report") -> tuple[str, Table, list[dict[str, str]]]:
    """The page, its parts, and the rows of its leaderboard by the names of the columns."""
    html = Path(out, "index.html").read_text(encoding="utf-8")
    table = Table(html)
    names, *rows = [[" ".join(cell.split()) for cell in row] for row in table.rows]
    return html, table, [dict(zip(names, row)) for row in rows]


def test_the_page_says_what_the_leaderboard_says(xaibench, copied):
    """And all that it links to is there, and nothing of it is on the network."""
    code, out, _ = xaibench("report", "--images", "2")
    assert (code, out.strip()) == (0, "results/report/index.html")
    html, table, rows = read()
    xaibench("leaderboard")
    assert Path("results/report/leaderboard.csv").read_bytes() == Path("results/leaderboard.csv").read_bytes()
    frame = leaderboard.read_csv(Path("results/leaderboard.csv"))
    assert len(rows) == len(frame) == 3 * 4
    for row in frame.to_dict("records"):
        (shown,) = (
            r for r in rows if (r["method"].split()[0], r["metric"], r["statistic"].split()[0])
            == (row["method"], row["metric"], row["statistic"])
        )  # fmt: skip
        assert float(shown["value"].replace("−", "-")) == pytest.approx(row["value"], abs=6e-4)
        assert (shown["rank"], shown["n"]) == (str(row["rank"]), str(row["n"]))
        low = float(shown["95 % interval"].split(" to ")[0].replace("−", "-"))
        assert low == pytest.approx(row["ci_low"], abs=6e-4)
    for link in table.links:
        if not link.startswith(("#", "data:")):
            assert (Path("results/report") / unquote(link)).is_file(), link
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)
    assert {Path(link).suffix for link in table.links if link.startswith("figures/")} == {".png", ".svg"}
    for section in ("ranks", "curves", "gallery", "agreement", "cost"):
        assert f'<section id="{section}"' in html
    assert html.count('<td><a href="gallery/') == 2 * 3


def test_the_same_results_give_the_same_page(xaibench, copied):
    xaibench("report", "--out", "a/report")
    xaibench("report", "--out", "b/report")
    assert Path("a/report/index.html").read_bytes() == Path("b/report/index.html").read_bytes()


def test_a_rows_command_makes_its_score_file_again(xaibench, copied):
    xaibench("report", "--images", "0", "--method", "gradcam")
    html, *_ = read()
    cards = json.loads(re.search(r'<script type="application/json" id="cards">(.*?)</script>', html, re.DOTALL)[1])
    assert len(cards) == 2
    for key, found in cards.items():
        rows, card, *_ = (Path("results/report") / unquote(file["link"]) for file in found["files"])
        assert json.loads(card.read_text()) == found["card"] and key in rows.name
        before = rows.read_bytes()
        rows.unlink()
        assert xaibench(*shlex.split(found["card"]["command"])[1:])[0] == 0
        assert rows.read_bytes() == before


def test_a_method_may_be_called_anything(xaibench, here):
    """Markup stays text: in the page, in its data, and in figures."""
    for number, method in enumerate((HOSTILE, "</script><script>alert(1)</script>", "plain")):
        curve = {"some_curve": np.linspace(0, number, 8).reshape(2, 4).repeat(3, axis=0)}
        for metric in ("first", "second"):
            score_file(method, np.arange(6) + number, metric, curves=curve, method_variant="a=<b>")
    assert xaibench("report")[0] == 0
    _, table, rows = read()
    assert {row["method"] for row in rows} >= {f"{HOSTILE} a=<b>"}
    assert not [tag for tag, attributes in table.tags if "onerror" in attributes or (tag == "b" and not attributes)]
    assert len([tag for tag, _ in table.tags if tag == "script"]) == 2
    figure = next(Path("results/report/figures").glob("*-curves-first.svg")).read_text()
    assert "&lt;img src=x" in figure and "$x^2$" in figure


def test_undefined_values_model_only_rows_and_repeats(xaibench, here):
    score_file("some", [0.5, np.nan, 0.7, 0.6])
    score_file("nothing", [np.nan] * 4)
    score_file("random", [0.1, 0.2, 0.1, 0.2])
    score_file("none", [1.0, 2.0], "of_the_model")
    for method, value in (("some", 0.8), ("random", 0.5)):
        curve = {"accuracy_curve": np.array([[0.9, value], [0.8, value]])}
        score_file(method, [value, value + 0.1], "retrained", repeats=True, curves=curve)
    assert xaibench("report")[0] == 0
    html, _, rows = read()
    by_method = {(row["method"].split()[0], row["metric"]): row for row in rows if row["statistic"].endswith("↑")}
    assert by_method["nothing", "metric"]["value"] == "undefined" and by_method["nothing", "metric"]["rank"] == "–"
    assert by_method["some", "metric"]["excluded"] == "1" and by_method["some", "metric"]["n"] == "3"
    assert by_method["none", "of_the_model"]["value"] == "1.50"
    assert by_method["some", "retrained"]["n"] == "2"
    assert "nothing under metric, some under metric" in html
    assert "retrained, 2 repeats" in html
    assert not re.search(r"\bnan\b", html.lower())


def test_ties_make_no_first_and_no_bold(xaibench, here):
    """Bold are those not told apart from the best, where some other is; first is who is ahead of another one."""
    noise = np.random.default_rng(0).normal(size=20)
    for method, ahead in (("a", 5.0), ("b", 0.0), ("c", 0.1)):
        score_file(method, noise + ahead + 0.01 * np.arange(20) * (method == "c"), "telling")
        score_file(method, noise * 1e-12, "tied")
    assert xaibench("report")[0] == 0
    html, _, rows = read()
    assert "by number of metrics, of 1: a (1)." in html
    assert {row["rank"] for row in rows if row["metric"] == "tied"} == {"1"}
    assert html.count('class="number shade best"') == 1


def test_one_method_alone(xaibench, here):
    score_file("alone", [1.0, 2.0, 3.0])
    assert xaibench("report")[0] == 0
    html, _, rows = read()
    assert len(rows) == 1 and "one method alone" in html
    assert '<section id="ranks"' not in html and '<section id="cost"' not in html


def test_the_network_itself_comes_first(xaibench, here):
    score_file("alone", [1.0, 2.0, 3.0])
    assert xaibench("report")[0] == 0
    assert "<dt>The network</dt><dd>how good it is on these data has not been measured" in read()[0]
    score_file("none", [1.0, 0.0, 0.5, 0.5], "quality")
    assert xaibench("report")[0] == 0
    assert re.search(r"<dt>The network</dt><dd>\w+ 0.500 \(0.\d+ to 0.\d+\), 4 samples.</dd>", read()[0])


def test_without_the_cache_it_says_how_to_get_the_images(xaibench, copied):
    assert xaibench("report", "--cache", "elsewhere")[0] == 0
    html, _, rows = read()
    assert len(rows) == 12 and "name the cache of the run with --cache" in html
    assert '<table class="gallery">' not in html


@pytest.mark.parametrize("name", ["shapes", "roar_mnist_lenet", "sanity_cifar10"])
def test_a_leaderboard_file_alone(xaibench, here, name):
    file = REFERENCE / f"{name}.csv"
    assert xaibench("report", "--leaderboard", str(file), "--out", "page")[0] == 0
    html, _, rows = read("page")
    assert len(rows) == len(leaderboard.read_csv(file))
    assert "need the score files" in html
    assert '<section id="cost"' in html
    if name == "shapes":
        headlines = {tag["title"].split(", ")[1] for kind, tag in Table(html).tags if "slanted" in tag.get("class", "")}
        assert {"degradation", "insertion", "aopc", "infidelity", "completeness"} <= headlines


def test_mistakes_are_said_in_a_line(xaibench, copied):
    assert xaibench("report", "--results", "nowhere")[::2] == (
        2,
        "xaibench: nowhere: there are no results yet; `xaibench run` makes some\n",
    )
    code, _, said = xaibench("report", "--method", "gradcan")
    assert code == 2 and "--method gradcan: no result has it; did you mean 'gradcam'?" in said
    assert xaibench("report", "--images", "-1")[0] == 2
    code, _, said = xaibench("report", "--leaderboard", "none.csv")
    assert code == 2 and "there is no such leaderboard" in said
    broken = next(Path("results/scores").rglob("gradcam-*.csv"))
    broken.write_text("schema,model\n1,x\n")
    code, _, said = xaibench("report")
    assert code == 1 and str(broken) in said and "run again: xaibench run method=gradcam" in said
    metric = broken.parent.name  # gradcam is there under the other one
    assert {row["method"] for row in read()[2] if row["metric"] == metric} == {"gradient", "random control"}


def test_the_axis_of_costs_is_in_plain_numbers():
    """Powers of ten are drawn as TeX, which SVG keeps as its raw text."""
    import io

    from matplotlib.figure import Figure

    from xaibench.report.figures import _cost_panel
    from xaibench.scores.rank import Contestant

    for costs in ((1e-4, 3e-2, 5.0), (0.0, 2e-4, 3e-3)):
        figure = Figure()
        axes = figure.subplots()
        _cost_panel(axes, {Contestant(f"m{n}", ""): (cost, n + 1.0) for n, cost in enumerate(costs)})
        figure.savefig(out := io.StringIO(), format="svg")
        figure.canvas.draw()
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert "mathdefault" not in out.getvalue() + "".join(labels), labels
        assert "0.001" in labels


@pytest.mark.parametrize("x", [np.linspace(0, 1, 5), np.array([1.0, 10.0, 100.0, 1000.0])])
def test_panels_have_the_limits_of_axes_that_share_theirs(x):
    """matplotlib's own, of axes that look at each other."""
    random = np.random.default_rng(0)
    shown = []
    for _ in range(3):
        mean, width = random.normal(size=len(x)), random.uniform(size=len(x))
        shown.append(Curve(x, mean, mean - width, mean + width))
    shown[0].mean[1] = np.nan
    x_limits, y_limits, scale = figures._limits(shown)
    with figures.style():
        panels = Figure().subplots(1, 3, sharex=True, sharey=True)
        for axes, curve in zip(panels, shown):
            axes.set_xscale(scale)
            figures.band(axes, curve, "black", "")
    assert scale == ("linear" if x[0] == 0 else "log")
    np.testing.assert_allclose(panels[0].get_xlim(), x_limits, rtol=1e-12)
    np.testing.assert_allclose(panels[0].get_ylim(), y_limits, rtol=1e-12)
