"""Metrics that read maps of other networks, from the configuration to the rows: what they explain, share and keep."""

import gc
import json
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.metrics import structural_similarity

from tests.engine.helpers import explained, prepared, rows_of
from xaibench.config import compose_job
from xaibench.datasets.base import Samples
from xaibench.datasets.images import Images
from xaibench.datasets.shapes import Shapes
from xaibench.engine.runner import run
from xaibench.engine.training import PermutedLabels
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.ranking import collapse
from xaibench.models.randomise import Randomisation, randomised
from xaibench.models.smallcnn import SmallCNN

RANDOM = ["metric=parameter_randomization", "metric.blocks=3", "metric.seeds=2", "dataset.limit=3"]
# A linear network on noise whose upper left pixels say the label, as in tests/test_roar.py.
WORLD = '''
import torch
from torch import nn
from xaibench.datasets.base import Dataset, Example
from xaibench.rng import generator

class Corner(Dataset):
    """8x8 noise whose upper left 2x2 pixels are bright or dark."""
    class_names = ("dark", "bright")
    def __init__(self, split: str = "test"):
        self.split, self.fingerprint = split, "corner " + split
    def __len__(self): return {"train": 200, "validation": 50, "test": 100}[self.split]
    def __getitem__(self, index):
        image = torch.rand(1, 8, 8, generator=generator(self.split, index))
        image[:, :2, :2] = 0.1 + 0.8 * (index % 2)
        return Example(image, index % 2)

class Linear(nn.Sequential):
    """A linear classifier."""
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 2))
'''
MODEL = """# Linear.
_target_: world.Linear
weights: recipe
mean: [0.5]
std: [0.25]
resize: null
crop: null
input_size: [1, 8, 8]
layers: {}
recipe: {_target_: xaibench.models.recipe.Recipe, epochs: 20, batch_size: 20, lr: 0.02}
"""
CONF = "# Corner.\n_target_: world.Corner\nlimit: null\nseed: 0\nfilter: {correct: false, min_probability: 0.0}\n"
CORNER = ["--config-dir=conf", "model=plane", "dataset=corner", "metric.window=3", "metric.hog_cell=2"]


@pytest.fixture
def world(here: Path) -> Path:
    (here / "world.py").write_text(WORLD)
    for group, name, text in (("model", "plane", MODEL), ("dataset", "corner", CONF)):
        (here / "conf" / group).mkdir(parents=True)
        (here / "conf" / group / f"{name}.yaml").write_text(text)
    return here


def test_the_curve_is_the_ssim_of_maps_made_by_hand(here):
    """scikit-image's SSIM of the gradients of networks randomised one by one; the trained network is no step."""
    cell = prepared(here, *RANDOM, "method=gradient", "metric.clip=[0,100]")
    rows = rows_of(cell)
    batch = cell.setting.load(cell.setting.samples)

    def gradients(classifier) -> np.ndarray:
        return collapse(classifier.gradient(batch.inputs, batch.targets), "sum").double().numpy()

    def unit(values: np.ndarray) -> np.ndarray:
        return (values - values.min()) / (values.max() - values.min())

    original = gradients(cell.setting.classifier)
    blocks = ["classifier.3", "features.9..classifier.1", "features.0..features.6"]
    for step, block in enumerate(blocks):
        found = np.zeros(3)
        for seed in range(2):
            maps = gradients(randomised(cell.setting.classifier, Randomisation("cascade", block, seed)))
            found += [
                structural_similarity(unit(a), unit(b), win_size=5, data_range=1.0) for a, b in zip(original, maps)
            ]
        np.testing.assert_allclose(rows["ssim_curve"][:, step], found / 2, atol=1e-6)
    assert rows["ssim_curve"].shape == (3, 3)
    np.testing.assert_allclose(rows["ssim"], rows["ssim_curve"].mean(1))
    np.testing.assert_allclose(rows["first"], rows["ssim_curve"][:, 0])


@pytest.mark.parametrize("mode", ["cascade", "independent", "bottom_up"])
def test_a_map_that_does_not_ask_the_network_is_exactly_one_at_every_step(here, mode):
    cell = prepared(here, *RANDOM, f"metric.mode={mode}", "method=sobel")
    rows = rows_of(cell)
    for name in ("ssim", "spearman", "spearman_abs", "hog"):
        assert (rows[f"{name}_curve"] == 1).all() and (rows[name] == 1).all()
    assert (rows["unchanged"] == 1).all() and (rows["floor_edges"] == 1).all() and (rows["seed_std"] == 0).all()
    assert (rows["floor_shuffled"] < 0.2).all()


