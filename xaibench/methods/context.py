"""What a method or a metric may ask for beyond the network, the inputs and the targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..datasets.base import Samples

# In place of what only a metric is handed: whoever may ask for it has it.
ABSENT: Any = None


def keep_nothing(rows: Sequence[int], responses: Mapping[str, torch.Tensor]) -> None:
    """The `keep` of who calls `respond` without a cache."""


@dataclass(frozen=True)
class Context:
    """Handed to `Method.attribute`, `Method.propagate`, `Metric.respond` and `Metric.evaluate`.

    `generators` and `fitted` are there everywhere; `samples`, `labels` and `masks` for methods (metrics have these in
    their batch); `data` for both, where there is a data set; the others for metrics.

    Args:
        generators: One per sample (CPU), seeded by run, purpose and sample; draw from them, and a sample's numbers do
            not depend on the batch that it is in.
        fitted: What the method's or metric's own `fit` returned, on the network's device; empty if it fits nothing.
        samples: The ids of the inputs' samples.
        labels: [B], their labels.
        masks: [B,H,W], the ground truth of the targets.
        responses: What `respond` returned for these samples: name -> [B,...].
        others: Name -> [B,H,W], the collapsed maps of the Jobs that `needs` named.
        other_logits: Name -> [B,K], what the networks of those Jobs answer to the samples (where the metric declares
            `reads_other_logits`).
        explain: `explain(inputs, targets, purpose, masks=None, questions=None, network=None)` -> [B,H,W]: the method's
            collapsed maps of other inputs, targets or questions, one per sample of the batch. Another `purpose` means
            other random draws, '' those of the maps that are scored; masks [B,H,W] and questions [B,Q] default to the
            batch's; network, a classifier, to that of the cell (a metric that hands over others declares
            `own_networks`, and gets a Refusal for one that the method cannot serve). A metric that calls it counts the
            maps in `explanations`.
        propagate: `propagate(inputs, signals, start, keep)`: what the method's rules make of signals at a layer, see
            `methods.rules`; only where the metric declares `propagates`.
        path: `path(inputs, targets, rows, purpose='', beside=None)` -> bool [b,...] per call of a ReLU: the neurons
            that the method chooses for at most `batch_size` inputs [b,C,H,W] and targets, of the samples `rows` (a
            slice) of the batch; only where the metric declares `reads_paths`. Purposes as for `explain`. beside: the
            name of another selector (`methods.pathways.selectors.SELECTORS`), at the method's sparsity.
        keep: `keep(rows, responses)`: writes what `respond` has for some rows of the batch, so that they need not be
            made again should the run be killed before the others are there. `respond` returns them nevertheless.
        data: The samples of the split, from which others can be loaded.
        sign_of_logit: What the method declares of its maps, see `Method`; None where it declares nothing.
    """

    generators: Sequence[torch.Generator] = ()
    fitted: Mapping[str, torch.Tensor] = field(default_factory=dict)
    samples: Sequence[int] = ()
    labels: torch.Tensor | None = None
    masks: torch.Tensor | None = None
    responses: Mapping[str, torch.Tensor] = field(default_factory=dict)
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)
    other_logits: Mapping[str, torch.Tensor] = field(default_factory=dict)
    explain: Callable[..., torch.Tensor] = ABSENT
    propagate: Callable[..., list[dict[str, torch.Tensor]]] = ABSENT
    path: Callable[..., list[torch.Tensor]] = ABSENT
    keep: Callable[[Sequence[int], Mapping[str, torch.Tensor]], None] = keep_nothing
    data: Samples = ABSENT
    sign_of_logit: bool | None = None
