"""Individual conditional expectations: what a network answers to a row as one of its features takes other values."""

import torch

from ...datasets.base import Batch, Dataset, Samples
from ...errors import Refusal
from ...methods.context import Context
from ...models.classifier import Classifier
from ...perturb.perturbed import perturbed
from ..base import Columns, Metric, Statistic
from .quality import slugs


class ICE(Metric):
    """The explained output of each row of a table over the values of each feature, the others left as they are.

    Goldstein et al. 2015. It scores the network and no map: a curve for each row and feature, whose mean over the rows
    is the partial dependence (Friedman 2001), and whose range says how much the answer to this row rests on the
    feature. Curves of one feature that are not parallel show that it interacts with others. A row with a value taken
    from another one may be like none of the data.

    points: values that a feature takes, its quantiles from the least to the largest in the samples of the fit split.

    Columns, for each feature: range_<feature>, the largest less the smallest value of its curve; curve_<feature>
    [B,points], the curve, over the quantile.
    """

    reads_maps = False
    fit_parameters = ("points",)
    x_label = "quantile of the feature"

    def __init__(self, points: int = 21) -> None:
        if points < 2:
            raise ValueError(f"points={points}: expected at least 2 values of a feature")
        self.points = points

    def check(self, classifier: Classifier) -> None:
        if classifier.places != "columns":
            raise Refusal(
                f"ice changes a feature of a row, and the inputs of {classifier.name} are {classifier.places}: of "
                "scenes, factor_importance changes a factor"
            )

    def statistics_on(self, dataset: Dataset, classifier: Classifier) -> tuple[Statistic, ...]:
        return tuple(
            Statistic(f"range_{name}", "higher", f"range_{name}", low=0, unit="of the output")
            for name in self._names(dataset, classifier)
        )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (self.points * classifier.input_size[2], 0)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`grid` [points,d]: the values that each feature takes, as inputs have them."""
        rows = torch.cat([batch.inputs.flatten(1).cpu() for batch in samples]).double()
        return {"grid": rows.quantile(self._levels(), dim=0).to(classifier.dtype)}

    def axes(self, classifier: Classifier) -> dict[str, torch.Tensor]:
        # Their names are the data set's, which is not asked for here.
        return {f"curve_{place}": self._levels() for place in range(classifier.input_size[2])}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor | None, context: Context) -> Columns:
        grid, features = context.fitted["grid"].to(batch.inputs), classifier.input_size[2]

        def paint(sample: int, part: slice, out: torch.Tensor) -> None:
            """Rows by feature, then by value."""
            out.copy_(batch.inputs[sample].expand_as(out))
            which = torch.arange(part.start, part.stop, device=out.device)
            feature, value = which // self.points, which % self.points
            out[torch.arange(len(out), device=out.device), 0, 0, feature] = grid[value, feature]

        answers = perturbed(classifier, batch.inputs, features * self.points, paint, batch.targets).double()
        curves = answers.view(len(answers), features, self.points)
        names = self._names(context.data.dataset, classifier)
        columns = {f"range_{name}": curves[:, at].amax(1) - curves[:, at].amin(1) for at, name in enumerate(names)}
        return columns | {f"curve_{at}": curves[:, at] for at in range(features)}

    def _levels(self) -> torch.Tensor:
        return torch.linspace(0, 1, self.points, dtype=torch.float64)

    def _names(self, dataset: Dataset, classifier: Classifier) -> list[str]:
        """Of the features, as parts of a statistic's name."""
        return slugs(getattr(dataset, "features", None) or tuple(map(str, range(classifier.input_size[2]))))
