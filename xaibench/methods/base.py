"""What an attribution method is to xaibench."""

from abc import ABC, abstractmethod
from typing import Any

import torch

from ..models.classifier import Classifier


class Method(ABC):
    """Base class with the defaults; any class with these attributes will do. Constructor arguments are the parameters.

    version: bumped when the numbers change; part of every key.
    collapse: how a ranking metric turns channels into one value per pixel unless it is told otherwise:
        `sum` (signed), `sum_abs`, `max_abs`, `mean`.
    needs_mask: whether the data set must have ground-truth masks.
    """

    version: int = 1
    collapse: str = "sum"
    needs_mask: bool = False

    def check(self, classifier: Classifier) -> None:
        """Raise `Refusal`, before any work, if this network cannot be served; the message says why."""

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """Nominal (forward, backward) passes per sample, from the definition."""
        return (1, 1)

    @abstractmethod
    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        **context: Any,
    ) -> torch.Tensor:
        """Maps [B,C,H,W] or [B,1,H,W], signed, at input resolution.

        inputs [B,C,H,W] are preprocessed and on the classifier's device, targets [B] int64, generators one per
        sample (CPU). The network is called on at most `classifier.batch_size` inputs at a time. A method that
        names further parameters receives them: `labels` [B], `masks` [B,H,W] (ground truth), `samples` (ids),
        `fitted` (what its `fit` returned).
        """


class Fitted(Method):
    """A method with something to estimate once per model and data set: statistics, patterns, a readout network.

    `fit(classifier, samples)` gets `datasets.base.Samples` of the fit split and returns named tensors (CPU). The
    runner caches them as an artefact of its own and hands them to `attribute` as `fitted`. A method of which only some
    parameters need that need not be one of these: it has a `fit`, which is None where there is nothing to estimate.

    fit_parameters: the constructor's parameters that `fit` depends on (None: all), so that methods which differ in
        others share what was fitted.
    """

    fit_parameters: tuple[str, ...] | None = None

    @abstractmethod
    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Named tensors, deterministic given the samples and the generator."""
