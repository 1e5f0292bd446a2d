"""How alike methods' maps are, beside scipy on the maps that lie in the cache."""

import io
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xaibench.report.map_agreement import map_agreement
from xaibench.scores import index

METHODS = ("gradcam", "gradient", "random")


def maps_of(method: str) -> dict[int, np.ndarray]:
    """Sample -> map, summed over channels, as these methods are read."""
    found = {}
    for path in Path(f"cache/maps/smallcnn/shapes/{method}").rglob("shard-*.h5"):
        with h5py.File(path) as file:
            found |= dict(zip(file["sample"][()].tolist(), file["maps"][()].sum(1)))
    return found


def test_it_is_the_mean_of_scipys_correlations(copied):
    (found,) = map_agreement(index.summaries(Path("results"))[0], Path("cache"))
    assert (found.model, found.dataset, found.methods, found.missing) == ("smallcnn", "shapes", METHODS, ())
    maps = [maps_of(method) for method in METHODS]
    samples = set.intersection(*map(set, maps))
    for a, one in enumerate(maps):
        for b, other in enumerate(maps):
            values = [stats.spearmanr(one[sample].ravel(), other[sample].ravel()).statistic for sample in samples]
            assert found.correlations[a, b] == pytest.approx(np.nanmean(values), abs=1e-6)
            assert found.samples[a, b] == np.isfinite(values).sum()


def test_a_map_of_one_value_correlates_with_nothing(xaibench, copied):
    assert xaibench("run", "method=constant", "metric=complexity", "dataset.limit=4")[0] == 0
    (found,) = map_agreement(index.summaries(Path("results"))[0], Path("cache"))
    at = found.methods.index("constant")
    assert found.samples[at].tolist() == [0, 0, 0, 0] and np.isnan(found.correlations[at]).all()
    assert np.isfinite(np.delete(np.delete(found.correlations, at, 0), at, 1)).all()


def test_methods_are_compared_on_the_samples_that_both_have(xaibench, copied):
    assert xaibench("run", "method=saliency", "metric=complexity", "dataset.limit=3")[0] == 0
    (found,) = map_agreement(index.summaries(Path("results"))[0], Path("cache"))
    assert found.samples.tolist() == [[5, 5, 5, 3], [5, 5, 5, 3], [5, 5, 5, 3], [3, 3, 3, 3]]


def test_the_command_shows_it_and_writes_it(xaibench, copied):
    code, out, _ = xaibench("rank", "--maps")
    assert code == 0 and "smallcnn · shapes · maps" in out and "not who is right" in out
    code, out, _ = xaibench("rank", "--csv", "maps")
    rows = pd.read_csv(io.StringIO(out))
    assert code == 0 and list(zip(rows["method"], rows["other"])) == [
        ("gradcam", "gradient"), ("gradcam", "random"), ("gradient", "random")
    ]  # fmt: skip
    assert rows["correlation"].abs().max() < 1
    _, out, said = xaibench("rank", "--maps", "--cache", "nowhere")
    assert not out and "no two methods have maps in the cache. gradcam: nowhere has no maps" in said
    code, _, said = xaibench("rank", "--maps", "--leaderboard", "results/leaderboard.csv")
    assert code == 2 and "need score files" in said
