"""The plane worlds through the command line: trained by recipe where that is missing, explained on the grid."""

import csv
from pathlib import Path

import pytest
import yaml

from xaibench.build import build
from xaibench.datasets.base import Samples
from xaibench.datasets.planes import RingOfGaussians, Xor
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.models.loading import load_classifier
from xaibench.rng import generator, sample_generators

CONF = Path(__file__).parents[1] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
GRID = ("model=xor_net", "dataset=xor", "dataset.split=grid:5")


def spec(group: str, name: str) -> dict:
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text())


def rows_of(metric: str) -> dict[str, str]:
    """The only score file of a metric: statistic -> value; each row is of the data set."""
    (path,) = Path("results/scores").glob(f"*/*/{metric}/*.csv")
    rows = list(csv.DictReader(path.open()))
    assert {(row["sample"], row["repeat"], row["status"]) for row in rows} == {("-1", "0", "ok")}
    return {row["statistic"]: row["value"] for row in rows}


def test_a_missing_network_is_trained_once_whatever_is_explained(xaibench, here):
    few = (*GRID, "model.recipe.epochs=1", "metric=dim_diff")
    code, _, talk = xaibench("run", *few, "method=oracle")
    assert code == 0 and "training xor_net on 10000 samples of xor" in talk
    code, _, talk = xaibench("run", *few, "method=gradient", "dataset.split=grid:3")
    assert code == 0 and "training" not in talk


def test_a_pooled_metric_has_one_row_and_is_read_again(xaibench, here):
    few = (*GRID, "model.weights=random", "method=gradient", "metric=masked_pearson", "metric.align=transpose")
    assert xaibench("run", *few, "metric.low=0.45", "metric.high=0.5")[0] == 0
    rows = rows_of("masked_pearson")
    assert rows["rho_boundary"] == rows["rho_boundary_transpose"] and float(rows["n_sure"]) > 0
    (path,) = here.glob("results/scores/*/*/*/*.csv")
    before = path.read_bytes()
    again = (*few, "metric.low=0.45", "metric.high=0.5", "runner.reuse=only-cache", "runner.batch_size=7")
    assert xaibench("run", *again)[0] == 0 and path.read_bytes() == before
    code, shown, _ = xaibench("run", *few, "runner.plan=true")
    assert code == 0 and " 25 " in shown  # maps that are there; scores of these bounds are not


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("dataset.limit=4",), "defined over the whole split"),
        (("dataset.split=test",), "set dataset.split=grid"),
        (("dataset.split=grid:1",), "at least two points per axis"),
        (("dataset.split=gird",), "did you mean 'grid'"),
        (("model=smallcnn", "dataset=shapes", "dataset.split=test"), "1x1x2: smallcnn takes 3x64x64"),
        (("metric=pointing_game",), "needs a region: the truth of dataset=xor,split=grid:5 is graded"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_reason(overrides, message, xaibench):
    code, _, talk = xaibench("run", *GRID, "model.weights=random", "method=oracle", "metric=dim_diff", *overrides)
    assert code == 2 and message in talk


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("world, model", [(Xor, "xor_net"), (RingOfGaussians, "rog_net")])
def test_a_method_serves_two_features_or_says_why_not(name, world, model):
    """Every method: finite maps of a few points, or one or two lines before any work."""
    if name == "precomputed":
        pytest.skip("its maps come from a file")
    classifier = load_classifier(model, {**spec("model", model), "weights": "random"})
    batch = Samples(world("grid:2"), classifier.preprocessing, range(4)).load(range(4))
    method = build(spec("method", name), "method")
    try:
        method.check(classifier)
        train = Samples(world("train"), classifier.preprocessing, range(20))
        fitted = method.fit(classifier, train, generator("fit")) if method.fit else {}
        draws = sample_generators(0, "method", batch.samples)
        context = Context(draws, fitted, batch.samples, batch.labels, batch.masks)
        maps = method.attribute(classifier, batch.inputs, batch.targets * (model == "rog_net"), context)
    except Refusal as refusal:
        assert 10 < len(str(refusal)) < 300 and str(refusal).count("\n") <= 1
    else:
        assert maps.shape == (4, 1, 1, 2) and maps.isfinite().all()
