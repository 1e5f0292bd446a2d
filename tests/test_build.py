"""From a specification to an object: names checked, values coerced, mistakes explained."""

from typing import Literal

import pytest

from xaibench.build import SOURCE, build, describe, locate
from xaibench.errors import UserError


class Inner:
    def __init__(self, size: int = 3) -> None:
        self.size = size


class Outer:
    def attribute(self):
        """What makes it a method."""

    def __init__(
        self,
        rate: float,
        steps: int = 4,
        mode: Literal["a", "b"] = "a",
        sizes: tuple[float, ...] = (1.0,),
        name: str | None = None,
        on: bool = False,
        inner: object = None,
    ) -> None:
        if rate < 0:
            raise ValueError(f"rate={rate}: expected at least 0")
        self.rate, self.steps, self.mode, self.sizes, self.name, self.inner = rate, steps, mode, sizes, name, inner


OUTER = f"{__name__}.Outer"


def test_builds_nested_objects_with_coerced_values():
    inner = {"_target_": f"{__name__}.Inner", "size": 5}
    built = build({"_target_": OUTER, "rate": 10, "steps": 2.0, "sizes": [1, 2], "inner": inner}, "method")
    assert (built.rate, type(built.rate), built.steps, type(built.steps)) == (10.0, float, 2, int)
    assert built.sizes == (1.0, 2.0)
    assert built.inner.size == 5


def test_description_has_every_default_and_one_spelling():
    ten = describe({"_target_": OUTER, "rate": 10}, "method")
    assert ten == describe({"steps": 4.0, "rate": 10.0, "_target_": OUTER}, "method")
    assert ten == {
        "_target_": OUTER, "rate": 10.0, "steps": 4, "mode": "a", "sizes": [1.0], "name": None, "on": False,
        "inner": None, SOURCE: ten[SOURCE],
    }  # fmt: skip
    assert len(ten[SOURCE]) == 16  # of a class from outside; tests/test_source.py says what it follows


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate": 1, "stpes": 3}, ["method.stpes", "did you mean 'steps'"]),
        ({}, ["method.rate is missing"]),
        ({"rate": "fast"}, ["method.rate=fast", "a number"]),
        ({"rate": True}, ["method.rate=True", "a number"]),
        ({"rate": float("nan")}, ["method.rate=nan", "finite"]),
        ({"rate": 1, "steps": 2.5}, ["method.steps=2.5", "whole number"]),
        ({"rate": 1, "mode": "c"}, ["method.mode=c", "a, b"]),
        ({"rate": 1, "on": "yes"}, ["method.on=yes", "true or false"]),
        ({"rate": 1, "sizes": 3}, ["method.sizes=3", "a list"]),
        ({"rate": -1}, ["rate=-1", "at least 0"]),
        ({"rate": 1, "inner": {"_target_": f"{__name__}.Inner", "sise": 1}}, ["method.inner.sise", "'size'"]),
    ],
)
def test_mistakes_name_value_expectation_and_nearest(values, words):
    with pytest.raises(UserError) as caught:
        build({"_target_": OUTER, **values}, "method")
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("xaibench.methods.gradeint.Gradient", ["no module 'xaibench.methods.gradeint'"]),
        ("xaibench.methods.gradients.gradient.Gradeint", ["did you mean 'Gradient'"]),
        ("Gradient", ["importable path"]),
    ],
)
def test_unknown_targets_are_explained(path, words):
    with pytest.raises(UserError) as caught:
        locate(path, "method._target_")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_working_directory_is_importable(here):
    (here / "mine_for_test.py").write_text("class Thing:\n    def __init__(self, k: int = 1): self.k = k\n")
    assert build({"_target_": "mine_for_test.Thing", "k": 7}, "thing").k == 7


class Grown:
    """Has got `schedule` after keys were made of it."""

    added = {"schedule": "old"}

    def __init__(self, steps: int = 3, schedule: str = "old") -> None:
        self.steps, self.schedule = steps, schedule


def test_a_parameter_that_was_added_is_described_where_it_changes_something():
    spec = {"_target_": f"{__name__}.Grown"}
    described = describe(spec, "grown")
    assert described["steps"] == 3 and "schedule" not in described
    assert describe({**spec, "schedule": "old"}, "grown") == described
    assert describe({**spec, "schedule": "new"}, "grown") == described | {"schedule": "new"}
