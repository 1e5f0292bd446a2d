"""Pictures of Peekies and Stretchies: rounded blocks under a soft light, and which pixel shows which block.

Geometry after Two4Two (Schuessler, Weiss and Sixt 2020; Sixt 2022, chapter 6), without Blender. The world's x axis
points to the camera, y along the spine at rest and to the picture's right, z up; a unit is the distance of two spine
blocks.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from matplotlib import colormaps

# The blocks in the order of their numbers in a mask, which start at 1: what they are, and their (y, z) at rest. A
# Peeky's moving legs are drawn in to y = 1.5, a Stretchy's stretched out to y = 2.5; the spine ends at y = 2.
BLOCKS = {"fixed_legs": (1, 2), "spine": (3, 4, 5, 6), "moving_legs": (7, 8)}
_REST = ((-1.5, 1.0), (-1.5, -1.0), (-1.0, 0.0), (0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (1.5, 1.0), (1.5, -1.0))

CAMERA = 9.0  # its distance from the animal's plane
HALF_WIDTH = 3.6  # of what it sees there. Blender's default lens has 3.24, which cuts off legs
REACH = 0.66  # from a block's centre to what is farthest from it: the rounded corner of a cube with side 0.8
NEAREST = 1.7  # the most that a block comes towards the camera
STEPS = 7  # of Newton's method
LIGHT = (0.56, 0.52, 0.645)  # from the upper right before the picture; a unit vector

Vector = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # x, y and z, each of the same shape


def render(factors: Mapping[str, torch.Tensor], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [B,3,S,S] and blocks uint8 [B,S,S] for factors, each [B], as in `two4two_sampler.FACTORS`.

    blocks: 0 where a pixel shows nothing but background, otherwise the number of the block that it shows most of. An
    image does not depend on the others in the batch, bit for bit.
    """
    factors = {name: values.float() for name, values in factors.items()}
    rays_per_pixel = 3 if side < 96 else 2  # on each side
    return _paint(factors, _trace(*_pose(factors), factors["shape"], side * rays_per_pixel), side, rays_per_pixel)


# ---- the animal ------------------------------------------------------------------------------------------------------