def test_identical_weights_loaded_again_are_exactly_one(here, tmp_path):
    """Two loads of one file, by a method that draws noise too: the same maps, hence 1 by every measure."""
    first, again = (prepared(here, *RANDOM, "method=smoothgrad", "method.samples=3") for _ in range(2))
    assert first.setting.classifier.module is not again.setting.classifier.module
    maps = [collapse(explained(cell.maps), "sum") for cell in (first, again)]
    for name, value in first.metric.similarities(*maps).items():
        assert (value == 1).all(), name


def test_targets_are_the_original_ones_unless_the_metric_says_so(here):
    common = [*RANDOM, "method=gradient", "target=predicted", "dataset.limit=12"]
    cell, free = prepared(here, *common), prepared(here, *common, "metric.target=predicted")
    samples = cell.setting.samples
    rows_of(cell), rows_of(free)
    predicted = cell.setting.logits_of(samples).argmax(-1)
    moved = 0
    for name, other in cell.others.items():
        assert torch.equal(other.setting.load(samples).targets, predicted)
        own = free.others[name].setting.logits_of(samples).argmax(-1)
        assert torch.equal(free.others[name].setting.load(samples).targets, own)
        moved += (own != predicted).sum()
        assert other.key != free.others[name].key
    assert moved > 0


def test_original_targets_share_maps_with_nothing_that_differs(here):
    """For labels, `original` is the label; for predictions, the key says whose they are."""
    label, predicted = (prepared(here, *RANDOM, "method=gradient", f"target={t}") for t in ("label", "predicted"))
    for name, other in label.others.items():
        assert other.setting.explained["explained"] == label.setting.explained["explained"]
        explained_by = predicted.others[name].setting.explained["explained"]["predicted_by"]
        assert explained_by == predicted.setting.base["model"]
    keys = [maps.key for maps in (label.maps, *label.others.values(), *predicted.others.values())]
    assert len(set(keys)) == len(keys) == 1 + 6 + 6


def test_keys_of_trained_networks_are_as_they_were(here):
    """The weights state is in the key, and `trained` is what it has been all along."""
    cell = prepared(here, *RANDOM, "method=gradient")
    assert cell.setting.base["model"]["weights_state"] == "trained"
    states = {other.setting.base["model"]["weights_state"] for other in cell.others.values()}
    assert states == set(cell.others) and all(state.startswith("cascade:") for state in states)


def test_what_is_fitted_is_fitted_to_each_network(here):
    cell = prepared(here, *RANDOM, "metric.seeds=1", "method=iba", "method.steps=1", "dataset.limit=1", "fit.limit=4")
    rows_of(cell)
    fits = [cell.maps.fit, *(other.fit for other in cell.others.values())]
    assert len({fit.artefact.key for fit in fits}) == 4
    first, *others = (fit.arrays() for fit in fits)
    changed = [any(not np.array_equal(first[name], other[name]) for name in first) for other in others]
    # The layer lies below the topmost block and inside the last of the three.
    assert changed == [False, False, True]


def test_what_was_fitted_to_the_trained_network_may_be_kept(here):
    """The patterns of the trained network under all weights at random: the maps are those made with them by hand."""
    overrides = [*RANDOM, "metric.seeds=1", "method=pattern_attribution", "dataset.limit=2", "fit.limit=8"]
    kept, anew = (prepared(here, *overrides, *options) for options in (["fit.refit=false"], []))
    scores = [rows_of(cell) for cell in (kept, anew)]
    fits = [cell.maps.fit.artefact.key for cell in (kept, anew)]
    name = list(kept.others)[-1]
    assert fits[0] == fits[1] == kept.others[name].fit.artefact.key
    assert anew.others[name].fit.artefact.key != fits[0] and not np.array_equal(scores[0]["ssim"], scores[1]["ssim"])
    trained, batch = kept.setting.network.trained, kept.setting.load(kept.setting.samples)
    context = Context(fitted={key: torch.from_numpy(value) for key, value in kept.maps.fit.arrays().items()})
    expected = kept.maps.method.attribute(
        randomised(trained, Randomisation.parse(name)), batch.inputs, batch.targets, context
    )
    found = kept.others[name].collapsed(kept.setting.samples, kept.how, "signed")[0]
    torch.testing.assert_close(found, collapse(expected, kept.how))


