"""A run from configuration to rows, on real images and files, in this process."""

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.engine.helpers import prepared, rows_of
from xaibench.build import build
from xaibench.config import compose_job
from xaibench.datasets.shapes import Shapes
from xaibench.engine import keys, runner
from xaibench.methods.context import Context
from xaibench.scores import leaderboard, score_files

QUICK = ("dataset.limit=6", "metric.steps=4")


def written(folder: Path, method: str = "gradient", metric: str = "degradation") -> pd.DataFrame:
    (path,) = (folder / "results" / "scores").glob(f"*/*/{metric}/{method}-*.csv")
    return pd.read_csv(path)


def written_in(results: Path, metric: str) -> pd.DataFrame:
    (path,) = (results / "scores").glob(f"*/*/{metric}/precomputed-*.csv")
    return pd.read_csv(path)


def values(rows: pd.DataFrame, statistic: str) -> pd.Series:
    return rows[(rows["statistic"] == statistic) & (rows["sample"] >= 0)].set_index("sample")["value"]


def files(folder: Path, pattern: str) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every file below a folder that matches."""
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.read_bytes()) for p in sorted(folder.rglob(pattern))}


@pytest.fixture
def own_method(here: Path):
    """A user's own method outside the package: it records its calls, and fails once a file says so."""
    (here / "my_method.py").write_text(
        "from pathlib import Path\n"
        "class Mine:\n"
        "    '''Input times a factor.'''\n"
        "    version = 1\n"
        "    collapse = 'sum'\n"
        "    def __init__(self, factor: float = 1.0): self.factor = factor\n"
        "    def check(self, classifier): pass\n"
        "    def cost(self, classifier): return (0, 0)\n"
        "    def attribute(self, classifier, inputs, targets, context):\n"
        "        if Path('forbidden').exists(): raise RuntimeError('called')\n"
        "        with open('calls', 'a') as file: file.write(' '.join(map(str, context.samples)) + '\\n')\n"
        "        maps = inputs * self.factor\n"
        "        if Path('undefined').exists(): maps[0] = float('nan')\n"
        "        return maps\n"
    )
    (here / "conf" / "method").mkdir(parents=True)
    (here / "conf" / "method" / "mine.yaml").write_text("# Mine.\n_target_: my_method.Mine\nfactor: 1.0\n")
    return ("--config-dir", "conf", "method=mine")


def test_rows_equal_a_direct_computation(xaibench, here):
    assert xaibench("run", "method=saliency", *QUICK)[0] == 0
    rows = written(here, "saliency")

    cell = prepared(here / "elsewhere", "method=saliency", *QUICK)
    network = cell.setting.classifier
    from captum.attr import Saliency

    for sample in cell.setting.samples[:3]:
        batch = cell.setting.split.samples.load([sample])
        maps = Saliency(network.module).attribute(batch.inputs.requires_grad_(), batch.labels, abs=True)
        random = torch.Generator().manual_seed(0)
        responses = cell.metric.respond(network, batch, Context([random]))
        context = Context([random], responses=responses)
        scores = cell.metric.evaluate(network, batch, maps.amax(1).detach(), context)
        for name in ("morf", "lerf", "area", "top1", "degraded"):
            assert values(rows, name)[sample] == pytest.approx(scores[name].item(), rel=1e-4, abs=1e-6)


