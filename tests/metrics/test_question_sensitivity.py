"""Question sensitivity by numpy, beside class_difference, and of maps that ignore what is asked."""

import types

import numpy as np
import pytest
import torch

from xaibench.metrics.randomisation.class_difference import ClassDifference
from xaibench.metrics.randomisation.question_sensitivity import QuestionSensitivity

from .helpers import evaluated


class Asking:
    """Five questions, in turns, answered by two and two classes and one alone."""

    questions = torch.eye(5)
    categories = ((0, 1), (2, 3), (4,))

    def question_of(self, index):
        return index % 5

    def words_of(self, index):
        return f"question {index % 5}?"


@pytest.fixture
def world(linear, batch_for):
    classifier = linear((1, 12, 12), classes=5)
    return classifier, batch_for(classifier, 20)


def columns_of(metric, world, attribute):
    """The columns, and which targets and questions were explained. attribute(targets [B], questions [B]) -> maps."""
    classifier, batch = world
    asked = []
    own = Asking.questions[[Asking().question_of(sample) for sample in batch.samples]]

    def explain(inputs, targets, purpose, questions=own):
        assert inputs is batch.inputs and purpose == ""
        asked.append((targets, questions.argmax(1)))
        return attribute(targets, questions.argmax(1))

    maps = attribute(batch.targets, own.argmax(1))
    data = types.SimpleNamespace(dataset=Asking())
    return evaluated(metric, classifier, batch, maps, explain=explain, data=data), asked


def test_changes_are_numpys_and_so_are_their_histograms(world):
    batch = world[1]
    drawn = torch.randn(5, 5, 20, 12, 12).double() ** 3
    metric = QuestionSensitivity(percentile=90.0, large=0.25, sign="positive")

    def attribute(targets, questions):
        return drawn[targets, questions, range(20)].clamp(min=0)

    found, ((answers, same), (targets, questions)) = columns_of(metric, world, attribute)
    own = torch.arange(20) % 5
    assert torch.equal(targets, batch.targets) and torch.equal(same, own) and (questions != own).all()
    assert len({*questions.tolist()}) == 5
    for row in range(20):
        pairs = {"answer": (answers[row], own[row]), "question": (targets[row], questions[row])}
        for name, place in pairs.items():
            if name == "answer" and targets[row] == 4:
                assert found["answer"][row].isnan() and found["answer_histogram"][row].isnan().all()
                continue
            maps = [drawn[t, q, row].clamp(min=0).numpy() for t, q in ((targets[row], own[row]), place)]
            first, second = (np.clip(m / np.percentile(m, 90), 0, 1) for m in maps)
            change = np.abs(first - second)
            assert found[name][row] == pytest.approx(change.mean(), rel=1e-12)
            assert found[f"{name}_large"][row] == pytest.approx((change > 0.25).mean(), rel=1e-12)
            shares = np.histogram(change, bins=20, range=(0, 1))[0] / 144
            np.testing.assert_allclose(found[f"{name}_histogram"][row], shares, rtol=0, atol=1 / 144)


def test_another_answer_is_of_the_same_category_and_its_change_is_class_difference(world):
    classifier, batch = world
    drawn = torch.rand(5, 20, 12, 12).double()
    found, ((answers, _), _) = columns_of(QuestionSensitivity(), world, lambda targets, _: drawn[targets, range(20)])
    partner = torch.tensor([1, 0, 3, 2, 4])
    assert torch.equal(answers, partner[batch.targets])
    assert (found["question"] == 0).all() and (found["question_histogram"][:, 0] == 1).all()
    for row in (batch.targets != 4).nonzero()[:, 0].tolist():
        other = ClassDifference(other=f"fixed:{int(answers[row])}")
        maps = drawn[batch.targets, range(20)]
        expected = evaluated(other, classifier, batch, maps, explain=lambda _, targets, *__: drawn[targets, range(20)])
        assert found["answer"][row] == expected["difference"][row]


def test_a_map_of_the_question_alone_does_not_follow_the_answer(world):
    drawn = torch.rand(5, 12, 12).double()
    found, _ = columns_of(QuestionSensitivity(), world, lambda _, questions: drawn[questions])
    answered = ~found["answer"].isnan()
    assert (found["answer"][answered] == 0).all() and (found["question"] > 0.2).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"percentile": 0}, "percentile=0"),
        ({"large": 1.0}, "large=1.0: expected a difference from 0 to below 1"),
        ({"sign": "signed"}, "sign=signed: .* absolute or positive"),
    ],
)
def test_wrong_parameters(given, said):
    with pytest.raises(ValueError, match=said):
        QuestionSensitivity(**given)
