"""The fill words mean one thing each."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from xaibench.models.preprocessing import Preprocessing
from xaibench.perturb.fills import blurred, filled

from .helpers import FILLS

PREPROCESSING = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


@pytest.fixture
def inputs():
    return torch.randn(4, 3, 12, 9, dtype=torch.float64)


def test_words(inputs):
    pixels = {word: PREPROCESSING.denormalise(filled(inputs, word, PREPROCESSING)) for word in FILLS}
    mean = torch.tensor(PREPROCESSING.mean, dtype=torch.float64).view(3, 1, 1)
    assert torch.allclose(pixels["zero"], mean.expand_as(inputs))
    assert torch.allclose(pixels["black"], torch.zeros_like(inputs), atol=1e-12)
    assert torch.allclose(pixels["white"], torch.ones_like(inputs))
    means = inputs.mean((2, 3), keepdim=True)
    assert torch.allclose(filled(inputs, "channel_mean", PREPROCESSING), means.expand_as(inputs))
    assert torch.equal(filled(inputs, "blur", PREPROCESSING, 2.0), blurred(inputs, 2.0))


@pytest.mark.parametrize("word", FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fill_is_a_new_tensor_like_the_inputs(word, dtype, inputs):
    inputs = inputs.to(dtype)
    before = inputs.clone()
    fill = filled(inputs, word, PREPROCESSING)
    assert fill.shape == inputs.shape and fill.dtype == dtype
    fill += 1
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("word", FILLS)
def test_one_image_does_not_see_the_others(word, inputs):
    alone = torch.cat([filled(image[None], word, PREPROCESSING) for image in inputs])
    assert torch.allclose(alone, filled(inputs, word, PREPROCESSING), rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 5.0])
def test_blur_is_scipys(sigma, inputs):
    for image, found in zip(inputs.flatten(0, 1).numpy(), blurred(inputs, sigma).flatten(0, 1).numpy()):
        expected = ndimage.gaussian_filter(image, sigma, mode="nearest", radius=int(np.ceil(3 * sigma)))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_blur_of_two_features_keeps_a_constant():
    assert torch.allclose(blurred(torch.ones(1, 1, 1, 2), 5.0), torch.ones(1, 1, 1, 2))


def test_other_words_are_refused(inputs):
    with pytest.raises(ValueError, match="did you mean 'black'"):
        filled(inputs, "blakc", PREPROCESSING)
    with pytest.raises(ValueError, match="sigma=0: expected a positive number"):
        blurred(inputs, 0)