def test_ten_networks_share_the_data_and_are_in_memory_one_at_a_time(here, monkeypatch):
    decoded, networks, most = Counter(), weakref.WeakSet(), 0
    getitem, forward = Shapes.__getitem__, SmallCNN.forward

    def counting(self, index):
        decoded[index] += 1
        return getitem(self, index)

    def watching(self, inputs):
        nonlocal most
        networks.add(self)
        most = max(most, len(networks))
        return forward(self, inputs)

    monkeypatch.setattr(Shapes, "__getitem__", counting)
    monkeypatch.setattr(SmallCNN, "forward", watching)
    # Few samples in a block of maps, all of them in a block of scores.
    monkeypatch.setattr("xaibench.engine.device.BLOCK_FLOPS", 2e8)
    job = compose_job([*RANDOM, "metric.blocks=5", "dataset.limit=4", "method=integrated_gradients", "method.steps=4"])
    gc.collect()
    run(job)
    assert set(decoded.values()) == {1}
    assert most <= 3  # the trained network, the last random one, and the next


def test_random_maps_are_kept_collapsed_and_read_the_same(here):
    cell = prepared(here, *RANDOM, "method=saliency")
    rows_of(cell)
    samples = cell.setting.samples
    assert cell.maps.stage.rows(samples)["maps"].shape == (3, 3, 64, 64)
    for other in cell.others.values():
        assert other.stage.rows(samples)["maps"].shape == (3, 1, 64, 64)
        whole = explained(other)
        for sign in ("signed", "absolute"):
            kept, _ = other.collapsed(samples, cell.how, sign)
            assert torch.equal(kept, collapse(whole, cell.how, sign))


def test_a_sign_that_is_the_logits_acquits_no_rule(here, xaibench):
    """The z+ rule fails the check alike, started at the logit or at 1; so do rules that forget what lies above them,
    beside gradients. Without the negative map they would pass, by the sign of random logits."""
    methods = ("lrp_zplus", "excitation_bp", "dtd", "rap", "saliency", "deeplift")
    settings = ["metric=parameter_randomization", "metric.blocks=4", "metric.seeds=2", "dataset.limit=5"]
    code, _, said = xaibench("run", "-m", *settings, f"method={','.join(methods)}")
    assert code == 0, said
    found, cards = {}, {}
    for path in here.glob("results/scores/*/*/parameter_randomization/*.csv"):
        rows = pd.read_csv(path)
        method = path.name.partition("-")[0]
        found[method] = rows[rows["sample"] >= 0].groupby("statistic")["value"].mean()
        cards[method] = json.loads(path.with_suffix(".json").read_text())["sign_of_logit"]
    assert abs(found["lrp_zplus"]["ssim"] - found["excitation_bp"]["ssim"]) < 1e-3
    for method in ("lrp_zplus", "dtd", "rap"):
        assert found[method]["ssim"] > max(found["saliency"]["ssim"], found["deeplift"]["ssim"]) + 0.1
        assert found[method]["ssim_signed"] < found[method]["ssim_either_sign"] - 0.2
        assert found[method]["flipped"] == 1 and cards[method] is True
    assert found["deeplift"]["ssim"] == found["deeplift"]["ssim_signed"] < found["deeplift"]["ssim_either_sign"]
    assert found["deeplift"]["flipped"] == 0 and cards["deeplift"] is False


def test_a_method_that_says_nothing_of_its_sign_is_marked_so(here, xaibench):
    (here / "mine.py").write_text("class Mine:\n    def attribute(self, classifier, inputs, targets, context):\n"
                                  "        return classifier.gradient(inputs, targets)\n")  # fmt: skip
    (here / "conf" / "method").mkdir(parents=True)
    (here / "conf" / "method" / "mine.yaml").write_text("# Mine.\n_target_: mine.Mine\n")
    code, _, said = xaibench("run", "--config-dir=conf", "method=mine", "metric=class_sensitivity", "dataset.limit=2")
    assert code == 0, said
    (path,) = here.glob("results/scores/*/*/class_sensitivity/*.json")
    assert json.loads(path.read_text())["sign_of_logit"] == "undeclared"
    rows = pd.read_csv(path.with_suffix(".csv"))
    assert (rows[rows["statistic"] == "flipped"]["value"] == 0).all()


