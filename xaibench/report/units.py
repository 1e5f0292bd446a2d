"""What the units of a layer detect: for the best unit of each concept the images in which it is highest, and where.

Nothing is computed: `network_dissection` keeps these images of the fit split, and the units' feature maps in them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.base import Dataset, Samples
from ..errors import XaibenchError
from ..metrics.network._dissection import marks
from ..models.preprocessing import Preprocessing
from ..scores import units
from ..scores.leaderboard import Cell
from ..store.cache import Artefact
from . import gallery, study
from .sections import Drawing
from .tables import named

ROWS = 10


def drawings(cells: Sequence[Cell], cache: Path) -> Iterator[Drawing]:
    """A figure for each dissection of these cells of which the cache has the images."""
    for cell in cells:
        if any(statistic["kind"] == "detectors" for statistic in cell.card["statistics"][:1]):
            try:
                yield _drawing(cell, cache)
            except (gallery.Absent, XaibenchError):
                continue  # figures are made where there is something to draw


def best(iou: np.ndarray) -> list[tuple[int, int]]:
    """(concept, unit): of each concept its best unit, of IoUs [C,K]; the highest first, at most ROWS."""
    known = np.nan_to_num(iou, nan=-1.0)
    pairs = [(concept, int(known[concept].argmax())) for concept in range(len(known)) if known[concept].max() > 0]
    return sorted(pairs, key=lambda pair: -known[pair])[:ROWS]


def _drawing(cell: Cell, cache: Path) -> Drawing:
    fit, arrays = _fit(cell, cache)
    dataset, config = _images(cell, fit), cell.card["config"]["metric"]
    preprocessing = Preprocessing(**fit.spec["model"]["preprocessing"])
    tables = cell.tables()
    inside, marked, area = (tables[name] for name in units.tables_of(cell.card["statistics"][0]))
    iou = units.ious(np.ones((1, len(inside))), inside, marked, area)[0]
    level = cell.card["statistics"][0]["units"]["level"]
    tiles, rows = [], []
    per_concept = (s["name"] for s in cell.card["statistics"] if s["kind"] == "ceiling")
    names = [name.removeprefix("ceiling_") for name in per_concept]
    for concept, unit in best(iou):
        ids = arrays["top_images"][unit].tolist()
        batch = Samples(dataset, preprocessing, ids).load(ids)
        if min(batch.inputs.shape[2:]) < gallery.SMALLEST_SIDE:
            raise gallery.Absent("These inputs are no pictures.")
        maps, threshold = (torch.from_numpy(arrays[name][unit : unit + 1]) for name in ("top_maps", "thresholds"))
        shown = marks(maps.transpose(0, 1), threshold, batch.inputs.shape[2:], config["order"])[:, 0].numpy()
        pictures = gallery.pixels(preprocessing, batch.inputs)
        tiles.append(np.stack([study.outlined(*pair) for pair in zip(pictures, shown)]))
        value = iou[concept, unit]
        rows.append(f"unit {unit}\n{names[concept]} {value:.2f}" + ("" if value > level else "\nno detector"))
    if not tiles:
        raise gallery.Absent("No unit marks anything of a concept.")
    found = study.Grid(np.stack(tiles), tuple(rows), ("",) * len(tiles[0]))
    name = named(cell.card["metric"], cell.card["metric_variant"])
    caption = (
        "For each concept the unit with the largest IoU, and the images of the fit split in which it is highest, with "
        "a line around what it marks. Beside a row: the IoU on the images that were scored."
    )
    return Drawing("units", f"units-{name}", f"Units under {name}", caption, study.draw(found))


def _fit(cell: Cell, cache: Path) -> tuple[Artefact, Mapping[str, Any]]:
    """What the dissection fitted, as the cache has it. Raises Absent."""
    card = cell.card
    scores = Artefact.opened(
        cache, "scores", (*cell.folders, card["metric"], card["method"]), card["keys"].get("numbers_key", "")
    )
    key = scores.spec["fit"] if scores is not None else ""
    fit = Artefact.opened(cache, "fits", (*cell.folders, card["metric"]), key)
    arrays = None if fit is None else fit.load_whole("fit")
    if fit is None or arrays is None:
        raise gallery.Absent(f"{card['metric']}: {cache} has nothing of it; run it again.")
    return fit, arrays


def _images(cell: Cell, fit: Artefact) -> Dataset:
    """The images that were fitted to. Raises Absent where they are not what they were."""
    config = cell.card["config"]
    dataset = gallery.dataset_of({**config["dataset"], "split": config["fit"]["split"]})
    if dataset.fingerprint != fit.spec["data"]["fingerprint"]:
        raise gallery.Absent(f"{cell.card['dataset']}: the data set has changed since units were fitted to it.")
    return dataset
