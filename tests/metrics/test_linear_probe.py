"""Linear probes: against scikit-learn's logistic regression, and layers of which it is known what they hold."""

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.network.linear_probe import LinearProbe, logistic_regression
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing

CLASSES, SIDE = 3, 4


class Marked(Dataset):
    """Noise [3,4,4]; the label says which channel is the brightest, but for a share of wrong labels."""

    class_names = ("red", "green", "blue")
    fingerprint = "marked"

    def __init__(self, count: int, seed: int, wrong: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        self.labels = random.integers(0, CLASSES, count)
        self.images = random.random((count, CLASSES, SIDE, SIDE)).astype(np.float32) * 0.5
        self.images[np.arange(count), self.labels] += 0.3
        mistaken = random.random(count) < wrong
        self.labels[mistaken] = random.integers(0, CLASSES, mistaken.sum())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(torch.from_numpy(self.images[index]), int(self.labels[index]))


class Blind(nn.Module):
    """A layer that hands on what is the same for every image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0 + 1


def network() -> Classifier:
    module = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), Blind(), nn.Flatten(), nn.LazyLinear(CLASSES))
    module(torch.zeros(1, 3, SIDE, SIDE))
    return Classifier("net", module.double(), (3, SIDE, SIDE), layers={"held": "1", "lost": "2"})


def samples_of(dataset: Dataset) -> Samples:
    return Samples(dataset, Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3), range(len(dataset)))


def probed(metric: LinearProbe, classifier: Classifier, fit_on: Dataset, score_on: Dataset) -> dict[str, np.ndarray]:
    fitted = metric.fit(classifier, samples_of(fit_on), torch.Generator())
    held_out = samples_of(score_on)
    batch = held_out.load(held_out.ids)
    columns = metric.evaluate(classifier, batch, None, Context(data=held_out, fitted=fitted))
    return {name: column.numpy() for name, column in columns.items()}


@pytest.mark.parametrize("l2", [1.0, 1e-3])
def test_it_is_scikit_learns_logistic_regression(l2):
    random = np.random.default_rng(0)
    features, labels = random.normal(2, [1, 5, 0.1, 2], (80, 4)), random.integers(0, CLASSES, 80)
    features[:, 0] += labels
    weight, bias = logistic_regression(features, labels, CLASSES, l2)
    scaler = StandardScaler().fit(features)
    theirs = LogisticRegression(C=1 / (80 * l2), tol=1e-10, max_iter=10_000).fit(scaler.transform(features), labels)
    expected = theirs.predict_proba(scaler.transform(features))
    found = special.softmax(features @ weight.T + bias, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(weight * scaler.scale_, theirs.coef_, atol=1e-5)


def test_accuracies_are_of_samples_that_the_probe_has_not_seen():
    """With features as many as samples a probe knows its own labels by heart; held-out ones it cannot know."""
    classifier, noise = network(), Marked(48, 1, wrong=1.0)
    metric = LinearProbe(layers=["input"], grid=SIDE, l2=1e-6)
    assert probed(metric, classifier, noise, noise)["correct_input"].mean() == 1
    assert probed(metric, classifier, noise, Marked(300, 2, wrong=1.0))["correct_input"].mean() < 0.5


def test_each_layer_has_what_it_holds():
    """The mean of a channel tells the label; a layer that hands on nothing leaves the commonest label."""
    classifier, score_on = network(), Marked(60, 4)
    found = probed(LinearProbe(layers=["input", "held", "lost", "logits"]), classifier, Marked(90, 3), score_on)
    assert list(found) == ["correct_input", "correct_held", "correct_lost", "correct_logits"]
    assert found["correct_input"].mean() == 1 and found["correct_held"].mean() > 0.9
    commonest = np.bincount(Marked(90, 3).labels).argmax()
    for name in ("lost", "logits"):
        np.testing.assert_array_equal(found[f"correct_{name}"], score_on.labels == commonest)


def test_a_grid_keeps_places_apart():
    """The same pixels in another corner: their mean over the image is the same, over its quarters it is not."""

    class Corner(Marked):
        def __getitem__(self, index: int) -> Example:
            label = int(self.labels[index])
            image = torch.zeros(3, SIDE, SIDE)
            image[:, SIDE // 2 * (label % 2) :, SIDE // 2 * (label // 2) :][:, :2, :2] = torch.rand(3, 2, 2) + 1
            return Example(image / 2, label)

    torch.manual_seed(0)
    for grid, least, most in ((1, 0.0, 0.6), (2, 1.0, 1.0)):
        metric = LinearProbe(layers=["input"], grid=grid)
        accuracy = probed(metric, network(), Corner(60, 5), Corner(60, 6))["correct_input"].mean()
        assert least <= accuracy <= most


def test_tokens_of_patches_are_averaged_and_vectors_are_not():
    class Patches(nn.Module):
        """Of each of the four quarters a token of its values, behind one token that is no patch."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            return torch.cat([tokens[:, :1] * 0 + 7, tokens], 1)

    module = nn.Sequential(Patches(), nn.Flatten(), nn.LazyLinear(CLASSES))
    module(torch.zeros(1, 3, SIDE, SIDE))
    classifier = Classifier("patches", module.double(), (3, SIDE, SIDE))
    fitted = LinearProbe(layers=["0", "1"]).fit(classifier, samples_of(Marked(30, 7)), torch.Generator())
    assert fitted["0.weight"].shape == (CLASSES, 12) and fitted["1.weight"].shape == (CLASSES, 60)


def test_refusals():
    with pytest.raises(Refusal, match="layer 'nowhere' is not in net"):
        LinearProbe(layers=["nowhere"]).check(network())
    several = Marked(3, 0)
    several.multi_label = True
    with pytest.raises(Refusal, match="expected a data set whose samples have one class each"):
        LinearProbe().check_data(several)
    for options, message in (({"layers": []}, r"layers=\[\]"), ({"grid": 0}, "grid=0"), ({"l2": 0.0}, r"l2=0\.0")):
        with pytest.raises(ValueError, match=message):
            LinearProbe(**options)