def test_the_rows_and_the_card_say_what_was_compared(here, xaibench):
    code, _, said = xaibench("run", *RANDOM, "method=gradient")
    assert code == 0, said
    (path,) = here.glob("results/scores/*/*/parameter_randomization/*.json")
    card = json.loads(path.read_text())
    steps = [name.split(":")[1:3] for name, _ in card["others"]]
    blocks = ["classifier.3", "features.9..classifier.1", "features.0..features.6"]
    assert steps == [[block, seed] for block in blocks for seed in ("0", "1")]
    rows = pd.read_csv(path.with_suffix(".csv"))
    assert rows[rows["statistic"] == "ssim_curve"]["x"].tolist() == [1, 2, 3]
    code, _, said = xaibench("run", *RANDOM, "method=gradient", "runner.reuse=only-cache")
    assert code == 0, said


def test_maps_from_a_file_are_refused(here):
    np.savez(here / "maps.npz", maps=np.zeros((3, 1, 64, 64), np.float32), sample=np.arange(3))
    with pytest.raises(Refusal, match="explains other networks, which method=precomputed has no maps of"):
        prepared(here, *RANDOM, "method=precomputed", "method.path=maps.npz")


def test_two_classes_of_one_image_are_explained_with_the_same_noise(here):
    """So `random` is exactly 1 although its maps are noise; the masks of shapes add where the attribution is."""
    found = {}
    for method in ("random", "gradient"):
        cell = prepared(here, "metric=class_sensitivity", "dataset.limit=3", f"method={method}")
        found[method] = rows_of(cell)
    assert (found["random"]["ssim"] == 1).all() and (found["random"]["gain"] == 0).all()
    assert (found["gradient"]["ssim"] < 0.95).all() and np.isfinite(found["gradient"]["gain"]).all()


# ---- permuted labels -------------------------------------------------------------------------------------------------


def test_permuted_labels_are_the_same_labels_elsewhere(here):
    cell = prepared(here, *RANDOM, "method=gradient")
    setting = cell.setting
    images = Images(Samples(setting.dataset, setting.preprocessing, range(40), setting.device))
    permuted, again, other = (PermutedLabels(images, f"permuted_labels:{seed}") for seed in (0, 0, 1))
    everything = torch.arange(40)
    pixels, labels = images.load(everything)
    moved_pixels, moved = permuted.load(everything)
    assert torch.equal(pixels, moved_pixels) and len(permuted) == 40
    assert torch.equal(moved.bincount(minlength=10), labels.bincount(minlength=10)) and not torch.equal(moved, labels)
    assert torch.equal(moved, again.load(everything)[1]) and not torch.equal(moved, other.load(everything)[1])
    assert torch.equal(permuted.load(everything[7:9])[1], moved[7:9])
    assert permuted.identity == again.identity and len({images.identity, permuted.identity, other.identity}) == 3


def test_label_randomisation_trains_once_and_compares_with_networks_of_permuted_labels(world, xaibench):
    common = [*CORNER, "metric=label_randomization", "metric.seeds=2", "dataset.limit=40"]
    code, _, said = xaibench("run", *common, "method=gradient")
    assert code == 0, said
    assert said.count("with permuted labels") == 2
    code, _, said = xaibench("run", *common, "method=sobel")
    assert code == 0, said
    assert "training" not in said
    found = {}
    for path in world.glob("results/scores/plane/corner/label_randomization/*.csv"):
        rows = pd.read_csv(path)
        found[path.name.partition("-")[0]] = rows[rows["sample"] >= 0].groupby("statistic")["value"].mean()
    assert found["sobel"]["ssim"] == 1
    # A linear network's map is its weights: those of the corner are learned from true labels only.
    assert found["gradient"]["ssim"] < 0.6
    # The trained network is always right; of a label that is independent of the image one half is.
    assert found["gradient"]["right"] < 0.8


def test_label_randomisation_needs_the_recipe(here):
    with pytest.raises(Refusal, match=r"set model\.weights=recipe"):
        prepared(here, "metric=label_randomization", "method=gradient", "dataset.limit=2")
