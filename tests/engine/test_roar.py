"""ROAR and KAR: what is removed, who wins where the truth is known, what is shared, and what survives a kill."""

import contextlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests import crashing
from tests.models.helpers import images_of
from xaibench.engine.retraining import Masked, Trainings
from xaibench.metrics.retraining.roar import Masking, Roar

# The label is the brightness of four pixels; the other sixty are noise.
WORLD = '''
import torch
from torch import nn
from xaibench.datasets.base import Dataset, Example
from xaibench.rng import generator

class Corner(Dataset):
    """8x8 noise whose upper left 2x2 pixels are bright or dark."""
    class_names = ("dark", "bright")
    has_masks = True
    def __init__(self, split: str = "test"):
        self.split, self.fingerprint = split, "corner " + split
    def __len__(self): return {"train": 200, "validation": 50, "test": 100}[self.split]
    def __getitem__(self, index):
        image = torch.rand(1, 8, 8, generator=generator(self.split, index))
        image[:, :2, :2] = 0.1 + 0.8 * (index % 2)
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[:2, :2] = True
        return Example(image, index % 2, mask)

class Linear(nn.Sequential):
    """A linear classifier."""
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 2))
'''
MODEL = """# Linear.
_target_: corner_world.Linear
weights: random
mean: [0.5]
std: [0.25]
resize: null
crop: null
input_size: [1, 8, 8]
layers: {}
recipe: {_target_: xaibench.models.recipe.Recipe, epochs: 6, batch_size: 20, lr: 0.02, select: last}
"""
ARGUMENTS = ["run", "--config-dir", "conf", "model=plane", "dataset=corner", "target=label", "metric.target=label"]
FEW = ["metric.fractions=[0.0625,0.5]", "metric.repeats=2"]  # 4 pixels, 32 pixels


@pytest.fixture
def world(here: Path) -> Path:
    return make_world(here)


def make_world(folder: Path) -> Path:
    for group, name, text in (
        ("model", "plane", MODEL),
        ("dataset", "corner", "# Corner.\n_target_: corner_world.Corner\nsplit: test\n"),
    ):
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / f"{name}.yaml").write_text(text)
    (folder / "corner_world.py").write_text(WORLD)
    return folder


def values(folder: Path, method: str, metric: str = "roar") -> pd.DataFrame:
    """The scalars of a score file: repeats x statistics."""
    (path,) = (folder / "results" / "scores").glob(f"*/*/{metric}/{method}-*.csv")
    rows = pd.read_csv(path)
    assert (rows["sample"] == -1).all()
    return rows[rows["repeat"].notna()].pivot(index="repeat", columns="statistic", values="value")


def trainings(folder: Path) -> dict[str, int]:
    """The finished trainings: folder -> inode of its accuracy."""
    found = (folder / "cache" / "trainings").glob("*/*/*/*/accuracy.h5")
    return {str(path.parent.relative_to(folder)): path.stat().st_ino for path in found}


def test_the_area_is_the_published_one():
    """Accuracies and areas of the pathway paper on CIFAR-10 (spec 2.1), within the third decimal that it cuts off."""
    metric = Roar()
    published = {
        0.728: (79.10, 81.10, 82.81, 82.26, 75.50),  # gradient
        0.584: (74.65, 69.99, 63.27, 58.03, 47.58),  # Grad-CAM
        0.524: (75.09, 63.56, 54.60, 47.85, 37.27),  # NeuronIntGrad, smoothed
    }
    for area, accuracies in published.items():
        by_fraction = dict(zip(metric.fractions, accuracies))
        found = {m: 0.8436 if m is None else by_fraction[m.fraction] / 100 for m in metric.maskings()}
        assert metric.evaluate(found)["auc"].item() == pytest.approx(area, abs=1e-3)
        assert metric.evaluate(found)["difference"] == 0


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_a_masking_takes_exactly_its_pixels(keep, fraction):
    images = images_of()
    order = torch.stack([torch.randperm(144).view(12, 12) for _ in range(50)])
    masked = Masked(images, lambda positions: order[positions], Masking("method", fraction, keep, "zero"))
    positions = torch.tensor([3, 41])
    (pixels, labels), (before, expected_labels) = masked.load(positions), images.load(positions)
    assert torch.equal(labels, expected_labels)
    count = round(fraction * 144)
    for row, position in enumerate(positions):
        for y in range(12):
            for x in range(12):
                place = order[position, y, x]
                lost = place >= 144 - count if keep else place < count
                expected = torch.full((3,), 0.5) if lost else before[row, :, y, x]
                torch.testing.assert_close(pixels[row, :, y, x], expected)


