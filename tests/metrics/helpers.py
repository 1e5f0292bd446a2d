"""Small classifiers in float64, batches for them, and a metric's columns: what the tests of metrics share."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from xaibench.datasets.base import Batch
from xaibench.methods.context import Context
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators


@pytest.fixture
def linear() -> Callable[..., Classifier]:
    """A linear classifier of flattened inputs: contributions of pixels add up, so curves have closed forms."""

    def make(input_size=(3, 6, 6), classes=4, **settings) -> Classifier:
        channels, height, width = input_size
        module = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes)).double()
        nn.init.normal_(module[1].weight)
        return Classifier("linear", module, input_size, **settings)

    return make


@pytest.fixture
def convnet() -> Callable[..., Classifier]:
    """A small convolutional classifier with strong enough weights that probabilities move."""

    def make(input_size=(3, 12, 12), classes=4, **settings) -> Classifier:
        channels = input_size[0]
        module = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        ).double()
        for layer in module:
            if hasattr(layer, "weight"):
                nn.init.normal_(layer.weight, std=2 / layer.weight[0].numel() ** 0.5)
        preprocessing = Preprocessing(mean=(0.4,) * channels, std=(0.2,) * channels)
        return Classifier("convnet", module, input_size, preprocessing, **settings)

    return make


@pytest.fixture
def batch_for() -> Callable[..., Batch]:
    """Random inputs for a classifier with random targets."""

    def make(classifier: Classifier, count: int, masks: torch.Tensor | None = None) -> Batch:
        inputs = torch.randn(count, *classifier.input_size, dtype=classifier.dtype)
        classes = classifier.module(inputs[:1]).shape[1]
        targets = torch.randint(classes, (count,))
        return Batch(tuple(range(count)), inputs, targets, targets, masks, (0,) * count)

    return make


def responded(metric, classifier, batch, seed=0, **context) -> dict[str, torch.Tensor]:
    """What a metric's `respond` returns, with fresh generators of the batch's samples."""
    return metric.respond(classifier, batch, Context(sample_generators(seed, "respond", batch.samples), **context))


def evaluated(metric, classifier, batch, maps, seed=0, **context) -> dict[str, torch.Tensor]:
    """The columns of a metric for a given context, with fresh generators of the batch's samples."""
    generators = sample_generators(seed, "metric", batch.samples)
    return metric.evaluate(classifier, batch, maps, Context(generators, **context))


@pytest.fixture
def scored() -> Callable[..., dict[str, torch.Tensor]]:
    """The columns of a metric: respond, then evaluate, each with fresh generators of the batch's samples."""

    def score(metric, classifier, batch, maps, seed=0) -> dict[str, torch.Tensor]:
        responses = responded(metric, classifier, batch, seed)
        return evaluated(metric, classifier, batch, maps, seed, responses=responses)

    return score


@pytest.fixture
def take() -> Callable[[Batch, list[int]], Batch]:
    """Some samples of a batch, in the given order."""

    def rows(batch: Batch, which: list[int]) -> Batch:
        masks = None if batch.masks is None else batch.masks[which]
        labels = batch.labels[which]
        samples = tuple(batch.samples[i] for i in which)
        return Batch(samples, batch.inputs[which], labels, batch.targets[which], masks, (0,) * len(which))

    return rows


@pytest.fixture
def calls() -> Callable[[Classifier], list[int]]:
    """The sizes of all batches that the network sees from now on, counted by a hook."""

    def watch(classifier: Classifier) -> list[int]:
        sizes: list[int] = []
        classifier.module.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        return sizes

    return watch
