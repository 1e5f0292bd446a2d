"""Preprocessing against torchvision's own, exactly; masks in the images' geometry; clear refusals."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from xaibench.errors import UserError
from xaibench.models import torchvision_nets
from xaibench.models.preprocessing import Preprocessing

# Two resize lengths, two interpolations, a crop other than 224.
WEIGHTS = [
    ("resnet50", "IMAGENET1K_V1"),
    ("resnet50", "IMAGENET1K_V2"),
    ("efficientnet_b0", "IMAGENET1K_V1"),
    ("inception_v3", "IMAGENET1K_V1"),
]


def _equals_torchvision(image: Image.Image) -> None:
    for arch, name in WEIGHTS:
        theirs = models.get_model_weights(arch)[name].transforms()(image)
        ours = Preprocessing(**torchvision_nets.preprocessing_of(arch, name)).image(image)
        assert torch.equal(ours, theirs), (arch, name)


@pytest.mark.shared
def test_equals_torchvision_on_photographs(shared):
    for path in sorted((shared / "data" / "imagenet-samples").glob("*/*.jpg"))[::100]:
        _equals_torchvision(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("size", [(301, 417), (640, 200), (97, 131)])
def test_equals_torchvision_on_noise(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    _equals_torchvision(Image.fromarray(pixels))


def test_a_grey_image_for_a_colour_model_becomes_rgb():
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).image(grey)
    assert image.shape == (3, 8, 8) and torch.equal(image[0], image[2])
    assert torch.equal(image[0], torch.arange(64.0).reshape(8, 8) / 255)


def test_pixels_then_normalise_is_image_and_denormalise_its_inverse():
    preprocessing = Preprocessing(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    pixels = torch.rand(3, 5, 7)
    image = preprocessing.image(pixels)
    torch.testing.assert_close(image[1], (pixels[1] - 0.4) / 0.2)
    torch.testing.assert_close(preprocessing.denormalise(image), pixels)
    torch.testing.assert_close(preprocessing.denormalise(preprocessing.normalise(pixels[None]))[0], pixels)


def test_a_mask_follows_the_crop_of_its_image():
    pixels = torch.rand(1, 61, 80)
    for preprocessing in (Preprocessing(crop=32), Preprocessing(crop=100)):
        mask = preprocessing.mask(pixels[0] > 0.5)
        assert mask.dtype == torch.bool and torch.equal(mask, preprocessing.image(pixels)[0] > 0.5)


def test_a_mask_follows_the_resize_of_its_image():
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[20:40, 40:60] = True
    expected = torch.zeros(30, 30, dtype=torch.bool)
    expected[10:20, 15:25] = True  # halved, then five columns cropped from each side
    assert torch.equal(Preprocessing(resize=30, crop=30).mask(mask), expected)
    graded = Preprocessing(resize=30, crop=30).mask(0.25 * mask)
    assert torch.equal(graded, 0.25 * expected)


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"mean": (0.5,), "std": ()}, "model.mean has 1"),
        ({"mean": (0.5,), "std": (0.0,)}, "model.std"),
        ({"resize": -3}, "model.resize=-3"),
        ({"crop": 0}, "model.crop=0"),
    ],
)
def test_impossible_values_are_refused(parameters, words):
    with pytest.raises(UserError, match=words):
        Preprocessing(**parameters)


def test_the_wrong_number_of_channels_is_named():
    with pytest.raises(UserError, match=r"3 channels but model\.mean has 1"):
        Preprocessing(mean=(0.5,), std=(0.5,)).image(Image.new("RGB", (4, 4)))
