"""Model contrast score: an object gets more from the network trained on objects than from one trained on scenes."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch

from ...datasets.base import Batch
from ...job import Job
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ._bam import BAM, objects_of, recognised

if TYPE_CHECKING:
    from ...datasets.shapes import Shapes


@dataclass(eq=False)
class BAMMCS(BAM):
    """The mean over images of g(object network, x) - g(scene network, x); for g see `bam.BAM`.

    Both networks see the same image, each is asked for its own label, and only images that both get right count (the
    others are NaN). 0 for maps that do not depend on the network, 1 at best.

    scene_weights: of the network trained on scenes, of the same architecture; as `model.weights`.
    percentile, collapse, sign: see `bam.BAM`.

    Columns: mcs, g_object, g_scene.
    """

    task = "object"
    reads_other_logits = True

    scene_weights: str = "bundled:smallcnn_scene.safetensors"

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = (-1, 1) if self.percentile is not None else (None, None)
        self.statistics = (
            Statistic("bam_mcs", "higher", "mcs", low=low, high=high, unit="attribution per pixel of the object"),
        )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 2, 0

    def needs(self, job: Job, classifier: Classifier) -> dict[str, Job]:
        scene = replace(
            job,
            dataset=f"{job.dataset},task=scene",
            model_spec={**job.model_spec, "weights": self.scene_weights},
            dataset_spec={**job.dataset_spec, "task": "scene"},
        )
        return {**super().needs(job, classifier), "scene": scene}

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        return {"logits": classifier.logits(batch.inputs)}

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        objects, dataset = objects_of(batch.samples, context.data, maps), cast("Shapes", context.data.dataset)
        scenes = torch.tensor([dataset.scene_label(sample) for sample in batch.samples], device=maps.device)
        logits, scene_logits = context.responses["logits"], context.other_logits["scene"]
        by_both = recognised(logits, batch.labels) & recognised(scene_logits, scenes)
        g_object = self.attribution(maps, objects).where(by_both, torch.nan)
        g_scene = self.attribution(context.others["scene"], objects).where(by_both, torch.nan)
        return {"mcs": g_object - g_scene, "g_object": g_object, "g_scene": g_scene}
