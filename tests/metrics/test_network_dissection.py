"""Network dissection on units whose marks are known by hand."""

import csv
import io
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.metrics.helpers import evaluated
from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.datasets.shapes import OBJECTS, Shapes
from xaibench.datasets.two4two import Two4Two
from xaibench.errors import Refusal
from xaibench.metrics.network import _dissection
from xaibench.metrics.network.network_dissection import NetworkDissection
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.scores import units
from xaibench.scores.cells import read_cell

PLAIN = Preprocessing(mean=(0.0,), std=(1.0,))


class Pictures(Dataset):
    """Images [C,H,W] with concepts marked by hand."""

    fingerprint = "pictures"

    def __init__(self, images: torch.Tensor, **concepts: torch.Tensor) -> None:
        self.images, self.marked, self.concept_names = images, concepts, tuple(concepts)

    concept_names = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], 0)

    def concepts(self, indices):
        return {name: marked[list(indices)] for name, marked in self.marked.items()}


def network(*filters: torch.Tensor, stride: int = 1) -> Classifier:
    """A network whose layer `units` has one unit for each filter [1,k,k]; a linear one."""
    weight = torch.stack(filters)
    layer = nn.Conv2d(1, len(filters), weight.shape[-1], stride=stride, padding=weight.shape[-1] // 2, bias=False)
    layer.weight.data = weight
    module = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(len(filters), 2))
    return Classifier("units", module, (1, 8, 8), PLAIN, layers={"last_conv": "0"})


def dissect(metric: NetworkDissection, classifier: Classifier, dataset: Dataset, fit: Samples | None = None):
    samples = Samples(dataset, PLAIN, range(len(dataset)))
    fitted = metric.fit(classifier, fit or samples, torch.Generator())
    return evaluated(metric, classifier, samples.load(samples.ids), None, data=samples, fitted=fitted)


def estimated(metric: NetworkDissection, classifier: Classifier, dataset: Dataset, columns) -> dict[str, float]:
    tables = {name: values.double().numpy() for name, values in columns.items()}
    wanted = [vars(s) | {"units": vars(s.units)} for s in metric.statistics_on(dataset, classifier)]
    return {name: one.value for name, one in units.estimates(tables, wanted).items()}


SQUARE = torch.zeros(1, 8, 8)
SQUARE[:, 2:6, 2:6] = 1
BLUR = torch.full((1, 3, 3), 1 / 9)
POINT = torch.zeros(1, 3, 3)
POINT[:, 1, 1] = 1


# A square of 4 x 4 blurred by 3 x 3 takes 1 at 4 pixels, 2/3 at 8, 4/9 at 4 (these are its own 16), then 1/3 at 8, 2/9
# at 8 and 1/9 at 4.
@pytest.mark.parametrize(
    ("above", "iou"), [(4, 4 / 16), (12, 12 / 16), (16, 1.0), (24, 16 / 24), (32, 16 / 32), (36, 16 / 36)]
)
def test_a_unit_that_is_a_blurred_concept(above, iou):
    classifier, dataset = network(BLUR), Pictures(SQUARE[None], square=SQUARE > 0)
    metric = NetworkDissection(quantile=above / 64)
    columns = dissect(metric, classifier, dataset)
    assert columns["marked"].tolist() == [[above]] and columns["area"].tolist() == [[16]]
    found = estimated(metric, classifier, dataset, columns)
    assert found["best_iou_square"] == pytest.approx(iou)
    assert found["detectors"] == found["variety"] == found["detectors_square"] == 1
    assert found["ceiling_square"] == pytest.approx(min(above / 16, 1))
    assert found["best_iou_square"] <= found["ceiling_square"]


def test_of_ties_none_is_above_the_threshold():
    # 12 places are wanted above, 6 and 14 can be had: those of the value in between are left out.
    classifier, dataset = network(BLUR), Pictures(SQUARE[None], square=SQUARE > 0)
    assert dissect(NetworkDissection(quantile=10 / 64), classifier, dataset)["marked"].tolist() == [[4]]


def test_a_unit_that_is_never_active_marks_nothing():
    columns = dissect(NetworkDissection(), network(0 * POINT, POINT), Pictures(SQUARE[None], square=SQUARE > 0))
    assert columns["marked"][0, 0] == columns["inside"][0, 0, 0] == 0


