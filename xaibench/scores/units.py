"""Numbers about the units of a layer and the concepts that they detect, from pixels counted per image.

A statistic of these kinds names three tables of a cell: `column` [n,C,K], the pixels that each of K units marks inside
of each of C concepts; `per` [n,K], those that it marks at all; and `units.area` [n,C], those of the concept. Over the
images that show a concept,

    IoU of a unit and a concept = sum of pixels inside / sum of (marked + concept - inside)

a ratio of sums, not a mean of the ratios of images (Bau et al. 2017, section 2.2). A unit is a detector of the concept
with which its IoU is largest, if that is above `units.level`.

detectors    how many units are detectors; of a concept, how many are its
variety      how many concepts have a detector
best_iou     the largest IoU of any unit with the concept; of all concepts, the mean of these
ceiling      what the IoU with the concept cannot exceed, whatever the units mark: the pixels that the unit with most of
             them marks in all images, by those of the concept; 1 where it marks more
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import statistics
from .statistics import Estimate

KINDS = ("detectors", "variety", "best_iou", "ceiling")
# The largest of many is too large in a sample, and by as much again in draws from it: what the draws are above the
# value is taken off (the basic bootstrap), which counts do not need (docs/statistics.md has the coverage of both).
LARGEST = ("best_iou", "ceiling")
# Draws at a time, so that their IoUs are few megabytes.
PART = 100
Statistic = Mapping[str, Any]
Tables = Mapping[str, np.ndarray]


def tables_of(statistic: Statistic) -> tuple[str, str, str]:
    """The names of the three tables that a statistic reads."""
    return statistic["column"], statistic["per"], statistic["units"]["area"]


def estimates(tables: Tables, wanted: Sequence[Statistic]) -> dict[str, Estimate]:
    """Statistics with intervals of the bootstrap over images, by name: of counts the percentiles of the draws, of the
    LARGEST their reflection about the value, in [0, 1].

    Those of the same tables see the same draws, and share the work. Without tables nothing is defined.
    """
    if not tables:
        return {statistic["name"]: Estimate(np.nan, np.nan, np.nan, 0) for statistic in wanted}
    groups: dict[tuple[str, str, str], list[Statistic]] = {}
    for statistic in wanted:
        groups.setdefault(tables_of(statistic), []).append(statistic)
    found: dict[str, Estimate] = {}
    for names, group in groups.items():
        inside, marked, area = (tables[name] for name in names)
        found |= _estimates(inside, marked, area, group)
    return found


def _estimates(
    inside: np.ndarray, marked: np.ndarray, area: np.ndarray, wanted: Sequence[Statistic]
) -> dict[str, Estimate]:
    n, names = len(inside), [statistic["name"] for statistic in wanted]
    value = values(np.ones((1, n)), inside, marked, area, wanted)[0]
    if n == 1:
        return {name: Estimate(float(one), np.nan, np.nan, n) for name, one in zip(names, value)}
    parts = [
        values(counts[start : start + PART].astype(np.float64), inside, marked, area, wanted)
        for counts in statistics.draws(n)
        for start in range(0, len(counts), PART)
    ]
    low, high = np.nanquantile(np.concatenate(parts), statistics.ENDS, axis=0)
    found = {}
    for statistic, one, a, b in zip(wanted, value.tolist(), low.tolist(), high.tolist()):
        how = "percentile"
        if statistic["kind"] in LARGEST:
            how, (a, b) = "basic", (min(max(2 * one - end, 0.0), 1.0) for end in (b, a))
        found[statistic["name"]] = Estimate(one, a, b, n, how)
    return found


def values(
    times: np.ndarray, inside: np.ndarray, marked: np.ndarray, area: np.ndarray, wanted: Sequence[Statistic]
) -> np.ndarray:
    """The statistics in draws that have each image so many times [R,n] -> [R,S]."""
    iou = ious(times, inside, marked, area)
    covered = times @ area
    with np.errstate(divide="ignore", invalid="ignore"):
        ceiling = np.minimum((times @ marked).max(axis=1)[:, None] / covered, 1.0)
    ceiling[covered == 0] = np.nan
    return np.stack([_value(statistic, iou, ceiling) for statistic in wanted], axis=1)


def _value(statistic: Statistic, iou: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    """One statistic [R] of IoUs [R,C,K] and ceilings [R,C]."""
    kind, concept, level = statistic["kind"], statistic["units"]["concept"], statistic["units"]["level"]
    if kind == "ceiling":
        return ceiling[:, concept]
    if kind == "best_iou":
        best = iou.max(axis=2)
        return _mean(best) if concept is None else best[:, concept]
    detectors = _detectors(iou, level)
    if kind == "variety":
        return (detectors > 0).sum(axis=1)
    return detectors.sum(axis=1) if concept is None else detectors[:, concept]


def ious(times: np.ndarray, inside: np.ndarray, marked: np.ndarray, area: np.ndarray) -> np.ndarray:
    """IoU of each concept and unit [R,C,K] in draws that have each image so many times [R,n]; NaN for a concept that
    no image of a draw shows."""
    found = np.full((len(times), *inside.shape[1:]), np.nan)
    for concept in range(inside.shape[1]):
        shown = area[:, concept] > 0
        drawn, within = times[:, shown], inside[shown, concept]
        with np.errstate(divide="ignore", invalid="ignore"):
            found[:, concept] = (drawn @ within) / (drawn @ (marked[shown] + area[shown, concept, None] - within))
    return found


def labels(iou: np.ndarray, level: float) -> np.ndarray:
    """The concept that each unit detects, int [...,K] of IoUs [...,C,K]; -1 for none."""
    known = np.nan_to_num(iou, nan=-1.0)
    return np.where(known.max(axis=-2) > level, known.argmax(axis=-2), -1)


def _detectors(iou: np.ndarray, level: float) -> np.ndarray:
    """How many detectors each concept has [R,C] of IoUs [R,C,K]."""
    found = labels(iou, level)
    return np.stack([(found == concept).sum(axis=-1) for concept in range(iou.shape[1])], axis=1)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the concepts that were shown, of [R,C]."""
    shown = ~np.isnan(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(shown, values, 0.0).sum(axis=1) / shown.sum(axis=1)
