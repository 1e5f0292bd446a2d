"""A method's maps in a setting: fitted if need be, made block by block, read collapsed."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from .. import rng
from ..datasets.base import Batch
from ..errors import XaibenchError
from ..methods.base import Method, Propagating
from ..methods.context import Context
from ..methods.pathways._pathway_neurons import Neurons
from ..methods.pathways.pathway import Pathway
from ..methods.pathways.selectors import selector
from ..metrics.ranking import collapse
from ..models.classifier import Classifier
from ..scores.score_files import NONFINITE_MAP, OK
from . import keys
from .setting import Setting
from .stage import Arrays, Fit, Stage


class Maps:
    """The maps of the samples of a setting by a method, that of its Job.

    kept_collapsed: keep nothing but maps, collapsed in this way, [B,1,H,W]: what the network answers is not asked for
    them.
    """

    def __init__(self, setting: Setting, method: Method, kept_collapsed: str | None = None) -> None:
        job = setting.job
        self.setting, self.method, self.kept_collapsed = setting, method, kept_collapsed
        self.fit: Fit | None = setting.fit_of(self.method, job.method, job.method_spec)
        spec = setting.explained | {
            "method": keys.method(self.method, job.method_spec),
            "fit": self.fit and self.fit.artefact.key,
        }
        if kept_collapsed is not None:
            spec["collapsed"] = kept_collapsed
        answers = () if kept_collapsed is not None else (setting.logits,)
        self.stage: Stage = setting.stage(
            "maps",
            (*setting.names, job.method),
            spec,
            setting.samples,
            self._compute,
            reads=(*setting.reads, *answers, self.fit),
            passes=self.method.cost,
        )

    @property
    def key(self) -> str:
        """The key of the maps."""
        return self.stage.artefact.key

    def of(self, batch: Batch, purpose: str = "method", network: Classifier | None = None) -> torch.Tensor:
        """The method's maps [B,C or 1,H,W] of a batch that is alike, see `attribute`."""
        return self.attribute(
            batch.inputs,
            batch.targets,
            batch.samples,
            purpose=purpose,
            masks=batch.masks,
            labels=batch.labels,
            questions=batch.questions,
            network=network,
        )

    def attribute(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        samples: Sequence[int],
        *,
        purpose: str = "method",
        masks: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        questions: torch.Tensor | None = None,
        network: Classifier | None = None,
    ) -> torch.Tensor:
        """The method's maps [B,C or 1,H,W] of any inputs [B,C,H,W]; each draws from its sample's generator.

        purpose: other words give other draws. masks [B,H,W]: what the targets are about in these inputs. labels [B]:
        of the samples. questions [B,Q]: what is asked of these inputs, the same of each. network: to be explained in
        the place of the setting's; Refusal if the method cannot.
        """
        setting = self.setting
        classifier = (setting.classifier if network is None else network).sized(inputs).asked(questions)
        if network is not None:
            self.method.check(classifier)
        context = Context(
            generators=rng.sample_generators(setting.job.seed, purpose, samples),
            fitted=setting.fitted(self.fit, questions),
            samples=samples,
            labels=labels,
            masks=masks,
            data=setting.split.samples,
        )
        maps = self.method.attribute(classifier, inputs, targets, context).detach()
        _check_shape(setting.job.method, maps, inputs)
        # Maps from elsewhere keep their precision: it may be what ranks their pixels.
        return maps if self.method.own_samples_only else maps.float()

    def propagate(
        self,
        inputs: torch.Tensor,
        signals: Sequence[torch.Tensor],
        start: str,
        keep: Sequence[str],
        questions: torch.Tensor | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """For each of the signals [B,...] at the output of the layer `start`, what arrives at the layers `keep` by the
        method's rules for inputs [B,C,H,W]. questions: as for `attribute`."""
        context = Context(fitted=self.setting.fitted(self.fit, questions))
        rules = cast(Propagating, self.method)
        return rules.propagate(self.setting.classifier.asked(questions), inputs, signals, start, keep, context)

    def path(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        samples: Sequence[int],
        *,
        purpose: str = "method",
        beside: str | None = None,
        questions: torch.Tensor | None = None,
    ) -> Neurons:
        """The neurons that the method chooses for inputs, drawn as for its maps, see `Pathway.path`.

        beside: instead the choice of the selector of this name at the method's sparsity, with draws of its own.
        questions: as for `attribute`.
        """
        chooser = cast(Pathway, self.method)
        if beside is not None:
            chooser, purpose = selector(beside, getattr(self.method, "sparsity", None)), f"{purpose} beside"
        generators = rng.sample_generators(self.setting.job.seed, purpose, samples)
        return chooser.path(self.setting.classifier.asked(questions), inputs, targets, generators)

    def collapsed(self, samples: Sequence[int], how: str, sign: str) -> tuple[torch.Tensor, np.ndarray]:
        """The maps of these samples as [B,H,W], and whether each is finite: its status [B]."""
        rows = self.stage.rows(samples)
        return collapse(torch.from_numpy(rows["maps"]).to(self.setting.device), how, sign), rows["status"]

    def _compute(self, samples: Sequence[int]) -> Arrays:
        batch = self.setting.load(samples)
        with self.stage.timed():
            found = [(rows, self.of(part)) for rows, part in batch.alike()]
            maps = found[0][1] if batch.is_alike else padded(found, batch)
        if self.kept_collapsed is not None:
            maps = collapse(maps, self.kept_collapsed)[:, None]
        columns = {
            "maps": maps,
            "target": batch.targets,
            "status": torch.where(maps.isfinite().all(dim=3).all(dim=2).all(dim=1), OK, NONFINITE_MAP),
        }
        if self.kept_collapsed is None:
            logits, targets = self.setting.logits_of(samples), batch.targets[:, None]
            columns["logit"] = logits.gather(1, targets)[:, 0].float()
            columns["probability"] = self.setting.classifier.probabilities(logits).gather(1, targets)[:, 0].float()
        return {name: tensor.cpu().numpy() for name, tensor in columns.items()}


def padded(found: Sequence[tuple[torch.Tensor, torch.Tensor]], batch: Batch) -> torch.Tensor:
    """Maps [b,C,h,w] of the parts of a batch (`Batch.alike`), with the rows they are of, as one: 0 in the padding."""
    maps = torch.zeros(len(batch.samples), found[0][1].shape[1], *batch.inputs.shape[2:]).to(found[0][1])
    for rows, part in found:
        maps[rows, :, : part.shape[2], : part.shape[3]] = part
    return maps


def constant(maps: torch.Tensor, valid: torch.Tensor | None = None) -> np.ndarray:
    """Which of maps [B,H,W] or [B,C,H,W] have one value only, 0 or another, and rank no pixel before another: int64
    [B].

    valid [B,H,W]: the places that are looked at.
    """
    if valid is not None:
        places = valid if maps.dim() == 3 else valid[:, None]
        maps = maps.where(places, maps[..., :1, :1])
    flat = maps.flatten(1)
    return (flat.amax(1) == flat.amin(1)).cpu().numpy().astype(np.int64)


def _check_shape(name: str, maps: torch.Tensor, inputs: torch.Tensor) -> None:
    channels = (1, inputs.shape[1])
    if maps.ndim != 4 or maps.shape[1] not in channels or maps[:, :1].shape != inputs[:, :1].shape:
        raise XaibenchError(
            f"method={name} returned maps of shape {list(maps.shape)} for inputs of shape {list(inputs.shape)}: "
            "expected [B,C,H,W] or [B,1,H,W]"
        )
