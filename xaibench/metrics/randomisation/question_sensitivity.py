"""Question sensitivity: does a map change with the question that is asked, and with the answer that it explains?"""

from collections.abc import Sequence
from typing import Any

import torch

from ...datasets.base import Batch, Dataset, HasQuestions
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse, Sign
from .class_difference import normalised

BINS = 20


class QuestionSensitivity(Metric):
    """Mean over the pixels of |m - m'|, of maps in [0, 1]: for another answer, and for another question.

    Sixt 2022, section 5.4: the map of the right answer, beside (i) that of a wrong answer of the same category to the
    same question, such as `circle` for `square`, and (ii) that of the same answer's output when another question is
    asked of the same image. An explanation of an answer should follow both. LRP's maps hardly followed the answer, and
    followed the question: what flows back from the question's side of the network decides, not what was answered. Both
    are to be held against `shuffled`, the difference of the map from itself with its pixels shuffled.

    Other answers and questions are drawn by the sample, from the answer's category and from all other questions of the
    data set. (The code of the thesis takes the next answer whatever its category, and another sample's question.)
    All maps of a sample draw the same noise. A map is divided by a percentile of its absolute values and cut off at 1,
    as for `class_difference`.

    percentile: as there. large: the difference above which a pixel counts as changed altogether, below 1.
    collapse, sign: see `Metric`; sign is `absolute` or `positive`.

    Columns: answer, question, shuffled; answer_large and question_large, the share of pixels that change altogether;
    answer_histogram and question_histogram, shares of the pixels in 20 bins of |m - m'| from 0 to 1, both of the same
    size. What needs another answer is undefined where the explained one is alone in its category.
    """

    x_label = "|m - m'|"

    def __init__(
        self,
        percentile: float = 99.5,
        large: float = 0.5,
        collapse: Collapse | None = None,
        sign: Sign = "absolute",
    ) -> None:
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile={percentile}: expected a number above 0, at most 100")
        if not 0 <= large < 1:
            raise ValueError(f"large={large}: expected a difference from 0 to below 1")
        if sign == "signed":
            raise ValueError("sign=signed: maps are compared in [0, 1], so absolute or positive")
        self.percentile, self.large, self.collapse, self.sign = percentile, large, collapse, sign
        of_map: dict[str, Any] = {"low": 0, "high": 1, "unit": "of the normalised map"}
        of_pixels = {**of_map, "unit": "share of pixels"}
        self.statistics = (
            Statistic("question", "higher", "question", **of_map),
            Statistic("answer", "higher", "answer", **of_map),
            Statistic("shuffled", "higher", "shuffled", **of_map),
            Statistic("ratio", "target", "question", per="answer", target=1, low=0, unit="question / answer"),
            Statistic("question_large", "higher", "question_large", **of_pixels),
            Statistic("answer_large", "higher", "answer_large", **of_pixels),
        )

    def check(self, classifier: Classifier) -> None:
        if classifier.rival is not None:
            raise Refusal("a metric of two answers' maps explains each by itself: set target=fixed:<class>")

    def check_data(self, dataset: Dataset) -> None:
        if not isinstance(dataset, HasQuestions):
            raise Refusal("question_sensitivity needs a data set that asks questions, such as dataset=sort_of_clevr")

    def explanations(self, classifier: Classifier) -> int:
        return 2

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        middles = (torch.arange(BINS).double() + 0.5) / BINS
        return {"answer_histogram": middles, "question_histogram": middles}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        dataset = context.data.dataset
        assert isinstance(dataset, HasQuestions)
        asked, drawn = [dataset.question_of(sample) for sample in batch.samples], context.generators
        answers = torch.stack([_other_answer(t, dataset.categories, g) for t, g in zip(batch.targets, drawn)])
        places = [_other(place, len(dataset.questions), g) for place, g in zip(asked, drawn)]
        by_answer = context.explain(batch.inputs, answers, "")
        by_question = context.explain(
            batch.inputs, batch.targets, "", questions=dataset.questions[places].to(batch.inputs)
        )
        first = normalised(maps, self.percentile)
        orders = torch.stack([torch.randperm(first.shape[1], generator=g) for g in context.generators]).to(first.device)
        columns = {"shuffled": (first - first.gather(1, orders)).abs().mean(1)}
        alone = answers == batch.targets
        for name, others in (("answer", by_answer), ("question", by_question)):
            change = (first - normalised(others, self.percentile)).abs()
            columns[name], columns[f"{name}_large"] = change.mean(1), (change > self.large).double().mean(1)
            bins = (change * BINS).long().clamp(max=BINS - 1)
            counts = torch.zeros(len(change), BINS, dtype=torch.float64, device=change.device)
            columns[f"{name}_histogram"] = counts.scatter_add_(1, bins, torch.ones_like(change)) / change.shape[1]
        for name in ("answer", "answer_large", "answer_histogram"):
            columns[name][alone] = torch.nan
        return columns


def _other(own: int, count: int, generator: torch.Generator) -> int:
    """One of `count` numbers that is not `own`; that one where there is no other."""
    return (own + int(torch.randint(1, count, (), generator=generator))) % count if count > 1 else own


def _other_answer(
    target: torch.Tensor, categories: Sequence[Sequence[int]], generator: torch.Generator
) -> torch.Tensor:
    """Another answer of the category of one, or that one where there is no other."""
    group = next((tuple(group) for group in categories if int(target) in group), (int(target),))
    return target.new_tensor(group[_other(group.index(int(target)), len(group), generator)])
