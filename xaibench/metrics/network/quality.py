"""How good the network itself is: without it, nobody can read what an explanation of the network says."""

import re
from typing import Any

import torch

from ...datasets.base import Batch, Dataset
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier, predicted
from ..base import Columns, Metric, Statistic


class Quality(Metric):
    """The network's own answers to the samples, beside their labels; it scores no map.

    Of a network that tells classes apart (the data set names them):

    accuracy                    share of the samples whose predicted class is their label
    roc_auc_<class>             area under the ROC curve of the class's output, this class against all others: the
                                chance that it ranks one of the class above one of the others
    average_precision_<class>   of the same ranking: precision, averaged over the steps of recall
    f1_<class>                  harmonic mean of precision and recall of the predicted class

    A scalar output of a data set with two classes speaks for the second one. Where an image may have several classes,
    each by itself (a data set that is `multi_label`), a class is called where its probability, a sigmoid, is above a
    half, and accuracy is the share of an image's classes that are called or not as they should. Of a network that
    answers a value:

    mae, mse                    mean absolute and mean squared error, in the label's unit and its square
    r2                          1 - mse / variance of the labels: 0 for who answers their mean, and below for worse

    All as scikit-learn defines them. A class that no sample, or every sample, has leaves its roc_auc undefined.

    per_class: Up to how many outputs have statistics of their own; with more, there is the accuracy alone.

    Columns: correct (with several classes a share); for each class score (its logit), is (whether it is the label),
    twice_hit and called (of F1); or absolute_error, squared_error, label.
    """

    reads_maps = False

    def __init__(self, per_class: int = 20) -> None:
        if per_class < 0:
            raise ValueError(f"per_class={per_class}: expected a number of outputs, or 0")
        self.per_class = per_class

    def statistics_on(self, dataset: Dataset, classifier: Classifier) -> tuple[Statistic, ...]:
        if not dataset.class_names:
            return (
                Statistic("mae", "lower", "absolute_error", low=0, unit="unit of the label"),
                Statistic("mse", "lower", "squared_error", low=0, unit="squared unit of the label"),
                Statistic("r2", "higher", "squared_error", per="label", kind="determination", high=1),
            )
        shares: dict[str, Any] = dict(direction="higher", low=0, high=1)
        several = dataset.multi_label
        kind, unit = ("mean", "share of classes") if several else ("proportion", "share of samples")
        found = [Statistic("accuracy", column="correct", kind=kind, unit=unit, **shares)]
        names = slugs(dataset.class_names)
        for k in self._classes(classifier.outputs):
            for kind in ("roc_auc", "average_precision"):
                found.append(Statistic(f"{kind}_{names[k]}", column=f"score_{k}", per=f"is_{k}", kind=kind, **shares))
            found.append(Statistic(f"f1_{names[k]}", column=f"twice_hit_{k}", per=f"called_{k}", **shares))
        return tuple(found)

    def check_data(self, dataset: Dataset) -> None:
        if len(dataset.class_names) == 1:
            raise Refusal(f"quality tells classes apart, and this data set has one: {dataset.class_names[0]}")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1, 0

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        logits = classifier.logits(batch.inputs).double()
        if not context.data.dataset.class_names:
            error = logits[:, 0] - batch.labels.double()
            return {"absolute_error": error.abs(), "squared_error": error**2, "label": batch.labels.double()}
        if context.data.dataset.multi_label:
            assert batch.vectors is not None  # `multi_label`
            present, answers = (batch.vectors > 0.5).to(logits.device), logits > 0
            columns: Columns = {"correct": (answers == present).double().mean(1)}
        else:
            classes = torch.arange(max(logits.shape[1], 2), device=logits.device)
            present, answers = (rows[:, None] == classes for rows in (batch.labels, predicted(logits)))
            columns = {"correct": (predicted(logits) == batch.labels).double()}
        for k in self._classes(logits.shape[1]):
            is_k, called = present[:, k].double(), answers[:, k].double()
            columns |= {
                f"score_{k}": logits[:, 0] if logits.shape[1] == 1 else logits[:, k],
                f"is_{k}": is_k,
                f"twice_hit_{k}": 2 * is_k * called,
                f"called_{k}": is_k + called,
            }
        return columns

    def _classes(self, outputs: int) -> range:
        """Those that have statistics of their own, of a network with so many outputs."""
        if outputs == 1:
            return range(1, 2 if self.per_class else 1)
        return range(outputs if outputs <= self.per_class else 0)


def slugs(names: tuple[str, ...]) -> list[str]:
    """Class names as parts of a statistic's name; with their number where two would be the same."""
    plain = [re.sub(r"\W+", "_", name).strip("_") for name in names]
    return [f"{name}_{k}" if plain.count(name) > 1 or not name else name for k, name in enumerate(plain)]
