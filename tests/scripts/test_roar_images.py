"""scripts/roar_images.py draws what networks are retrained on: images without the pixels that rank first."""

import h5py
import numpy as np

from xaibench.datasets.shapes import Shapes

FRACTIONS = (0.1, 0.5)


def test_the_pixels_that_rank_first_show_the_mean_and_the_others_the_image(here, script):
    found = script("roar_images").removed(["method=gradient", "metric.fractions=[0.1,0.5]"], 2)
    assert found.tiles.shape == (4, 1 + len(FRACTIONS), 64, 64, 3)
    assert found.rows == ("random", "gradient") * 2 and found.columns == ("image", "without 10%", "without 50%")
    by_sample = {}
    for path in (here / "cache" / "maps").rglob("shard-*.h5"):
        with h5py.File(path) as file:
            if "test" in (path.parent / "spec.json").read_text():
                by_sample |= dict(zip(file["sample"][()].tolist(), file["maps"][()].sum(1)))
    assert len(by_sample) == 2
    for at, (sample, relevance) in enumerate(by_sample.items()):
        image = (Shapes()[sample].image.permute(1, 2, 0).numpy() * 255).round()
        by_random, by_method = found.tiles[2 * at : 2 * at + 2].astype(int)
        assert np.abs(by_random[0] - image).max() <= 1 and np.abs(by_method[0] - image).max() <= 1
        for tile, other, fraction in zip(by_method[1:], by_random[1:], FRACTIONS):
            count = round(fraction * 64 * 64)
            lost = np.zeros(64 * 64, dtype=bool)
            lost[np.argsort(-relevance.ravel())[:count]] = True
            lost = lost.reshape(64, 64)
            assert np.abs(tile[lost] - 127.5).max() <= 1  # the mean of the data set
            assert np.abs(tile[~lost] - image[~lost]).max() <= 1
            # As many at random, and others: among those lost first about the fraction is.
            gone = (np.abs(other - image) > 1).any(-1)
            assert 0.97 * count < gone.sum() <= count and abs(gone[lost].mean() - fraction) < 0.08
