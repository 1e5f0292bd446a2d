"""Grad-CAM: feature maps of one layer, weighted by their mean gradients."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..errors import Refusal
from ..models.classifier import Classifier
from .base import Method


class GradCAM(Method):
    """sum_k a_k A_k over the feature maps A_k of a layer, a_k the mean over places of the gradient: [B,1,H,W].

    Selvaraju et al. 2017, eq. 1 and 2; enlarged bilinearly (align_corners false) to the input's size.

    layer: alias or module path of the layer whose output is taken.
    relu: keep only what speaks for the explained output, as in the paper; otherwise the map is signed.
    """

    def __init__(self, layer: str = "last_conv", relu: bool = True) -> None:
        self.layer, self.relu = layer, relu

    def check(self, classifier: Classifier) -> None:
        probe = torch.zeros(1, *classifier.input_size, dtype=classifier.dtype, device=classifier.device)
        self._features(classifier, probe, torch.zeros(1, dtype=torch.int64, device=classifier.device))

    def attribute(
        self,
        classifier: Classifier,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        generators: list[torch.Generator],
        **context: Any,
    ) -> torch.Tensor:
        maps = []
        for part in classifier.chunks(len(inputs)):
            features, gradients = self._features(classifier, inputs[part], targets[part])
            cam = (gradients.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)
            cam = cam.relu() if self.relu else cam
            maps.append(functional.interpolate(cam, size=inputs.shape[2:], mode="bilinear", align_corners=False))
        return torch.cat(maps)

    def _features(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's output [B,k,h,w] and the gradient there of the explained output; refuses unfit layers."""
        outputs = []

        def cut(module: nn.Module, arguments: Any, output: Any) -> torch.Tensor | None:
            outputs.append(output)
            if not isinstance(output, torch.Tensor):
                return None
            # The graph starts here: nothing below the layer is differentiated. The network goes on with a clone,
            # because a ReLU in place would otherwise overwrite the features.
            outputs[-1] = output.detach().requires_grad_(True)
            return outputs[-1].clone()

        handle = classifier.layer(self.layer).register_forward_hook(cut)
        try:
            with torch.enable_grad():
                total = classifier.select(classifier.module(inputs), targets).sum()
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise Refusal(
                f"gradcam: layer '{self.layer}' of {classifier.name} runs {len(outputs)} times, expected once"
            )
        features = outputs[0]
        if not isinstance(features, torch.Tensor) or features.dim() != 4:
            shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise Refusal(f"gradcam: layer '{self.layer}' returns {shape}, expected feature maps [B,channels,h,w]")
        if not total.requires_grad:
            raise Refusal(f"gradcam: the output of {classifier.name} does not depend on layer '{self.layer}'")
        return features.detach(), torch.autograd.grad(total, features)[0]
