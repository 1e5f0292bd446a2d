import numpy as np
import pytest
import torch

from xaibench.errors import UserError
from xaibench.metrics import ranking
from xaibench.rng import sample_generators


def generators(count, seed=0):
    return sample_generators(seed, "test", range(count))


def test_collapse_and_sign_are_what_their_names_say():
    maps = torch.tensor([1.0, -3.0, 1.0]).view(1, 3, 1, 1)
    values = {how: ranking.collapse(maps, how).item() for how in ranking.COLLAPSES}
    assert values == pytest.approx({"sum": -1.0, "sum_abs": 5.0, "max_abs": 3.0, "mean": -1 / 3})
    assert ranking.collapse(maps, "sum", "absolute").item() == 1
    assert ranking.collapse(maps, "sum", "positive").item() == 0


def test_unknown_words_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'max_abs'"):
        ranking.collapse(torch.zeros(1, 1, 2, 2), "maxabs")
    with pytest.raises(UserError, match="did you mean 'signed'"):
        ranking.collapse(torch.zeros(1, 1, 2, 2), "sum", "sign")


def test_order_is_descending_and_ranks_invert_it():
    values = torch.randn(3, 50)
    order = ranking.descending_order(values, generators(3))
    assert torch.equal(values.gather(1, order), values.sort(1, descending=True).values)
    places = ranking.ranks(order)
    assert torch.equal(places.gather(1, order), torch.arange(50).expand(3, -1))


def test_ties_are_uniform_and_negative_zero_is_zero():
    values = torch.tensor([0.0, -0.0, 0.0, -0.0]).expand(4000, -1)
    first = ranking.descending_order(values, generators(4000))[:, 0]
    shares = torch.bincount(first, minlength=4) / 4000
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_an_order_depends_on_its_sample_and_not_on_its_neighbours():
    values = torch.zeros(3, 20)
    together = ranking.descending_order(values, sample_generators(0, "test", [5, 6, 7]))
    alone = ranking.descending_order(values[:1], sample_generators(0, "test", [6]))
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("height, width, tile", [(12, 12, 4), (11, 7, 4), (5, 5, 8), (1, 2, 1)])
def test_tile_means_and_places_equal_a_loop(height, width, tile):
    maps = torch.randn(2, height, width)
    down, across = ranking.tile_grid(height, width, tile)
    places = ranking.places(maps, generators(2), tile)
    assert places.shape == maps.shape
    for image, means, place in zip(maps.numpy(), ranking.tile_means(maps, tile).numpy(), places.numpy()):
        boxes = [np.s_[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
        expected = [image[box].astype(float).mean() for box in boxes]
        assert means.shape == (down, across)
        np.testing.assert_allclose(means.ravel(), expected, atol=1e-7)
        for rank, index in enumerate(np.argsort([-value for value in expected])):
            assert (place[boxes[index]] == rank).all()


def test_partial_tiles_of_a_constant_map_stay_ties():
    means = ranking.tile_means(torch.full((1, 28, 28), 0.1), 8)
    assert means.unique().numel() == 1
