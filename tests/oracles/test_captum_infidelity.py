"""Infidelity is Captum's when both see the same perturbations."""

import pytest
import torch
from torch import nn

from tests.metrics.helpers import responded
from xaibench.datasets.base import Batch
from xaibench.methods.context import Context
from xaibench.metrics.removal.infidelity import Infidelity
from xaibench.models.classifier import Classifier

captum = pytest.importorskip("captum.metrics")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("perturbation", ["square", "gaussian"])
def test_equals_captum(perturbation, normalize):
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    classifier = Classifier("net", module, (3, 8, 8), batch_size=1000)
    inputs, targets = torch.randn(4, 3, 8, 8), torch.randint(5, (4,))
    maps = classifier.gradient(inputs, targets)
    if perturbation == "square":
        maps = maps * inputs
    batch = Batch(tuple(range(4)), inputs, targets, targets, None, ())
    metric = Infidelity(perturbation, draws=30, normalize=normalize)
    shown: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, images: shown.append(images[0].clone()))
    responses = responded(metric, classifier, batch)
    hook.remove()
    changed = shown[0]
    ours = metric.evaluate(classifier, batch, maps, Context(responses=responses))["infidelity"]

    # Contributions go with multiply_by_inputs (a share of the input is removed), slopes without.
    @captum.infidelity_perturb_func_decorator(multiply_by_inputs=perturbation == "square")
    def perturb(copies):
        assert torch.equal(copies, inputs.repeat_interleave(30, 0))
        return changed

    theirs = captum.infidelity(module, perturb, inputs, maps, target=targets, n_perturb_samples=30, normalize=normalize)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=2e-7)
