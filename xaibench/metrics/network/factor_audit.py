"""Factor audit: how well a factor alone would tell the class, whatever a network makes of it."""

from typing import TYPE_CHECKING, Any, cast

import torch

from ...datasets.base import Batch, Dataset
from ...datasets.two4two_sampler import FACTORS, OVERLAP
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic

if TYPE_CHECKING:
    from ...datasets.two4two import Two4Two


class FactorAudit(Metric):
    """What the data would allow: the accuracy of the best guess of the class from one factor and nothing else.

    Data bias is not model bias: a factor that tells the class need not be used, and one that does not may be. This is
    the data's side of `factor_importance`, beside the network's own accuracy; it scores no map.

    The guess is the more frequent class of the factor's bin, among bins that hold equally many of the samples of the
    fit split (fit.limit of them; no image is drawn). The overlap is where the legs' position is one that both classes
    have.

    bins: per factor.

    Columns, 0 or 1: accuracy_<factor> and accuracy_model, whether the guess is right; overlap_..., the same in the
    overlap and 0 elsewhere; in_overlap.
    """

    reads_maps = False

    def __init__(self, bins: int = 20) -> None:
        if bins < 2:
            raise ValueError(f"bins={bins}: expected at least 2")
        self.bins = bins
        share: dict[str, Any] = dict(direction="higher", low=0, high=1)
        self.statistics = tuple(
            statistic
            for name in ("model", *FACTORS)
            for statistic in (
                Statistic(f"accuracy_{name}", column=f"accuracy_{name}", kind="proportion", unit="share", **share),
                Statistic(
                    f"overlap_accuracy_{name}",
                    column=f"overlap_{name}",
                    per="in_overlap",
                    unit="share of the samples in the overlap",
                    **share,
                ),
            )
        )

    def check_data(self, dataset: Dataset) -> None:
        if not hasattr(dataset, "scenes"):
            raise Refusal("factor_audit needs scenes whose factors are known: dataset=two4two has them")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1, 0

    def fit(self, classifier: Classifier, samples: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Of each factor the inner edges of its bins [bins-1] and the more frequent class in each [bins]."""
        labels, factors = samples.dataset.scenes(samples.ids)
        labels = torch.from_numpy(labels).double()
        fitted: dict[str, torch.Tensor] = {}
        inner = torch.arange(1, self.bins, dtype=torch.float64) / self.bins
        for name, values in factors.items():
            values = torch.from_numpy(values)
            edges = values.quantile(inner)
            where = torch.bucketize(values, edges)
            stretchy, count = (where.bincount(weights, self.bins) for weights in (labels, torch.ones_like(labels)))
            fitted |= {f"edges_{name}": edges, f"class_{name}": (2 * stretchy > count).long()}
        return fitted

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        classes, drawn = cast("Two4Two", context.data.dataset).scenes(batch.samples)
        labels = torch.from_numpy(classes)
        factors = {name: torch.from_numpy(values) for name, values in drawn.items()}
        logits = classifier.logits(batch.inputs).cpu()
        right = {"model": (logits[:, -1] > (logits[:, 0] if logits.shape[1] > 1 else 0)) == labels}
        for name, values in factors.items():
            edges, guesses = (context.fitted[f"{kind}_{name}"].cpu() for kind in ("edges", "class"))
            right[name] = guesses[torch.bucketize(values, edges)] == labels
        inside = (factors["legs"] >= OVERLAP[0]) & (factors["legs"] <= OVERLAP[1])
        columns = {f"accuracy_{name}": hit.double() for name, hit in right.items()}
        columns |= {f"overlap_{name}": (hit & inside).double() for name, hit in right.items()}
        return columns | {"in_overlap": inside.double()}
