"""What the paths of a job's method answer to, beside what the whole network and its active neurons answer to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from skimage.metrics import structural_similarity

from .. import rng
from ..build import build
from ..errors import Refusal
from ..job import Job
from ..methods.pathways._pathway_neurons import Neurons, observe
from ..methods.pathways.decode import Decoding, decoded, top_units
from ..methods.pathways.pathway import Pathway
from ..metrics.pathways.path_output import path_logits
from ..models.classifier import Classifier
from .checks import check_method, check_setting
from .kept import Kept
from .setting import Setting

# Whose network is decoded, in the order of the columns: all neurons, the active ones, those of the method's path.
NETWORKS = ("network", "active, rest 0", "path, rest 0", "path, rest constant")
# What the whole network's strongest channel of the path in the last convolutional layer answers to.
TOP = "top unit of the path"


@dataclass(frozen=True)
class Decoded:
    """An image and what was decoded from its path in one network: pixels [C,H,W] in 0 to 1.

    response: the explained output of that network for what was decoded, or the mean of the top unit's channel; before:
    for the image. correlation, similarity: of the pixels of both, Pearson's and SSIM.
    """

    sample: int
    network: str
    pixels: torch.Tensor
    response: float
    before: float
    correlation: float
    similarity: float


def decode(job: Job, how: Decoding) -> tuple[dict[int, torch.Tensor], list[Decoded]]:
    """The pixels of the job's samples, and what was decoded, network by network. Nothing is cached but the logits.

    Raises Refusal if the method chooses no path or cannot serve the network.
    """
    setting, method = Setting(job, job.cache, Kept()), build(job.method_spec, "method")
    check_setting(setting)
    if not isinstance(method, Pathway):
        raise Refusal(f"decode needs a method that chooses a path, such as neuron_mct; method={job.method} does not")
    check_method(setting, method)
    for stage in setting.reads:
        stage.fill(setting.samples)
    pictures: dict[int, torch.Tensor] = {}
    found: list[Decoded] = []
    for part in setting.classifier.chunks(len(setting.samples)):
        samples = list(setting.samples)[part]
        batch = setting.load(samples)
        images = setting.preprocessing.denormalise(batch.inputs)
        pictures |= dict(zip(samples, images.cpu()))
        for _, alike in batch.alike():
            classifier = setting.classifier.asked(alike.questions)
            found += _of_batch(classifier, method, alike.samples, alike.inputs, alike.targets, job.seed, how)
    return pictures, found


def _of_batch(
    classifier: Classifier,
    method: Pathway,
    samples: Sequence[int],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    seed: int,
    how: Decoding,
) -> list[Decoded]:
    """What is decoded for at most `batch_size` inputs [B,C,H,W]."""
    constants = observe(classifier, inputs)[1]
    nothing = [torch.zeros_like(layer) for layer in constants]
    path = method.path(classifier, inputs, targets, rng.sample_generators(seed, "method", samples))
    every = [torch.ones_like(layer, dtype=torch.bool) for layer in constants]
    active = [layer > 0 for layer in constants]
    networks = dict(zip(NETWORKS, ((every, nothing), (active, nothing), (path, nothing), (path, constants))))
    units = top_units(classifier, inputs, targets, path)
    if units is not None:
        networks[TOP] = (every, nothing)
    images, found = classifier.preprocessing.denormalise(inputs), []
    for name, (on, others) in networks.items():
        aim = units if name == TOP else None
        pixels = decoded(classifier, targets, on, others, rng.sample_generators(seed, "decode", samples), how, aim)
        after, before = (
            _responses(classifier, x, targets, on, others)
            if aim is None
            else aim.answers(observe(classifier, x)[1][aim.call])
            for x in (classifier.preprocessing.normalise(pixels), inputs)
        )
        found += [
            Decoded(sample, name, own.cpu(), float(a), float(b), *_alike(own, image))
            for sample, own, image, a, b in zip(samples, pixels, images, after, before)
        ]
    return found


def _responses(
    classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, path: Neurons, others: Neurons
) -> torch.Tensor:
    return classifier.select(path_logits(classifier, inputs, path, others), targets)


def _alike(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """Pearson's correlation and SSIM of pixels [C,H,W]."""
    first, second = (pixels.double().cpu() for pixels in (one, other))
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    window = min(7, *first.shape[1:])
    window -= 1 - window % 2
    similarity = structural_similarity(
        first.numpy(), second.numpy(), channel_axis=0, data_range=1.0, win_size=max(window, 3)
    )
    return float(correlation), float(similarity)
