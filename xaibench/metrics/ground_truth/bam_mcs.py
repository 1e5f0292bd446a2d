"""Model contrast score: an object gets more from the network trained on objects than from one trained on scenes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from ...datasets.base import Batch, Samples
from ...models.classifier import Classifier
from ..base import Statistic
from ..ranking import Collapse, Sign
from ._bam import BAM, objects_of, recognised


class BAMMCS(BAM):
    """The mean over images of g(object network, x) - g(scene network, x); for g see `bam.BAM`.

    Both networks see the same image, each is asked for its own label, and only images that both get right count (the
    others are NaN). 0 for maps that do not depend on the network, 1 at best.

    scene_weights: of the network trained on scenes, of the same architecture; as `model.weights`.
    percentile, collapse, sign: see `bam.BAM`.

    Columns: mcs, g_object, g_scene.
    """

    task = "object"

    def __init__(
        self,
        scene_weights: str = "bundled:smallcnn_scene.safetensors",
        percentile: float | None = 99.0,
        collapse: Collapse | None = None,
        sign: Sign = "positive",
    ) -> None:
        super().__init__(percentile, collapse, sign)
        self.scene_weights = scene_weights
        low, high = (-1, 1) if percentile is not None else (None, None)
        self.statistics = (
            Statistic("bam_mcs", "higher", "mcs", low=low, high=high, unit="attribution per pixel of the object"),
        )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 2, 0

    def needs(self, job: Any) -> dict[str, Any]:
        super().needs(job)
        scene = dataclasses.replace(
            job,
            dataset=f"{job.dataset},task=scene",
            model_spec={**job.model_spec, "weights": self.scene_weights},
            dataset_spec={**job.dataset_spec, "task": "scene"},
        )
        return {"scene": scene}

    def respond(
        self, classifier: Classifier, batch: Batch, generators: list[torch.Generator]
    ) -> dict[str, torch.Tensor]:
        return {"logits": classifier.logits(batch.inputs)}

    def evaluate(
        self,
        classifier: Classifier,
        batch: Batch,
        maps: torch.Tensor,
        responses: Mapping[str, torch.Tensor],
        generators: list[torch.Generator],
        *,
        others: Mapping[str, torch.Tensor],
        other_logits: Mapping[str, torch.Tensor],
        data: Samples,
    ) -> dict[str, torch.Tensor]:
        objects = objects_of(batch.samples, data, maps)
        scenes = torch.tensor([data.dataset.scene_label(sample) for sample in batch.samples], device=maps.device)
        by_both = recognised(responses["logits"], batch.labels) & recognised(other_logits["scene"], scenes)
        g_object = self.attribution(maps, objects).where(by_both, torch.nan)
        g_scene = self.attribution(others["scene"], objects).where(by_both, torch.nan)
        return {"mcs": g_object - g_scene, "g_object": g_object, "g_scene": g_scene}
