"""ROAD's noisy linear imputer: removed pixels are inferred from those that are left, a whole batch on its device.

Rong et al. 2022 ("A Consistent and Efficient Evaluation Strategy for Attribution Methods", section 4) let every
removed pixel be the weighted mean of its neighbours: 1/6 for each of the four beside it, 1/12 for each diagonal one.
At the border the neighbours that exist share the weight, as in the authors' code. That is one linear system per
channel, which other tools solve image by image with a sparse direct solver. Here conjugate gradients solve all of
them at once, preconditioned by one multigrid cycle each step: six or seven steps, whatever is removed.

The arithmetic is so little that its time is that of fetching values and of calling torch. So all memory is taken
before the first step, and what a cycle calls, with which parts of that memory, is a list that is made once.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

LIMIT = 100  # steps; far more than any mask takes
PART = 2**18  # values at a time on a CPU: what its caches hold
DIRECT = 4  # a grid of as many pixels a side, or fewer, is solved directly

Calls = list[Callable[[], object]]


@torch.no_grad()
def impute(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Images [n,C,H,W] whose pixels in masks [n,1,H,W] (1.0 removed, 0.0 left) are inferred from the others; no noise.

    The system is solved to about 1e-5 of the image's largest value (images in float64: 1e-10), each image without
    looking at its neighbours. Where no pixel is left to infer from, every pixel is the channel's mean over the image.
    Raises ArithmeticError if the solver does not converge.
    """
    found = torch.empty_like(images, memory_format=torch.contiguous_format)
    size = max(1, PART // images[0].numel()) if images.is_cpu else len(images)
    size = -(-len(images) // -(-len(images) // size))  # parts of one size, but for the last
    solver = None
    for part in zip(images.split(size), masks.split(size), found.split(size)):
        if solver is None or solver.solution.pixels.shape != part[0].shape:
            solver = _Solver(part[0])
        part[2].copy_(solver.solve(*part[:2]))
    return found


class _Solver:
    """Conjugate gradients for images [n,C,H,W] of the shape, type and device of `like`."""

    def __init__(self, like: torch.Tensor) -> None:
        n, _, *size = like.shape
        self.solution, self.direction = _Planes(like.shape, like), _Planes(like.shape, like)
        self.unknown, self.total, ones = (_Planes((count, 1, *size), like) for count in (n, 1, 1))
        scratch, ones.pixels[:] = _scratch(self.solution), 1
        _run(_around(ones, self.total, scratch, itself=True))
        self.cycle = _Multigrid(like.shape, like.float(), _scratch(_Planes(like.shape, like.float())))
        if like.dtype == torch.float32:  # the less memory, the more of it is in the caches
            self.residual, self.change = self.cycle.residual, self.cycle.spare
        else:
            self.residual, self.change = _Planes(like.shape, like), _Planes(like.shape, like)
        self.around_solution = _around(self.solution, self.residual, scratch, itself=True)
        self.around_direction = _around(self.direction, self.change, scratch, itself=True)

    def solve(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """`impute`, in memory that the next call overwrites."""
        removed = masks.to(images)
        left = (1 - removed).sum((2, 3), keepdim=True)
        mean_left = ((1 - removed) * images).sum((2, 3), keepdim=True) / left.clamp(min=1)
        start = torch.where(left > 0, mean_left, images.mean((2, 3), keepdim=True))
        self.solution.pixels.copy_(images.lerp(start.expand_as(images), removed.expand_as(images)))
        self.unknown.pixels.copy_(removed * (left > 0))
        self.cycle.set(self.unknown.all, self.total.all)
        tolerance = (1e-10 if images.dtype == torch.float64 else 1e-5) * images.abs().amax((1, 2, 3)).view(-1, 1, 1)

        total, unknown, solution = self.total.all, self.unknown.all, self.solution.all
        direction, residual, change = self.direction.all.zero_(), self.residual.all, self.change.all
        _run(self.around_solution)
        residual.addcmul_(total, solution, value=-1).mul_(unknown)
        active, before, energy = tolerance >= 0, torch.zeros_like(tolerance), torch.ones_like(tolerance)
        for _ in range(LIMIT):
            # The cycle nearly inverts the system, so its answer to the residual estimates the error of each pixel.
            error = self.cycle(residual).to(images)
            off = torch.maximum(error.amax(2, keepdim=True), -error.amin(2, keepdim=True))
            # A channel that has converged stands still, whatever the others of the batch still need.
            active = active & (off > tolerance)
            previous, energy = energy, _dot(residual, error)
            torch.addcmul(error, torch.where(active, energy / previous, 0.0), direction, out=direction)
            _run(self.around_direction)
            change.addcmul_(total, direction, value=-1).mul_(unknown)
            stride = torch.where(active, energy / _dot(direction, change), 0.0)
            solution.addcmul_(stride, direction, value=-1)
            residual.addcmul_(stride, change, value=-1)
            # Who was so near that this step arrives if it gained half of what the last one did needs no other.
            active = active & ((off >= before) | (2 * off * off > tolerance * before))
            before = off
            if not active.any():
                return self.solution.pixels
        raise ArithmeticError(f"impute: no solution after {LIMIT} steps")


class _Planes:
    """Planes [n,C,H,W] of 0 one after the other in a vector, each with a row and a column of 0, or two, behind it.

    The neighbours of all pixels are then the vector, shifted, and torch is at its best on long vectors.
    vector: that, with 0 before and behind it. all [n,C,R*S]: the planes with those rows and columns, R and S odd.
    grid: its view [n,C,R,S]. pixels: its view [n,C,H,W]. half: H and W, halved and rounded up. row: S.
    """

    def __init__(self, shape: Sequence[int], like: torch.Tensor) -> None:
        n, channels, height, width = shape
        self.half = (height + 1) // 2, (width + 1) // 2
        self.rows, self.row = (2 * half + 1 for half in self.half)
        self.vector = like.new_zeros(n * channels * self.rows * self.row + 2 * self.row + 2)
        self.all = self.vector[self.row + 1 : -self.row - 1].view(n, channels, -1)
        self.grid = self.all.view(n, channels, self.rows, self.row)
        self.pixels = self.grid[..., :height, :width]

    def at(self, down: int, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
        """A view of the planes, its first value `down` rows below the first pixel."""
        return self.vector.as_strided(shape, strides, (down + 1) * self.row + 1)


class _Multigrid:
    """A V-cycle for the systems of masks `unknown` [n,1,H,W] (float32): residuals [n,C,H,W] -> corrections.

    Each level halves the image: a coarse pixel is unknown if one of its four is, and is held by all the known pixels
    that held those. In two dimensions the weights between pixels stay the same on every level. The smoother is one
    Jacobi step on the way down and one on the way up; for these weights it takes two thirds off all that is rough.

    shape: [n,C,H,W]. like: of the type and on the device. scratch: see `_scratch`.
    """

    def __init__(self, shape: Sequence[int], like: torch.Tensor, scratch: torch.Tensor) -> None:
        n, _, *size = shape
        self.residual, self.guess, self.spare = (_Planes(shape, like) for _ in range(3))
        self.unknown, self.held, inverse, share = (_Planes((n, 1, *size), like) for _ in range(4))
        unknown, weight, spare = self.unknown.all, inverse.all, self.spare
        self.around_unknown = _around(self.unknown, self.held, scratch, itself=True)
        # Every unknown pixel has a neighbour, so the clamps only keep the others from dividing by 0.
        self.prepare: Calls = [
            *_around(self.unknown, inverse, scratch),
            partial(weight.add_, self.held.all),
            partial(weight.clamp_, min=1),
        ]
        if max(size) <= DIRECT:
            inverses = like.new_empty(n, *2 * unknown.shape[2:])
            self.prepare.append(partial(_invert, unknown, weight, _weights(self.unknown), inverses))
            self.calls: Calls = [partial(torch.bmm, self.residual.all, inverses, out=self.guess.all)]
            return
        coarse = _Multigrid((*shape[:2], *self.unknown.half), like, scratch)
        self.prepare += [
            partial(torch.div, unknown, weight, out=weight),
            *_of_four(torch.maximum, self.unknown, coarse.unknown),
            *_of_four(torch.add, self.held, coarse.held),
            # Bilinear interpolation from the unknown pixels alone: the known ones need no correction.
            *_up(coarse.unknown, share, scratch),
            partial(share.all.clamp_, min=1),
            partial(torch.div, unknown, share.all, out=share.all),
            *coarse.prepare,
        ]
        self.calls = [
            partial(torch.mul, self.residual.all, inverse.all, out=self.guess.all),
            # After a Jacobi step from 0 the residual is what the guesses around each pixel say about it.
            *_around(self.guess, spare, scratch),
            partial(spare.all.mul_, share.all),
            *_down(spare, coarse.residual, scratch),
            *coarse.calls,
            *_up(coarse.guess, spare, scratch),
            partial(self.guess.all.addcmul_, share.all, spare.all),
            *_around(self.guess, spare, scratch),
            partial(spare.all.add_, self.residual.all),
            partial(torch.mul, spare.all, inverse.all, out=self.guess.all),
        ]

    def set(self, unknown: torch.Tensor, total: torch.Tensor) -> None:
        """For the system of masks [n,1,R*S]. total [1,1,R*S]: the weights of all
        the neighbours that a pixel has, and 4."""
        self.unknown.all.copy_(unknown)
        _run(self.around_unknown)
        torch.sub(total, self.held.all, out=self.held.all).mul_(self.unknown.all)
        _run(self.prepare)

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        self.residual.all.copy_(residual)
        _run(self.calls)
        return self.guess.all


def _run(calls: Calls) -> None:
    for call in calls:
        call()


def _scratch(planes: _Planes) -> torch.Tensor:
    """Memory for what the calls below keep between them, two vectors that begin with a 0."""
    found = planes.vector.new_empty(2, len(planes.vector))
    found[:, 0] = 0
    return found


def _around(planes: _Planes, out: _Planes, scratch: torch.Tensor, itself: bool = False) -> Calls:
    """Into `out`: twelve times the weighted sum of each pixel's neighbours, 2 for one beside it, 1 for a diagonal one.

    itself: and 4 for the pixel. What is 16 times a pixel less that sum is 0 on a level image, whatever is rounded.
    The rows and columns behind the planes get numbers without a meaning.
    """
    vector, row, found = planes.vector, planes.row, out.all.view(-1)
    beside, column = scratch[:, 1 : len(vector) - 2 * row + 1]
    return [
        partial(torch.add, vector[: -2 * row], vector[2 * row :], out=beside),
        partial(torch.add, beside, vector[row:-row], alpha=2, out=column),
        partial(torch.add, column[:-2], column[2:], out=found),
        partial(found.add_, (column if itself else beside)[1:-1], alpha=2),
    ]


def _up(coarse: _Planes, fine: _Planes, scratch: torch.Tensor) -> Calls:
    """Sixteen times the bilinear interpolation to twice the size, beyond `fine` where that is odd; 0 outside."""
    (height, width), row, count = fine.half, coarse.row, fine.all.shape[:2].numel()
    rows = [coarse.at(down, (count, height, row), (coarse.rows * row, row, 1)) for down in (-1, 0, 1)]
    tall = scratch[0, 1 : count * 2 * height * row + 1].view(count, height, 2, row)
    columns = [
        scratch[0].as_strided((count, 2 * height, width), (2 * height * row, row, 1), place) for place in range(3)
    ]
    found = fine.grid.flatten(0, 1)[:, : 2 * height, : 2 * width].unflatten(2, (width, 2))
    return [
        # Each value becomes two, which lie a quarter of the way to its neighbours.
        *(partial(torch.add, rows[2 * i], rows[1], alpha=3, out=tall[:, :, i]) for i in (0, 1)),
        *(partial(torch.add, columns[2 * i], columns[1], alpha=3, out=found[..., i]) for i in (0, 1)),
    ]


def _down(fine: _Planes, coarse: _Planes, scratch: torch.Tensor) -> Calls:
    """The adjoint of `_up`, which keeps the cycle symmetric. What is behind the planes of `fine` has to be 0."""
    (height, width), row, count = fine.half, fine.row, fine.all.shape[:2].numel()
    rows = [fine.at(down, (count, height, row), (fine.rows * row, 2 * row, 1)) for down in (-1, 0, 1, 2)]
    flat = scratch[0, 1 : count * height * row + 1].view(count, height, row)
    columns = [scratch[0].as_strided((count, height, width), (height * row, row, 2), place) for place in range(4)]
    found = coarse.pixels.flatten(0, 1)
    return [
        call
        for (before, first, second, after), out in ((rows, flat), (columns, found))
        for call in (
            partial(torch.add, before, first, alpha=3, out=out),
            partial(out.add_, second, alpha=3),
            partial(out.add_, after),
        )
    ]


def _of_four(operation: Callable[..., torch.Tensor], fine: _Planes, coarse: _Planes) -> Calls:
    """An operation over each two by two values, beyond `fine` where its size is odd."""
    height, width = fine.half
    parts = [fine.grid[..., y : 2 * height : 2, x : 2 * width : 2] for y in (0, 1) for x in (0, 1)]
    return [
        partial(operation, *parts[:2], out=coarse.pixels),
        *(partial(operation, coarse.pixels, part, out=coarse.pixels) for part in parts[2:]),
    ]


def _weights(planes: _Planes) -> torch.Tensor:
    """What each value [R*S] of a plane weighs for each other in `_around`: [R*S,R*S]."""
    places = torch.cartesian_prod(*(torch.arange(size) for size in planes.grid.shape[2:]))
    apart = (places[:, None] - places).abs()
    near = (apart.amax(2) == 1) * (3 - apart.sum(2))
    return near.to(planes.all)


def _invert(unknown: torch.Tensor, weight: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
    """Into `out` [n,R*S,R*S]: the inverses of the systems, 0 where a pixel is known. unknown, weight: [n,1,R*S]."""
    pairs = unknown.mT * unknown
    system = torch.where(pairs > 0, -weights, 0.0)
    system.diagonal(dim1=1, dim2=2).copy_(torch.where(unknown > 0, weight, 1.0)[:, 0])
    torch.mul(torch.linalg.inv_ex(system).inverse, pairs, out=out)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(a, b)[..., None]
