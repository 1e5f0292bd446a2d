"""Pictures to show to participants: images in columns by how certain the network is, alone or beside a method's maps.

The layout is that of the baseline of Sixt 2022, section 6.3: five columns from one class to the other, ten rows. Every
condition shows the same images. Maps come from the cache as they were scored, and `manifest.json` names them by key.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from .. import __version__
from ..build import TARGET, locate
from ..errors import UserError, first_line, nearest, one_of
from ..methods.counterfactual.counterfactual import Counterfactual
from ..metrics.ranking import collapse
from ..models.preprocessing import Preprocessing
from ..report import gallery
from ..report.colours import INK, is_signed, painted
from ..report.figures import png, style
from ..scores.cells import Cell
from ..scores.score_files import OK, sha256
from ..store import provenance
from ..store.cache import Artefact
from ..store.files import existing, safe_name, write_atomically

log = logging.getLogger(__name__)
BASE = "base"
COLUMNS = ("very certain {0}", "certain {0}", "unsure", "certain {1}", "very certain {1}")
BINS = ("quintiles", "symmetric")
CONTRADICTED = (
    "%d of %d images stand in columns of one class and are taken for the other: fifths of the images are no certainty; "
    "--bins symmetric has none of them"
)
# Maps are looked at in blocks of so many, and an image is drawn so many pixels wide at least.
BLOCK, SIDE = 256, 96


@dataclass(frozen=True)
class Shown:
    """A condition with maps: its cell, how channels are collapsed, and the cached maps."""

    cell: Cell
    collapse: str
    maps: Artefact

    @property
    def name(self) -> str:
        """Method and variant, as the condition's name."""
        return " ".join(filter(None, (self.cell.card["method"], self.cell.card["method_variant"])))

    @property
    def std(self) -> tuple[float, ...]:
        """What a unit of the network's input is in pixels from 0 to 1, per channel; () if it is one."""
        return Preprocessing(**self.maps.spec["model"]["preprocessing"]).std

    @property
    def is_counterfactual(self) -> bool:
        """Whether the maps are what changes in the image, so that the image with its map is another image."""
        return locate(self.maps.spec["method"][TARGET], "method") is Counterfactual

    def read(self, samples: Sequence[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The collapsed maps [n,H,W] of these samples, and all columns. Raises UserError for damaged rows."""
        rows = self.maps.read(samples)
        if len(rows.samples) < len(samples):
            raise UserError(f"{self.name}: a damaged shard was removed from the cache; run it again, then this")
        return collapse(torch.from_numpy(rows.arrays["maps"]), self.collapse).numpy(), rows.arrays


@dataclass(frozen=True)
class Layout:
    """Which sample stands where: [rows,5], with what the network answers, second class less first, and the edges
    between the columns."""

    samples: np.ndarray
    logits: np.ndarray
    edges: np.ndarray


def make(
    cells: Sequence[Cell],
    cache: Path,
    out: Path,
    *,
    rows: int = 10,
    bins: str = "quintiles",
    classes: Sequence[str] = (),
    seed: int = 0,
    like: Path | None = None,
) -> Path:
    """Draw base.png and a picture of each method of these cells (of one model and data set); returns the manifest.

    bins: `quintiles`, a fifth of the images to each column; `symmetric`, edges midway between 0 and the 20th and 60th
    percentiles of the absolute answer, on both sides (the study's release). classes: the two at the sides; of a network
    of two, it may be empty, and of others, images that the network takes for neither are not shown. seed: of the draw
    of images. like: a manifest whose images are shown again.
    Raises UserError where the cache lacks something, and where a column has too few images.
    """
    if rows < 1:
        raise UserError(f"--rows {rows}: expected a number of rows from 1 on")
    found, missing = gallery.cached(cells, cache)
    if missing or not found:
        raise UserError(missing[0] if missing else "no method's maps were scored here: run some, then this")
    shown = [Shown(*one) for one in found]
    card = shown[0].cell.card
    try:
        samples, left_out = _candidates(shown)
        sides = _sides(shown[0], classes)
        answers = gallery.answers(shown[0].cell, shown[0].maps, samples).double().numpy()
        if not np.isfinite(answers).all():
            raise UserError(f"{card['model']}: some answers are not finite: there are no columns for them")
        of_sides = np.isin(answers.argmax(axis=1), [index for index, _ in sides])
        logits = (answers[:, sides[1][0]] - answers[:, sides[0][0]])[of_sides]
        samples = [sample for sample, is_of in zip(samples, of_sides) if is_of]
        if not samples:
            raise UserError(f"the network takes no image for {' or '.join(name for _, name in sides)}")
        edges = _edges(logits, one_of("bins", bins, BINS))
        labels = [label.format(*(name for _, name in sides)) for label in COLUMNS]
        layout = _repeated(like, samples, logits, edges) if like else _drawn(samples, logits, edges, rows, labels, seed)
        chosen = layout.samples.ravel().tolist()
        _, columns = shown[0].read(chosen)
        pictures = gallery.pictured(shown[0].cell, shown[0].maps, chosen, columns)
    except gallery.Absent as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"study stimuli: {error}") from error
    contradicted = int((layout.logits[:, :2] > 0).sum() + (layout.logits[:, 3:] < 0).sum())
    if contradicted:
        log.warning(CONTRADICTED, contradicted, layout.samples.size)
    images = np.stack([picture.pixels for picture in pictures])
    conditions = {BASE: _written(out / f"{BASE}.png", grid(images, labels))}
    for one in shown:
        maps, own_columns = one.read(chosen)
        signed = is_signed(maps)
        if one.is_counterfactual:
            other = counterfactuals(images, own_columns["maps"], one.std)
        else:
            other = np.stack([painted(own, signed) for own in maps])
        beside = np.concatenate([images, other], axis=2)
        file = out / f"{safe_name(one.cell.card['method'])}-{one.maps.key}.png"
        conditions[one.name] = _written(file, grid(beside, labels)) | _named(one, cache, signed)
    manifest = {
        "model": card["model"],
        "dataset": card["dataset"],
        "model_state": shown[0].maps.spec["model"],
        "data_fingerprint": shown[0].maps.spec["data"]["fingerprint"],
        "columns": labels,
        "classes": [name for _, name in sides],
        "bins": bins,
        "edges": layout.edges.tolist(),
        "seed": seed,
        "candidates": len(samples),
        "left_out": left_out,
        "contradicted": contradicted,
        "images": _listed(layout, dict(zip(chosen, columns["input_crc32"].tolist()))),
        "conditions": conditions,
        "version": __version__,
        "commit": provenance.commit(),
    }
    write_atomically(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return out / "manifest.json"


def _candidates(shown: Sequence[Shown]) -> tuple[list[int], dict[str, int]]:
    """The samples, in order, of which every condition has a map that is finite and not of one value; and how many each
    condition left out of those that all have."""
    samples = sorted(set.intersection(*(set(one.maps.samples()) for one in shown)))
    usable, left_out = np.ones(len(samples), dtype=bool), {}
    for one in shown:
        empty = np.zeros(len(samples), dtype=bool)
        for start in range(0, len(samples), BLOCK):
            part = slice(start, start + BLOCK)
            maps, columns = one.read(samples[part])
            flat = maps.reshape(len(maps), -1)
            empty[part] = (columns["status"] != OK) | ~(np.ptp(flat, axis=1) > 0)
        if empty.all():
            raise UserError(
                f"{one.name}: each of its {len(samples)} maps is not finite or of one value: nothing to show"
            )
        left_out[one.name] = int(empty.sum())
        usable &= ~empty
    return [sample for sample, is_usable in zip(samples, usable) if is_usable], left_out


def _sides(one: Shown, classes: Sequence[str]) -> list[tuple[int, str]]:
    """(index, name) of the classes at the left and at the right."""
    count = gallery.answers(one.cell, one.maps, one.maps.samples()[:1]).shape[1]
    names = gallery.class_names(one.cell, count)
    if count < 2:
        raise UserError(f"{one.cell.card['model']} has one output and no classes: columns are by classes")
    if not classes and count > 2:
        raise UserError(
            f"{one.cell.card['model']} has {count} classes: say two, such as --classes {names[0]},{names[1]}"
        )
    wanted = list(classes or names)
    if len(set(wanted)) != 2:
        raise UserError(f"--classes {','.join(wanted)}: expected two classes")
    for name in wanted:
        if name not in names:
            raise UserError(f"--classes: '{name}' is not a class: {nearest(name, names)}")
    return [(names.index(name), name) for name in wanted]


def _edges(logits: np.ndarray, bins: str) -> np.ndarray:
    """The four edges between the columns."""
    if bins == "quintiles":
        return np.quantile(logits, (0.2, 0.4, 0.6, 0.8))
    near, far = np.quantile(abs(logits), (0.2, 0.6))
    return np.array([-(near + far) / 2, -near / 2, near / 2, (near + far) / 2])


def _drawn(
    samples: Sequence[int], logits: np.ndarray, edges: np.ndarray, rows: int, labels: Sequence[str], seed: int
) -> Layout:
    """`rows` images of each column, drawn without replacement."""
    generator = np.random.default_rng(seed)
    places = np.searchsorted(edges, logits, side="right")
    drawn = []
    for column, label in enumerate(labels):
        own = np.flatnonzero(places == column)
        if len(own) < rows:
            raise UserError(
                f"column '{label}' has {len(own)} images of the {rows} that it takes\n"
                f"run on more images (dataset.limit), or ask for fewer rows (--rows {len(own) or 1})"
            )
        drawn.append(generator.choice(own, rows, replace=False))
    at = np.stack(drawn, axis=1)
    return Layout(np.asarray(samples)[at], logits[at], edges)


def _repeated(manifest: Path, samples: Sequence[int], logits: np.ndarray, edges: np.ndarray) -> Layout:
    """The layout of a manifest, if these maps are of all its images. Raises UserError."""
    try:
        images = json.loads(existing(manifest, "--like").read_text())["images"]
        wanted = np.array([[image["sample"] for image in row] for row in images])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--like {manifest}: expected a manifest of study stimuli: {first_line(error)}") from error
    place = {sample: at for at, sample in enumerate(samples)}
    for sample in wanted.ravel().tolist():
        if sample not in place:
            raise UserError(f"--like {manifest}: not every condition has a map to show of its image {sample}")
    return Layout(wanted, logits[np.vectorize(place.__getitem__)(wanted)], edges)


def counterfactuals(images: np.ndarray, changes: np.ndarray, std: Sequence[float]) -> np.ndarray:
    """Images uint8 [n,H,W,3] with changes [n,C,H,W], C 1 or 3, in units of the network's input, as uint8 of pixels.

    std: a unit in pixels from 0 to 1, per channel; () if it is one.
    """
    steps = changes.transpose(0, 2, 3, 1) * np.array(std or (1.0,))
    return ((images / 255 + steps).clip(0, 1) * 255).round().astype(np.uint8)


def grid(tiles: np.ndarray, labels: Sequence[str]) -> bytes:
    """A PNG file of tiles uint8 [rows*columns,H,W,3] in rows, below the columns' labels."""
    _, height, width, _ = tiles.shape
    scale = max(1, -(-SIDE // height))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    count, gap, head = len(labels), height // 12, 34
    rows = len(tiles) // count
    sheet = np.full((head + rows * (height + gap), count * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = head + number // count * (height + gap), number % count * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    with style():
        # At the resolution of `png`, each pixel of the sheet is one of the file.
        figure = Figure(figsize=(sheet.shape[1] / 150, sheet.shape[0] / 150), dpi=150)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(sheet, aspect="auto", interpolation="nearest")
        for place, label in enumerate(labels):
            middle = place * (width + gap) + width / 2
            words = label.rsplit(" ", 1) if len(label) > width // 9 else [label]
            axes.text(middle, head / 2, "\n".join(words), fontsize=5.5, color=INK, ha="center", va="center")
        axes.axis("off")
        return png(figure)


def _written(file: Path, picture: bytes) -> dict[str, Any]:
    """Write a condition's picture; its name and digest."""
    write_atomically(file, picture)
    return {"picture": file.name, "sha256": sha256(picture)}


def _named(one: Shown, cache: Path, signed: bool) -> dict[str, Any]:
    """What a condition's maps are: their key, their folder in the cache, and how they are painted."""
    card = one.cell.card
    return {
        "method": card["method"],
        "method_variant": card["method_variant"],
        "map_key": one.maps.key,
        "maps": one.maps.folder.relative_to(cache).as_posix(),
        "collapse": one.collapse,
        "shown": "counterfactual" if one.is_counterfactual else "signed map" if signed else "map",
    }


def _listed(layout: Layout, checksums: Mapping[int, int]) -> list[list[dict[str, Any]]]:
    """Each row of images: sample, answer, and the checksum of the network's input."""
    return [
        [
            {"sample": int(sample), "logit": float(logit), "input_crc32": int(checksums[int(sample)])}
            for sample, logit in zip(*row)
        ]
        for row in zip(layout.samples, layout.logits)
    ]
