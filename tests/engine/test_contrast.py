"""`target=contrast:a,b` explains f_a - f_b: what is linear in the output gives the difference of two maps."""

import numpy as np
import pytest

from tests.engine.helpers import prepared, rows_of

CELL = ("dataset.limit=2", "metric.steps=2")


def maps(here, method: str, target: str) -> np.ndarray:
    cell = prepared(here, *CELL, *method.split(), f"target='{target}'")
    return rows_of(cell, cell.maps.stage)["maps"].astype(np.float64)


@pytest.mark.parametrize(
    "method",
    [
        "method=input_x_gradient",
        "method=occlusion method.patch=32 method.stride=32",
        "method=captum method.attributor=InputXGradient",
    ],
)
def test_a_contrast_is_the_difference_of_two_classes_maps(here, method):
    one, other = maps(here, method, "fixed:3"), maps(here, method, "fixed:5")
    found = maps(here, method, "contrast:3,5")
    np.testing.assert_allclose(found, one - other, rtol=0, atol=1e-3 * abs(found).max())
    assert not np.allclose(found, one, rtol=0, atol=0.1 * abs(found).max())


def test_under_other_weights_the_contrast_stays(here):
    cell = prepared(here, *CELL, "method=gradient", "target='contrast:3,5'")
    job = cell.setting.job
    other = cell.setting.of(type(job)(**{**vars(job), "target": "original", "weights_state": "random:0"}))
    assert other.classifier.rival == 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["target='contrast:3,10'"], ["contrast:3,10", "classes 0 to 9"]),
        (["target='contrast:3,3'"], ["contrast:3,3", "two different classes"]),
        (["target='contrast:3,5'", "output=probability"], ["output=probability", "output=logit"]),
        (["target=contrast:3"], ["contrast:3", "contrast:<two of them>"]),
        (["target='contrast:3,5'", "method=lrp_zplus"], ["not the difference of two", "target=fixed:"]),
        (["target='contrast:3,5'", "method=iba"], ["bottleneck", "target=fixed:"]),
        (["target='contrast:3,5'", "metric=class_sensitivity"], ["two classes' maps", "target=fixed:"]),
    ],
)
def test_contrasts_that_cannot_be_are_refused(xaibench, here, arguments, words):
    code, _, said = xaibench("run", "dataset.limit=1", *arguments)
    assert code != 0 and all(word in said for word in words), said