def test_the_truth_wins_and_its_opposite_loses(xaibench: Callable, world: Path):
    assert xaibench(*ARGUMENTS, "metric=roar", "method=oracle", *FEW)[0] == 0
    found = values(world, "oracle")
    # The four pixels are all there is to learn: without them a guess is right half of the time.
    assert (found["accuracy_at_0.0625"] < 0.65).all() and (found["accuracy_at_0.5"] < 0.65).all()
    assert (found["clean"] == 1).all() and (found["difference_at_0.0625"] < -0.3).all()
    curves = (found["clean"] + found["accuracy_at_0.0625"]) / 2 * 0.0625
    curves += (found["accuracy_at_0.0625"] + found["accuracy_at_0.5"]) / 2 * 0.4375
    assert found["auc"].tolist() == pytest.approx(curves.tolist())
    # Kept, half of the noise gone, they are still enough; without the most of the noise too.
    assert xaibench(*ARGUMENTS, "metric=kar", "method=oracle", *FEW)[0] == 0
    assert (values(world, "oracle", "kar")["accuracy_at_0.5"] == 1).all()


def test_what_no_method_changes_is_trained_once(xaibench: Callable, world: Path):
    assert xaibench(*ARGUMENTS, "metric=roar", "method=oracle", *FEW)[0] == 0
    first = trainings(world)
    assert len(first) == 2 * (1 + 2 + 2)  # repeats x (untouched, random, method)
    assert xaibench(*ARGUMENTS, "metric=roar", "method=gradient", *FEW)[0] == 0
    second = trainings(world)
    assert len(second) == len(first) + 4 and first.items() <= second.items()
    assert xaibench(*ARGUMENTS, "metric=kar", "method=gradient", *FEW)[0] == 0
    assert len(trainings(world)) == len(second) + 4
    random = {method: values(world, method)["random_auc"].tolist() for method in ("oracle", "gradient")}
    assert random["oracle"] == random["gradient"]
    # Done is done: a third repeat adds its own trainings to those that are there.
    assert xaibench(*ARGUMENTS, "metric=roar", "method=oracle", *FEW, "runner.reuse=only-cache")[0] == 0
    assert xaibench(*ARGUMENTS, "metric=roar", "method=oracle", FEW[0], "metric.repeats=3")[0] == 0
    assert len(trainings(world)) == len(second) + 4 + 5


def test_side_by_side_is_another_key_and_nearly_the_same_accuracy(xaibench: Callable, world: Path):
    assert xaibench(*ARGUMENTS, "metric=roar", "method=oracle", *FEW)[0] == 0
    alone = values(world, "oracle")
    stacked = ("metric.stack=5", "paths.results=stacked/results")
    assert xaibench(*ARGUMENTS, "metric=roar", "method=oracle", *FEW, *stacked)[0] == 0
    assert len(trainings(world)) == 20
    pd.testing.assert_frame_equal(values(world / "stacked", "oracle"), alone, atol=0.02)


def test_maps_explain_the_predicted_class_of_both_splits_by_default(xaibench: Callable, world: Path):
    assert xaibench(*ARGUMENTS[:5], "metric=roar", "method=gradient", *FEW)[0] == 0
    specs = [json.loads(path.read_text())["spec"] for path in world.glob("cache/maps/*/*/gradient/*/spec.json")]
    assert {spec["data"]["split"] for spec in specs} == {"train", "test"}
    assert {spec["explained"]["target"] for spec in specs} == {"predicted"}


