"""Numbers about units: by hand, and against loops over draws."""

import math

import numpy as np
import pytest

from xaibench.scores import statistics, units


def declared(name, kind, concept=None, level=0.04):
    return {
        "name": name,
        "kind": kind,
        "column": "inside",
        "per": "marked",
        "units": {"level": level, "area": "area", "concept": concept},
    }


def estimated(tables, *wanted):
    return units.estimates(tables, wanted)


# Two units, two concepts, three images; the second concept is in the last two images only.
TABLES = {
    "inside": np.array([[[6, 0], [0, 0]], [[1, 2], [0, 3]], [[0, 0], [4, 0]]], dtype=float),
    "marked": np.array([[8, 2], [4, 8], [6, 0]], dtype=float),
    "area": np.array([[10, 0], [2, 4], [0, 4]], dtype=float),
}


def test_an_iou_is_a_ratio_of_sums_over_the_images_that_show_the_concept():
    found = units.ious(np.ones((1, 3)), **TABLES)[0]
    # Of the first concept and unit: 6 + 1 pixels of (8 + 10 - 6) + (4 + 2 - 1); the third image does not count.
    assert found == pytest.approx(np.array([[7 / 17, 2 / 20], [4 / 14, 3 / 13]]))
    mean_of_ratios = (6 / 12 + 1 / 5) / 2
    assert abs(found[0, 0] - mean_of_ratios) > 0.06


def test_of_draws_an_image_counts_as_often_as_it_is_drawn():
    times = np.array([[2, 0, 1], [0, 3, 0]])
    found = units.ious(times, **TABLES)
    assert found[0] == pytest.approx(np.array([[12 / 24, 0 / 24], [4 / 6, 0 / 4]]))
    assert found[1] == pytest.approx(np.array([[3 / 15, 6 / 24], [0 / 24, 9 / 27]]))
    assert np.isnan(units.ious(np.array([[1, 0, 0]]), **TABLES)[0, 1]).all()


def test_a_unit_detects_the_concept_with_the_largest_iou_above_the_level():
    # IoUs .41, .1; .29, .23
    for level, of_first, of_second in ((0.04, 1, 1), (0.25, 1, 0), (0.42, 0, 0)):
        found = estimated(
            TABLES,
            declared("all", "detectors", level=level),
            declared("first", "detectors", 0, level),
            declared("second", "detectors", 1, level),
            declared("variety", "variety", level=level),
        )
        values = {name: one.value for name, one in found.items()}
        expected = {"all": of_first + of_second, "first": of_first, "second": of_second}
        assert values == {**expected, "variety": (of_first > 0) + (of_second > 0)}


def test_best_ious_and_ceilings():
    found = estimated(
        TABLES,
        declared("mean", "best_iou"),
        declared("first", "best_iou", 0),
        declared("low", "ceiling", 0),
        declared("high", "ceiling", 1),
    )
    assert found["first"].value == pytest.approx(7 / 17)
    assert found["mean"].value == pytest.approx((7 / 17 + 4 / 14) / 2)
    # The unit with most marks 18 pixels in all, more than the 12 and 8 of the concepts.
    assert found["low"].value == found["high"].value == 1
    large = {**TABLES, "area": 10 * TABLES["area"]}
    assert estimated(large, declared("low", "ceiling", 0))["low"].value == pytest.approx(18 / 120)


def test_no_unit_comes_above_its_ceiling_and_one_that_marks_nothing_else_reaches_it():
    random = np.random.default_rng(0)
    area = random.integers(0, 50, (20, 3)) * (random.random((20, 3)) < 0.6)
    inside = np.minimum(random.integers(0, 9, (20, 3, 5)), area[..., None])
    marked = inside.max(1) + random.integers(0, 3, (20, 5))
    tables = {"inside": inside.astype(float), "marked": marked.astype(float), "area": area.astype(float)}
    for concept in range(3):
        found = estimated(tables, declared("best", "best_iou", concept), declared("most", "ceiling", concept))
        assert found["best"].value <= found["most"].value
        only = inside[:, concept, :1].astype(float)
        alone = {"inside": only[:, None], "marked": only, "area": area[:, concept, None].astype(float)}
        found = estimated(alone, declared("best", "best_iou", 0), declared("most", "ceiling", 0))
        assert found["best"].value == pytest.approx(found["most"].value)


def test_intervals_are_quantiles_of_the_draws_and_of_largest_values_their_reflection():
    random = np.random.default_rng(1)
    n, concepts, count = 12, 2, 3
    area = random.integers(0, 30, (n, concepts)).astype(float)
    inside = np.minimum(random.integers(0, 6, (n, concepts, count)), area[..., None])
    marked = inside.max(1) + random.integers(0, 40, (n, count))
    tables = {"inside": inside, "marked": marked, "area": area}
    wanted = [declared("detectors", "detectors"), declared("best", "best_iou", 1), declared("variety", "variety")]
    found = estimated(tables, *wanted)

    drawn = {"detectors": [], "best": [], "variety": []}
    for times in np.concatenate(list(statistics.draws(n))):
        rows = np.repeat(np.arange(n), times)
        iou = np.zeros((concepts, count))
        for c in range(concepts):
            for k in range(count):
                shown = [i for i in rows if area[i, c] > 0]
                within = sum(inside[i, c, k] for i in shown)
                iou[c, k] = within / sum(marked[i, k] + area[i, c] - inside[i, c, k] for i in shown)
        called = [iou[:, k].argmax() for k in range(count) if iou[:, k].max() > 0.04]
        drawn["detectors"].append(len(called))
        drawn["variety"].append(len(set(called)))
        drawn["best"].append(iou[1].max())
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        if name == "best":
            low, high = max(2 * found[name].value - high, 0), 2 * found[name].value - low
        assert (found[name].low, found[name].high) == pytest.approx((low, high)), name
        assert found[name].n == n and found[name].interval == ("basic" if name == "best" else "percentile")
    assert found["best"].low < found["best"].high


def test_without_images_nothing_is_defined():
    found = estimated({}, declared("detectors", "detectors"))["detectors"]
    assert math.isnan(found.value) and found.n == 0
    one = {name: table[:1] for name, table in TABLES.items()}
    assert math.isnan(estimated(one, declared("d", "detectors"))["d"].low)
