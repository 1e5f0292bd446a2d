"""Scoring by retraining: networks trained from scratch on images that lose what a ranking says, each an artefact."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from .. import interrupt, rng
from ..build import build
from ..datasets.base import Samples
from ..datasets.images import MEMORY, Images
from ..errors import CacheError, Refusal, UserError, XaibenchError, about
from ..job import Selection
from ..methods.base import Method
from ..metrics.ranking import places
from ..metrics.retraining.roar import Masking, Roar
from ..models.accuracy import accuracy_on
from ..models.fitting import Fitting
from ..models.loading import build_module
from ..models.preprocessing import scaled
from ..models.recipe import Recipe
from ..models.stacked import train_stacked
from ..models.train import seconds_of_step, train
from ..perturb.fills import filled
from ..scores.score_files import OK, Record
from ..store.cache import Artefact
from ..store.keys import digest
from . import keys
from .checks import check
from .maps import Maps
from .record import after_training, collapse_of, planned, record, seconds_of, title
from .setting import Setting
from .stage import Arrays, Filled, Report, Stage, silent
from .training import TRAINING_WAIT, UNTRAINED

log = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Parameters up to which a GPU is given all networks of a repeat at once.
SMALL = 5_000_000


class Retrained:
    """The stages of a Job whose metric retrains networks: maps of several splits, trainings, a row of scores per
    repeat. Raises UserError for a model without a recipe."""

    def __init__(self, setting: Setting, metric: Roar, method: Method) -> None:
        job = setting.job
        self.setting, self.metric = setting, metric
        check(setting, method, metric)
        if not job.model_spec.get("recipe"):
            raise UserError(
                f"metric={job.metric} retrains, and model={job.model} has no recipe: set model.recipe "
                "(lenet, resnet8, resnet20 and smallcnn have one)"
            )
        recipe: Recipe | Fitting = build(job.model_spec["recipe"], "model.recipe")
        if recipe.reads_vectors:
            raise Refusal(
                f"metric={job.metric} retrains for the explained label, and model.recipe.loss={recipe.loss} reads "
                "vectors of labels: expected cross_entropy or squared_error"
            )
        if recipe.initial is not None or recipe.frozen is not None:
            raise Refusal(
                f"metric={job.metric} retrains from random weights: model.recipe.initial and frozen have to be null"
            )
        test = str(job.dataset_spec.get("split", TEST))
        if test == TRAIN:
            raise UserError(f"metric={job.metric} trains on the train split and tests on dataset.split: not train")
        limited = Selection(limit=metric.train_limit, seed=job.selection.seed)
        selections = {TRAIN: (TRAIN, limited), TEST: (test, job.selection)}
        if recipe.validates:
            selections[VALIDATION] = (VALIDATION, dataclasses.replace(limited, limit=metric.validation_limit))
        self.maps = {part: Maps(self._split(*chosen), method) for part, chosen in selections.items()}
        self.trainings = Trainings(setting, self.maps, metric, recipe, lambda: self.scores.timed())
        scored = {"metric": keys.metric(metric, job.metric_spec), "trainings": self.trainings.keys}
        names, repeats = (*setting.names, job.metric, job.method), list(range(metric.repeats))
        self.scores: Stage = setting.stage(
            "scores", names, scored, repeats, self._score, reads=[self.trainings], size=1
        )

    @property
    def title(self) -> str:
        """The Job for people."""
        return title(self.setting)

    @property
    def every_maps(self) -> list[Maps]:
        """Those of each split."""
        return [*self.maps.values()]

    @property
    def stages(self) -> list[Filled]:
        """From top to bottom; the scores last."""
        above = [stage for maps in self.maps.values() for stage in (*maps.stage.reads, maps.stage)]
        return list(dict.fromkeys([*above, self.trainings, self.scores]))

    def _split(self, split: str, selection: Selection) -> Setting:
        """The setting of a split, with the targets that the metric says."""
        job = self.setting.job
        spec, target = {**job.dataset_spec, "split": split}, self.metric.target or job.target
        changed = dataclasses.replace(job, dataset_spec=spec, selection=selection, target=target)
        return Setting(changed, self.setting.root, self.setting.kept)

    def _score(self, repeats: Sequence[int]) -> Arrays:
        rows = [self.metric.evaluate(self.trainings.accuracies(repeat)) for repeat in repeats]
        columns = {name: torch.stack([row[name] for row in rows]).numpy() for name in rows[0]}
        return {"status": np.full(len(repeats), OK), **columns}

    # ---- for people ----------------------------------------------------------------------------------------------

    def work(self) -> dict[str, int]:
        """How much there is to do of each kind, for progress."""
        count = len(self.trainings.missing)
        epochs = {"epochs": count * self.trainings.recipe.epochs} if self.trainings.stack == 1 else {}
        return {"maps": self._missing_maps, "trainings": count} | epochs

    @property
    def _missing_maps(self) -> int:
        return sum(len(maps.stage.artefact.missing(maps.stage.order)) for maps in self.maps.values())

    def plan(self) -> list[tuple[str, str, int, int, int]]:
        """The rows of a Plan; a step of training counts as three passes of an image."""
        cost = sum(self.maps[TEST].method.cost(self.setting.classifier))
        total, missing = len(self.trainings.keys), len(self.trainings.missing)
        key = UNTRAINED if after_training(self.trainings) else self.scores.artefact.key
        trainings = ("trainings", key, total - missing, missing, missing * self.trainings.passes)
        return [*(planned(maps.stage, cost) for maps in self.maps.values()), trainings]

    def forget(self) -> None:
        """Remove the maps, trainings and scores, for `runner.reuse=force`."""
        self.trainings.forget()
        for maps in self.maps.values():
            maps.stage.artefact.remove()
        self.scores.artefact.remove()

    def record(self) -> Record:
        """Everything but the numbers that the result files say: a row per repeat instead of per sample."""
        each = self.trainings.passes // 3 * len(self.trainings.keys)  # forward and backward passes of all trainings
        test = self.maps[TEST]
        own = [*(maps.stage for maps in self.maps.values()), self.scores]
        return record(
            test.setting,
            test,
            self.metric,
            self.scores,
            stages=own,
            metric_cost=(each, each),
            seconds=seconds_of(own),
            repeats=True,
            sample_key=digest({"samples": list(test.setting.samples), "repeats": self.metric.repeats}),
        )


class Trainings:
    """What a retraining metric asks for: the accuracy of a network trained on masked images, for each masking.

    A stage with a row per repeat. A training's key covers the network's definition, the recipe, the samples, what they
    lose (with the key of the maps that say so) and the kind of trainer. It keeps the accuracy on the equally masked
    test images; while it runs, the state after each epoch, from which it is resumed.

    maps: those of each split. metric: with its target, stack and maskings. timed: counts the time of a training.
    """

    kind, reads_all = "trainings", True

    def __init__(
        self,
        setting: Setting,
        maps: dict[str, Maps],
        metric: Roar,
        recipe: Recipe | Fitting,
        timed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.setting, self.maps, self.metric, self.recipe, self.timed = setting, maps, metric, recipe, timed
        self.job = setting.job
        self.reads = [part.stage for part in maps.values()]
        self.order = list(range(metric.repeats))
        self.stack = metric.stack or self._default_stack()

    # ---- what is there, and what is to be done ---------------------------------------------------------------------

    def artefact(self, masking: Masking | None, repeat: int) -> Artefact:
        """Where the accuracy of one training is kept."""
        network, settings = self.setting.classifier, {name: part.setting for name, part in self.maps.items()}
        spec: dict[str, Any] = {
            "definition": dict(network.definition),
            "preprocessing": asdict(network.preprocessing),
            "recipe": keys.recipe(self.recipe, self.job.model_spec["recipe"]),
            "data": {name: part.base["data"] for name, part in settings.items()},
            "samples": {name: list(part.samples) for name, part in settings.items()},
            "masking": masking and asdict(masking),
            "repeat": repeat,
            "trainer": "stacked" if self.stack > 1 else "one by one",
        }
        names = [self.job.model, self.job.dataset, "clean"]
        if masking is not None:
            spec["seed"] = self.job.seed
            names[2] = masking.by if masking.by == "random" else self.job.method
        if masking is not None and masking.by == "method":
            spec["maps"] = {name: part.key for name, part in self.maps.items()}
            spec["ranking"] = {"collapse": self._how, "sign": self.metric.sign}
        if masking is not None and self.metric.shared:
            spec["shared"] = True
        return Artefact(self.setting.root, "trainings", names, spec)

    @property
    def passes(self) -> int:
        """Of one training: a step takes a forward and a backward pass, which costs two, of every image."""
        return 3 * self.recipe.epochs * len(self.maps[TRAIN].setting.samples)

    @property
    def keys(self) -> list[str]:
        """The keys of all trainings: what the metric's numbers depend on."""
        return [self.artefact(*training).key for training in self._all]

    @property
    def missing(self) -> list[tuple[Masking | None, int]]:
        """The trainings that the cache lacks: (masking, repeat)."""
        return [training for training in self._all if self._read(*training) is None]

    def misses(self, repeats: Sequence[int]) -> bool:
        """Whether a training of these repeats is absent."""
        return any(repeat in repeats for _, repeat in self.missing)

    def accuracies(self, repeat: int) -> dict[Masking | None, float]:
        """The accuracy of every masking's network of one repeat."""
        found = {masking: self._read(masking, repeat) for masking in self.metric.maskings()}
        for masking, accuracy in found.items():
            if accuracy is None:
                raise CacheError(
                    f"{self.artefact(masking, repeat).folder}: what is written there is gone or unreadable when it is "
                    "read back\nsomething removes it (`cache prune`?), or the disk is broken"
                )
        return {masking: accuracy for masking, accuracy in found.items() if accuracy is not None}

    def forecast(self) -> str:
        """How long the missing trainings will take, from a few steps of one; '' if there are none."""
        count, recipe = len(self.missing), self.recipe
        if not count:
            return ""
        images = self._images[TRAIN]
        if isinstance(recipe, Fitting):
            return f"{count} fits to {len(images)} rows"
        module = build_module(self.job.model_spec, seed=0).to(self.setting.device)
        per_epoch = seconds_of_step(module, recipe, images) * len(images) / recipe.batch_size
        took = about(count * recipe.epochs * per_epoch)
        return f"{count} trainings of {len(images)} images x {recipe.epochs} epochs, about {took}"

    def forget(self) -> None:
        """Remove the trainings."""
        for training in self._all:
            self.artefact(*training).remove()

    # ---- doing it --------------------------------------------------------------------------------------------------

    def fill(self, repeats: Sequence[int], wait: bool = True, report: Report = silent) -> bool:
        """Train what is missing of these repeats, each network by whoever claims it first."""
        for repeat in repeats:
            absent = [masking for masking in self.metric.maskings() if self._read(masking, repeat) is None]
            for start in range(0, len(absent), self.stack):
                self._train(absent[start : start + self.stack], repeat, report)
        return True

    def sources(self) -> set[str]:
        """The digests of our code that the trainings were made by."""
        return set().union(*(self.artefact(*training).sources() for training in self._all))

    def finish(self) -> None:
        """Nothing is left to write."""

    def _read(self, masking: Masking | None, repeat: int) -> float | None:
        arrays = self.artefact(masking, repeat).load_whole("accuracy")
        return None if arrays is None else float(arrays["accuracy"][0])

    def _train(self, maskings: Sequence[Masking | None], repeat: int, report: Report) -> None:
        """Train the networks of some maskings, side by side if there are several, and keep their accuracies."""
        artefacts = [self.artefact(masking, repeat) for masking in maskings]
        if self.setting.only_cache:
            raise UserError(f"runner.reuse=only-cache: {artefacts[0].folder} is missing; use runner.reuse=missing")
        for artefact in artefacts:
            artefact.create(self.setting.made_by())
        with artefacts[0].claim("training", most=TRAINING_WAIT):
            if artefacts[0].load_whole("accuracy") is not None:
                return  # by another process, meanwhile
            seed = rng.seed_of(self.recipe.seed, "repeat", repeat)
            modules = [build_module(self.job.model_spec, seed=seed).to(self.setting.device) for _ in maskings]
            images, held_out, tests = (
                [self.masked(part, masking, repeat) for masking in maskings] if part in self.maps else []
                for part in (TRAIN, VALIDATION, TEST)
            )
            state = artefacts[0].folder / "state.safetensors"
            with self.timed():
                if isinstance(self.recipe, Fitting):
                    for module, part in zip(modules, images):
                        all_rows = part.batch(torch.arange(len(part)), next(module.parameters()))
                        self.recipe.fit(module, *all_rows, seed=seed)
                elif self.stack > 1:
                    train_stacked(modules, self.recipe, images, [seed] * len(modules), held_out)
                else:
                    validation = held_out[0] if held_out else None
                    train(
                        modules[0], self.recipe, images[0], seed=seed, validation=validation, checkpoint=state,
                        progress=lambda *_: report("epochs", 1),
                    )  # fmt: skip
            for test, artefact, module in zip(tests, artefacts, modules):
                right = accuracy_on(module, test, self.setting.classifier.batch_size)
                artefact.save_whole("accuracy", {"accuracy": np.array([right])})
                report(self.kind, 1)
            state.unlink(missing_ok=True)
        for artefact in artefacts:
            artefact.tidy()
        interrupt.answer()

    def masked(self, part: str, masking: Masking | None, repeat: int) -> Images:
        """The images of a split as a network is trained on them, or tested. Their maps have to be there."""
        if masking is None:
            return self._images[part]
        places_of = self._shared(masking.by, repeat) if self.metric.shared else self._places(part, masking.by)
        return Masked(self._images[part], places_of, masking, MEMORY // self.stack)

    @functools.cached_property
    def _images(self) -> dict[str, Images]:
        """The decoded pixels of each split, shared by all trainings."""
        settings = {name: part.setting for name, part in self.maps.items()}
        return {
            name: Images(Samples(part.dataset, part.preprocessing, part.samples, part.device))
            for name, part in settings.items()
        }

    @functools.cache  # noqa: B019 (it lives as long as the run)
    def _places(self, name: str, by: str) -> "Callable[[torch.Tensor], torch.Tensor]":
        """The pixels' places in each image's ranking: positions [B] -> [B,H,W], the first to go first.

        They are kept in memory up to 2 GiB, else made anew for every batch from the cached maps.
        """
        part = self.maps[name]
        samples = part.setting.samples
        height, width = self.setting.classifier.input_size[1:]

        def rank(ids: Sequence[int]) -> torch.Tensor:
            # At random, all are ties.
            maps = torch.zeros(len(ids), height, width) if by == "random" else self._read_maps(part, ids)
            order = places(maps.cpu(), rng.sample_generators(self.job.seed, f"{by} {name}", ids))
            return order.to(torch.int16 if height * width < 2**15 else torch.int32)

        if len(samples) * height * width * 2 > MEMORY:
            return lambda positions: rank([samples[int(position)] for position in positions])
        kept = torch.cat([rank(block) for block in part.stage.blocks()])
        return lambda positions: kept[positions]

    def _shared(self, by: str, repeat: int) -> "Callable[[torch.Tensor], torch.Tensor]":
        """One ranking of places for all inputs of all splits, by the mean of the training maps: [B] -> [B,H,W]. The
        random one is another in each repeat."""
        total = torch.zeros(1, *self.setting.classifier.input_size[1:], dtype=torch.float64)
        if by != "random":
            for block in self.maps[TRAIN].stage.blocks():
                total += self._read_maps(self.maps[TRAIN], block).double().sum(0).cpu()
        order = places(total, [rng.generator(self.job.seed, f"{by} shared", repeat)])
        return lambda positions: order.expand(len(positions), -1, -1)

    def _read_maps(self, part: Maps, ids: Sequence[int]) -> torch.Tensor:
        """The collapsed maps [B,H,W] of these samples. Raises XaibenchError where one is not finite."""
        maps, status = part.collapsed(ids, self._how, self.metric.sign)
        finite = part.setting.logits_of(ids).isfinite().all(1).cpu().numpy()
        if not finite.all():
            raise XaibenchError(
                f"model={self.job.model}: its logits of {(~finite).sum()} of {len(ids)} samples are not finite"
            )
        if (status != OK).any():
            raise XaibenchError(f"method={self.job.method}: {(status != OK).sum()} of {len(ids)} maps are not finite")
        return maps

    @property
    def _all(self) -> list[tuple[Masking | None, int]]:
        return [(masking, repeat) for repeat in self.order for masking in self.metric.maskings()]

    @property
    def _how(self) -> str:
        return collapse_of(self.metric, self.maps[TEST])

    def _default_stack(self) -> int:
        network = self.setting.classifier.module
        if (
            isinstance(self.recipe, Fitting)
            or self.setting.device.type != "cuda"
            or sum(p.numel() for p in network.parameters()) > SMALL
        ):
            return 1
        return len(self.metric.maskings())


class Masked(Images):
    """Images without the pixels that a masking takes: before any augmentation, as the network would meet them.

    places: positions [B] -> [B,H,W], each pixel's place in its image's ranking.
    memory: bytes up to which all images are masked once and kept; larger ones are masked anew for every batch.
    """

    def __init__(
        self,
        images: Images,
        places: Callable[[torch.Tensor], torch.Tensor],
        masking: Masking,
        memory: int = MEMORY,
    ) -> None:
        self.images, self.samples, self.places, self.masking = images, images.samples, places, masking
        self.identity = f"{images.identity} {masking}"
        bytes_of_all = len(images) * images.shape.numel() * torch.float32.itemsize
        self._kept = self._mask_all() if bytes_of_all <= memory else None

    def load(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [B,C,H,W] in [0, 1] and labels [B]."""
        if self._kept is None:
            return self._mask(positions)
        return self._kept[0][positions], self._kept[1][positions]

    def _mask_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = [self._mask(positions) for positions in torch.arange(len(self.images)).split(64)]
        pixels, labels = (torch.cat(part) for part in zip(*blocks))
        return pixels, labels

    def _mask(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = self.images.load(positions)
        pixels, order = scaled(pixels), self.places(positions)
        features = order.shape[1] * order.shape[2]
        count = round(self.masking.fraction * features)
        lost = order >= features - count if self.masking.keep else order < count
        preprocessing = self.samples.preprocessing
        fills = preprocessing.denormalise(filled(preprocessing.normalise(pixels), self.masking.fill, preprocessing))
        return torch.where(lost[:, None], fills, pixels), labels
