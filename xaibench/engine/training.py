"""Training by recipe: the checkpoint that `model.weights=recipe` asks for, an artefact of the cache like any other."""

import functools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import rng
from ..build import build
from ..datasets.base import Dataset, HasQuestions, HasWords, Samples
from ..datasets.images import Images
from ..errors import UserError
from ..job import Job
from ..models import checkpoint
from ..models.accuracy import accuracy
from ..models.fitting import Fitting
from ..models.loading import build_module, check_input, load_classifier, start_from
from ..models.preprocessing import Preprocessing
from ..models.questions import OfPainted
from ..models.randomise import PERMUTED_LABELS
from ..models.recipe import Recipe
from ..models.sentences import LearnsWords, OfIds, Sentences
from ..models.train import Progress, train
from ..store import provenance
from ..store.cache import Artefact
from . import keys

log = logging.getLogger(__name__)
SPLIT = "train"
# Seconds to wait for another process's training of the same network: hours, since doing it twice costs as much.
TRAINING_WAIT = 6 * 3600.0


def split_samples(
    dataset_spec: Mapping[str, Any],
    split: str,
    limit: int | None,
    seed: int,
    preprocessing: Preprocessing,
    device: torch.device,
) -> Samples:
    """The first `limit` (None: all) of a seeded permutation of a split of a data set."""
    dataset = build({**dataset_spec, "split": split}, "dataset")
    return Samples(dataset, preprocessing, rng.permutation(len(dataset), seed)[:limit], device)


# What stands for the digest of weights that are to be trained first.
UNTRAINED = "after training"


class Untrained(Exception):
    """A plan came to weights that nobody has trained yet. row: their training, as a row of the plan."""

    def __init__(self, row: tuple[str, str, int, int, int]) -> None:
        self.row = row
        super().__init__(UNTRAINED)


def trained_weights(job: Job, root: Path, device: torch.device) -> Path:
    """The checkpoint that the model's recipe makes on the job's data set: from the cache, or trained now.

    Resumed after an interruption; claimed, so that two processes do not train the same network. Raises UserError for
    a model without a recipe, and Untrained where `runner.plan=true` would have to train.
    The weights of the epochs that the recipe keeps lie beside it, epoch-000.safetensors and so on.
    With the weights state `permuted_labels:SEED` it is trained on the training samples' labels in another order.
    """
    if not job.model_spec.get("recipe"):
        raise UserError(f"model={job.model} has no recipe to train it by; set model.weights to a file or to random")
    recipe: Recipe | Fitting = build(job.model_spec["recipe"], "model.recipe")
    untrained = load_classifier(job.model, {**job.model_spec, "weights": "random"}, device=device)
    samples = split_samples(job.dataset_spec, SPLIT, None, 0, untrained.preprocessing, device)
    spec: dict[str, Any] = {
        "definition": dict(untrained.definition),
        "preprocessing": asdict(untrained.preprocessing),
        "recipe": keys.recipe(recipe, job.model_spec["recipe"]),
        "data": keys.data(samples.dataset, {**job.dataset_spec, "split": SPLIT}),
    }
    permuted = job.weights_state.startswith(PERMUTED_LABELS)
    held_out = None
    if recipe.validates and not permuted:
        held_out = split_samples(job.dataset_spec, "validation", None, 0, untrained.preprocessing, device)
        spec["validation"] = keys.data(held_out.dataset, {**job.dataset_spec, "split": "validation"})
    if permuted:
        spec["labels"] = job.weights_state
    # Whichever split is explained, the training is the same: the label of its folder leaves out what was overridden.
    artefact = Artefact(root, "weights", (job.model, job.dataset.partition(",")[0]), spec)
    path = artefact.folder / "weights.safetensors"
    if path.exists():
        return path
    if job.runner.plan:
        raise Untrained(("weights", artefact.key, 0, 1, 3 * recipe.epochs * len(samples)))
    if job.runner.reuse == "only-cache":
        raise UserError(f"runner.reuse=only-cache: {path} is missing; use runner.reuse=missing")
    check_input(untrained, samples.load(samples.ids[:1]).inputs[0], len(samples.dataset.class_names))
    artefact.create(provenance.made_by(device))
    with artefact.claim("training", most=TRAINING_WAIT):
        if path.exists():
            return path
        labels = " with permuted labels" if permuted else ""
        log.info("training %s on %d samples of %s%s", job.model, len(samples), job.dataset, labels)
        module = build_module(job.model_spec, seed=recipe.seed)
        if recipe.initial is not None:
            start_from(module, recipe.initial, job.model_spec, recipe.frozen)
        module.to(device)
        trained, preprocessing = module, samples.preprocessing
        if isinstance(module, LearnsWords):
            module.learn(_words(samples.dataset, job))
            trained, preprocessing = OfIds(module), Sentences.of(module)
        elif isinstance(samples.dataset, HasQuestions):
            trained = OfPainted(module)

        def images_of(part: Samples) -> Images:
            return Images(Samples(part.dataset, preprocessing, part.ids, device), recipe.reads_vectors)

        images = images_of(samples)
        images = PermutedLabels(images, job.weights_state) if permuted else images
        # Of permuted labels nothing holds for other images: what counts is how well they are learnt by heart.
        validation = images if held_out is None else images_of(held_out)
        state = artefact.folder / "state.safetensors"
        if isinstance(recipe, Fitting):
            recipe.fit(module, *images.batch(torch.arange(len(images)), next(module.parameters())))
        else:
            report, keep = epochs(f"training {job.model}"), functools.partial(_keep, path)
            train(trained, recipe, images, validation=validation, checkpoint=state, progress=report, keep=keep)
        checkpoint.write(path, module.state_dict())
        state.unlink(missing_ok=True)
    return path


