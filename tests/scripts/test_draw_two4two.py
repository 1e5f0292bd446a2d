"""scripts/draw_two4two.py draws the legs of the study's animals against each other factor, by class."""

import numpy as np
import pytest

from xaibench.build import build
from xaibench.config import compose_job
from xaibench.datasets.two4two_sampler import FACTORS, OVERLAP


def test_points_are_the_animals_and_show_what_the_study_biased(script):
    drawing = script("draw_two4two")
    dataset = build(compose_job(["model=two4two_cnn", "dataset=two4two"]).dataset_spec, "dataset")
    panels = {axes.get_title(): axes for axes in drawing.legs(dataset).axes}
    assert set(panels) == {name.replace("_", " ") for name in FACTORS if name != "legs"}
    labels, factors = dataset.scenes(range(drawing.MANY))
    for name, axes in panels.items():
        assert [line.get_label() for line in axes.lines] == list(dataset.class_names)
        for label, line in enumerate(axes.lines):
            legs, values = line.get_data()
            np.testing.assert_array_equal(legs, factors["legs"][labels == label])
            np.testing.assert_array_equal(values, factors[name.replace(" ", "_")][labels == label])

    def told(name: str) -> float:
        """The share of the drawn animals with legs of both classes whose class the factor's half tells."""
        right = []
        for label, line in enumerate(panels[name].lines):
            legs, values = line.get_data()
            right += [(value > 0.5) == label for at, value in zip(legs, values) if OVERLAP[0] <= at <= OVERLAP[1]]
        assert len(right) > 80
        return np.mean(right)

    # Of 200 000 draws: 92.7 and 50 % (docs/worlds.md).
    assert told("color") == pytest.approx(0.927, abs=0.08) and told("shape") == pytest.approx(0.5, abs=0.15)
