"""The linear imputer beside a direct solve of its definition, written down pixel by pixel."""

import pytest
import torch
from torch.nn import functional

from xaibench.perturb import imputer
from xaibench.perturb.imputer import impute

from .helpers import solved

SHARES = (0.01, 0.5, 0.9, 0.99)
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}


def first(order, share):
    """Masks [n,1,H,W] of the share of pixels that come first by `order` [n,H,W]."""
    ranks = order.flatten(1).argsort(1).argsort(1).view_as(order)
    return (ranks < round(share * order[0].numel())).double()[:, None]


def orders(size):
    """Three ways to remove: pixels drawn one by one, one growing block, smooth regions."""
    height, width = size
    y, x = torch.arange(height).view(-1, 1), torch.arange(width)
    block = torch.maximum((y - 0.3 * height).abs(), (x - 0.6 * width).abs())
    smooth = functional.interpolate(torch.randn(1, 1, 4, 4), size, mode="bilinear")[0, 0]
    return torch.stack([torch.rand(size), block, smooth])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", [(48, 48), (37, 53)])
def test_equals_the_direct_solve(size, share, dtype):
    masks = first(orders(size), share)
    images = torch.randn(3, 3, *size, dtype=dtype)
    expected = torch.stack([solved(image, mask) for image, mask in zip(images, masks)])
    got = impute(images, masks.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCES[dtype])
    left = masks.expand_as(images) == 0
    assert torch.equal(got[left], images[left])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_large_holes_of_a_large_image(dtype):
    """A plane solves the system wherever no border is missing, so a hole in a plane gives the plane back."""
    y, x = torch.arange(224).double().view(-1, 1) / 224, torch.arange(224).double() / 224
    image = torch.stack([2 * y - x, x - 3 * y, y * 0 + x * 0 + 1.5]).to(dtype)
    masks = torch.zeros(1, 1, 224, 224, dtype=dtype)
    masks[..., 1:-1, 1:-1] = 1  # 98 % of the pixels
    got = impute(image[None], masks)[0]
    torch.testing.assert_close(got, image, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize(
    "mask",
    [
        lambda y, x: (y + x) % 2 == 0,
        lambda y, x: y % 2 == 0,
        lambda y, x: (y + x) % 8 > 1,
        lambda y, x: (y % 4 == 0) | ((x == 0) & (y % 8 < 4)) | ((x == 40) & (y % 8 >= 4)),
        lambda y, x: (y + x) > 0,
    ],
    ids=["chequers", "stripes", "diagonal walls", "snake", "one pixel left"],
)
def test_masks_that_coarse_grids_cannot_see(mask):
    masks = mask(*torch.meshgrid(torch.arange(41), torch.arange(41), indexing="ij")).double()[None, None]
    images = torch.randn(1, 2, 41, 41, dtype=torch.float64)
    torch.testing.assert_close(impute(images, masks)[0], solved(images[0], masks[0]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (2, 2), (5, 7)])
def test_small_images(size):
    masks = first(torch.rand(4, *size), 0.5)
    images = torch.randn(4, 1, *size, dtype=torch.float64)
    expected = torch.stack([solved(image, mask) for image, mask in zip(images, masks)])
    torch.testing.assert_close(impute(images, masks), expected, rtol=0, atol=1e-8)


def test_all_removed_is_the_channel_mean_and_none_removed_the_image():
    images = torch.randn(3, 3, 11, 13)
    masks = torch.zeros(3, 1, 11, 13)
    masks[0], masks[2, :, :5] = 1, 1
    got = impute(images, masks)
    torch.testing.assert_close(got[0], images[0].mean((1, 2), keepdim=True).expand(3, 11, 13))
    assert torch.equal(got[1], images[1])
    torch.testing.assert_close(got[2].double(), solved(images[2], masks[2]), rtol=0, atol=1e-4)


def test_an_image_does_not_depend_on_its_neighbours():
    images = torch.randn(6, 3, 40, 40, dtype=torch.float64)
    masks = torch.cat([first(orders((40, 40)), share) for share in (0.05, 0.95)])
    images[1] *= 1000
    together = impute(images, masks)
    for i in range(6):
        alone = impute(images[[i]], masks[[i]])[0]
        assert (together[i] - alone).abs().max() <= 1e-9 * images[i].abs().max().clamp(min=1)


def test_a_large_batch_in_parts_is_the_same(monkeypatch):
    images, masks = torch.randn(6, 3, 30, 30, dtype=torch.float64), torch.cat([first(orders((30, 30)), 0.9)] * 2)
    expected = impute(images, masks)
    for values in (1, 7 * 900, 12 * 900):
        monkeypatch.setattr(imputer, "PART", values)
        torch.testing.assert_close(impute(images, masks), expected, rtol=0, atol=1e-9)


def test_the_last_part_overlaps_and_memory_is_used_again(monkeypatch):
    """Eleven images in parts of four, then others of the same shape and of another, by one imputer: as one by one."""
    monkeypatch.setattr(imputer, "PART", 4 * 2 * 900)
    again = imputer.Imputer()
    for count, size in ((11, (30, 30)), (11, (30, 30)), (3, (30, 30)), (5, (20, 45))):
        images = torch.randn(count, 2, *size)
        masks = torch.cat([first(orders(size), share) for share in (0.02, 0.9, 0.5, 0.3)])[:count].float()
        alone = torch.cat([impute(image[None], mask[None]) for image, mask in zip(images, masks)])
        assert torch.equal(again(images, masks), alone)


def test_the_result_follows_scale_and_shift():
    images, masks = torch.randn(3, 2, 30, 30, dtype=torch.float64), first(orders((30, 30)), 0.9)
    expected = impute(images, masks)
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(impute(scale * images, masks), scale * expected, rtol=0, atol=1e-8 * scale)
    torch.testing.assert_close(impute(images + 5, masks), expected + 5, rtol=0, atol=1e-8)


def test_nothing_is_written_into_the_arguments():
    images, masks = torch.randn(3, 2, 20, 20, dtype=torch.float64), first(orders((20, 20)), 0.5)
    before = images.clone(), masks.clone()
    impute(images, masks)
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_cuda_device_gives_the_same_images(dtype):
    images, masks = torch.randn(3, 3, 224, 224, dtype=dtype), first(orders((224, 224)), 0.9).to(dtype)
    got = impute(images.cuda(), masks.cuda()).cpu()
    torch.testing.assert_close(got, impute(images, masks), rtol=0, atol=TOLERANCES[dtype])
