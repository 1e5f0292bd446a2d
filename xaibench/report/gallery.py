"""Images beside the maps of each method: what the cache holds, joined with the data set's own pictures."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ..build import TARGET, build, is_spec, locate
from ..datasets.base import Dataset, HasWords, Samples
from ..datasets.tables import Rows
from ..errors import XaibenchError
from ..job import SELECTION
from ..metrics.ranking import COLLAPSES, collapse
from ..models.preprocessing import Preprocessing
from ..scores.leaderboard import Cell
from ..store.cache import Artefact
from .colours import INK, is_signed, painted

# Below this many pixels a side, an input is no picture.
SMALLEST_SIDE = 8


class Absent(Exception):
    """Something that the gallery needs is not there; the message says what, and how to get it."""


@dataclass(frozen=True)
class Input:
    """An input, and what the network said.

    label, predicted, explained: names of classes (of a scalar output, its values). probability, explained_probability:
    of the predicted and of the explained class; None for a scalar output.
    """

    sample: int
    label: str
    predicted: str
    probability: float | None
    explained: str
    explained_probability: float | None


@dataclass(frozen=True)
class Picture(Input):
    """An image as the network saw it: RGB uint8 [H,W,3]."""

    pixels: np.ndarray


@dataclass(frozen=True)
class Sentence(Input):
    """A sentence. truth: which of its words the label is about."""

    words: tuple[str, ...]
    truth: frozenset[int]


@dataclass(frozen=True)
class Row(Input):
    """A row of a table. values: its features as the table has them; truth: which of them the label is about."""

    features: tuple[str, ...]
    values: tuple[float, ...]
    truth: frozenset[int]


@dataclass(frozen=True)
class Column:
    """The maps of one method: float32 [n,H,W], collapsed over channels as its metrics read them."""

    method: str
    variant: str
    maps: np.ndarray

    @property
    def label(self) -> str:
        """Method and variant."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def signed(self) -> bool:
        """Whether the maps have negative values."""
        return is_signed(self.maps)


