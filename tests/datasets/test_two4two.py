"""Pictures of Peekies and Stretchies: against another ray tracer, by hand, and what the data set promises."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from omegaconf import OmegaConf
from scipy.spatial.transform import Rotation

from xaibench.build import build
from xaibench.datasets.two4two import SPLITS, Two4Two
from xaibench.datasets.two4two_renderer import BLOCKS, CAMERA, HALF_WIDTH, render
from xaibench.datasets.two4two_sampler import FACTORS
from xaibench.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
SPECS = {
    name: {k: v for k, v in OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")).items()
           if k not in ("limit", "seed", "filter")}
    for name in ("two4two", "two4two_unbiased")
}  # fmt: skip
AT_REST = {name: 0.0 for name in FACTORS} | {"legs": 0.5, "color": 1.0, "background": 0.1}


@pytest.fixture(scope="module")
def dataset() -> Two4Two:
    return build(SPECS["two4two"], "dataset")


def picture(side=64, **changes):
    return render({name: torch.tensor([value]) for name, value in (AT_REST | changes).items()}, side)


def centre(blocks, *numbers):
    """Row and column of the middle of some blocks."""
    where = torch.isin(blocks, torch.tensor(numbers)).nonzero().float()
    return where.mean(0)


# ---- the picture -----------------------------------------------------------------------------------------------------


def slow_pose(f):
    """Centres and rotations of the blocks by scipy, block by block: the spec's words in their order."""
    rest = [(-1.5, 1), (-1.5, -1), (-1, 0), (0, 0), (1, 0), (2, 0), (1.5 + f["legs"], 1), (1.5 + f["legs"], -1)]
    centres, turns = [], []
    for y, z in rest:
        way = 1 if y > 0.5 else -1
        inner, outer = (Rotation.from_euler("x", way * share * f["bending"]) for share in (0.5, 1))
        if abs(y - 0.5) <= 1:
            centres.append(inner.apply([0, y - 0.5, z]))
            turns.append(inner)
        else:
            centres.append(inner.apply([0, way, 0]) + outer.apply([0, y - 0.5 - way, z]))
            turns.append(outer)

    def centred(points):
        return points - (points.max(0) + points.min(0)) / 2

    posture = Rotation.from_euler("yzx", [f["roll"], f["pitch"], f["yaw"]])  # about the world's axes, in this order
    shift = np.array([0, f["position_x"], f["position_y"]])
    centres = centred(posture.apply(centred(np.array(centres)))) + shift
    return centres, [posture * turn for turn in turns]


def slow_blocks(f, side):
    """What each of side x side rays through pixel centres sees: every block's distance, marched along every ray."""
    centres, turns = slow_pose(f)
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    y, z = np.meshgrid(grid, -grid)
    rays = np.stack([-np.ones_like(y), y * HALF_WIDTH / CAMERA, z * HALF_WIDTH / CAMERA], -1).reshape(-1, 3)
    length = np.linalg.norm(rays, axis=1)
    half = 0.4 + 0.05 * f["shape"]
    rounding = 0.05 + f["shape"] * (half - 0.05)
    seen = np.zeros(len(rays), dtype=int)
    t, active = np.zeros(len(rays)), np.arange(len(rays))
    for _ in range(200):
        points = np.array([CAMERA, 0, 0]) + t[active, None] * rays[active]
        distances = []
        for c, turn in zip(centres, turns):
            q = np.abs(turn.inv().apply(points - c)) - (half - rounding)
            distances.append(np.linalg.norm(q.clip(0), axis=1) + q.max(1).clip(max=0) - rounding)
        nearest = np.min(distances, 0)
        seen[active[nearest < 1e-4]] = np.argmin(distances, 0)[nearest < 1e-4] + 1
        t[active] += nearest / length[active]
        active = active[(nearest >= 1e-4) & (t[active] < 12)]
    return seen.reshape(side, side)


def test_blocks_are_where_another_ray_tracer_sees_them(dataset):
    _, factors = dataset.scenes(range(6))
    for i in range(4):
        f = {name: float(values[i]) for name, values in factors.items()}
        _, blocks = render({name: torch.tensor([value]) for name, value in f.items()}, 32)
        # A pixel has 3 x 3 rays and shows the block of most of those that see one.
        fine = slow_blocks(f, 96).reshape(32, 3, 32, 3).transpose(0, 2, 1, 3).reshape(32, 32, 9)
        counts = np.stack([(fine == k).sum(-1) for k in range(1, 9)])
        expected = np.where(counts.max(0) > 0, counts.argmax(0) + 1, 0)
        assert (blocks[0].numpy() != expected).sum() <= 1  # of 1024: a ray that grazes
        assert len(np.unique(expected)) == 9


