"""Remove and retrain: can a network still learn the task once what a method calls important is gone?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ...datasets.base import Dataset
from ...errors import Refusal
from ...models.classifier import Classifier
from ...perturb.fills import Fill
from ..base import Columns, Measure, Statistic
from ..ranking import Collapse, Sign


@dataclass(frozen=True)
class Masking:
    """What every image loses before a network is trained on it.

    by: the ranking, of the method or at random. fraction: the share of pixels lost, rounded to whole pixels. keep: the
    least relevant pixels go and the most relevant are kept. fill: what a lost pixel shows.
    """

    by: Literal["method", "random"]
    fraction: float
    keep: bool
    fill: Fill


class Roar(Measure):
    """Networks are trained from scratch on images without their most relevant pixels (Hooker et al. 2019, ROAR).

    Each image of the train and the test split loses the given fractions of its pixels, ranked by the method's map of
    it. The model's recipe trains a new network on what is left, and its accuracy on the equally treated test images is
    taken. A method is good if accuracy falls below that of a random ranking: what it found was what could be learned.
    With `keep` the least relevant pixels go (KAR, keep and retrain), and a good method's accuracy is above random's.

    The area is a trapezoid over the fractions, with the accuracy on untouched images at 0 and no point at 1 (the
    convention behind the published tables: with all five fractions it is at most 0.9). A repeat is a new initialisation
    and a new order of the batches; the method, the random ranking and the untouched images share it, so that
    differences are paired. The random ranking's and the untouched networks are trained once for all methods.

    What is lost remains visible as a shape of one colour, and the shape depends on the class whose map it is. Maps of
    the label would leak it, so maps are of the predicted class (`target`), on both splits; even so a network may read
    the shape. Lost pixels of an image with equal values are chosen at random, seeded by the sample.

    fractions: between 0 and 1. repeats: networks per fraction. fill: `zero` is the data set's mean, as the theses have
        it. keep: whether the least relevant pixels go. target: of the maps; `label`, `predicted` or `fixed:<k>`,
        whatever the run's own. train_limit: train samples (None: all); `dataset.limit` is of test samples.
        validation_limit: validation samples, for recipes that select the best epoch by them
        (`model.recipe.select=best`); they lose their pixels too.
    stack: networks trained side by side: None is all of a repeat on a GPU and 1 on a CPU, where it does not pay.
    collapse, sign: see `Metric`.
    shared: whether all inputs of all splits lose the same places, those with the largest mean of the training maps (as
        `sign` reads them): the columns of a table. The random ranking then is one for each repeat.

    Of a data set with real labels, whose network answers a value, R squared takes the place of accuracy, in the names
    of statistics too (`r2_at_F`); it may be negative.

    Columns, by repeat: auc, random_auc, difference = auc - random_auc, clean (accuracy on untouched images),
    accuracy_at_F and difference_at_F for every fraction F; accuracy_curve and random_curve from 0 on.
    """

    kind = "retraining"
    added = {"shared": False}
    x_label = "share of pixels removed"

    def __init__(
        self,
        fractions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
        repeats: int = 3,
        fill: Fill = "zero",
        keep: bool = False,
        target: str = "predicted",
        train_limit: int | None = 2000,
        validation_limit: int | None = 500,
        stack: int | None = None,
        collapse: Collapse | None = None,
        sign: Sign = "signed",
        shared: bool = False,
    ) -> None:
        if not fractions or sorted(set(fractions)) != list(fractions) or not 0 < fractions[0] <= fractions[-1] < 1:
            raise ValueError(f"fractions={list(fractions)}: expected rising numbers between 0 and 1")
        for name, value in (
            ("repeats", repeats),
            ("train_limit", train_limit),
            ("validation_limit", validation_limit),
            ("stack", stack),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected a positive number")
        self.fractions, self.repeats, self.fill, self.keep = tuple(fractions), repeats, fill, keep
        self.target, self.stack = target, stack
        self.train_limit, self.validation_limit = train_limit, validation_limit
        self.collapse, self.sign, self.shared = collapse, sign, shared
        self.statistics = self._statistics("accuracy", "accuracy", 0)

    def _statistics(self, word: str, unit: str, low: float | None) -> tuple[Statistic, ...]:
        """word: of accuracy in names. low: the least that it can be."""
        name, better = ("kar", "higher") if self.keep else ("roar", "lower")
        kind, area = "repeats", f"{unit} x fraction of pixels"
        least = None if low is None else low - 1
        most = None if low is None else 1
        return (
            Statistic(f"{name}_auc", better, "auc", kind=kind, low=low, high=1, unit=area),
            Statistic(f"{name}_minus_random", better, "difference", kind=kind, low=least, high=most, unit=area),
            *(
                Statistic(f"{word}_at_{f:g}", better, f"accuracy_at_{f:g}", kind=kind, low=low, high=1, unit=unit)
                for f in self.fractions
            ),
            *(
                Statistic(
                    f"difference_at_{f:g}", better, f"difference_at_{f:g}", kind=kind, low=least, high=most, unit=unit
                )
                for f in self.fractions
            ),
        )

    def statistics_on(self, dataset: Dataset, classifier: Classifier) -> tuple[Statistic, ...]:
        return self.statistics if dataset.class_names else self._statistics("r2", "R squared", None)

    def maskings(self) -> list[Masking | None]:
        """What networks are trained on in each repeat; None stands for untouched images."""
        ours = [Masking("method", fraction, self.keep, self.fill) for fraction in self.fractions]
        return [None, *(self.random(masking) for masking in ours), *ours]

    def random(self, masking: Masking) -> Masking:
        """The control beside a masking. Keeping is removing to a random ranking: ROAR and KAR share the networks."""
        return Masking("random", masking.fraction, False, masking.fill)

    def check(self, classifier: Classifier) -> None:
        if classifier.places == "words":
            raise Refusal(
                f"retraining {classifier.name} without some words is not built: it learns their vectors, from which "
                "they would have to be taken, at the same time"
            )

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        """The fractions, from 0 on."""
        x = torch.tensor([0.0, *self.fractions], dtype=torch.float64)
        return dict.fromkeys(("accuracy_curve", "random_curve"), x)

    def evaluate(self, accuracies: Mapping[Masking | None, float]) -> Columns:
        """Columns of one repeat, scalars and curves, from the accuracies of its `maskings`."""
        ours = [masking for masking in accuracies if masking is not None and masking.by == "method"]
        curves = {
            "accuracy_curve": [accuracies[None], *(accuracies[masking] for masking in ours)],
            "random_curve": [accuracies[None], *(accuracies[self.random(masking)] for masking in ours)],
        }
        columns = {name: torch.tensor(curve, dtype=torch.float64) for name, curve in curves.items()}
        x = torch.tensor([0.0, *self.fractions], dtype=torch.float64)
        auc, random_auc = (torch.trapezoid(curve, x) for curve in columns.values())
        columns |= {"auc": auc, "random_auc": random_auc, "difference": auc - random_auc}
        columns["clean"] = columns["accuracy_curve"][0]
        for place, fraction in enumerate(self.fractions, 1):
            accuracy, random = (columns[name][place] for name in ("accuracy_curve", "random_curve"))
            columns |= {f"accuracy_at_{fraction:g}": accuracy, f"difference_at_{fraction:g}": accuracy - random}
        return columns
