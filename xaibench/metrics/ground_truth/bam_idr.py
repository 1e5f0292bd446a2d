"""Input dependence rate: to the network trained on scenes, an object matters less than the scene that it covers."""

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ._bam import BAM, backgrounds_of, objects_of, recognised


class BAMIDR(BAM):
    """The share of images where g is smaller with the object than in the same scene without it; for g see `bam.BAM`.

    The network is the one trained on scenes (`dataset.task=scene`). Only images whose scene it recognises in both
    versions count (the others are NaN). Equal is not smaller, so a map that does not depend on the input scores 0, and
    a random one 1/2. One minus the rate is the authors' false positive rate.

    percentile, collapse, sign: see `bam.BAM`. Under a percentile the maps of both versions fill the same range.

    Columns: idr (0 or 1), g_with, g_without.
    """

    task = "scene"
    statistics = (Statistic("bam_idr", "higher", "idr", kind="proportion", low=0, high=1, unit="share of images"),)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 2, 0

    def explanations(self, classifier: Classifier) -> int:
        return 1

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """logits, empty_logits [B,K]: of the images and of their scenes without objects."""
        empty = backgrounds_of(batch.samples, context.data, batch.inputs)
        return {"logits": classifier.logits(batch.inputs), "empty_logits": classifier.logits(empty)}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        objects = objects_of(batch.samples, context.data, maps)
        empty = backgrounds_of(batch.samples, context.data, batch.inputs)
        # All of an empty scene is what its label is about.
        maps_without = context.explain(empty, batch.targets, "scene", torch.ones_like(objects))
        logits, empty_logits = context.responses["logits"], context.responses["empty_logits"]
        in_both = recognised(logits, batch.labels) & recognised(empty_logits, batch.labels)
        g_with = self.attribution(maps, objects).where(in_both, torch.nan)
        g_without = self.attribution(maps_without, objects).where(in_both, torch.nan)
        idr = (g_with < g_without).to(g_with).where(g_with.isfinite() & g_without.isfinite(), torch.nan)
        return {"idr": idr, "g_with": g_with, "g_without": g_without}