def _words(dataset: Dataset, job: Job) -> Iterable[Sequence[str]]:
    """The words of each sentence of a data set. Raises UserError if it has none."""
    if not isinstance(dataset, HasWords):
        raise UserError(
            f"dataset={job.dataset} has no sentences, which {job.model} reads: try planted_words or reviews"
        )
    return dataset.words()


def _keep(path: Path, epoch: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Write the weights of an epoch beside those of the end."""
    checkpoint.write(path.with_name(f"epoch-{epoch:03d}.safetensors"), weights)


def epochs(title: str) -> Progress:
    """Progress of a training, as a message after each epoch."""
    started = time.monotonic()

    def report(epoch: int, total: int, found: Mapping[str, float]) -> None:
        left = (time.monotonic() - started) / max(epoch, 1) * (total - epoch)
        values = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items())
        log.info("%s: epoch %d of %d, %s, about %.0f s left", title, epoch, total, values, left)

    return report


class PermutedLabels(Images):
    """Images with each other's labels, as many of each as before; which ones, the state says (its seed is in it)."""

    def __init__(self, images: Images, state: str) -> None:
        self.images, self.samples = images, images.samples
        self.identity = f"{images.identity} {state}"
        self.order = torch.randperm(len(images), generator=rng.generator(state))

    def load(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [B,C,H,W] of these positions, and labels [B] of others."""
        return self.images.load(positions)[0], self.images.load(self.order[positions])[1]


def train_and_test(job: Job, device: torch.device) -> tuple[Path, str, float]:
    """`xaibench train`: the checkpoint, and by name and value how right it answers the data set's split, or `test`
    where that is the one it was trained on: its accuracy, see `losses.right`, or R squared where labels are real."""
    path = trained_weights(job, job.cache, device)
    classifier = load_classifier(job.model, {**job.model_spec, "weights": str(path)}, device=device)
    split = job.dataset_spec.get("split", SPLIT)
    split = "test" if split == SPLIT else split
    samples = split_samples(job.dataset_spec, split, None, 0, classifier.preprocessing, device)
    recipe: Recipe | Fitting = build(job.model_spec["recipe"], "model.recipe")
    real = not recipe.reads_vectors and samples.load(samples.ids[:1]).labels.is_floating_point()
    return path, f"{split} {'R squared' if real else 'accuracy'}", accuracy(classifier, samples, recipe.loss)
