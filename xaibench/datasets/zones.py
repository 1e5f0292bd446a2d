"""Six zones of two lungs, the severity that each has, and what can be asked of a network about them.

A lung is cut into three parts of equal height of its own bounding box. Zones A, B, C lie on the left of the image from
top to bottom, D, E, F on its right. Each has a severity of 0 to 3; their sum, 0 to 18, is that of the image (BrixIA).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from ..errors import UserError, nearest

ZONES = ("A", "B", "C", "D", "E", "F")
WORST = 3  # of the severities 0 to 3
# What the detectors of Khakzar 2022, chapter 8, tell: whether any zone has one of these severities.
DETECTORS = {"01": (0, 1), "2": (2,), "3": (3,)}
TASKS = ("global", "zones", "detector", *(f"detector:{level}" for level in DETECTORS))


def lungs_of(mask: np.ndarray) -> np.ndarray:
    """The two largest connected parts of a mask [H,W], the left one of the image first: bool [2,H,W].

    Raises ValueError if there are fewer than two.
    """
    parts, count = ndimage.label(mask)
    if count < 2:
        raise ValueError(f"it has {count} connected parts: expected two lungs")
    sizes = ndimage.sum_labels(mask, parts, range(1, count + 1))
    lungs = [np.asarray(parts == 1 + place) for place in np.argsort(-sizes, kind="stable")[:2]]
    return np.stack(sorted(lungs, key=lambda lung: float(np.nonzero(lung)[1].mean())))


def zones_of(lungs: np.ndarray) -> np.ndarray:
    """The zones A to F, bool [6,H,W], of two lungs [2,H,W], the left one of the image first; they cover the lungs."""
    zones = []
    for lung in lungs:
        rows = np.flatnonzero(lung.any(1))
        top, bottom = rows[0], rows[-1] + 1
        third = np.clip((np.arange(len(lung)) + 0.5 - top) * 3 // (bottom - top), 0, 2)
        zones += [lung & (third == part)[:, None] for part in range(3)]
    return np.stack(zones)


@dataclass(frozen=True)
class Task:
    """What is asked about the zones of an image, as samples: one for the image, or one for each part of it.

    name: `global`, a real label, the sum of the severities; the mask is graded, each pixel's severity over 3. `zones`:
        outputs A0 to F3, a level for each zone (`model.recipe.loss=zones`), and a sample for each zone, whose label is
        its level's output and whose mask is the zone. `detector`: three outputs, whether any zone has a severity of 0
        or 1, of 2, of 3, and a sample for each that does, whose mask is the union of its zones; `detector:3` has the
        samples of that one only. Raises UserError for another name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise UserError(f"dataset.task={self.name}: {nearest(self.name, TASKS)}")

    @property
    def class_names(self) -> tuple[str, ...]:
        if self.name == "global":
            return ()
        if self.name == "zones":
            return tuple(f"{zone}{level}" for zone in ZONES for level in range(WORST + 1))
        return tuple(f"severity {' or '.join(level)}" for level in DETECTORS)

    @property
    def graded(self) -> bool:
        """Whether masks are graded."""
        return self.name == "global"

    @property
    def multi_label(self) -> bool:
        """Whether the vectors of labels say which outputs are present."""
        return self.name.startswith("detector")

    def parts(self, severities: Sequence[int]) -> list[int]:
        """The parts of an image of these severities [6] that are samples: 0, zones, or detectors."""
        if self.name == "global":
            return [0]
        if self.name == "zones":
            return list(range(len(ZONES)))
        _, _, only = self.name.partition(":")
        return [
            part
            for part, (level, values) in enumerate(DETECTORS.items())
            if only in ("", level) and any(severity in values for severity in severities)
        ]

    def label(self, severities: Sequence[int], part: int) -> int | float:
        """The explained label of a part."""
        if self.name == "global":
            return float(sum(severities))
        return part * (WORST + 1) + int(severities[part]) if self.name == "zones" else part

    def labels(self, severities: Sequence[int]) -> torch.Tensor:
        """All labels of an image: which detectors see something, float32 [3], else the severities, float32 [6]."""
        if not self.multi_label:
            return torch.tensor(severities, dtype=torch.float32)
        found = [any(severity in values for severity in severities) for values in DETECTORS.values()]
        return torch.tensor(found, dtype=torch.float32)

    def mask(self, severities: Sequence[int], zones: np.ndarray, part: int) -> torch.Tensor:
        """The mask [H,W] of a part, given the zones [6,H,W]: float32 where it is graded, else bool."""
        if self.name == "global":
            levels = np.array(severities, dtype=np.float32) / WORST
            return torch.from_numpy((zones * levels[:, None, None]).sum(0))
        if self.name == "zones":
            return torch.from_numpy(zones[part])
        values = list(DETECTORS.values())[part]
        return torch.from_numpy(zones[[severity in values for severity in severities]].any(0))


def regions_of(zones: np.ndarray) -> dict[str, np.ndarray]:
    """The zones [6,H,W] by name, and the lungs, which they make up: bool [H,W] each."""
    return {"lungs": zones.any(0), **dict(zip(ZONES, zones))}
