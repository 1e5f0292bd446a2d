"""Which methods' maps are alike: rank correlations of cached maps of the same samples, which are no score."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..metrics.ranking import collapse
from ..scores.cells import Cell, Summary
from ..scores.summary import read_again
from ..store.cache import Artefact
from .gallery import cached, reads_words

BLOCK = 64


@dataclass(frozen=True)
class MapAgreement:
    """How alike the maps of the methods of one model and data set are.

    correlations [m,m]: mean over samples of Spearman's correlation over the places of two maps, collapsed as their
    metrics read them; NaN where it is defined for no sample. samples [m,m]: over how many, of which both have maps: one
    of one value correlates with nothing. missing: what is not compared, in words.

    That two methods agree does not make either right, and that they part makes neither wrong (Neely et al. 2021).
    """

    model: str
    dataset: str
    methods: tuple[str, ...]
    correlations: np.ndarray
    samples: np.ndarray
    missing: tuple[str, ...]


def map_agreement(cells: Iterable[Summary], cache: Path) -> list[MapAgreement]:
    """One per model and data set of which the cache has the maps of two methods; nothing is computed anew."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in map(read_again, cells):
        groups.setdefault((cell.card["model"], cell.card["dataset"]), []).append(cell)
    return [_of_group(*names, group, cache) for names, group in sorted(groups.items())]


def _of_group(model: str, dataset: str, cells: Sequence[Cell], cache: Path) -> MapAgreement:
    found, missing = cached(cells, cache)
    if found and reads_words(found[0][0]):
        found, missing = [], (*missing, "Sentences differ in length: their maps are not compared.")
    found = sorted(found, key=lambda one: (one[0].card["method"], one[0].card["method_variant"]))
    names = [" ".join(filter(None, (c.card["method"], c.card["method_variant"]))) for c, *_ in found]
    sums = np.zeros((len(found), len(found)))
    samples = np.zeros_like(sums, dtype=int)
    every = sorted(set().union(*(maps.samples() for *_, maps in found)))
    for start in range(0, len(every), BLOCK):
        block = every[start : start + BLOCK]
        ranks = np.stack(_filled([_ranks(maps, how, block) for _, how, maps in found], block), axis=1)  # [b,m,p]
        values = ranks @ ranks.transpose(0, 2, 1)
        sums += np.nansum(values, axis=0)
        samples += np.isfinite(values).sum(0)
    with np.errstate(invalid="ignore"):
        return MapAgreement(model, dataset, tuple(names), sums / samples, samples, missing)


def _ranks(maps: Artefact, how: str, samples: Sequence[int]) -> dict[int, np.ndarray]:
    """By sample, of those that have a map, the ranks of its places [p], ties sharing theirs, centred and of norm 1; NaN
    for a map of one value or one that is not finite."""
    from scipy import stats  # takes a second to import

    has = set(maps.samples())
    read = maps.read([sample for sample in samples if sample in has])
    if not read.samples:
        return {}
    values = collapse(torch.from_numpy(read.arrays["maps"]), how).flatten(1).numpy()
    ranks = stats.rankdata(values, axis=1) - (values.shape[1] + 1) / 2
    norms = np.linalg.norm(ranks, axis=1, keepdims=True)
    usable = (norms > 0) & np.isfinite(values).all(1, keepdims=True)
    normed = np.divide(ranks, norms, out=np.full_like(ranks, np.nan), where=usable)
    return dict(zip(read.samples, normed))


def _filled(found: Sequence[dict[int, np.ndarray]], samples: Sequence[int]) -> list[np.ndarray]:
    """[b,p] of each, in the order of the samples: NaN where there is none."""
    places = next(len(row) for one in found for row in one.values())
    absent = np.full(places, np.nan)
    return [np.stack([one.get(sample, absent) for sample in samples]) for one in found]


def rows(found: Iterable[MapAgreement]) -> pd.DataFrame:
    """A row per pair of methods: model, dataset, method, other, correlation, n."""
    return pd.DataFrame(
        [
            (one.model, one.dataset, one.methods[a], one.methods[b], one.correlations[a, b], one.samples[a, b])
            for one in found
            for a, b in itertools.combinations(range(len(one.methods)), 2)
        ],
        columns=["model", "dataset", "method", "other", "correlation", "n"],
    )
