"""Input independence rate: a patch that changes nothing for the network changes nothing in the map."""

from dataclasses import dataclass
from typing import Any

import torch

from ...datasets.base import Batch
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Statistic
from ._bam import BAM, backgrounds_of, objects_of, recognised


@dataclass(eq=False)
class BAMIIR(BAM):
    """The share of images where |g(x + d) - g(x)| < threshold * g(x), for a patch d that the network does not notice.

    x is a scene without its object (`dataset.task=scene`), d has the shape and place of the object, and is found by
    gradient descent: from the object itself towards an x + d with the logits of x, the pixels kept between black and
    white. It stays as visible as the object. (The authors also reward the norm of d, which from this start makes
    hardly a difference.) For g see `bam.BAM`; the place is that of the patch.

    An image counts (is not NaN) if the network recognises its scene with and without the patch, and if no logit
    changes by more than `tolerance`. A map that ignores its input altogether scores 1: read it beside IDR and MCS.

    threshold: see above. steps, learning_rate: of the descent (Adam, in units of the normalised input); the best of
        all steps is kept. tolerance: in logits.
    percentile, collapse, sign: see `bam.BAM`.

    Columns: iir (0 or 1), g_scene, g_patched; logit_change, the largest of any logit; patch, the root mean square of
    d over its pixels, in units of [0, 1] pixel values.
    """

    task = "scene"
    statistics = (Statistic("bam_iir", "higher", "iir", kind="proportion", low=0, high=1, unit="share of images"),)

    threshold: float = 0.1
    steps: int = 150
    learning_rate: float = 0.05
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "learning_rate", "tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return self.steps + 2, self.steps

    def explanations(self, classifier: Classifier) -> int:
        return 2

    def responses_spec(self) -> dict[str, Any]:
        return {"steps": self.steps, "learning_rate": self.learning_rate}

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """patched [B,C,H,W]: x + d. logits, patched_logits [B,K]: of x and of x + d."""
        scenes = backgrounds_of(batch.samples, context.data, batch.inputs)
        objects = objects_of(batch.samples, context.data, batch.inputs)[:, None].to(scenes)
        found = [
            self._unnoticed(classifier, scenes[part], batch.inputs[part], objects[part])
            for part in classifier.chunks(len(scenes))
        ]
        return dict(zip(("patched", "logits", "patched_logits"), map(torch.cat, zip(*found))))

    def evaluate(self, classifier: Classifier, batch: Batch, maps: torch.Tensor, context: Context) -> Columns:
        objects = objects_of(batch.samples, context.data, batch.inputs)
        scenes = backgrounds_of(batch.samples, context.data, batch.inputs)
        patched = context.responses["patched"].to(batch.inputs)
        logits, patched_logits = context.responses["logits"], context.responses["patched_logits"]
        everything = torch.ones_like(objects)
        g_scene, g_patched = (
            self.attribution(context.explain(inputs, batch.targets, purpose, everything), objects)
            for inputs, purpose in ((scenes, "scene"), (patched, "patched"))
        )
        change = (patched_logits - logits).abs().amax(1)
        in_both = recognised(logits, batch.labels) & recognised(patched_logits, batch.labels)
        counts = in_both & (change <= self.tolerance) & g_scene.isfinite() & g_patched.isfinite()
        same = (g_patched - g_scene).abs() < self.threshold * g_scene
        pixels = classifier.preprocessing.denormalise(patched) - classifier.preprocessing.denormalise(scenes)
        return {
            "iir": same.to(g_scene).where(counts, torch.nan),
            "g_scene": g_scene,
            "g_patched": g_patched,
            "logit_change": change,
            "patch": (pixels.square().mean(1).sum((1, 2)) / objects.sum((1, 2))).sqrt(),
        }

    def _unnoticed(
        self, classifier: Classifier, scenes: torch.Tensor, images: torch.Tensor, objects: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scenes [B,C,H,W] with a patch where `objects` [B,1,H,W] is 1, and the logits of the scenes and of these."""
        black, white = (classifier.preprocessing.normalise(torch.full_like(scenes[:1], value)) for value in (0.0, 1.0))
        with torch.no_grad():
            logits = classifier.module(scenes)
        patch = images.clone().requires_grad_(True)
        adam = torch.optim.Adam([patch], lr=self.learning_rate)
        best, best_logits = images, torch.full_like(logits, torch.inf)
        for step in range(self.steps + 1):
            with torch.enable_grad():
                patched = torch.lerp(scenes, patch.clamp(black, white), objects)
                now = classifier.module(patched)
                if step < self.steps:
                    adam.zero_grad()
                    (now - logits).norm(dim=1).sum().backward()
                    adam.step()
            better = (now - logits).abs().amax(1) < (best_logits - logits).abs().amax(1)
            best = patched.detach().where(better.view(-1, 1, 1, 1), best)
            best_logits = now.detach().where(better[:, None], best_logits)
        return best, logits, best_logits