def test_rows_are_tidy_and_curves_lie_beside_them(xaibench, here):
    assert xaibench("run", *QUICK)[0] == 0
    rows = written(here)
    assert list(rows.columns) == [
        "schema", "model", "dataset", "method", "metric", "statistic", "x", "sample", "repeat", "status", "value",
    ]  # fmt: skip
    assert (rows["status"] == "ok").all()
    curve = rows[rows["statistic"] == "morf_curve"]
    assert curve["x"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    import h5py

    (path,) = here.glob("results/scores/*/*/*/*.h5")
    with h5py.File(path) as file:
        np.testing.assert_allclose(file["morf_curve"][:].mean(0), curve["value"], rtol=1e-6)
        areas = np.trapezoid(file["morf_curve"][:], file["morf_curve_x"][:], axis=1)
        np.testing.assert_allclose(areas, values(rows, "morf").loc[file["sample"][:]], rtol=1e-5)


def test_the_leaderboard_is_the_ratio_of_means_of_the_rows(xaibench, here):
    assert xaibench("run", *QUICK)[0] == 0
    rows = written(here)
    board = leaderboard.read_csv(here / "results" / "leaderboard.csv").set_index("statistic")
    expected = values(rows, "area").mean() / values(rows, "range").mean()
    assert board.loc["degradation", "value"] == pytest.approx(expected, rel=1e-5)
    assert board.loc["degradation", "n"] == 6
    assert board.loc["degradation", "ci_low"] <= expected <= board.loc["degradation", "ci_high"]


def test_a_second_run_computes_nothing_and_changes_no_file(xaibench, here, own_method, monkeypatch):
    assert xaibench("run", *own_method, *QUICK)[0] == 0
    before = files(here, "*.h5") | files(here, "*.csv")
    (here / "forbidden").touch()
    from xaibench.metrics.removal.degradation import Degradation
    from xaibench.models.classifier import Classifier

    def called(*_, **__):
        raise AssertionError("something was computed")

    for owner, name in ((Degradation, "evaluate"), (Degradation, "respond"), (Classifier, "logits")):
        monkeypatch.setattr(owner, name, called)
    assert xaibench("run", *own_method, *QUICK)[0] == 0
    after = files(here, "*.h5") | files(here, "*.csv")
    assert {name: content for name, (_, content) in after.items()} == {n: c for n, (_, c) in before.items()}
    assert {n: i for n, (i, _) in after.items() if n.startswith("cache")} == {
        n: i for n, (i, _) in before.items() if n.startswith("cache")
    }


def test_another_metric_reads_the_same_maps(xaibench, here, own_method):
    assert xaibench("run", *own_method, *QUICK)[0] == 0
    (here / "forbidden").touch()
    assert xaibench("run", *own_method, "metric=pointing_game", "dataset.limit=6")[0] == 0
    assert len((here / "calls").read_text().splitlines()) == 1


def test_a_larger_limit_adds_a_shard_and_keeps_what_was_there(xaibench, here, own_method):
    assert xaibench("run", *own_method, "dataset.limit=4", "metric.steps=4")[0] == 0
    shards, rows = files(here / "cache" / "maps", "shard-*.h5"), written(here, "mine")
    assert xaibench("run", *own_method, "dataset.limit=7", "metric.steps=4")[0] == 0
    grown = files(here / "cache" / "maps", "shard-*.h5")
    assert len(grown) == 2
    assert grown | shards == grown
    calls = [line.split() for line in (here / "calls").read_text().splitlines()]
    assert [len(call) for call in calls] == [4, 3]
    (larger,) = [p for p in here.glob("results/scores/*/*/*/*.csv") if len(values(pd.read_csv(p), "area")) == 7]
    both = values(pd.read_csv(larger), "area")
    assert set(calls[0]) <= {str(sample) for sample in both.index}
    pd.testing.assert_series_equal(both.loc[values(rows, "area").index], values(rows, "area"))


def test_other_parameters_are_other_maps_and_other_rows(xaibench, here, own_method):
    assert xaibench("run", *own_method, *QUICK)[0] == 0
    assert xaibench("run", *own_method, "method.factor=2", *QUICK)[0] == 0
    assert len((here / "calls").read_text().splitlines()) == 2
    board = leaderboard.read_csv(here / "results" / "leaderboard.csv")
    assert sorted(set(board["method_variant"])) == ["", "factor=2.0"]
    # Twice the map ranks the same: the same rank, shared.
    assert set(board["rank"]) == {1}


@pytest.mark.parametrize(("policy", "calls"), [("missing", 1), ("force", 2), ("never", 2)])
def test_reuse_says_what_is_computed(xaibench, here, own_method, policy, calls):
    assert xaibench("run", *own_method, *QUICK)[0] == 0
    assert xaibench("run", *own_method, *QUICK, f"runner.reuse={policy}")[0] == 0
    assert len((here / "calls").read_text().splitlines()) == calls


def test_only_cache_computes_nothing_and_says_what_is_missing(xaibench, here, own_method):
    code, _, said = xaibench("run", *own_method, *QUICK, "runner.reuse=only-cache")
    assert code == 2
    assert "misses 6 of 6 samples" in said
    assert not (here / "calls").exists()


def test_a_plan_shows_what_is_missing_and_does_nothing(xaibench, here):
    code, out, _ = xaibench("run", *QUICK, "runner.plan=true")
    assert code == 0
    assert re.search(r"maps.*0 .*6 .*12", out)
    assert not (here / "cache").exists()
    assert not (here / "results").exists()


def test_undefined_maps_are_excluded_counted_and_named(xaibench, here, own_method):
    (here / "undefined").touch()
    assert xaibench("run", *own_method, *QUICK)[0] == 0
    assert xaibench("run", "method=input", *QUICK)[0] == 0
    rows = written(here, "mine")
    assert (rows["status"] == "nonfinite_map").sum() == len(set(rows[rows["sample"] >= 0]["statistic"]))
    assert rows[rows["status"] != "ok"]["value"].isna().all()
    (card,) = (json.loads(p.read_text()) for p in here.glob("results/scores/*/*/*/mine-*.json"))
    assert card["excluded"] == {"nonfinite_map": 1}
    board = leaderboard.read_csv(here / "results" / "leaderboard.csv").set_index(["method", "statistic"])
    assert (board.loc[("mine", "degradation"), "n"], board.loc[("mine", "degradation"), "excluded"]) == (5, 1)
    # More than 5 % are gone: both methods are also given on the five samples that both have, where they agree.
    common = board.xs("degradation@common", level="statistic")
    assert common["n"].tolist() == [5, 5]
    assert common["value"].nunique() == 1
    assert board.loc[("input", "degradation"), "n"] == 6


def test_maps_that_rank_nothing_are_counted_in_the_card(xaibench, here, own_method):
    assert xaibench("run", "-m", *own_method, "method.factor=0,1", *QUICK)[0] == 0
    # A map that is undefined is excluded, and is not one that is constant; more samples, from the cache and new.
    (here / "undefined").touch()
    assert xaibench("run", *own_method, "method.factor=0", "dataset.limit=8", "metric.steps=4")[0] == 0
    assert xaibench("run", "method=constant", "metric=pointing_game", "dataset.limit=3")[0] == 0
    cards = [json.loads(p.read_text()) for p in here.glob("results/scores/*/*/*/*.json")]
    found = {(card["method"], card["method_variant"], card["n"]): card["constant_maps"] for card in cards}
    expected = {("mine", "factor=0.0", 6): 6, ("mine", "", 6): 0, ("mine", "factor=0.0", 8): 7, ("constant", "", 3): 3}
    assert found == expected
    assert "constant_maps" not in set(written(here, "constant", "pointing_game")["statistic"])


def test_scores_of_a_cache_that_did_not_count_constant_maps_say_nothing(here):
    record = prepared(here, "method=gradient", *QUICK).record()
    columns = {"status": np.zeros(6, int), "area": np.ones(6)}
    for counted, expected in ((None, None), (np.array([1, 1]), None), (np.array([1, 0, 0, 1, 0, 0]), 2)):
        given = columns if counted is None else {**columns, "constant_maps": counted}
        card = json.loads(score_files.write(replace(record, computed=True), given).card.read_text())
        assert card["constant_maps"] == expected


@pytest.mark.parametrize("dtype", ["f8", "i8"])
def test_an_offset_of_a_file_does_not_make_ties(xaibench, here, dtype):
    """1e9 and what ranks the pixels need more than single precision, in the cache too."""
    samples = list(prepared(here, "method=gradient", "metric=roc_auc", "dataset.limit=3").setting.samples)
    maps = {sample: np.random.default_rng(sample).permutation(64 * 64).reshape(1, 64, 64) for sample in samples}
    for name, offset in (("near", 0), ("far", 1_000_000_000)):
        np.savez(here / f"{name}.npz", maps=(np.stack(list(maps.values())) + offset).astype(dtype), sample=samples)
        for metric in ("degradation", "roc_auc"):
            code, _, said = xaibench("run", "method=precomputed", f"method.path={name}.npz", f"metric={metric}",
                                     "dataset.limit=3", f"paths.results={name}")  # fmt: skip
            assert code == 0, said
    for metric in ("degradation", "roc_auc"):
        near, far = (written_in(here / name, metric)["value"] for name in ("near", "far"))
        pd.testing.assert_series_equal(near, far)
    truth = Shapes("test")
    for sample, found in values(written_in(here / "far", "roc_auc"), "roc_auc").items():
        mask = np.asarray(truth[sample].mask).ravel()
        ranks = maps[sample].ravel() + 1
        inside = mask.sum()
        expected = (ranks[mask].sum() - inside * (inside + 1) / 2) / (inside * (~mask).sum())
        assert found == pytest.approx(expected)


def test_the_batch_size_changes_no_number(xaibench, here):
    method = ("method=smoothgrad", "method.samples=3")
    for size in (1, 7, 64):
        arguments = ("paths.cache=cache-" + str(size), f"paths.results=results-{size}", f"runner.batch_size={size}")
        assert xaibench("run", *method, *QUICK, *arguments)[0] == 0
    found = [pd.read_csv(next(here.glob(f"results-{size}/scores/*/*/*/*.csv"))) for size in (1, 7, 64)]
    assert len({next(here.glob(f"results-{size}/scores/*/*/*/*.csv")).name for size in (1, 7, 64)}) == 1
    for other in found[1:]:
        difference = (values(found[0], "area") - values(other, "area")).abs()
        assert difference.median() < 1e-5


def test_filters_pass_over_samples_and_count_them(xaibench, here):
    wanted = ("dataset.limit=12", "dataset.filter.correct=true", "dataset.filter.min_probability=0.9")
    setting = prepared(here, *wanted).setting
    batch = setting.split.samples.load(setting.samples)
    probabilities = setting.classifier.logits(batch.inputs).softmax(-1)
    assert (probabilities.argmax(-1) == batch.labels).all()
    assert (probabilities.gather(1, batch.labels[:, None]) >= 0.9).all()
    everything = prepared(here, "dataset.limit=100").setting.samples
    passed = everything[: len(setting.samples) + sum(setting.filtered.values())]
    assert [sample for sample in passed if sample in set(setting.samples)] == setting.samples


@pytest.mark.parametrize("target", ["predicted", "fixed:3"])
def test_the_target_is_what_is_explained(here, target):
    cell = prepared(here, f"target={target}", "dataset.limit=5")
    network = cell.setting.classifier
    maps = rows_of(cell, cell.maps.stage)
    batch = cell.setting.split.samples.load(cell.setting.samples)
    logits = network.logits(batch.inputs)
    wanted = logits.argmax(-1) if target == "predicted" else torch.full((5,), 3)
    assert maps["target"].tolist() == wanted.tolist()
    np.testing.assert_allclose(maps["logit"], logits.gather(1, wanted[:, None])[:, 0], rtol=1e-5)
    gradient = network.gradient(batch.inputs, wanted)
    np.testing.assert_allclose(maps["maps"], gradient, rtol=1e-4, atol=1e-6)


def test_an_image_that_changed_under_its_name_is_noticed(xaibench, here):
    """In a data set of the user's, whose fingerprint says nothing of the content (that of a folder of images does)."""
    (here / "images").mkdir()
    (here / "bitmaps.py").write_text(
        "from PIL import Image\n"
        "from xaibench.datasets.base import Dataset, Example\n"
        "class Bitmaps(Dataset):\n"
        "    fingerprint = 'bitmaps'\n"
        "    class_names = ('a',)\n"
        "    def __init__(self, split: str = 'test'): pass\n"
        "    def __len__(self): return 3\n"
        "    def __getitem__(self, index): return Example(Image.open(f'images/{index}.bmp'), 0)\n"
    )
    (here / "conf" / "dataset").mkdir(parents=True)
    (here / "conf" / "dataset" / "bitmaps.yaml").write_text(
        "# Bitmaps.\n_target_: bitmaps.Bitmaps\nsplit: test\nlimit: null\nseed: 0\n"
        "filter: {correct: false, min_probability: 0.0}\n"
    )
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(here / "images" / f"{number}.bmp")
    images = ("--config-dir", "conf", "dataset=bitmaps", "metric.steps=4", "runner.classes=any")
    assert xaibench("run", *images)[0] == 0
    Image.fromarray(np.full((64, 64, 3), 9, dtype=np.uint8)).save(here / "images" / "1.bmp")
    code, _, said = xaibench("run", *images, "metric.tile=16")
    assert code == 0 and "1 inputs have changed since their maps" in said
    assert xaibench("run", *images, "metric.tile=16", "paths.cache=fresh", "paths.results=fresh")[0] == 0
    (found,) = (p.read_bytes() for p in here.glob("fresh/scores/*/*/*/*.csv"))
    assert found in [p.read_bytes() for p in here.glob("results/scores/*/*/*/*.csv")]


def test_a_failing_cell_leaves_the_others_standing(xaibench, here, own_method):
    (here / "forbidden").touch()
    code, out, said = xaibench("run", "-m", *own_method[:2], "method=gradient,mine,input", *QUICK)
    assert code == 1
    assert "1 failed" in said
    assert "RuntimeError: called" in said
    assert f"again: xaibench run --config-dir={here / 'conf'} method=mine" in said
    assert "Traceback" not in said
    assert re.search(r"gradient[\s\S]*input|input[\s\S]*gradient", out)
    (here / "forbidden").unlink()
    assert xaibench("run", "-m", *own_method[:2], "method=gradient,mine,input", *QUICK)[0] == 0
    assert set(leaderboard.read_csv(here / "results" / "leaderboard.csv")["method"]) == {"gradient", "mine", "input"}


def test_keys_cover_what_changes_numbers_and_nothing_else(here):
    def key(*overrides: str) -> str:
        return prepared(here, "dataset.limit=3", *overrides).scores.artefact.key

    reference = key()
    same = [
        "runner.batch_size=5", "runner.device=cpu", "runner.worker=3", "paths.cache=x", "paths.results=y",
        "dataset.limit=5", "dataset.seed=4", "metric.tile=8.0", "fit.limit=7",
    ]  # fmt: skip
    other = [
        "method=saliency", "metric.tile=4", "metric.sign=absolute", "metric.collapse=max_abs", "seed=1",
        "target=predicted", "output=probability", "dataset.split=validation", "dataset.task=scene",
        "model.weights=random", "model.mean=[0.4,0.5,0.5]",
        "model.num_classes=11 model.weights=random runner.classes=any",
    ]  # fmt: skip
    assert {override: key(override) for override in same} == dict.fromkeys(same, reference)
    found = {override: key(*override.split()) for override in other}
    assert len({reference, *found.values()}) == len(other) + 1, found


def test_methods_are_ranked_together_whatever_collapse_they_bring(xaibench, here):
    assert xaibench("run", "-m", "method=gradient,saliency,random", *QUICK)[0] == 0
    board = leaderboard.read_csv(here / "results" / "leaderboard.csv")
    assert sorted(board[board["statistic"] == "degradation"]["rank"]) == [1, 2, 3]


def test_what_was_fitted_on_other_samples_or_drawn_from_another_seed_stands_beside(xaibench, here):
    job = ("metric=bottleneck_capacity", "dataset.limit=2", "metric.steps=1", "metric.betas=[10]")
    for other in ("fit.limit=20", "fit.limit=30", "seed=1"):
        assert xaibench("run", *job, "fit.limit=20", other)[0] == 0
    assert len(list(here.glob("results/scores/*/*/*/none-*.csv"))) == 3
    assert compose_job(["method=gradient", "fit.limit=20"]).method_variant == ""
    assert compose_job(["method=iba", "fit.limit=20"]).method_variant == "fit.limit=20"


def test_a_metric_that_propagates_belongs_to_the_method_and_needs_no_maps(xaibench, here):
    few = ("metric=csc", "dataset.limit=2", "metric.vectors=2")
    assert xaibench("run", "-m", "method=gradient,lrp_zplus", *few)[0] == 0
    assert xaibench("run", "method=lrp_alphabeta", "method.rule.alpha=1", "method.rule.beta=0", *few)[0] == 0
    assert not list(here.glob("cache/maps/**/*.h5"))
    plus, other = (values(written(here, method, "csc"), "cosine") for method in ("lrp_zplus", "lrp_alphabeta"))
    assert plus.tolist() == other.tolist() != values(written(here, "gradient", "csc"), "cosine").tolist()
    board = leaderboard.read_csv(here / "results" / "leaderboard.csv")
    # The third method is the first one by another name, and so it has the same key.
    assert board["method_key"].nunique() == 2 and sorted(board[board["statistic"] == "cosine"]["rank"]) == [1, 2, 2]
    code, _, said = xaibench("run", "method=saliency", *few)
    assert code == 2 and "method=saliency has none" in said and "Traceback" not in said


def test_a_version_bump_of_a_method_is_another_key():
    spec = {"_target_": "xaibench.methods.gradients.gradient.Gradient"}
    method = build(spec, "method")
    before = keys.method(method, spec)
    method.version += 1
    assert keys.method(method, spec) != before


def test_variants_are_the_overrides_that_differ(here):
    assert compose_job(["method=occlusion", "method.patch=8"]).method_variant == ""
    job = compose_job(["method=occlusion", "method.patch=4", "seed=2", "metric.tile=16"])
    assert (job.method_variant, job.metric_variant) == ("patch=4,seed=2", "tile=16")


def test_no_litter_in_the_users_folder(xaibench, here):
    assert xaibench("run", *QUICK)[0] == 0
    assert sorted(os.listdir(here)) == ["cache", "results"]
    assert sorted(os.listdir(here / "results")) == ["cost.csv", "leaderboard.csv", "scores"]
    leftovers = [p for p in (here / "cache").rglob(".*") if p.is_file()]
    assert leftovers == []


def test_the_second_cell_of_a_sweep_loads_and_decodes_nothing(xaibench, here, monkeypatch):
    """The network, its digest and the decoded images are those of the first cell."""
    from xaibench.datasets.shapes import Shapes
    from xaibench.engine import kept, setting

    counts = Counter()
    load, getitem = setting.load_classifier, Shapes.__getitem__

    def counted_load(*arguments, **options):
        counts["networks"] += 1
        return load(*arguments, **options)

    def counted_getitem(self, index):
        counts["images"] += 1
        return getitem(self, index)

    monkeypatch.setattr(setting, "load_classifier", counted_load)
    monkeypatch.setattr(Shapes, "__getitem__", counted_getitem)
    cells = ("method=gradient,gradcam,input", "metric=degradation,pointing_game")
    assert xaibench("run", "-m", *cells, *QUICK[:1])[0] == 0
    assert counts["networks"] == 1
    assert counts["images"] <= 6 + 1  # the first image of the split is looked at besides
    assert not kept.KEPT._kinds  # nothing stays behind


def test_a_single_run_says_its_passes_beforehand_and_a_sweep_its_cells(xaibench, monkeypatch):
    """Each of 3 samples: forward and backward for a map, the whole image, 64 steps of insertion and of deletion."""
    monkeypatch.setattr(runner, "WORTH_SAYING", 0)
    cell = ("method=gradient", "metric=insertion_deletion", "dataset.limit=3", "runner.reuse=never")
    assert re.search(r"393 passes, \d+ s if each is of the whole network", xaibench("run", *cell)[2])
    assert "passes" not in xaibench("run", "-m", *cell)[2]
