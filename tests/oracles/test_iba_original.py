"""IBA against two other implementations: one written here from the paper, and the authors' own where it is installed.

The authors' library (BioroboticsLab/IBA, commit 7b2fbd5 was used) is in no package index.
Measured against it with the same statistics, noise and steps: masks equal within 2e-14 (relative) in float64 and
within 2e-5 in float32 on the network below. On a mobilenet_v2 with random weights it is 2e-14 and 4e-2: ten Adam steps
of size 1 amplify rounding there.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.nets import SIZE, VGGLike, classifier, seeded
from xaibench.methods.bottleneck._bottleneck import bits_per_pixel
from xaibench.methods.bottleneck.iba import IBA
from xaibench.models.classifier import Classifier
from xaibench.rng import sample_generators

LAYER = "features.3"
BETA = 0.3  # little, since the network is small and untrained, and something must be left to compare


class Images:
    """What `fit` iterates over: batches with `inputs`."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.parts = inputs.split(16)

    def __iter__(self):
        return iter(type("Batch", (), {"inputs": part}) for part in self.parts)


def trained(dtype: torch.dtype) -> Classifier:
    """A network with an opinion, so that cross entropy and information pull against each other."""
    torch.manual_seed(0)
    network = classifier(VGGLike(), dtype=dtype)
    network.module.head[-1].weight.mul_(300)
    network.module.head[-1].bias.sub_(network.logits(seeded(40, dtype=dtype)).mean(0))
    return network


def solution(method: IBA, network: Classifier, image: torch.Tensor, target: torch.Tensor, fitted: dict):
    return next(iter(method.solve(network, image, target, sample_generators(0, "iba", [0]), fitted)))


def by_the_book(network: nn.Module, layer: nn.Module, data: torch.Tensor, image: torch.Tensor, target: int, steps: int):
    """Schulz et al. 2020, section 3.2, one image, whole passes, every formula written out: lambda, nats [C,H,W]."""
    seen = []
    handle = layer.register_forward_hook(lambda module, arguments, output: seen.append(output.clone()))
    for x in data:
        network(x[None])
    network(image)
    handle.remove()
    *others, r = (features[0] for features in seen)
    others = torch.stack(others)
    mean, std = others.mean(0), others.std(0).clamp(min=0.01)
    active = (others != 0).double().mean(0) > 0.01

    x = torch.arange(-2.0, 3.0, dtype=r.dtype)
    kernel = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / 2)
    kernel = (kernel / kernel.sum()).repeat(len(r), 1, 1, 1)

    def mask(alpha):
        return F.conv2d(F.pad(torch.sigmoid(alpha)[None], (2, 2, 2, 2), mode="reflect"), kernel, groups=len(r))[0]

    def nats(lam):
        p = torch.distributions.Normal(lam * r + (1 - lam) * mean, (1 - lam) * std)
        return torch.distributions.kl_divergence(p, torch.distributions.Normal(mean, std)) * active

    generator = sample_generators(0, "iba", [0])[0]
    alpha = torch.full_like(r, 5.0)
    first, second = torch.zeros_like(r), torch.zeros_like(r)
    for step in range(1, steps + 1):
        alpha.requires_grad_(True)
        lam = mask(alpha)
        loss = BETA * nats(lam).sum() / r.numel()
        for _ in range(10):
            noise = mean + std * torch.randn(r.shape, generator=generator, dtype=torch.float32).to(r)
            z = (lam * r + (1 - lam) * noise) * active
            handle = layer.register_forward_hook(lambda module, arguments, output, z=z: z[None])
            loss = loss - network(image).log_softmax(-1)[0, target] / 10
            handle.remove()
        gradient = torch.autograd.grad(loss, alpha)[0]
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        update = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        alpha = alpha.detach() - update
    return mask(alpha), nats(mask(alpha))


def test_iba_by_the_book():
    network, data, image = trained(torch.float64), seeded(40), seeded(1)
    target = network.logits(image).argmax(1)
    method = IBA(layer=LAYER, beta=BETA)
    found = solution(method, network, image, target, method.fit(network, Images(data), torch.Generator()))
    lam, nats = by_the_book(network.module, network.layer(LAYER), data, image, int(target), steps=10)
    assert lam.min() < 0.1 and lam.max() > 0.3  # the prediction keeps some of it
    torch.testing.assert_close(1 - found.noise[0], lam, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.information[0], nats, rtol=1e-6, atol=1e-12)


def original_run(
    network: Classifier, data: torch.Tensor, image: torch.Tensor, target: torch.Tensor, steps: int, monkeypatch
):
    """The authors' IBA after `steps`, drawing our noise: the object, its map, and its final lambda."""
    theirs = pytest.importorskip("IBA.pytorch", reason="the authors' library BioroboticsLab/IBA is not installed")
    iba = theirs.IBA(network.layer(LAYER))
    iba.estimate(network.module, [(part,) for part in data.split(16)])
    # It computes its Gaussian in float32; for float64 it gets one that is as exact as ours.
    taps = torch.exp(-(torch.arange(-2, 3, dtype=torch.float64) ** 2) / 2)
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2).to(image)
    iba.smooth.to(image)
    iba.smooth.conv.weight.data.copy_(kernel.expand_as(iba.smooth.conv.weight))
    iba.alpha.data = iba.alpha.data.to(image)
    generator = sample_generators(0, "iba", [0])[0]

    def our_noise(tensor):
        for row in tensor:
            row.copy_(torch.randn(row.shape, generator=generator, dtype=torch.float32))
        return tensor

    def loss(batch):
        return F.cross_entropy(network.module(batch), target.expand(len(batch)))

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", our_noise)
        heat = iba.analyze(image, loss, beta=BETA, optimization_steps=steps)
    iba.detach()
    return iba, torch.as_tensor(heat), iba.smooth(iba.alpha.sigmoid()[None])[0].detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)], ids=str)
@pytest.mark.filterwarnings("ignore:Selected estimator was only fitted")
def test_iba_against_the_authors_library(dtype, tolerance, monkeypatch):
    network, data, image = trained(dtype), seeded(40, dtype=dtype), seeded(1, dtype=dtype)
    target = network.logits(image).argmax(1)
    method = IBA(layer=LAYER, beta=BETA)
    fitted = method.fit(network, Images(data), torch.Generator())
    iba, heat, lam = original_run(network, data, image, target, 10, monkeypatch)
    torch.testing.assert_close(fitted[f"{LAYER}.mean"], iba.estimator.mean().to(dtype), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fitted[f"{LAYER}.std"], iba.estimator.std().to(dtype), rtol=1e-4, atol=1e-5)
    found = solution(method, network, image, target, fitted)
    torch.testing.assert_close(1 - found.noise[0], lam, rtol=tolerance, atol=0)
    # What it returns is the information before its last step: ours after one step less.
    before = solution(IBA(layer=LAYER, beta=BETA, steps=9), network, image, target, fitted)
    torch.testing.assert_close(iba.capacity().detach(), before.information[0], rtol=10 * tolerance, atol=10 * tolerance)
    assert (iba.capacity() - found.information[0]).abs().max() > 0.01 * iba.capacity().max()
    # Its resize treats the outermost pixels differently.
    resized = bits_per_pixel(before.information, SIZE[1:])[0, 0]
    inner = (slice(1, -1), slice(1, -1))
    scale = before.information.sum() / math.log(2) / resized.sum()
    torch.testing.assert_close(heat[inner].to(dtype), (scale * resized)[inner], rtol=10 * tolerance, atol=tolerance)
