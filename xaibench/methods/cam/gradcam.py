"""Class activation maps: the feature maps of one layer, weighted by gradients. Grad-CAM and its kind, CAM, guided."""

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from ... import rng
from ...errors import Refusal, one_of
from ...models.classifier import Classifier
from ...models.cut import Cut
from ...models.tokens import feature_maps
from ..base import Method
from ..context import Context
from ..rules.guided_backprop import GuidedBackprop


class GradCAM(Method):
    """sum_k a_k A_k over the feature maps A_k of a layer, a_k the mean over places of the gradient: [B,1,H,W].

    Selvaraju et al. 2017, eq. 1 and 2; enlarged bilinearly (align_corners false) to the input's size.

    layer: alias or module path of the layer whose output is taken. Of a transformer's tokens the patches are the
        places; it has to come before the last attention, behind which a network that reads its class token alone has
        no gradient at any of them.
    relu: keep only what speaks for the explained output, as in the paper; otherwise the map is signed.
    """

    sign_of_logit = False

    def __init__(self, layer: str = "last_conv", relu: bool = True) -> None:
        self.layer, self.relu = layer, relu

    def check(self, classifier: Classifier) -> None:
        first = torch.zeros(1, dtype=torch.int64, device=classifier.device)
        _, gradients = self._at_layer(classifier, classifier.blank, first)
        if gradients.any() and not feature_maps(gradients, classifier.input_size[1:]).any():
            raise Refusal(
                f"{classifier.name} reads no patch behind layer '{self.layer}', so that all their gradients there are "
                "0: name the normalisation before its last attention"
            )

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = []
        for part in classifier.chunks(len(inputs)):
            features, gradients = self._features(classifier, inputs[part], targets[part])
            cam = (self.weights(features, gradients) * features).sum(1, keepdim=True)
            cam = cam.relu() if self.relu else cam
            maps.append(functional.interpolate(cam, size=inputs.shape[2:], mode="bilinear", align_corners=False))
        return torch.cat(maps)

    def weights(self, features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """The weights [B,k,1,1], or one for each place [B,k,h,w], of feature maps [B,k,h,w] with these gradients of the
        explained output."""
        return gradients.mean((2, 3), keepdim=True)

    def _features(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's feature maps [B,k,h,w], of tokens their patches, and the explained output's gradient there."""
        features, gradients = self._at_layer(classifier, inputs, targets)
        return feature_maps(features, inputs.shape[2:]), feature_maps(gradients, inputs.shape[2:])

    def _at_layer(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the layer returns, and the gradient there of the explained output; refuses unfit layers."""
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
            raise Refusal(f"layer '{self.layer}' of {classifier.name} runs {len(outputs)} times, expected once")
        features = outputs[0]
        try:
            feature_maps(features, inputs.shape[2:])
        except ValueError as error:
            raise Refusal(
                f"layer '{self.layer}' returns {error}, expected feature maps [B,channels,h,w] or tokens [B,n,channels]"
            ) from error
        if not total.requires_grad:
            raise Refusal(f"the output of {classifier.name} does not depend on layer '{self.layer}'")
        return features.detach(), torch.autograd.grad(total, features)[0]


class GradCAMPlusPlus(GradCAM):
    """Grad-CAM with weights sum_ij alpha_ij relu(g_ij), g the gradient at the feature map A_k: [B,1,H,W].

    Chattopadhay et al. 2018: alpha_ij = Y''_ij / (2 Y''_ij + (sum_ab A_ab) Y'''_ij), their eq. 10, with derivatives of
    Y = exp(S), S the logit. In a network that is piecewise linear these are powers of g times exp(S), so that
    alpha = g^2 / (2 g^2 + (sum A) g^3), their eq. 19, and 0 where g is 0. The factor exp(S) that is left in Y' is one
    number for the whole map and is dropped: it would overflow. The map is in units of the logit, up to that factor.
    """

    def weights(self, features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        # One power of g^2 cancels, so that small gradients do not vanish in squares and cubes.
        denominator = 2 + features.sum((2, 3), keepdim=True) * gradients
        alpha = torch.where((gradients != 0) & (denominator != 0), 1 / denominator, 0)
        return (alpha * gradients.relu()).sum((2, 3), keepdim=True)


class XGradCAM(GradCAM):
    """Grad-CAM with weights sum_ij g_ij A_ij / sum_ij A_ij, g the gradient at the feature map A_k: [B,1,H,W].

    Fu et al. 2020 ("Axiom-based Grad-CAM"), eq. 8: of all maps with one weight per feature map, the one whose sum and
    whose loss where a feature is removed are nearest to the output's. A feature map that adds up to 0 has none.
    """

    def weights(self, features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        total = features.sum((2, 3), keepdim=True)
        share = (gradients * features).sum((2, 3), keepdim=True) / torch.where(total == 0, 1, total)
        return torch.where(total == 0, 0, share)


class HiResCAM(GradCAM):
    """sum_k g_k A_k, place by place, with the gradient g_k at the feature map A_k: [B,1,H,W].

    Draelos and Carin 2020, eq. 4: gradients are not averaged, so that the map says where the output got what it has.
    Where one linear layer is behind the feature maps, its sum before enlarging is the logit without its bias.
    """

    def weights(self, features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        return gradients


class LayerCAM(GradCAM):
    """sum_k relu(g_k) A_k, place by place, with the gradient g_k at the feature map A_k: [B,1,H,W].

    Jiang et al. 2021, eq. 5 and 6; of use at early layers too.
    """

    def weights(self, features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        return gradients.relu()


class CAM(GradCAM):
    """sum_k w_k A_k with the weights w of the linear layer that follows global average pooling: [B,1,H,W], signed.

    Zhou et al. 2016, eq. 2. In units of the logit: before enlarging, a map's mean over places is the logit without
    its bias. Refused where the part of the network behind the layer is anything else than the mean over places and a
    linear layer, which is tried out, not read off the architecture. (There Grad-CAM is CAM / places.)
    """

    def __init__(self, layer: str = "last_conv", relu: bool = False) -> None:
        super().__init__(layer, relu)

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        if classifier.explains_probability:
            raise Refusal("cam explains a logit, which is linear in the pooled features: set output=logit")
        if why := self._not_pooled(classifier):
            raise Refusal(
                f"cam needs global average pooling and one linear layer behind '{self.layer}', but {classifier.name} "
                f"{why}; gradcam serves any network"
            )

    def weights(self, features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        return gradients.sum((2, 3), keepdim=True)

    @torch.no_grad()
    def _not_pooled(self, classifier: Classifier) -> str:
        """What the network does else behind the layer; '' if nothing."""
        draw = rng.generator("cam")
        inputs = [torch.randn(1, *classifier.input_size, generator=draw) for _ in range(2)]
        inputs = [probe.to(classifier.device, classifier.dtype) for probe in inputs]
        cut = Cut(classifier, self.layer, inputs[0])
        features, other = (cut.before(probe) for probe in inputs)
        values = torch.randn(features.values.shape, generator=draw).to(features.values)
        places = (2, 3) if values.dim() == 4 else (1,)
        pooled = values.mean(places, keepdim=True).expand_as(values)

        def logits(values: torch.Tensor, features: Any = features) -> torch.Tensor:
            return cut.behind(values.clone(), features)

        nothing, once, twice = logits(0 * values), logits(values), logits(2 * values)
        scale = max(float((once - nothing).abs().max()), float(nothing.abs().max()))

        def differ(one: torch.Tensor, two: torch.Tensor) -> bool:
            return bool((one - two).abs().max() > 1e-4 * scale)

        if differ(nothing, logits(0 * values, other)):
            return "reads the input past that layer"
        if differ(once, logits(pooled)):
            return "does not take the mean over places"
        if differ(twice - once, once - nothing) or differ(logits(-values) - nothing, nothing - once):
            return "is not linear there"
        return ""


CAMS = {"gradcam": GradCAM, "gradcam_pp": GradCAMPlusPlus}


class GuidedGradCAM(Method):
    """Guided backpropagation times an enlarged class activation map, elementwise: [B,C,H,W], signed.

    Selvaraju et al. 2017, section 3.2, with `cam` gradcam; Chattopadhay et al. 2018, section 3.3, with gradcam_pp.

    layer: of the class activation map, which is rectified and enlarged bilinearly as in `GradCAM`.
    cam: which one, `gradcam` or `gradcam_pp`.
    Raises ValueError for another cam.
    """

    sign_of_logit = False

    def __init__(self, layer: str = "last_conv", cam: Literal["gradcam", "gradcam_pp"] = "gradcam") -> None:
        one_of("cam", cam, CAMS)
        self.cam, self.guided = CAMS[cam](layer), GuidedBackprop()

    def check(self, classifier: Classifier) -> None:
        self.cam.check(classifier)
        self.guided.check(classifier)

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (2, 2)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = self.cam.attribute(classifier, inputs, targets, context)
        return maps * self.guided.attribute(classifier, inputs, targets, context)
