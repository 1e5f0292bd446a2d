"""Concept correlation: how much the concepts of a layer go with the logit."""

from typing import Any

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...methods.counterfactual.concept import Concept, Factorisation, contributions
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic


class ConceptCorrelation(Metric):
    """How many concepts of a layer go with the logit, and how much each (Sixt 2022, section 6.3): it scores no map.

    Concepts, their contributions and f are those of the method `concept`, fitted on the fit split and put into order
    there. `clearing` counts those whose |correlation| there is at least `clear`: the study shows such concepts alone
    (its five have 0.21 to 0.34). `r_squared_k` is the squared correlation of the k-th concept's contribution with f on
    the samples that are scored, which the fit has not seen. Compare with `factorisation=random`.

    concepts, layer, factorisation, places, classes: see `Concept`. clear: of |correlation|.

    Columns: clearing (the same for every sample), contribution_k, and f as answer.
    """

    reads_maps = False
    fit_parameters = Concept.fit_parameters

    def __init__(
        self,
        concepts: int = 10,
        layer: str = "last_conv",
        factorisation: Factorisation = "mf",
        places: int = 5000,
        classes: tuple[int, int] = (1, 0),
        clear: float = 0.2,
    ) -> None:
        if not 0 < clear < 1:
            raise ValueError(f"clear={clear}: expected a correlation between 0 and 1")
        self.concept = Concept(0, concepts, layer, factorisation, places, classes)
        self.clear = clear
        self.statistics = (
            Statistic("clearing", "higher", "clearing", low=0, high=concepts, unit="concepts"),
            *(
                Statistic(
                    f"r_squared_{k}", "higher", f"contribution_{k}", per="answer", kind="r_squared", low=0, high=1,
                    unit="share of the variance",
                )
                for k in range(concepts)
            ),
        )  # fmt: skip

    def check(self, classifier: Classifier) -> None:
        self.concept.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (1, 1)

    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """What `Concept.fit` returns."""
        return self.concept.fit(classifier, samples, generator)

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        directions, correlations = (context.fitted[name].cpu() for name in ("directions", "correlations"))
        concept = self.concept
        products, _, answer = contributions(classifier, concept.layer, directions, batch.inputs, concept.classes)
        clearing = (correlations.abs() >= self.clear).sum().double()
        columns = {f"contribution_{k}": column for k, column in enumerate(products.T)}
        return {"clearing": clearing.expand(len(answer)), "answer": answer, **columns}
