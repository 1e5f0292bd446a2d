"""Region shares by hand and by a loop."""

import pytest
import torch

from xaibench.datasets.shapes import Shapes
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.ground_truth.region_shares import SEEN_IN, RegionShares
from xaibench.metrics.ranking import collapse

from .two4two import SIDE, study

COUNT = 6


@pytest.fixture(scope="module")
def data():
    return study(COUNT)


def shares(maps, samples, **options):
    metric = RegionShares(**options)
    batch = samples.load(samples.ids)
    columns = metric.evaluate(None, batch, collapse(maps[:, None], "sum", metric.sign), Context(data=samples))
    return metric, columns


def test_equals_a_loop(data):
    dataset, samples = data
    maps = torch.randn(COUNT, SIDE, SIDE)
    _, columns = shares(maps, samples)
    _, blocks = dataset.draw(dataset.scenes(range(COUNT))[1])
    numbers = {"fixed_legs": {1, 2}, "spine": {3, 4, 5, 6}, "moving_legs": {7, 8}}
    numbers |= {"animal": set(range(1, 9)), "background": {0}}
    assert set(numbers) == set(SEEN_IN)
    for i in range(COUNT):
        pairs = list(zip(maps[i].flatten().tolist(), blocks[i].flatten().tolist()))
        total = sum(value for value, _ in pairs if value > 0)
        for name, wanted in numbers.items():
            inside = sum(value for value, block in pairs if value > 0 and block in wanted)
            assert columns[f"share_{name}"][i].item() == pytest.approx(inside / total, abs=1e-9)
            area = sum(block in wanted for _, block in pairs) / SIDE**2
            assert columns[f"area_{name}"][i].item() == pytest.approx(area)


def test_a_map_of_one_part_and_one_of_nothing(data):
    dataset, samples = data
    regions = dataset.regions(samples.ids)
    _, columns = shares(regions["moving_legs"].float(), samples)
    assert torch.equal(columns["share_moving_legs"], torch.ones(COUNT, dtype=torch.double))
    assert torch.equal(columns["share_animal"], columns["share_moving_legs"])
    assert not columns["share_spine"].any() and not columns["share_background"].any()
    _, columns = shares(torch.ones(COUNT, SIDE, SIDE), samples)
    assert all(torch.allclose(columns[f"share_{name}"], columns[f"area_{name}"]) for name in SEEN_IN)
    _, columns = shares(-torch.ones(COUNT, SIDE, SIDE), samples)
    assert all(columns[f"share_{name}"].isnan().all() for name in SEEN_IN)


def test_a_map_that_only_looks_at_the_image_names_both_pairs_of_legs_alike(data):
    dataset, _ = data
    areas = {name: masks.sum().item() for name, masks in dataset.regions(range(60)).items()}
    assert areas["moving_legs"] / areas["fixed_legs"] == pytest.approx(1, abs=0.1)


def test_every_row_says_what_is_seen_in_its_region(data):
    metric, columns = shares(torch.ones(COUNT, SIDE, SIDE), data[1])
    for statistic in metric.statistics:
        assert statistic.column in columns and (statistic.per is None or statistic.per in columns)
        name, _, seen = statistic.name.partition(":")
        if name == "moving_over_fixed":
            assert seen == "legs"
            continue
        assert ("color" in seen) == ("shape" in seen) == ("background" not in name)


def test_refusals():
    with pytest.raises(Refusal, match="dataset=two4two"):
        RegionShares().check_data(Shapes())