def test_a_sphere_is_lit_and_placed_as_by_hand():
    images, blocks = picture(128, shape=1.0, legs=1.0, background=0.05)
    # At rest, legs out: columns of the spine's ends at y = -1.5 and 1.5 about the middle, radius 0.45.
    per_pixel = 2 * HALF_WIDTH / 128
    for number, y in zip(BLOCKS["spine"], (-1.5, -0.5, 0.5, 1.5)):
        row, column = centre(blocks[0], number)
        assert float(column) == pytest.approx(63.5 + y / per_pixel, abs=0.3)
        assert float(row) == pytest.approx(63.5, abs=0.3)
        assert (blocks[0] == number).sum().item() == pytest.approx(math.pi * (0.45 / per_pixel) ** 2, rel=0.12)
    # The light comes from the upper right: there a ball is brighter than at the lower left.
    grey = images[0].float().mean(0)
    ball = (blocks[0] == 4).nonzero()
    middle = ball.float().mean(0)
    towards = (ball[:, 1] - middle[1]) - (ball[:, 0] - middle[0])
    brightness = grey[ball[:, 0], ball[:, 1]]
    assert brightness[towards > 5].mean() > brightness[towards < -5].mean() + 40


def test_legs_stand_where_the_position_says():
    for legs, difference in ((0.0, -0.5), (0.5, 0.0), (1.0, 0.5)):
        _, blocks = picture(256, legs=legs)
        last, moving = (centre(blocks[0], *numbers)[1] for numbers in ((6,), BLOCKS["moving_legs"]))
        assert float(moving - last) * 2 * HALF_WIDTH / 256 == pytest.approx(difference, abs=0.03)


@pytest.mark.parametrize("value", [0.05, 0.3, 0.5, 0.8, 0.95])
def test_the_wall_has_the_colour_of_the_map(value):
    images, blocks = picture(background=value)
    compressed = value if value <= 0.5 else 0.5 + 0.9 * (value - 0.5)
    wall = images[0, :, 0, -1].numpy() / 255  # the corner at the light
    assert wall == pytest.approx(np.array(colormaps["coolwarm"](compressed)[:3]), abs=0.02)
    assert blocks[0, 0, -1] == 0


def test_the_mask_is_where_the_animal_changes_the_picture(dataset):
    _, factors = dataset.scenes(range(40))
    images, blocks = dataset.draw(factors)
    repainted, same = dataset.draw({**factors, "color": 1 - factors["color"]})
    clearly = torch.from_numpy(np.abs(factors["color"] - 0.5) > 0.05)
    assert torch.equal(blocks, same)
    differs = (images != repainted).any(1)
    assert not (differs & (blocks == 0)).any()
    assert (differs | (blocks == 0))[clearly].float().mean() > 0.9999
    # Another wall changes the wall, and leaves alone what is wholly covered.
    other_wall, same = dataset.draw({**factors, "background": 1 - factors["background"]})
    assert torch.equal(blocks, same)
    neighbours = torch.nn.functional.unfold(blocks[:, None].float(), 3, padding=1).view(len(blocks), 9, 64, 64)
    inside = (blocks > 0) & (neighbours == blocks[:, None]).all(1)
    assert inside.float().mean() > 0.02 and not ((images != other_wall).any(1) & inside).any()


def test_no_animal_leaves_the_picture(dataset):
    extremes = {name: torch.rand(200) * (f.high - f.low) + f.low for name, f in FACTORS.items()}
    extremes |= {name: torch.randint(2, (200,)) * (f.high - f.low) + f.low for name, f in list(FACTORS.items())[3:5]}
    _, blocks = render(extremes, 64)
    border = torch.cat([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], 1)
    # With everything at its extreme a corner of a leg may touch the edge; hardly any block is hidden.
    assert (border > 0).any(1).float().mean() < 0.06
    seen = torch.stack([(blocks == k).flatten(1).any(1) for k in range(1, 9)], 1)
    assert seen.float().mean() > 0.99


