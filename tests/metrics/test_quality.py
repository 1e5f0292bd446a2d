"""The network's own quality against scikit-learn, on networks whose answers are written into their images."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics
from torch import nn

from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.network.quality import Quality
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.scores import statistics

N = 60
RNG = np.random.default_rng(3)


class Answers(Dataset):
    """Images [1,1,K] that are the logits which a network that flattens them answers."""

    fingerprint = "answers"

    def __init__(self, logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
        self.logits, self.labels, self.class_names = torch.from_numpy(logits).float(), labels, class_names
        self.multi_label = labels.ndim == 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        image, labels = self.logits[index].view(1, 1, -1), self.labels[index]
        if self.multi_label:
            return Example(image, int(labels.argmax()), labels=torch.from_numpy(labels))
        return Example(image, labels.item())


def measured(logits, labels, names=(), metric=None):
    """Each statistic's value as the leaderboard would have it."""
    metric, dataset = metric or Quality(), Answers(logits, labels, names)
    metric.check_data(dataset)
    classifier = Classifier("flat", nn.Flatten(), (1, 1, logits.shape[1]))
    samples = Samples(dataset, Preprocessing(mean=(0.0,), std=(1.0,)), range(len(dataset)))
    columns = metric.evaluate(classifier, samples.load(samples.ids), None, Context(data=samples))
    return {
        s.name: statistics.estimate(columns[s.column].numpy(), s.per and columns[s.per].numpy(), s.kind).value
        for s in metric.statistics_on(dataset, classifier)
    }


def test_of_classes():
    labels = RNG.integers(0, 3, N)
    logits = RNG.random((N, 3)) / 2 + 0.3 * np.eye(3)[labels]
    found = measured(logits, labels, ("car", "dog", "cat, wild"))
    called, truth = logits.argmax(1), np.eye(3)[labels]
    expected = {"accuracy": metrics.accuracy_score(labels, called)}
    for k, name in enumerate(("car", "dog", "cat_wild")):
        expected[f"roc_auc_{name}"] = metrics.roc_auc_score(truth[:, k], logits[:, k])
        expected[f"average_precision_{name}"] = metrics.average_precision_score(truth[:, k], logits[:, k])
        expected[f"f1_{name}"] = metrics.f1_score(labels, called, labels=[k], average="macro")
    assert found == pytest.approx(expected, abs=1e-9)
    assert next(iter(found)) == "accuracy"
    assert list(measured(logits, labels, ("car", "dog", "cat"), Quality(per_class=2))) == ["accuracy"]


def test_of_classes_of_which_an_image_may_have_several():
    labels = RNG.random((N, 3)) < [0.5, 0.3, 0.2]
    logits = 2 * RNG.random((N, 3)) - 1.3 + 0.8 * labels
    found = measured(logits, labels, ("a", "b", "c"))
    expected = {"accuracy": 1 - metrics.hamming_loss(labels, logits > 0)}
    for k, name in enumerate("abc"):
        expected[f"roc_auc_{name}"] = metrics.roc_auc_score(labels[:, k], logits[:, k])
        expected[f"average_precision_{name}"] = metrics.average_precision_score(labels[:, k], logits[:, k])
        expected[f"f1_{name}"] = metrics.f1_score(labels[:, k], logits[:, k] > 0)
    assert found == pytest.approx(expected, abs=1e-9)


def test_of_two_classes_that_a_single_output_tells_apart():
    labels = RNG.integers(0, 2, N)
    logits = RNG.random((N, 1)) * 0.7 + 0.3 * labels[:, None]
    found = measured(logits, labels, ("no", "yes"))
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, logits[:, 0] > 0.5),
            "roc_auc_yes": metrics.roc_auc_score(labels, logits[:, 0]),
            "average_precision_yes": metrics.average_precision_score(labels, logits[:, 0]),
            "f1_yes": metrics.f1_score(labels, logits[:, 0] > 0.5),
        }
    )


def test_of_values():
    labels = RNG.random(N).astype(np.float32)
    values = (labels + RNG.normal(0, 0.2, N))[:, None]
    values = np.clip(values, 0, 1)  # as an image keeps them
    theirs = metrics.mean_absolute_error, metrics.mean_squared_error, metrics.r2_score
    expected = dict(zip(("mae", "mse", "r2"), (metric(labels, values[:, 0]) for metric in theirs)))
    assert measured(values, labels) == pytest.approx(expected, rel=1e-5)


def test_one_class_is_refused():
    with pytest.raises(Refusal, match="this data set has one: car"):
        measured(np.ones((2, 1)), np.zeros(2, dtype=int), ("car",))


def test_a_run_says_it_of_the_bundled_network(xaibench, here):
    """Against the logits in the cache of the same run; no map is made, and the scores belong to no method."""
    import h5py

    code, out, _ = xaibench("run", "metric=quality", "dataset.limit=20")
    assert code == 0 and "accuracy" in out
    (rows,) = [pd.read_csv(path) for path in here.glob("results/scores/**/*.csv")]
    assert set(rows["method"]) == {"none"} and not list(here.glob("cache/maps/**/shard-*"))
    scores = np.stack([rows[rows["statistic"] == f"score_{k}"]["value"] for k in range(10)], axis=1)
    (logits,) = [h5py.File(path) for path in here.glob("cache/responses/**/logits/*/shard-*.h5")]
    order = np.argsort(logits["sample"][()])
    assert scores == pytest.approx(logits["logits"][()][order], rel=1e-6)


def test_every_leaderboard_says_how_good_the_network_is_or_how_to_find_out(xaibench):
    """Of the most samples there are; of a data set with another task, that one's."""
    job = ("method=input", "metric=sparseness", "dataset.limit=2")
    asked = "how good it is has not been measured (xaibench run metric=quality model=smallcnn dataset=shapes)"
    assert asked in xaibench("run", *job)[1]
    for limit in (3, 4):
        assert xaibench("run", "metric=quality", f"dataset.limit={limit}")[0] == 0
    said = "smallcnn on shapes: accuracy 1.000 (0.510 to 1.000), 4 samples"
    assert said in xaibench("leaderboard", "--metric", "sparseness")[1]
    _, out, _ = xaibench("run", "-m", *job, "dataset.task=object,scene")
    assert said in out and "model=smallcnn dataset=shapes dataset.task=scene)" in out
