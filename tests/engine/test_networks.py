"""Networks that users bring: what they answer is looked at before it is scored."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.engine.helpers import prepared, rows_of
from xaibench.errors import Refusal, UserError
from xaibench.scores import leaderboard

CODE = """
import torch
from torch import nn

class Nan(nn.Module):
    '''A linear network of the mean colour; its logits are NaN where red is above the limit.'''
    def __init__(self, limit: float = -1e9):
        super().__init__()
        self.limit, self.c = limit, nn.Conv2d(3, 10, 1)
    def forward(self, x):
        logits = self.c(x).mean((2, 3))
        return logits + torch.where(x[:, :1].mean((2, 3)) > self.limit, torch.nan, 0.0)

class Binary(nn.Module):
    '''One logit, above 0 for class 1: more red than green.'''
    def __init__(self, end: str = "logit"):
        super().__init__()
        self.end, self.c = end, nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.c.weight.copy_(torch.tensor([4.0, -4.0, 0.0]).view(1, 3, 1, 1)); self.c.bias.zero_()
    def forward(self, x):
        f = self.c(x).mean((2, 3))
        return torch.sigmoid(f) if self.end == "sigmoid" else f
"""
YAML = "input_size: [3, 64, 64]\nmean: [0.5, 0.5, 0.5]\nstd: [0.25, 0.25, 0.25]\nresize: null\ncrop: null\n"
BINARY = ("--config-dir=conf", "model=binary", "dataset=imagefolder", "dataset.root=photos", "method=gradient")


@pytest.fixture
def world(here: Path) -> Path:
    """Two networks, and eight green and eight red pictures."""
    (here / "my_nets.py").write_text(CODE)
    (here / "conf" / "model").mkdir(parents=True)
    for name, target in (("blind", "Nan\nlimit: -1.0e9"), ("binary", "Binary\nend: logit")):
        (here / "conf" / "model" / f"{name}.yaml").write_text(f"# Net.\n_target_: my_nets.{target}\n{YAML}")
    random = np.random.default_rng(0)
    for name, channel in (("0_green", 1), ("1_red", 0)):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(40, 160, (64, 64, 3), dtype=np.uint8)
            pixels[10:40, 10:40, channel] = 255
            Image.fromarray(pixels).save(here / "photos" / name / f"{number}.png")
    return here


def test_a_network_of_nan_scores_nothing(xaibench, world):
    """Its gradient maps are finite, and ranked first before."""
    sweep = ("run", "-m", "--config-dir=conf", "model=blind", "method=gradient,random", "dataset.limit=6")
    assert xaibench(*sweep, "metric=roc_auc,degradation,sparseness")[0] == 0
    board = leaderboard.read_csv(world / "results" / "leaderboard.csv")
    assert set(board["metric"]) == {"roc_auc", "degradation", "sparseness"}
    assert board["value"].isna().all() and board["rank"].isna().all()
    assert (board["n"] == 0).all() and (board["excluded"] == 6).all()
    cards = [json.loads(path.read_text()) for path in world.glob("results/scores/**/*.json")]
    assert {tuple(card["excluded"].items()) for card in cards} == {(("nonfinite_logits", 6),)}


def test_samples_without_finite_logits_are_undefined_alone(world):
    blind = ("--config-dir=conf", "model=blind", "model.limit=-0.2")
    scoring = prepared(world, *blind, "metric=roc_auc", "dataset.limit=12")
    rows = rows_of(scoring)
    logits = scoring.setting.logits_of(scoring.setting.samples)
    finite = logits.isfinite().all(1).numpy()
    assert 0 < finite.sum() < 12
    assert (np.isfinite(rows["roc_auc"]) == finite).all() and ((rows["status"] == 2) == ~finite).all()
    filtered = prepared(world, *blind, "dataset.limit=5", "dataset.filter.correct=true").setting
    assert filtered.logits_of(filtered.samples).isfinite().all()
    assert filtered.filtered["logits not finite"] > 0


def test_a_block_without_a_finite_answer_leaves_the_others_in_their_places(world):
    """64 samples make a block of scores: the first one has no column of scores at all."""
    blind = ("--config-dir=conf", "model=blind", "metric=sparseness", "dataset.limit=70")
    whole = prepared(world, *blind, "model.limit=1e9", "paths.cache=whole")
    reds = whole.setting.load(whole.setting.samples).inputs[:, 0].mean((1, 2))
    limit = reds.sort().values[20].item()  # most are above
    scoring = prepared(world, *blind, f"model.limit={limit:.6f}")
    order = reds.argsort(descending=True).tolist()
    samples = [scoring.setting.samples[place] for place in order]  # those without an answer first
    stage = scoring.scores
    stage.artefact.create({})
    for block in (samples[:40], samples[40:]):
        for needed in scoring.stages[:-1]:
            if needed.misses(block):
                needed.fill(block)
        stage.artefact.write(block, stage.compute(block))
    assert "status" in stage.rows(samples[:40]) and "gini" not in stage.rows(samples[:40])
    rows = stage.rows(samples)
    column = next(name for name, values in rows.items() if values.dtype.kind == "f")
    alone = stage.rows(samples[40:])[column]
    assert len(rows[column]) == 70 and np.isnan(rows[column][:40]).all()
    np.testing.assert_array_equal(rows[column][40:], alone)


def test_maps_of_one_value_are_flagged_in_table_and_report(xaibench, world):
    """`constant` ranks nothing: the table, the page and its findings say how often."""
    sweep = ("run", "-m", "method=gradient,constant", "metric=sparseness,degradation", "dataset.limit=3")
    code, out, _ = xaibench(*sweep)
    assert code == 0
    assert "° maps of one value everywhere, which rank nothing: constant 3" in " ".join(out.split())
    assert "constant °" in out and "gradient °" not in out
    assert xaibench("report")[0] == 0
    page = (world / "results" / "report" / "index.html").read_text()
    assert page.count("3 of its maps have one value everywhere and rank nothing") >= 2
    assert "some maps rank nothing, and are scored like random ones: constant (3)." in page


def test_one_logit_is_a_sigmoid_in_scores_filters_and_targets(xaibench, world):
    """All sixteen are right by the sign of the logit; class 0 explains -f."""
    scoring = prepared(world, *BINARY, "metric=insertion_deletion", "dataset.filter.correct=true")
    setting = scoring.setting
    assert len(setting.samples) == 16 and setting.filtered == {"not correct": 0, "probability too low": 0}
    rows = rows_of(scoring)
    batch = setting.load(setting.samples)
    f = setting.network.trained.module.network(batch.inputs)[:, 0]
    right = torch.sigmoid(torch.where(batch.targets == 1, f, -f)).numpy()
    np.testing.assert_allclose(rows["insertion_curve"][:, -1], right, rtol=1e-5)
    np.testing.assert_allclose(rows["deletion_curve"][:, 0], right, rtol=1e-5)
    assert (rows["insertion"] < 0.999).all()
    maps = scoring.maps.stage.rows(setting.samples)
    np.testing.assert_allclose(maps["probability"], right, rtol=1e-5)
    signs = np.where(batch.targets.numpy() == 1, 1, -1)
    expected = np.array([4.0, -4.0, 0.0]) / 64**2
    np.testing.assert_allclose(maps["maps"][:, :, 0, 0], signs[:, None] * expected, rtol=1e-5)
    assert xaibench("run", *BINARY, "metric=insertion_deletion")[0] == 0
    assert "Traceback" not in xaibench("report")[2]


def test_a_sigmoid_at_the_end_is_noticed_and_the_advice_works(xaibench, world):
    sigmoid = (*BINARY, "model.end=sigmoid", "metric=insertion_deletion")
    code, _, said = xaibench("run", *sigmoid)
    assert code == 2 and "+model.returns=probabilities" in said and len(said.strip().splitlines()) == 2
    for setting in ("+model.returns=probabilities",):
        assert xaibench("run", *sigmoid, setting)[0] == 0
    values = {
        path.name: pd.read_csv(path).query("statistic == 'insertion'")["value"].mean()
        for path in world.glob("results/scores/**/*.csv")
    }
    assert xaibench("run", *BINARY, "metric=insertion_deletion", "paths.results=plain")[0] == 0
    (plain,) = world.glob("plain/scores/**/*.csv")
    logit = pd.read_csv(plain).query("statistic == 'insertion'")["value"].mean()
    assert list(values.values()) == pytest.approx([logit], rel=1e-4)
    code, _, said = xaibench("run", *sigmoid, "output=raw")
    assert code == 2 and "metric.output=logit" in said
    assert xaibench("run", *sigmoid, "output=raw", "metric.output=logit")[0] == 0


def test_a_data_set_of_other_classes_is_refused_unless_told_otherwise(xaibench, world):
    other = ("run", "model=smallcnn", "dataset=imagefolder", "dataset.root=photos", "method=gradient", "metric.steps=2")
    code, _, said = xaibench(*other)
    assert code == 2 and "10 outputs" in said and "2 classes" in said and "target=predicted" in said
    assert len(said.strip().splitlines()) == 2
    for allowed in ("target=predicted", "runner.classes=any"):
        assert xaibench(*other, allowed)[0] == 0
    code, _, said = xaibench("report")
    assert code == 0 and "Traceback" not in said, said


def test_what_a_probe_found_is_kept_and_not_asked_again(world, monkeypatch):
    from xaibench.engine import setting

    prepared(world, "metric=roc_auc", "dataset.limit=2")
    assert len(list(world.glob("cache/probes/smallcnn/*/findings.h5"))) == 1

    def asked(classifier):
        raise AssertionError("asked again")

    monkeypatch.setattr(setting, "probe", asked)
    prepared(world, "metric=roc_auc", "dataset.limit=2")


def test_a_network_of_batch_statistics_is_refused_before_any_work(world):
    (world / "batch_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.c, self.n = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10, track_running_stats=False)\n"
        "    def forward(self, x): return self.n(self.c(x)).amax((2, 3))\n"
    )
    (world / "conf" / "model" / "batch.yaml").write_text(f"# Net.\n_target_: batch_net.Net\n{YAML}")
    with pytest.raises(Refusal, match="other samples of its batch"):
        prepared(world, "--config-dir=conf", "model=batch")
    with pytest.raises(UserError, match="returns=nothing"):
        prepared(world, "--config-dir=conf", "model=blind", "+model.returns=nothing")