def _pose(factors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres of the blocks [B,8,3] and their axes [B,8,3,3], a rotation each: local to world coordinates."""
    y, z = (torch.tensor(values).to(factors["legs"]) for values in zip(*_REST))
    moving = torch.arange(1, 9, device=y.device) >= BLOCKS["moving_legs"][0]
    along = y + moving * factors["legs"][:, None] - 0.5  # from the middle of the spine
    # Two bones on either side: the inner one, of length 1, is turned by half of the bending, the outer one by all.
    end, outer = along.sign(), along.abs() > 1
    inner_turn = end * factors["bending"][:, None] / 2
    turn = torch.where(outer, 2 * inner_turn, inner_turn)
    joint = torch.where(outer, end, 0)
    y = joint * inner_turn.cos() + (along - joint) * turn.cos() - z * turn.sin()
    z = joint * inner_turn.sin() + (along - joint) * turn.sin() + z * turn.cos()
    centres = _centred(torch.stack([torch.zeros_like(y), y, z], -1))

    turned = _times(_turn(0, factors["yaw"]), _times(_turn(2, factors["pitch"]), _turn(1, factors["roll"])))[:, None]
    centres = _centred((turned * centres[:, :, None, :]).sum(-1))
    shift = torch.stack([torch.zeros_like(factors["legs"]), factors["position_x"], factors["position_y"]], -1)
    return centres + shift[:, None], _times(turned, _turn(0, turn))


def _centred(points: torch.Tensor) -> torch.Tensor:
    """Points [B,N,3] moved so that the middle of their extent is the origin."""
    return points - (points.amin(1, keepdim=True) + points.amax(1, keepdim=True)) / 2


def _turn(axis: int, angle: torch.Tensor) -> torch.Tensor:
    """Rotations [...,3,3] about an axis of the world, by angles [...]."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    about_the_third = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], -1).unflatten(-1, (3, 3))
    return about_the_third.roll((axis + 1, axis + 1), (-2, -1))


def _times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # Not a matmul, whose last bits depend on the size of the batch.
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


# ---- the rays --------------------------------------------------------------------------------------------------------


class _Hits(NamedTuple):
    """Rays that see a block, in one list [N] over all pictures: which picture, which block from 0, which row and column
    of the picture's rays, and the surface's normal."""

    image: torch.Tensor
    block: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    normal: Vector


def _trace(centres: torch.Tensor, axes: torch.Tensor, shape: torch.Tensor, fine: int) -> _Hits:
    """What fine x fine rays per picture see of blocks with these centres [B,8,3], axes [B,8,3,3] and shape [B].

    A block is a smaller cube with everything within `rounding` of it. The distance to a convex body is convex along a
    ray, so that Newton's steps from outside never overshoot: they end at the surface, or, where the ray stops getting
    nearer, show that it misses.
    """
    half = 0.4 + 0.05 * shape
    rounding = 0.05 + shape * (half - 0.05)
    (image, block, row, column), origin, ray, t = _entering(centres, axes, half, fine)
    core, rounding = (half - rounding)[image], rounding[image]
    gets_nearer = torch.ones_like(t, dtype=torch.bool)
    for step in range(STEPS + 1):
        points = [o + t * r for o, r in zip(origin, ray)]
        beyond = [(p.abs() - core).clamp(min=0) for p in points]
        length = (beyond[0].square() + beyond[1].square() + beyond[2].square()).sqrt()
        distance = length - rounding
        away = [b.copysign(p) / length for b, p in zip(beyond, points)]
        if step < STEPS:
            slope = away[0] * ray[0] + away[1] * ray[1] + away[2] * ray[2]
            gets_nearer &= slope < 0
            t = torch.where(gets_nearer & (distance > 1e-5), t - distance / slope, t)

    hit = gets_nearer & (distance < 2e-3)
    # Blocks hide each other: of those that a ray hits, the nearest is seen.
    place = (image * fine + row) * fine + column
    depth = t.where(hit, math.inf)
    front = torch.full((len(half) * fine * fine,), math.inf, device=t.device).scatter_reduce(0, place, depth, "amin")
    seen = (hit & (depth == front[place])).nonzero()[:, 0]
    image, block = image[seen], block[seen]
    of_block = axes[image, block]
    normal = [sum(away[k][seen] * of_block[:, i, k] for k in range(3)) for i in range(3)]
    return _Hits(image, block, row[seen], column[seen], cast(Vector, tuple(normal)))


def _entering(
    centres: torch.Tensor, axes: torch.Tensor, half: torch.Tensor, fine: int
) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """The rays that enter the cube of half side `half` [B] around a block: picture, block, row and column [N] of each,
    its origin and direction in the block's axes (three [N] each), and the depth t [N] at which it enters."""
    rows, columns = _tiles(centres, fine)
    y = ((columns + 0.5) * (2 / fine) - 1)[..., None, :] * (HALF_WIDTH / CAMERA)
    z = (1 - (rows + 0.5) * (2 / fine))[..., :, None] * (HALF_WIDTH / CAMERA)
    eye = torch.tensor((CAMERA, 0.0, 0.0)).to(centres) - centres
    origins, rays = [], []
    for axis in axes.unbind(-1):
        by_x, by_y, by_z = (part[..., None, None] for part in axis.unbind(-1))
        origins.append((eye * axis).sum(-1)[..., None, None])
        rays.append((y * by_y - by_x) + z * by_z)  # -1 along x: t is the depth below the camera
    enters, leaves = torch.full_like(rays[0], -math.inf), torch.full_like(rays[0], math.inf)
    half = half[:, None, None, None]
    for o, r in zip(origins, rays):
        one, other = (-half - o) / r, (half - o) / r
        enters = torch.maximum(enters, torch.minimum(one, other))
        leaves = torch.minimum(leaves, torch.maximum(one, other))
    inside = ((rows >= 0) & (rows < fine))[..., :, None] & ((columns >= 0) & (columns < fine))[..., None, :]
    at = ((enters <= leaves) & inside).nonzero(as_tuple=True)
    image, block, down, across = at
    where = (image, block, rows[image, block, down], columns[image, block, across])
    return where, [o[image, block, 0, 0] for o in origins], [r[at] for r in rays], enters[at]


def _tiles(centres: torch.Tensor, fine: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns [B,8,T] of the rays that can hit each block; some lie outside of the picture."""
    per_unit = fine / (2 * HALF_WIDTH)
    width = 2 * math.ceil(REACH * CAMERA / (CAMERA - NEAREST - REACH) * per_unit) + 2
    seen = centres[..., 1:] * (CAMERA / (CAMERA - centres[..., :1])) * per_unit
    steps = torch.arange(width, device=centres.device) + fine // 2 - width // 2
    columns = seen[..., 0].floor().long()[..., None] + steps
    rows = (-seen[..., 1]).floor().long()[..., None] + steps
    return rows, columns


# ---- light and colour ------------------------------------------------------------------------------------------------


def _paint(
    factors: Mapping[str, torch.Tensor], hits: _Hits, side: int, rays_per_pixel: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean colour of each pixel's rays, and the block that most of them see -> see `render`."""
    count, device = len(factors["color"]), hits.block.device
    pixel = (hits.image * side + hits.row // rays_per_pixel) * side + hits.column // rays_per_pixel
    share = 1 / rays_per_pixel**2
    shade, shine = _lit(hits.normal)

    def added(values: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(count * side * side, device=device).scatter_add(0, pixel, values * share)
        return total.view(count, 1, side * side)

    animal = _colour(factors["color"]) * added(shade) + added(shine)
    covered = added(torch.ones_like(shade))
    images = animal + _colour(factors["background"]) * _backdrop(side, device) * (1 - covered)
    per_block = torch.zeros(count * side * side, 8, device=device)
    per_block = per_block.index_put((pixel, hits.block), torch.ones_like(shade), accumulate=True)
    blocks = torch.where(covered.flatten() > 0, per_block.argmax(1) + 1, 0)
    as_bytes = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return as_bytes.view(count, 3, side, side), blocks.to(torch.uint8).view(count, side, side)


def _lit(normal: Vector) -> tuple[torch.Tensor, torch.Tensor]:
    """How bright a surface is, and how much of the light it mirrors to the camera: each of the normal's shape."""
    x, y, z = normal
    towards = LIGHT[0] * x + LIGHT[1] * y + LIGHT[2] * z
    mirrored = (2 * towards * x - LIGHT[0]).clamp(0, 1)  # the x part of the mirrored light: the camera is far away
    soft = (0.75 * towards + 0.25).clamp(min=0)  # a wide light reaches around edges
    return 0.40 + 0.66 * soft, 0.14 * mirrored**12


def _colour(value: torch.Tensor) -> torch.Tensor:
    """Blue at 0, grey at 0.5, red at 1: [B] -> [B,3,1]. Red stops short of its darkest, as in the study's pictures."""
    table = _coolwarm().to(value)
    at = torch.where(value > 0.5, 0.5 + 0.9 * (value - 0.5), value) * (len(table) - 1)
    below = at.floor().clamp(0, len(table) - 2)
    return torch.lerp(table[below.long()], table[below.long() + 1], (at - below)[:, None])[..., None]


@functools.cache
def _coolwarm() -> torch.Tensor:
    return torch.tensor([colormaps["coolwarm"](i)[:3] for i in range(256)])


def _backdrop(side: int, device: torch.device) -> torch.Tensor:
    """How bright the wall behind is [S*S]: it fades away from the light, which is at the upper right."""
    at = (torch.arange(side, device=device) + 0.5) / side - 0.5
    return (1 - 0.10 * ((at[:, None] + 0.5) ** 2 + (at[None] - 0.5) ** 2)).flatten()
