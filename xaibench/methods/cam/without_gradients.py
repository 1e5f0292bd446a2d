"""Class activation maps whose weights no gradient says: Score-CAM, Ablation-CAM, Eigen-CAM."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch.nn import functional

from ...models.classifier import Classifier
from ...models.cut import Cut, activations, grid_shape
from ...models.tokens import feature_maps
from ..base import Method
from ..context import Context


class FeatureMaps(Method):
    """What the three have in common: the feature maps of a layer, combined, rectified, and enlarged bilinearly.

    layer: alias or module path of the layer whose output is taken; of a transformer's tokens the patches are the
        places. relu: keep only what speaks for the output.
    """

    sign_of_logit = False

    def __init__(self, layer: str = "last_conv", relu: bool = True) -> None:
        self.layer, self.relu = layer, relu

    def check(self, classifier: Classifier) -> None:
        grid_shape(classifier, self.layer)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        with torch.no_grad():
            cams = [self.combined(classifier, inputs[part], targets[part]) for part in classifier.chunks(len(inputs))]
            cam = torch.cat(cams)
            cam = cam.relu() if self.relu else cam
            return functional.interpolate(cam, size=inputs.shape[2:], mode="bilinear", align_corners=False)

    def features(self, classifier: Classifier, inputs: torch.Tensor) -> torch.Tensor:
        """The feature maps [B,k,h,w] of inputs [B,C,H,W]."""
        return feature_maps(activations(classifier, [self.layer], inputs)[self.layer], inputs.shape[2:])

    @abstractmethod
    def combined(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The feature maps of inputs [B,C,H,W] as one [B,1,h,w], before it is rectified and enlarged."""


class ScoreCAM(FeatureMaps):
    """sum_k a_k A_k, a the softmax over k of the explained output where only what A_k shows is left: [B,1,H,W].

    Wang et al. 2020, eq. 6 to 8: the input is multiplied by the feature map, enlarged and scaled to [0, 1]. As the
    network gets it, so that what is taken away goes to the mean colour. Their black baseline drops out of the softmax.
    The softmax takes outputs as they are: with logits far apart, few feature maps have all the weight.
    """

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass for the feature maps, and one for each of them."""
        return 1 + grid_shape(classifier, self.layer)[0], 0

    def combined(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        features = self.features(classifier, inputs)
        scores = [
            classifier.scores(inputs[image] * _shown(features[image, channel], inputs.shape[2:]), targets[image])
            for image, channel in _pairs(features, classifier)
        ]
        weights = torch.cat(scores).view(features.shape[:2]).softmax(1)
        return (weights[..., None, None] * features).sum(1, keepdim=True)


class AblationCAM(FeatureMaps):
    """sum_k (y - y_k) A_k, y the explained output and y_k the one without the feature map A_k: [B,1,H,W].

    Desai and Ramaswamy 2020, eq. 3. They divide by y, which is one number for the whole map and would turn its sign
    where y is negative: left out, so that the map is in units of the output.
    """

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass, and of the part behind the layer one more for each feature map, counted as whole passes."""
        return 1 + grid_shape(classifier, self.layer)[0], 0

    def combined(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        cut = Cut(classifier, self.layer, inputs[:1])
        features = cut.before(inputs)
        whole = classifier.select(cut.behind(features.values.clone(), features), targets)
        maps, without = feature_maps(features.values, inputs.shape[2:]), []
        for image, channel in _pairs(maps, classifier):
            values = features.values[image]
            # Of tokens [n,places,channels], where the class token is without it too, or of maps [n,channels,...].
            (values.transpose(1, 2) if values.dim() == 3 else values)[torch.arange(len(image)), channel] = 0
            without.append(classifier.select(cut.behind(values, features[image]), targets[image]))
        weights = whole[:, None] - torch.cat(without).view(maps.shape[:2])
        return (weights[..., None, None] * maps).sum(1, keepdim=True)


class EigenCAM(FeatureMaps):
    """The feature maps projected on the direction in which they vary most over places: [B,1,H,W]; of no class.

    Muhammad and Yeasin 2020, section III, centred as pytorch-grad-cam does. A direction has no sign: here the place
    that is farthest from the mean is positive (Chung and Ying 2025, eq. 13).
    """

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return 1, 0

    def combined(self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        features = self.features(classifier, inputs)
        places = features.flatten(2).transpose(1, 2)
        centred = places - places.mean(1, keepdim=True)
        directions = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0]
        projected = (centred @ directions[..., None])[..., 0]
        turned = projected.amax(1) < -projected.amin(1)
        projected = torch.where(turned[:, None], -projected, projected)
        return projected.view(len(features), 1, *features.shape[2:])


def _pairs(features: torch.Tensor, classifier: Classifier) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images, channels) of feature maps [B,k,h,w], every pair once, as many at a time as the network is given."""
    channels = features.shape[1]
    pairs = torch.arange(len(features) * channels, device=features.device)
    for part in classifier.chunks(len(pairs)):
        yield pairs[part] // channels, pairs[part] % channels


def _shown(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Feature maps [n,h,w] enlarged and each scaled to [0, 1]: [n,1,H,W]; 0 for one of a single value."""
    large = functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)
    large = large - large.amin((2, 3), keepdim=True)
    most = large.amax((2, 3), keepdim=True)
    return large / torch.where(most == 0, 1, most)
