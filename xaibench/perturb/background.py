"""The fill `background`: what is removed shows what samples of the fit split have there, and answers are averaged."""

from typing import Final

import torch

from ..datasets.base import Samples
from ..errors import Refusal
from ..models.classifier import Classifier

BACKGROUND: Final = "background"
# Samples that it stands for.
REFERENCES = 20


def check_background(classifier: Classifier, parameter: str) -> None:
    """Raise Refusal for a network of sentences. parameter: what was set to `background`."""
    if classifier.places == "words":
        raise Refusal(f"{parameter}={BACKGROUND}: other sentences have words at other places")


def draw_references(samples: Samples, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` of the samples, drawn without replacement: their inputs [count,C,H,W], on the CPU."""
    if len(samples.ids) < count:
        raise Refusal(
            f"references={count}: there are {len(samples.ids)} samples to draw baselines from (fit.split, fit.limit)"
        )
    chosen = torch.randperm(len(samples.ids), generator=generator)[:count]
    return samples.load([samples.ids[place] for place in chosen.tolist()]).inputs.cpu()
