"""Max-sensitivity equals Captum's on the same maps and perturbed inputs."""

import pytest
import torch

from tests.methods.nets import classifier as make_classifier
from tests.metrics.helpers import evaluated
from xaibench.datasets.base import Batch
from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient
from xaibench.metrics.properties.max_sensitivity import MaxSensitivity
from xaibench.models.smallcnn import SmallCNN

metrics = pytest.importorskip("captum.metrics")

DRAWS = 5


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require")
def test_equals_captum():
    module = SmallCNN()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    classifier = make_classifier(module, (3, 64, 64), torch.float64, batch_size=50)
    inputs, targets = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 3, 5, 3])
    batch = Batch(tuple(range(4)), inputs, targets, targets, None, ())
    gradient, shown = Gradient(), []

    def explain(images, labels, purpose="", masks=None):
        if purpose:
            shown.append(images)
        return gradient.attribute(classifier, images, labels, Context())

    metric = MaxSensitivity(draws=DRAWS)
    ours = evaluated(metric, classifier, batch, explain(inputs, targets), explain=explain)["max_sensitivity"]

    from captum.attr import Saliency

    saliency = Saliency(module)
    theirs = metrics.sensitivity_max(
        lambda images, target: saliency.attribute(images, target, abs=False),
        inputs,
        # Captum repeats each image DRAWS times in a row and hands them over together.
        perturb_func=lambda images: torch.stack(shown, dim=1).view_as(images),
        n_perturb_samples=DRAWS,
        target=targets,
    )
    assert ours.min() > 1e-3
    torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-9, atol=0)
