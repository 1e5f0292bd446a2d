"""Cells of questions: every sample is explained by the network that is asked its own, whatever is in its batch."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.helpers import prepared, rows_of
from xaibench import rng
from xaibench.build import build
from xaibench.config import compose_job
from xaibench.datasets.base import Samples
from xaibench.engine.training import train_and_test
from xaibench.methods.context import Context
from xaibench.models.classifier import Classifier

CELL = ("model=relation_network", "model.weights=random", "dataset=sort_of_clevr", "dataset.limit=8")


class Asked(nn.Module):
    """The network with its question as a second argument, written out."""

    def __init__(self, network, question):
        super().__init__()
        self.network, self.asked = network, nn.Parameter(question)

    def forward(self, x):
        return self.network(x, self.asked[None].expand(x.shape[0], -1))


def by_itself(cell, sample):
    """A sample's input, target and question, and a classifier that is asked it."""
    data, split = cell.setting.dataset, cell.setting.split
    example = data[sample]
    inputs = split.samples.preprocessing.image(example.image)[None]
    network = Asked(cell.setting.classifier.module, example.question)
    classifier = Classifier("asked", network, (3, 64, 64), cell.setting.preprocessing)
    return inputs, torch.tensor([example.label]), classifier


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "rise method.samples=20", "gradcam", "lrp_alphabeta"])
def test_maps_and_logits_are_those_of_the_question_alone(here, method):
    cell = prepared(here, *CELL, f"method={method.split()[0]}", *method.split()[1:])
    maps, logits = rows_of(cell, cell.maps.stage)["maps"], rows_of(cell, cell.setting.logits)["logits"]
    assert len({cell.setting.dataset.question_of(sample) for sample in cell.setting.samples}) > 4
    for row, sample in enumerate(cell.setting.samples):
        inputs, targets, classifier = by_itself(cell, sample)
        np.testing.assert_allclose(logits[row], classifier.logits(inputs)[0], rtol=1e-4, atol=1e-5)
        classifier.layers = {"last_conv": "network.features.6"}
        made = build(cell.setting.job.method_spec, "method")
        alone = made.attribute(classifier, inputs, targets, Context(rng.sample_generators(0, "method", [sample])))
        expected = alone.detach().numpy()
        np.testing.assert_allclose(maps[row], expected[0], rtol=1e-3, atol=1e-4 * abs(expected).max())


def test_what_is_fitted_is_fitted_to_each_question(here):
    cell = prepared(here, *CELL, "dataset.questions=left", "method=pattern_net", "fit.limit=30", "dataset.limit=3")
    maps = rows_of(cell, cell.maps.stage)["maps"]
    train = build({**cell.setting.job.dataset_spec, "split": "train"}, "dataset")
    ids = rng.permutation(len(train), 0)[:30]
    for row, sample in enumerate(cell.setting.samples):
        inputs, targets, _ = by_itself(cell, sample)
        place = cell.setting.dataset.question_of(sample)
        asking = [number for number in ids if train.question_of(number) == place]
        samples = Samples(train, cell.setting.preprocessing, asking)
        classifier = cell.setting.classifier.asked(train.questions[place][None])
        fitted = cell.maps.method.fit(classifier, samples, rng.generator(0, "fit"))
        expected = cell.maps.method.attribute(classifier, inputs, targets, Context(fitted=fitted, generators=[None]))
        np.testing.assert_allclose(maps[row], expected[0], rtol=1e-4, atol=1e-5 * float(abs(expected).max()))


def test_question_sensitivity_asks_other_questions_of_the_same_image(here):
    cell = prepared(here, *CELL, "method=saliency", "metric=question_sensitivity")
    found = rows_of(cell)
    assert (found["question"] > 0).all() and (found["answer"] > 0).all()
    for row, sample in enumerate(cell.setting.samples):
        inputs, targets, _ = by_itself(cell, sample)
        questions = cell.setting.dataset.questions

        def normalised(question, target, inputs=inputs):
            network = Asked(cell.setting.classifier.module, question)
            gradient = Classifier("asked", network, (3, 64, 64)).gradient(inputs, target)[0]
            values = gradient.abs().amax(0).numpy()
            return np.minimum(values / np.percentile(values, 99.5), 1)

        own = cell.setting.dataset.question_of(sample)
        first = normalised(questions[own], targets)
        changes = [abs(first - normalised(one, targets)).mean() for k, one in enumerate(questions) if k != own]
        assert min(abs(found["question"][row] - change) for change in changes) < 1e-4
        group = next(group for group in cell.setting.dataset.categories if int(targets) in group)
        others = [abs(first - normalised(questions[own], torch.tensor([k]))).mean() for k in group if k != int(targets)]
        assert min(abs(found["answer"][row] - change) for change in others) < 1e-4


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["model=smallcnn", "dataset=sort_of_clevr"], ["smallcnn reads none", "model=relation_network"]),
        (["model=relation_network", "model.weights=random", "dataset=shapes"], ["shapes asks none", "sort_of_clevr"]),
        ([*CELL, "model.questions=5"], ["11 numbers", "relation_network reads 5", "model.questions=11"]),
        (["metric=question_sensitivity"], ["data set that asks questions", "dataset=sort_of_clevr"]),
        ([*CELL, "metric=roar"], ["metric=roar trains on masked images", "asks questions"]),
        ([*CELL, "dataset.questions=colour"], ["dataset.questions=colour", "did you mean"]),
        ([*CELL, "metric=question_sensitivity", "metric.sign=signed"], ["sign=signed", "absolute or positive"]),
    ],
)
def test_what_does_not_fit_together_is_said(xaibench, here, arguments, words):
    code, _, said = xaibench("run", *arguments)
    assert code != 0 and all(word in said for word in words) and "Traceback" not in said, said


def test_it_is_trained_on_images_with_their_questions(here, monkeypatch):
    """By the recipe, and tested: the accuracy is that of the logits of cells."""
    recipe = ["model.recipe.epochs=1", "model.recipe.batch_size=36"]
    monkeypatch.setattr("xaibench.datasets.sort_of_clevr.SPLITS", {"train": range(72), "test": range(72, 108)})
    job = compose_job(["model=relation_network", "model.weights=recipe", "dataset=sort_of_clevr", *recipe])
    path, name, share = train_and_test(job, torch.device("cpu"))
    assert path.exists() and name == "test accuracy" and 0 <= share <= 1
    cell = prepared(here, "model=relation_network", f"model.weights={path}", "dataset=sort_of_clevr", "method=gradient")
    logits, labels = rows_of(cell, cell.setting.logits)["logits"], cell.setting.load(cell.setting.samples).labels
    assert share == pytest.approx((logits.argmax(1) == labels.numpy()).mean())