@dataclass(frozen=True)
class Gallery:
    """Images, sentences or table rows x methods of one model and data set. missing: what is not shown, in words."""

    pictures: tuple[Picture, ...]
    columns: tuple[Column, ...]
    missing: tuple[str, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    rows: tuple[Row, ...] = ()


def collect(cells: Sequence[Cell], cache: Path, limit: int = 16) -> Gallery:
    """The first `limit` images that all cached methods of these cells have maps of; cells of one model and data set.

    A column per method, in the order of the cells. Nothing is computed: what the cache lacks is said in `missing`.
    """
    found, missing = cached(cells, cache)
    if not found:
        return Gallery((), (), missing or ("No method's maps were scored here.",))
    shared = set.intersection(*(set(artefact.samples()) for *_, artefact in found))
    samples = [sample for sample in found[0][2].samples() if sample in shared][:limit]
    if not samples:
        return Gallery((), (), (*missing, "No image has maps of all methods."))
    rows = [artefact.read(samples) for *_, artefact in found]
    if any(len(row.samples) < len(samples) for row in rows):
        return Gallery((), (), (*missing, "A damaged shard was removed from the cache: run again, then report again."))
    first = found[0][0], found[0][2], samples, rows[0].arrays
    pictures: list[Picture] = []
    spoken: list[Sentence] = []
    tabled: list[Row] = []
    try:
        if reads_words(found[0][0]):
            spoken = sentences(*first)
        elif isinstance(dataset_of(found[0][0].card["config"]["dataset"]), Rows):
            tabled = table_rows(*first)
        else:
            pictures = pictured(*first)
    except (Absent, XaibenchError) as error:
        return Gallery((), (), (*missing, str(error)))
    columns = [
        Column(
            cell.card["method"],
            cell.card["method_variant"],
            collapse(torch.from_numpy(row.arrays["maps"]), how).numpy(),
        )
        for (cell, how, _), row in zip(found, rows)
    ]
    return Gallery(tuple(pictures), tuple(columns), missing, tuple(spoken), tuple(tabled))


def cached(cells: Sequence[Cell], cache: Path) -> tuple[list[tuple[Cell, str, Artefact]], tuple[str, ...]]:
    """Of each method a cell, how its maps are collapsed, and the maps; and what the cache lacks, as sentences."""
    of_method: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        # A metric that retrains networks has maps of its own, of the predicted class.
        if cell.card["keys"]["map_key"] and cell.columns.index.name == "sample":
            of_method.setdefault((cell.card["method"], cell.card["method_variant"]), []).append(cell)
    found, missing = [], []
    for sharing in of_method.values():
        try:
            found.append((sharing[0], _collapse_of(sharing), _maps(sharing[0], cache)))
        except Absent as error:
            missing.append(str(error))
    return found, tuple(missing)


def reads_words(cell: Cell) -> bool:
    """Whether the inputs of a cell are sentences."""
    return isinstance(dataset_of(cell.card["config"]["dataset"]), HasWords)


def sentences(cell: Cell, maps: Artefact, samples: Sequence[int], rows: Mapping[str, np.ndarray]) -> list[Sentence]:
    """As `pictured`, of a data set of sentences, whose words are the places of the maps. Raises Absent as that does."""
    dataset = dataset_of(cell.card["config"]["dataset"])
    if dataset.fingerprint != maps.spec["data"]["fingerprint"]:
        raise Absent(f"{cell.card['dataset']}: the data set has changed since its maps were made; none are shown.")
    model = locate(cell.card["config"]["model"][TARGET], "model")
    if not getattr(model, "places_are_words", False):
        raise Absent(f"{cell.card['model']}: its places are parts of words, which are not shown.")
    logits, room = answers(cell, maps, samples), rows["maps"].shape[-1]
    found = []
    for sample, logit, target in zip(samples, logits, rows["target"].tolist()):
        example = dataset[sample]
        words = tuple(str(word) for word in example.image)[:room]  # type: ignore[union-attr]
        marked = () if example.mask is None else example.mask[0].nonzero()[:, 0].tolist()
        said = _said(logit, logit.softmax(0), example.label, target, dataset.class_names)
        found.append(Sentence(sample, *said, words, frozenset(marked)))
    return found


def table_rows(cell: Cell, maps: Artefact, samples: Sequence[int], rows: Mapping[str, np.ndarray]) -> list[Row]:
    """As `pictured`, of a data set of table rows, whose features are the places of the maps. Raises Absent as that
    does."""
    dataset = dataset_of(cell.card["config"]["dataset"])
    assert isinstance(dataset, Rows)
    if dataset.fingerprint != maps.spec["data"]["fingerprint"]:
        raise Absent(f"{cell.card['dataset']}: the table has changed since its maps were made; no rows are shown.")
    found = []
    for sample, logit, target in zip(samples, answers(cell, maps, samples), rows["target"].tolist()):
        label, mask = dataset.labels[sample].item(), dataset.mask(sample)
        marked = () if mask is None or dataset.graded_masks else mask[0].nonzero()[:, 0].tolist()
        said = _said(logit, logit.softmax(0), label, target, dataset.class_names)
        values = tuple(dataset.original(sample).tolist())
        found.append(Row(sample, *said, dataset.features, values, frozenset(marked)))
    return found


def draw(gallery: Gallery, columns: int | None = None, side: int = 96) -> Figure:
    """Rows of images, columns of methods; under each image what the network made of it.

    columns: at most so many methods side by side, the others in bands below (None: all). side: of an image, in pixels
    at 100 per inch.
    """
    count = columns or max(1, len(gallery.columns))
    bands = [gallery.columns[start : start + count] for start in range(0, len(gallery.columns), count)]
    rows, across = len(gallery.pictures), 1 + max(len(band) for band in bands)
    height, width, _ = gallery.pictures[0].pixels.shape
    between, below, above = width // 12, height // 3, height // 2
    step_y, step_x, band_height = height + below, width + between, above + rows * (height + below)
    # One picture of all tiles: an axes for each of some hundred takes matplotlib seconds, and so does adding alpha.
    sheet = np.full((len(bands) * band_height, across * step_x - between, 4), 255, dtype=np.uint8)
    inch = side / width / 100
    figure = Figure(figsize=(sheet.shape[1] * inch, sheet.shape[0] * inch), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    for number, band in enumerate(bands):
        for row, picture in enumerate(gallery.pictures):
            tiles = [picture.pixels, *(painted(column.maps[row], column.signed) for column in band)]
            top = number * band_height + above + row * step_y
            for place, tile in enumerate(tiles):
                sheet[top : top + height, place * step_x : place * step_x + width, :3] = tile
            text = "\n".join(caption(picture))
            axes.text(0, top + height * 1.04, text, fontsize=6, color=INK, verticalalignment="top")
        for place, column in enumerate(band, start=1):
            name = "\n".join(textwrap.wrap(column.label.replace("_", " "), 15)[:3])
            low = number * band_height + above - 0.05 * height
            axes.text(place * step_x, low, name, fontsize=7, color=INK, verticalalignment="bottom")
    # Enlarged, pixels stay squares; shrunk, they are averaged: one in two of a fine pattern would be another pattern.
    axes.imshow(sheet, aspect="auto", interpolation="nearest" if side >= width else "antialiased")
    axes.axis("off")
    return figure


def caption(picture: Picture) -> tuple[str, str]:
    """Prediction and explained class of a picture, for below it."""
    said = (picture.predicted, picture.probability), (picture.explained, picture.explained_probability)
    predicted, explained = (name if p is None else f"{name} {p:.2f}" for name, p in said)
    return f"predicted {predicted}", f"explained {explained}"


def _maps(cell: Cell, cache: Path) -> Artefact:
    """The cached maps that a cell scored."""
    card = cell.card
    names, key = (*cell.folders, card["method"]), card["keys"]["map_key"]
    artefact = Artefact.opened(cache, "maps", names, key)
    if artefact is None or not artefact.samples():
        raise Absent(
            f"{card['method']}: {cache} has no maps {key}; name the cache of the run with --cache, or run it again."
        )
    return artefact


def _collapse_of(cells: Sequence[Cell]) -> str:
    """How the metrics read a method's channels: its own collapse, as those that bring none recorded it."""
    # Metrics without the parameter come last: they may bring a collapse that no card tells from the method's.
    for cell in sorted(cells, key=lambda cell: "collapse" not in cell.card["config"]["metric"]):
        if cell.card["collapse"] in COLLAPSES and cell.card["config"]["metric"].get("collapse") is None:
            return cell.card["collapse"]
    return "sum"


def pictured(cell: Cell, maps: Artefact, samples: Sequence[int], rows: Mapping[str, np.ndarray]) -> list[Picture]:
    """The images of these samples, and what the network said, as cached beside the maps, whose `rows` are given.

    Raises Absent where something is not there, or not what it was when the maps were made.
    """
    dataset = dataset_of(cell.card["config"]["dataset"])
    if dataset.fingerprint != maps.spec["data"]["fingerprint"]:
        raise Absent(f"{cell.card['dataset']}: the data set has changed since its maps were made; no images are shown.")
    preprocessing = Preprocessing(**maps.spec["model"]["preprocessing"])
    batch = Samples(dataset, preprocessing, samples).load(samples)
    if min(batch.inputs.shape[2:]) < SMALLEST_SIDE:
        raise Absent(f"{cell.card['dataset']}: inputs of {list(batch.inputs.shape[1:])} are no pictures.")
    if list(batch.crc) != rows["input_crc32"].tolist():
        raise Absent(f"{cell.card['dataset']}: images have changed since their maps were made; run again.")
    logits = answers(cell, maps, samples)
    probabilities = logits.sigmoid() if cell.card["config"].get("output") == "sigmoid" else logits.softmax(1)
    said = zip(logits, probabilities, batch.labels.tolist(), rows["target"].tolist())
    return [
        Picture(sample, *_said(*answer, dataset.class_names), image)
        for sample, image, answer in zip(samples, pixels(preprocessing, batch.inputs), said)
    ]


def pixels(preprocessing: Preprocessing, inputs: torch.Tensor) -> np.ndarray:
    """Inputs [n,C,H,W] as pictures: RGB uint8 [n,H,W,3]."""
    values = preprocessing.denormalise(inputs).clamp(0, 1).mul(255).round().byte()
    return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def answers(cell: Cell, maps: Artefact, samples: Sequence[int]) -> torch.Tensor:
    """What the network answers to these samples, as cached beside their maps: logits [n,K] as its softmax takes them.

    Raises Absent where the cache lacks some.
    """
    spec = {"model": maps.spec["model"], "data": maps.spec["data"]}
    replies = Artefact(maps.root, "responses", (*cell.folders, "logits"), spec)
    found = replies.read(samples)
    if len(found.samples) < len(samples):
        raise Absent(f"{cell.card['model']}: {replies.folder} lacks what the network answers; run again.")
    logits = torch.from_numpy(found.arrays["logits"])
    if maps.spec["model"].get("adapted", {}).get("two_classes"):
        logits = logits / 2  # as `Classifier.softmax_logits`
    return logits


def class_names(cell: Cell, count: int) -> list[str]:
    """The names of a cell's classes, by index; of those without a name, the index. Raises Absent."""
    names = dataset_of(cell.card["config"]["dataset"]).class_names
    return [_name(index, names) for index in range(count)]


def _name(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else str(index)


def _said(
    logits: torch.Tensor, probabilities: torch.Tensor, label: float, target: int, names: Sequence[str]
) -> tuple[str, str, float | None, str, float | None]:
    """label, predicted, its probability, explained, its probability: of one image, from its logits [K]."""
    if len(logits) == 1:
        return f"{label:g}", f"{logits.item():.3g}", None, "the output", None
    best = int(probabilities.argmax())
    explained = _name(target, names), float(probabilities[target])
    return _name(int(label), names), _name(best, names), float(probabilities[best]), *explained


def dataset_of(config: Mapping[str, Any]) -> Dataset:
    """The data set of a score file's configuration. A results folder may come from elsewhere: nothing but a data set
    is built from what it says."""
    spec = {name: value for name, value in config.items() if name not in (*SELECTION, "name")}
    target = locate(spec[TARGET], "dataset")
    if not (isinstance(target, type) and issubclass(target, Dataset)) or any(map(is_spec, spec.values())):
        raise Absent(f"dataset={spec[TARGET]}: expected a data set class; no images are shown.")
    return build(spec | ({"download": False} if "download" in spec else {}), "dataset")