def scattered(count: int = 40, side: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random images and two random concepts, the second of them in few images."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 1, side, side, generator=generator)
    often = torch.rand(count, side, side, generator=generator) < 0.3
    seldom = (torch.rand(count, side, side, generator=generator) < 0.1) & (torch.arange(count) % 5 == 0)[:, None, None]
    return images, often, seldom


@pytest.mark.parametrize("order", ["upsample", "threshold"])
def test_against_loops_over_pixels(order):
    images, often, seldom = scattered()
    classifier, dataset = network(BLUR, POINT, -POINT, stride=2), Pictures(images, often=often, seldom=seldom)
    metric = NetworkDissection(quantile=0.07, order=order, level=0.1)
    columns = dissect(metric, classifier, dataset)
    features = classifier.module[0](images).detach().numpy()
    assert features.shape[2:] == (4, 4)
    for k in range(3):
        values = np.sort(features[:, k].ravel())[::-1]
        threshold = values[int(0.07 * len(values))]
        for i in range(len(images)):
            for c, mask in enumerate((often[i], seldom[i])):
                marked = inside = 0
                for y in range(8):
                    for x in range(8):
                        shown = features[i, k, y // 2, x // 2] if order == "threshold" else linear(features[i, k], y, x)
                        marked += bool(shown > threshold)
                        inside += bool(shown > threshold) and bool(mask[y, x])
                assert columns["marked"][i, k] == marked and columns["inside"][i, c, k] == inside


def linear(values: np.ndarray, y: int, x: int) -> float:
    """The value at a pixel of a map half as large, by linear interpolation between centres, constant beyond them."""
    at = [min(max((place + 0.5) / 2 - 0.5, 0), 3) for place in (y, x)]
    low = [int(place) for place in at]
    high = [min(place + 1, 3) for place in low]
    dy, dx = (np.float32(place - first) for place, first in zip(at, low))
    top, bottom = (values[row, low[1]] * (1 - dx) + values[row, high[1]] * dx for row in (low[0], high[0]))
    return top * (1 - dy) + bottom * dy


def test_other_masks_leave_what_chance_gives():
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.rand(300, 1, 8, 8, generator=generator), torch.rand(300, 8, 8, generator=generator) < 0.2
    images[masks[:, None]] += 1  # the unit is the concept
    classifier, dataset = network(POINT), Pictures(images, concept=masks)
    metric = NetworkDissection(quantile=0.1)
    found = estimated(metric, classifier, dataset, dissect(metric, classifier, dataset))
    q, g = 0.1, masks.float().mean().item()
    assert found["best_iou"] == pytest.approx(q / g, rel=0.01)  # which is its ceiling: it lies inside
    assert found["ceiling_concept"] == pytest.approx(q / g, rel=0.01)
    assert found["best_iou_other_masks"] == pytest.approx(q * g / (q + g - q * g), rel=0.05)


def test_random_weights_are_the_network_made_new_with_thresholds_of_its_own():
    images, often, seldom = scattered()
    classifier, dataset = network(BLUR, POINT), Pictures(images, often=often, seldom=seldom)
    metric = NetworkDissection(quantile=0.1, seed=5)
    columns = dissect(metric, classifier, dataset)
    control = dissect(metric, _dissection.made_new(classifier, 5), dataset)
    assert torch.equal(columns["inside_random_weights"], control["inside"])
    assert torch.equal(columns["marked_random_weights"], control["marked"])
    assert not torch.equal(columns["inside_random_weights"], columns["inside"])
    assert columns["marked_random_weights"].sum(0).tolist() == [256, 256]  # a tenth of 40 x 64 places


def test_an_image_is_scored_without_the_others(take):
    images, often, seldom = scattered()
    classifier, dataset = network(BLUR, POINT), Pictures(images, often=often, seldom=seldom)
    metric, samples = NetworkDissection(quantile=0.1), Samples(dataset, PLAIN, range(40))
    fitted = metric.fit(classifier, samples, torch.Generator())
    batch = samples.load(samples.ids)
    whole = evaluated(metric, classifier, batch, None, data=samples, fitted=fitted)
    some = evaluated(metric, classifier, take(batch, [7, 3]), None, data=samples, fitted=fitted)
    assert all(torch.equal(values, whole[name][[7, 3]]) for name, values in some.items())


# ---- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("most", [2**24, 60, 3])
def test_a_rank_is_that_of_the_sorted_values(ties, most):
    values = torch.randn(3, 400, generator=torch.Generator().manual_seed(1))
    values = (2 * values).round() if ties else values
    for rank in (1, 17, 200, 400):
        passes = iter(range(1000))
        found = _dissection.ranked(lambda count=passes: (next(count), values.split(37, dim=1))[1], rank, most)
        assert torch.equal(found, values.sort(dim=1, descending=True).values[:, rank - 1])
        assert next(passes) <= max(ceil(rank / (most // 3)), 1) + ties


def test_memory_does_not_grow_with_the_images(monkeypatch):
    """What is kept between blocks is bounded whatever the number of values, and the answer exact."""
    widths = {}
    for count in (50, 800):
        widths[count] = 0
        rows = [torch.randn(4, 64, generator=torch.Generator().manual_seed(block)) for block in range(count)]
        topk = torch.Tensor.topk

        def watched(self, *arguments, count=count, topk=topk, **options):
            widths[count] = max(widths[count], self.shape[1])
            return topk(self, *arguments, **options)

        rank = count * 64 // 100 + 1
        monkeypatch.setattr(torch.Tensor, "topk", watched)
        found = _dissection.ranked(lambda rows=rows: iter(rows), rank, most=4 * 32)
        monkeypatch.undo()
        assert torch.equal(found, torch.cat(rows, 1).sort(dim=1, descending=True).values[:, rank - 1])
    assert widths[50] == widths[800] == 32 + 64


# ---- concepts --------------------------------------------------------------------------------------------------------


def test_the_concepts_of_shapes_are_the_classes_where_the_object_is():
    dataset, ids = Shapes(), [4, 1, 9]
    found = dataset.concepts(ids)
    assert tuple(found) == dataset.concept_names == dataset.class_names
    for row, index in enumerate(ids):
        label = dataset.class_names[dataset.object_label(index)]
        assert torch.equal(found[label][row], dataset.object_mask(index))
        assert not any(marked[row].any() for name, marked in found.items() if name != label)


def test_the_concepts_of_two4two_are_its_parts_as_the_network_sees_them():
    dataset = Two4Two(side=32)
    samples = Samples(dataset, Preprocessing(crop=16), [])
    found = samples.concepts([5, 2], ["animal", "spine"])
    regions = dataset.regions([5, 2])
    assert torch.equal(found, torch.stack([regions[name][:, 8:24, 8:24] for name in ("animal", "spine")], 1))
    assert set(dataset.concept_names) == set(regions)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"quantile": 0}, "quantile=0"), ({"level": 1.5}, "level=1.5"), ({"order": "upsampl"}, "order=upsampl")],
)
def test_refuses(parameters, said):
    with pytest.raises(ValueError, match=said):
        NetworkDissection(**parameters)


def test_refuses_data_without_concepts_and_names_that_there_are_not():
    images, often, _ = scattered(2)
    with pytest.raises(Refusal, match="of which this data set has none"):
        NetworkDissection().check_data(Pictures(images))
    with pytest.raises(Refusal, match=r"ofte is not one: .*often"):
        NetworkDissection(concepts=["ofte"]).check_data(Pictures(images, often=often))
    with pytest.raises(Refusal, match="65 concepts: expected at most 64"):
        NetworkDissection().check_data(Pictures(images, **{f"c{k}": often for k in range(65)}))


def test_refuses_a_network_that_answers_nan():
    images, often, _ = scattered(2)
    with pytest.raises(Refusal, match="answers NaN"):
        dissect(NetworkDissection(), network(POINT * torch.nan), Pictures(images, often=often))


# ---- on the command line ---------------------------------------------------------------------------------------------


def test_of_the_bundled_network_more_units_are_detectors_than_of_random_weights(xaibench):
    code, _, said = xaibench("run", "metric=network_dissection", "dataset.limit=40", "fit.limit=64")
    assert code == 0, said
    _, out, _ = xaibench("leaderboard", "--metric", "network_dissection", "--csv")
    rows = {row["statistic"]: row for row in csv.DictReader(io.StringIO(out))}
    value = {name: float(row["value"]) for name, row in rows.items()}
    assert rows["detectors"]["n"] == "40" and rows["detectors"]["method"] == "none"
    assert float(rows["detectors"]["ci_low"]) > max(value["detectors_random_weights"], value["detectors_other_masks"])
    assert value["best_iou"] > max(value["best_iou_random_weights"], value["best_iou_other_masks"])
    of_classes = [value[f"detectors_{name}"] for name in OBJECTS]
    assert sum(of_classes) == value["detectors"] and sum(map(bool, of_classes)) == value["variety"]
    # Rows hold what an image shows; the tables lie beside them, and no mean of theirs is among the rows.
    (file,) = Path("results/scores").rglob("none-*.csv")
    cell = read_cell(file)
    assert list(cell.columns) == ["concepts"] and set(cell.columns["concepts"]) == {1.0} and not cell.curves
    assert cell.tables()["inside"].shape == (40, 10, 64)
    code, out, _ = xaibench("rank")
    assert code == 0 and "network_dissection" not in out


def test_data_without_concepts_is_refused_before_any_work(xaibench):
    code, _, said = xaibench("run", "model=xor_net", "model.weights=random", "dataset=xor", "metric=network_dissection")
    assert code == 2 and "Traceback" not in said
