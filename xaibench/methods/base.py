"""What an attribution method is to xaibench."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from ..datasets.base import Samples
from ..models.classifier import Classifier
from .context import Context


class Method(ABC):
    """Base class with the defaults. Constructor arguments are the parameters.

    A method with rules for signals at any layer has `propagate` as well: see `rules._modified_backprop`.

    Attributes:
        version: Bumped when the numbers change; part of every key.
        collapse: How a ranking metric turns channels into one value per pixel unless it is told otherwise:
            `sum` (signed), `sum_abs`, `max_abs`, `mean`.
        needs_mask: Whether the data set must have ground-truth masks.
        own_samples_only: Whether it has maps of the data set's own samples only and of no other inputs.
        sign_of_logit: Whether a map is a multiple of the explained logit, so that a negative one turns its sign as a
            whole (rules that hand down the logit). A random network's logit has either sign, and by `flip_max: auto`
            the metrics of `metrics.similarity` then compare with the negative map too. None: not declared, and read as
            False.
        fit: None where nothing is to be estimated from data; otherwise as in `Fitted`.
        fit_parameters: The constructor's parameters that `fit` depends on (None: all), so that methods which differ in
            others share what was fitted.
    """

    version: int = 1
    collapse: str = "sum"
    needs_mask: bool = False
    own_samples_only: bool = False
    sign_of_logit: bool | None = None
    fit: Callable[[Classifier, Samples, torch.Generator], dict[str, torch.Tensor]] | None = None
    fit_parameters: tuple[str, ...] | None = None

    def check(self, classifier: Classifier) -> None:
        """Refuse, before any work, a network that cannot be served.

        Args:
            classifier: The network.

        Raises:
            Refusal: If this network cannot be served; the message says why.
        """

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """What a map costs, from the definition.

        Args:
            classifier: The network.

        Returns:
            Nominal (forward, backward) passes per sample.
        """
        return (1, 1)

    @abstractmethod
    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        """Maps of a batch of inputs. The network is called on at most `classifier.batch_size` inputs at a time.

        Args:
            classifier: The network.
            inputs: [B,C,H,W], preprocessed and on the classifier's device.
            targets: [B] int64, the explained classes.
            context: Generators to draw from, what `fit` returned, and what is known of the samples.

        Returns:
            Maps [B,C,H,W] or [B,1,H,W], signed, at input resolution.
        """


class Propagating(Protocol):
    """A method with rules for signals at any layer, see `rules._modified_backprop`."""

    def propagate(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        signals: Sequence[torch.Tensor],
        start: str,
        keep: Iterable[str],
        context: Context,
    ) -> list[dict[str, torch.Tensor]]:
        """For each of the signals [B,...] at the output of the layer `start`, what arrives at the layers `keep`."""


class Fitted(Method):
    """A method with something to estimate once per model and data set: statistics, patterns, a readout network.

    The runner caches what `fit` returns as an artefact of its own and hands it to `attribute` as `context.fitted`. A
    method of which only some parameters need that need not be one of these: its `fit` is None where there is nothing
    to estimate.
    """

    @abstractmethod
    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Estimate, once per model and data set.

        Args:
            classifier: The network.
            samples: Samples of the fit split.
            generator: To draw from.

        Returns:
            Named tensors (CPU), deterministic given the samples of the fit split and the generator.
        """
