"""Label randomisation: does a map change when the network has learned the same images with other labels?"""

from dataclasses import dataclass, replace

import torch

from ...datasets.base import Batch
from ...errors import Refusal
from ...job import Job
from ...methods.context import Context
from ...models.classifier import Classifier
from ...models.randomise import PERMUTED_LABELS
from ..base import Columns, Statistic
from ..similarity import SimilarityMetric, averaged, further_statistics


@dataclass(eq=False)
class LabelRandomization(SimilarityMetric):
    """Similarity of a map to the map of the same image and target by a network trained on permuted labels.

    Adebayo et al. 2018, their data randomisation test: the two networks have the same architecture, recipe and images,
    and share no relation of images and labels; what their maps have in common comes from the image and the
    architecture. The lower the better, and to be held against the floors (see `SimilarityMetric`): noise is lowest.

    The network on permuted labels is trained by the model's recipe from the same initial weights, once for all methods;
    so the network that is explained must be the recipe's (`model.weights=recipe`). The paper trains until the permuted
    labels are memorised; a recipe made for true labels may end long before.

    seeds: permutations, 0, 1, ..., each a training; similarities are averaged over them.
    The others: see `SimilarityMetric`.

    Columns: ssim, spearman, spearman_abs, hog; ssim_signed, ssim_either_sign, flipped; the floors; right, the
    share of the permuted networks that predict the label, which is 1 / classes where nothing of the true labels
    has leaked.
    """

    version = 2
    reads_other_logits = True
    statistics = (
        Statistic("ssim", "lower", "ssim", low=-1, high=1, unit="SSIM"),
        *further_statistics(),
        Statistic("right", "lower", "right", low=0, high=1, unit="share of the permuted networks"),
    )

    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: expected a positive number")

    def needs(self, job: Job, classifier: Classifier) -> dict[str, Job]:
        """The Jobs of the networks on permuted labels, by their weights state."""
        if job.model_spec.get("weights") != "recipe":
            raise Refusal(
                f"metric={job.metric} compares networks of one recipe, and {job.model} has weights from elsewhere: set "
                "model.weights=recipe, for a model with a recipe"
            )
        states = (f"{PERMUTED_LABELS}:{seed}" for seed in range(self.seeds))
        return {state: replace(job, weights_state=state, target="original") for state in states}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        others = context.others.values()
        found = averaged([self.similarities(maps, other, context.sign_of_logit) for other in others])
        right = [(logits.argmax(1) == batch.labels).double() for logits in context.other_logits.values()]
        return self.compared(classifier, batch, maps, found, context) | {"right": torch.stack(right).mean(0)}
