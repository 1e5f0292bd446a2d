"""Networks retrained from scratch on images that lose what a ranking says, each an artefact of the cache."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from .. import rng
from ..build import build
from ..datasets.base import Samples
from ..errors import UserError, XaibenchError
from ..job import Job, Selection
from ..metrics.ranking import places
from ..metrics.retraining.roar import Masking, Roar
from ..models.loading import build_module
from ..models.preprocessing import scaled
from ..models.recipe import MEMORY, Images, Recipe, accuracy_on, loss_of, train
from ..models.stacked import train_stacked
from ..perturb.fills import filled
from ..scores.score_files import OK
from ..store.cache import Artefact
from .explanations import Explanations

log = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Parameters up to which a GPU is given all networks of a repeat at once.
SMALL = 5_000_000


class Retraining:
    """What a retraining metric asks for: the accuracy of a network trained on masked images, for each masking.

    metric: with its target, train_limit, stack and maskings. A training's key covers the network's definition, the
    recipe, the samples, what they lose (with the key of the maps that say so) and the kind of trainer. It keeps the
    accuracy on the equally masked test images; while it runs, the state after each epoch, from which it is resumed.
    Raises UserError for a model without a recipe.
    """

    def __init__(self, cell: Explanations, metric: Roar) -> None:
        self.cell, self.metric, self.job = cell, metric, cell.job
        if not self.job.model_spec.get("recipe"):
            raise UserError(
                f"metric={self.job.metric} retrains, and model={self.job.model} has no recipe: set model.recipe "
                "(lenet, resnet8, resnet20 and smallcnn have one)"
            )
        self.recipe: Recipe = build(self.job.model_spec["recipe"], "model.recipe")
        test = str(self.job.dataset_spec.get("split", TEST))
        if test == TRAIN:
            raise UserError(f"metric={self.job.metric} trains on the train split and tests on dataset.split: not train")
        limited = Selection(limit=metric.train_limit, seed=self.job.selection.seed)
        self.explained = {
            TRAIN: self._explained(TRAIN, limited),
            TEST: self._explained(test, self.job.selection),
        }
        if self.recipe.select == "best":
            held_out = dataclasses.replace(limited, limit=metric.validation_limit)
            self.explained[VALIDATION] = self._explained(VALIDATION, held_out)
        self.stack = metric.stack or self._default_stack()

    # ---- what is there, and what is to be done ---------------------------------------------------------------------

    def artefact(self, masking: Masking | None, repeat: int) -> Artefact:
        """Where the accuracy of one training is kept."""
        spec: dict[str, Any] = {
            "definition": dict(self.cell.classifier.definition),
            "preprocessing": asdict(self.cell.classifier.preprocessing),
            "recipe": asdict(self.recipe),
            "data": {name: part.base["data"] for name, part in self.explained.items()},
            "samples": {name: list(part.samples) for name, part in self.explained.items()},
            "masking": masking and asdict(masking),
            "repeat": repeat,
            "trainer": "stacked" if self.stack > 1 else "one by one",
        }
        names = [self.job.model, self.job.dataset, "clean"]
        if masking is not None:
            spec["seed"] = self.job.seed
            names[2] = masking.by if masking.by == "random" else self.job.method
        if masking is not None and masking.by == "method":
            spec["maps"] = {split: part.maps.artefact.key for split, part in self.explained.items()}
            spec["ranking"] = {"collapse": self._how, "sign": self.metric.sign}
        return Artefact(self.cell.root, "trainings", names, spec)

    @property
    def passes(self) -> int:
        """Of one training: a step takes a forward and a backward pass, which costs two, of every image."""
        return 3 * self.recipe.epochs * len(self.explained[TRAIN].samples)

    @property
    def keys(self) -> list[str]:
        """The keys of all trainings: what the metric's numbers depend on."""
        return [self.artefact(*training).key for training in self._all]

    @property
    def missing(self) -> list[tuple[Masking | None, int]]:
        """The trainings that the cache lacks: (masking, repeat)."""
        return [training for training in self._all if self.artefact(*training).load_whole("accuracy") is None]

    def work(self) -> dict[str, int]:
        """How much there is to do of each kind, for progress."""
        maps = sum(len(part.maps.artefact.missing(part.samples)) for part in self.explained.values())
        return {"maps": maps, "trainings": len(self.missing)}

    def announce(self) -> None:
        """Say how long the missing trainings will take, from a few steps of one."""
        count, recipe = len(self.missing), self.recipe
        if not count:
            return
        images = self._images[TRAIN]
        module = build_module(self.job.model_spec, seed=0).to(self.cell.device).train().requires_grad_(True)
        steps, started = 3, 0.0
        with torch.enable_grad():
            for step in range(steps + 1):
                if step == 1:  # the first one warms up
                    started = time.perf_counter()
                positions = torch.arange(min(recipe.batch_size, len(images)))
                inputs, labels = images.batch(positions, next(module.parameters()))
                loss_of(module(inputs), labels).backward()
        per_epoch = (time.perf_counter() - started) / steps * len(images) / recipe.batch_size
        minutes = count * recipe.epochs * per_epoch / 60
        said = "%s: %d trainings of %d images x %d epochs, about %.1f min, after %d maps"
        log.info(said, self.job.metric, count, len(images), recipe.epochs, minutes, self.work()["maps"])

    def forget(self) -> None:
        """Remove the maps and the trainings."""
        for training in self._all:
            self.artefact(*training).remove()
        for part in self.explained.values():
            part.maps.artefact.remove()

    # ---- doing it --------------------------------------------------------------------------------------------------

    def accuracies(self, repeat: int) -> dict[Masking | None, float]:
        """The accuracy of every masking's network of one repeat: read, or trained now."""
        maskings = self.metric.maskings()
        absent = [masking for masking in maskings if self.artefact(masking, repeat).load_whole("accuracy") is None]
        for start in range(0, len(absent), self.stack):
            self._train(absent[start : start + self.stack], repeat)
        found = {masking: self.artefact(masking, repeat).load_whole("accuracy") for masking in maskings}
        return {masking: float(arrays["accuracy"][0]) for masking, arrays in found.items()}

    def _train(self, maskings: Sequence[Masking | None], repeat: int) -> None:
        """Train the networks of some maskings, side by side if there are several, and keep their accuracies."""
        if self.job.runner.reuse == "only-cache":
            folder = self.artefact(maskings[0], repeat).folder
            raise UserError(f"runner.reuse=only-cache: {folder} is missing; use runner.reuse=missing")
        artefacts = [self.artefact(masking, repeat) for masking in maskings]
        for artefact in artefacts:
            artefact.create(self.cell.made_by())
        with artefacts[0].claim("training"):
            if artefacts[0].load_whole("accuracy") is not None:
                return  # by another process, meanwhile
            seed = rng.seed_of(self.recipe.seed, "repeat", repeat)
            modules = [build_module(self.job.model_spec, seed=seed).to(self.cell.device) for _ in maskings]
            images = [self._masked(TRAIN, masking) for masking in maskings]
            held_out = [self._masked(VALIDATION, masking) for masking in maskings if VALIDATION in self.explained]
            state = artefacts[0].folder / "state.safetensors"
            tests = [
                self._masked(TEST, masking) for masking in maskings
            ]  # their maps are not part of the training's time
            with self.cell.timed("scores"):
                if self.stack > 1:
                    train_stacked(modules, self.recipe, images, [seed] * len(modules), held_out)
                else:
                    held_out = held_out[0] if held_out else None
                    train(modules[0], self.recipe, images[0], seed=seed, validation=held_out, checkpoint=state)
            for test, artefact, module in zip(tests, artefacts, modules):
                right = accuracy_on(module, test, self.cell.classifier.batch_size)
                artefact.save_whole("accuracy", {"accuracy": np.array([right])})
                self.cell.report("trainings", 1)
            state.unlink(missing_ok=True)
        for artefact in artefacts:
            artefact.tidy()

    def _masked(self, split: str, masking: Masking | None) -> Images:
        if masking is None:
            return self._images[split]
        return Masked(self._images[split], self._places(split, masking.by), masking)

    @functools.cached_property
    def _images(self) -> dict[str, Images]:
        """The decoded pixels of both splits, shared by all trainings."""
        return {
            split: Images(Samples(part.dataset, part.loader.preprocessing, part.samples, self.cell.device))
            for split, part in self.explained.items()
        }

    @functools.cache  # noqa: B019 (it lives as long as the cell)
    def _places(self, split: str, by: str) -> "Callable[[torch.Tensor], torch.Tensor]":
        """The pixels' places in each image's ranking: positions [B] -> [B,H,W], the first to go first.

        They are kept in memory up to 2 GiB, else made anew for every batch from the cached maps.
        """
        part = self.explained[split]
        height, width = self.cell.classifier.input_size[1:]

        def rank(ids: Sequence[int]) -> torch.Tensor:
            if by == "random":
                maps = torch.zeros(len(ids), height, width)  # all ties
            else:
                maps, status = part.collapsed(ids, self._how, self.metric.sign)
                if (status != OK).any():
                    raise XaibenchError(
                        f"method={self.job.method}: {(status != OK).sum()} of {len(ids)} maps are not finite"
                    )
            order = places(maps.cpu(), rng.sample_generators(self.job.seed, f"{by} {split}", ids))
            return order.to(torch.int16 if height * width < 2**15 else torch.int32)

        if by == "method":
            part.maps.fill_all()  # leaving to other processes what they are at
        if len(part.samples) * height * width * 2 > MEMORY:
            return lambda positions: rank([part.samples[int(position)] for position in positions])
        kept = torch.cat([rank(block) for block in part.maps.blocks()])
        return lambda positions: kept[positions]

    # ---- setting up ------------------------------------------------------------------------------------------------

    @property
    def _all(self) -> list[tuple[Masking | None, int]]:
        return [(masking, repeat) for repeat in range(self.metric.repeats) for masking in self.metric.maskings()]

    @property
    def _how(self) -> str:
        return self.metric.collapse or self.cell.method.collapse

    def _explained(self, split: str, selection: Selection) -> Explanations:
        spec = {**self.job.dataset_spec, "split": split}
        job: Job = dataclasses.replace(
            self.job, dataset_spec=spec, selection=selection, target=self.metric.target or self.job.target
        )
        return Explanations(job, self.cell.root)

    def _default_stack(self) -> int:
        if self.cell.device.type != "cuda" or sum(p.numel() for p in self.cell.classifier.module.parameters()) > SMALL:
            return 1
        return len(self.metric.maskings())


class Masked(Images):
    """Images without the pixels that a masking takes: before any augmentation, as the network would meet them.

    places: positions [B] -> [B,H,W], each pixel's place in its image's ranking.
    """

    def __init__(self, images: Images, places: Callable[[torch.Tensor], torch.Tensor], masking: Masking) -> None:
        self.images, self.samples, self.places, self.masking = images, images.samples, places, masking
        self.identity = f"{images.identity} {masking}"

    def load(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [B,C,H,W] in [0, 1] and labels [B]."""
        pixels, labels = self.images.load(positions)
        pixels, order = scaled(pixels), self.places(positions)
        features = order.shape[1] * order.shape[2]
        count = round(self.masking.fraction * features)
        lost = order >= features - count if self.masking.keep else order < count
        preprocessing = self.samples.preprocessing
        fills = preprocessing.denormalise(filled(preprocessing.normalise(pixels), self.masking.fill, preprocessing))
        return torch.where(lost[:, None], fills, pixels), labels