@pytest.mark.parametrize("side", [64, 128])
def test_a_picture_does_not_depend_on_the_batch(dataset, side):
    _, factors = dataset.scenes(range(12))
    tensors = {name: torch.from_numpy(values) for name, values in factors.items()}
    images, blocks = render(tensors, side)
    for i in range(12):
        image, block = render({name: tensor[i : i + 1] for name, tensor in tensors.items()}, side)
        assert torch.equal(image[0], images[i]) and torch.equal(block[0], blocks[i])


# ---- the data set ----------------------------------------------------------------------------------------------------


def test_examples_are_what_the_contract_says(dataset):
    example = dataset[3]
    assert example.image.shape == (3, 64, 64) and example.image.dtype == torch.uint8
    assert example.mask.shape == (64, 64) and example.mask.dtype == torch.bool
    labels, factors = dataset.scenes([3])
    assert example.label == labels[0]
    images, blocks = dataset.draw(factors)
    assert torch.equal(example.image, images[0]) and torch.equal(example.mask, blocks[0] > 0)


def test_an_image_is_the_same_in_any_order_and_in_threads(dataset):
    _, factors = dataset.scenes(range(30))
    images, _ = dataset.draw(factors)
    with ThreadPoolExecutor(max_workers=4) as pool:
        for index, example in zip(reversed(range(30)), pool.map(dataset.__getitem__, reversed(range(30)))):
            assert torch.equal(example.image, images[index])


def test_an_intervention_changes_one_factor(dataset):
    _, factors = dataset.scenes(range(50))
    for name in FACTORS:
        changed = dataset.intervened(range(50), name)
        assert all((changed[other] == factors[other]).all() for other in FACTORS if other != name)
        assert (changed[name] != factors[name]).all()
    alone = dataset.intervened([7], "pitch")["pitch"]
    assert alone == dataset.intervened(range(50), "pitch")["pitch"][7]


def test_pixels_have_not_changed(dataset):
    """The sums of a few images: where these have to change, raise VERSION."""
    sums = [int(dataset[index].image.long().sum()) for index in (0, 1, 4999)]
    assert sums == [2_397_924, 1_842_181, 1_971_037]


def test_splits_are_disjoint_and_seeds_and_biases_differ(dataset):
    positions = [position for split in SPLITS.values() for position in split]
    assert len(positions) == len(set(positions))
    assert {split: len(Two4Two(split)) for split in SPLITS} == {"train": 20_000, "validation": 5000, "test": 5000}
    bias = SPECS["two4two"]["bias"]
    datasets = [Two4Two(split, bias) for split in SPLITS] + [Two4Two(), Two4Two(bias=bias, generator_seed=1)]
    assert len({example[0].image.numpy().tobytes() for example in datasets}) == 5
    assert len({d.fingerprint for d in [*datasets, dataset, Two4Two(bias=bias, side=128)]}) == 6
    assert Two4Two(side=128)[0].image.shape == (3, 128, 128)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="did you mean 'test'"):
        Two4Two(split="tset")
    with pytest.raises(UserError, match="side=8"):
        Two4Two(side=8)
    with pytest.raises(IndexError):
        Two4Two()[5000]


def test_ten_thousand_images_take_less_than_three_minutes_of_two_cores(dataset):
    start = time.process_time()
    dataset.draw(dataset.scenes(range(128))[1])
    assert (time.process_time() - start) / 128 < 0.036


def test_a_bias_of_ones_own_is_a_yaml(xaibench, here):
    (here / "mine" / "dataset").mkdir(parents=True)
    (here / "mine" / "dataset" / "turned.yaml").write_text(
        "# Peekies turn left.\ndefaults: [two4two_unbiased]\n"
        "bias:\n  yaw: {peeky: {uniform: [0, 1.57]}, stretchy: {uniform: [4.71, 6.28]}}\n"
    )
    arguments = ("run", "--config-dir=mine", "model=two4two_cnn", "model.weights=random", "dataset=turned")
    arguments += ("dataset.limit=2", "method=constant", "metric=region_shares")
    code, out, err = xaibench(*arguments)
    assert code == 0, err
    assert "density_fixed_legs:color+shape" in out
    code, _, err = xaibench(*arguments, "+dataset.bias.yawn=1")
    assert code == 2 and "dataset.bias.yawn is not a factor: did you mean 'yaw'" in err