def test_a_recipe_that_selects_by_validation_masks_that_split_too(xaibench: Callable, world: Path):
    best = ("model.recipe.select=best", "metric.validation_limit=30")
    assert xaibench(*ARGUMENTS, "metric=roar", "method=oracle", *FEW, *best)[0] == 0
    manifests = world.glob("cache/maps/*/*/oracle/*/manifest.json")
    sizes = [sum(len(shard["samples"]) for shard in json.loads(path.read_text())["shards"]) for path in manifests]
    assert sorted(sizes) == [30, 100, 200]
    assert (values(world, "oracle")["accuracy_at_0.0625"] < 0.65).all()


@pytest.mark.parametrize(
    ("point", "number", "kept"), [("a training kept", 8, 7), ("in the middle of a training", 20, 3)]
)
def test_a_killed_run_loses_no_finished_training(tmp_path, point, number, kept):
    undisturbed, killed = make_world(tmp_path / "undisturbed"), make_world(tmp_path / "killed")
    arguments = [*ARGUMENTS, "metric=roar", "method=oracle", *FEW]
    process = crashing.run(killed, arguments, point, number)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, (killed / "log.txt").read_text()
    left = trainings(killed)
    assert len(left) == kept
    for folder in (undisturbed, killed):
        process = crashing.run(folder, arguments)
        process.join(120)
        assert process.exitcode == 0, (folder / "log.txt").read_text()
    assert left.items() <= trainings(killed).items() and len(trainings(killed)) == 10
    first, second = (next(folder.glob("results/scores/*/*/roar/*.csv")) for folder in (undisturbed, killed))
    assert first.read_bytes() == second.read_bytes()


def test_what_cannot_work_is_refused_before_any_work(xaibench: Callable, world: Path):
    code, _, said = xaibench(*ARGUMENTS, "metric=roar", "method=oracle", "model.recipe=null")
    assert code == 2 and "model=plane has no recipe" in said
    code, _, said = xaibench(*ARGUMENTS, "metric=roar", "method=oracle", "dataset.split=train")
    assert code == 2 and "dataset.split: not train" in said
    code, _, said = xaibench(*ARGUMENTS, "metric=roar", "metric.fractions=[0.5,0.1]")
    assert code == 2 and "rising numbers" in said
    assert not (world / "cache" / "trainings").exists()


def test_progress_counts_the_trainings_that_are_missing(world: Path, monkeypatch: pytest.MonkeyPatch):
    from xaibench.config import compose_job
    from xaibench.engine import runner

    seen, shown = [], {}

    @contextlib.contextmanager
    def progress(title, work):
        shown.update(work)
        yield lambda kind, done: seen.append((kind, done))

    monkeypatch.syspath_prepend(str(world))
    job = compose_job([f"--config-dir={world / 'conf'}", *ARGUMENTS[3:], "metric=roar", "method=oracle", *FEW])
    runner.run(job, progress)
    counted = {kind: sum(done for other, done in seen if other == kind) for kind in shown}
    assert counted == shown == {"maps": 300, "trainings": 10, "epochs": 60}


def test_it_says_how_long_it_will_take(xaibench: Callable, world: Path):
    arguments = (*ARGUMENTS, "metric=roar", "method=oracle", *FEW)
    assert "roar: 10 trainings of 200 images x 6 epochs, about" in xaibench(*arguments)[2]
    assert "trainings" not in xaibench(*arguments)[2]


def test_a_training_that_goes_before_it_is_read_is_said(xaibench: Callable, world: Path, monkeypatch):
    monkeypatch.setattr(Trainings, "fill", lambda *_, **__: True)  # as if `cache prune` passed by behind it
    code, _, said = xaibench(*ARGUMENTS, *FEW, "metric=roar", "method=random")
    assert code == 1
    assert "/trainings/" in said and "gone or unreadable" in said and "Traceback" not in said
