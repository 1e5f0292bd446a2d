"""ROAD's noisy linear imputer: removed pixels are inferred from those that are left, a whole batch on its device.

Rong et al. 2022 ("A Consistent and Efficient Evaluation Strategy for Attribution Methods", section 4) let every
removed pixel be the weighted mean of its neighbours: 1/6 for each of the four beside it, 1/12 for each diagonal one.
At the border the neighbours that exist share the weight, as in the authors' code. That is one linear system per
channel, which other tools solve image by image with a sparse direct solver. Here conjugate gradients solve all of
them at once, preconditioned by one multigrid cycle each step: five or six steps, whatever is removed.

The arithmetic is so little that its time is that of fetching values and of calling torch. So all memory is taken
before the first step, and what a cycle calls, with which parts of that memory, is a list that is made once. On a CPU
few images are solved at a time, whose values stay near, and planes begin where a line of its caches does.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

LIMIT = 100  # steps; far more than any mask takes
NEAR = 7e-6  # of an image's largest value: what the estimated errors of its pixels stay under, the true ones twice that
PART = 3 * 2**15  # values at a time on a CPU: of fewer the calls take more, of more the way from memory
LINE = 16  # values of a line of a cache
DIRECT = 4  # a grid of as many pixels a side, or fewer, is solved directly

Calls = list[Callable[[], object]]


class Imputer:
    """Infers removed pixels from the others, without noise; it keeps its memory for the next call."""

    def __init__(self) -> None:
        self._solver: _Solver | None = None

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Images [n,C,H,W] whose pixels in masks [n,1,H,W] (1.0 removed, 0.0 left) are inferred from the others.

        The system is solved to about 1e-5 of the image's largest value (images in float64: 1e-10), each image without
        looking at its neighbours. Where no pixel is left to infer from, every pixel is the channel's mean over the
        image. Raises ArithmeticError if the solver does not converge.
        """
        count = len(images)
        size = min(count, max(1, PART // images[0].numel())) if images.is_cpu else count
        if self._solver is None or not self._solver.fits(images[:size]):
            self._solver = _Solver(images[:size])
        if size == count:
            return self._solver.solve(images, masks).clone(memory_format=torch.contiguous_format)
        found = torch.empty_like(images, memory_format=torch.contiguous_format)
        # The more is removed the more steps it takes: together with its like, an image waits for no other.
        order = masks.sum((1, 2, 3)).argsort(stable=True)
        for start in range(0, count, size):
            # The last part begins in the one before it: the solver is for one size.
            part = order[min(start, count - size) :][:size]
            found.index_copy_(0, part, self._solver.solve(images.index_select(0, part), masks.index_select(0, part)))
        return found


def impute(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One call of an `Imputer`."""
    return Imputer()(images, masks)


class _Solver:
    """Conjugate gradients for images [n,C,H,W] of the shape, type and device of `like`."""

    def __init__(self, like: torch.Tensor) -> None:
        size = like.shape[2:]
        self.solution, self.direction = _Planes(like.shape, like), _Planes(like.shape, like)
        self.total, ones = (_Planes((1, 1, *size), like) for _ in range(2))
        ones.pixels[:] = 1
        _run(_around(ones, self.total, _scratch(ones), itself=True))
        scratch = _scratch(self.solution)
        self.cycle = _Multigrid(like.shape, like, scratch)
        self.around_solution = _around(self.solution, self.cycle.residual, scratch, itself=True)
        self.around_direction = _around(self.direction, self.cycle.spare, scratch, itself=True)

    def fits(self, images: torch.Tensor) -> bool:
        """Whether it is for images such as these."""
        pixels = self.solution.pixels
        return pixels.shape == images.shape and pixels.dtype == images.dtype and pixels.device == images.device

    def solve(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """`Imputer`, in memory that the next call overwrites."""
        removed = masks.to(images)
        torch.lerp(images, images.mean((2, 3), keepdim=True), removed, out=self.solution.pixels)
        torch.mul(removed, removed.amin((2, 3), keepdim=True) < 1, out=self.cycle.unknown.pixels)
        self.cycle.set(self.total.all)
        largest = torch.maximum(images.amax((1, 2, 3)), -images.amin((1, 2, 3))).view(-1, 1, 1)
        tolerance = largest * (1e-10 if images.dtype == torch.float64 else NEAR)

        total, solution, direction = self.total.all, self.solution.all, self.direction.all.zero_()
        residual, error, change = self.cycle.residual.all, self.cycle.guess.all, self.cycle.spare.all
        _run(self.around_solution)
        residual.addcmul_(total, solution, value=-1)
        energy = torch.ones_like(direction[..., :1])
        off, active, least = torch.zeros_like(energy), energy > 0, torch.finfo(energy.dtype).tiny
        for _ in range(LIMIT):
            # The cycle nearly inverts the system, so its answer to the residual estimates the error of each pixel.
            _run(self.cycle.calls)
            before, off = off, torch.maximum(error.amax(2, keepdim=True), -error.amin(2, keepdim=True))
            previous, energy = energy, self._dot(residual, error)
            torch.addcmul(error, energy / previous, direction, out=direction)
            _run(self.around_direction)
            change.addcmul_(total, direction, value=-1)
            stride = active * energy / self._dot(direction, change).clamp_(max=-least)
            solution.addcmul_(stride, direction, value=-1)
            residual.addcmul_(stride, change, value=-1)
            # Who arrives if this step gains half of what the last one did needs no other. A channel that has arrived
            # stands still, whatever the others of the batch still need.
            active = active & (off * (2 * off / before).clamp_(max=1) > tolerance)
            if not active.any():
                return self.solution.pixels
            energy.clamp_(min=least)
        raise ArithmeticError(f"impute: no solution after {LIMIT} steps")

    def _dot(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.mul(a, b, out=self.cycle.other.all).sum(2, keepdim=True)


class _Planes:
    """Planes [n,C,H,W] of 0 one after the other in a vector, each with a row and a column of 0, or more, behind it.

    The neighbours of all pixels are then the vector, shifted, and torch is at its best on long vectors.
    vector: that, with 0 before and behind it. all [n,C,P]: the planes with all that is behind them, P whole lines.
    grid: its view [n,C,R,S]. pixels: its view [n,C,H,W]. half: H and W, halved and rounded up. row: S. size: P.
    """

    def __init__(self, shape: Sequence[int], like: torch.Tensor) -> None:
        n, channels, height, width = shape
        self.half = (height + 1) // 2, (width + 1) // 2
        self.rows, self.row = (2 * half + 1 for half in self.half)
        self.size = _lines(self.rows * self.row)
        self.margin = _lines(self.row + 1)
        self.vector = like.new_zeros(n * channels * self.size + 2 * self.margin)
        self.all = self.vector[self.margin : -self.margin].view(n, channels, self.size)
        self.grid = self.all[..., : self.rows * self.row].unflatten(2, (self.rows, self.row))
        self.pixels = self.grid[..., :height, :width]

    def at(self, place: int, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
        """A view of the planes, its first value `place` values after the first pixel."""
        return self.vector[self.margin + place :].as_strided(shape, strides)


def _lines(count: int) -> int:
    """The values of as many whole lines as hold `count`."""
    return -(-count // LINE) * LINE


class _Multigrid:
    """A V-cycle for the systems of masks `unknown` [n,1,H,W]: residuals [n,C,H,W] -> corrections.

    Each level halves the image: a coarse pixel is unknown if one of its four is, and is held by all the known pixels
    that held those. In two dimensions the weights between pixels stay the same on every level. The smoother is one
    Jacobi step on the way down and one on the way up; for these weights it takes two thirds off all that is rough.

    shape: [n,C,H,W]. like: of the type and on the device. scratch: see `_scratch`.
    """

    def __init__(self, shape: Sequence[int], like: torch.Tensor, scratch: torch.Tensor) -> None:
        n, _, *size = shape
        self.residual, self.guess, self.spare, self.other = (_Planes(shape, like) for _ in range(4))
        self.unknown, self.held, inverse, share = (_Planes((n, 1, *size), like) for _ in range(4))
        unknown, weight = self.unknown.all, inverse.all
        self.around_unknown = _around(self.unknown, self.held, scratch, itself=True)
        # Every unknown pixel has a neighbour, so the clamps only keep the others from dividing by 0.
        self.prepare: Calls = [
            *_around(self.unknown, inverse, scratch),
            partial(weight.add_, self.held.all),
            partial(weight.clamp_, min=1),
        ]
        if max(size) <= DIRECT:
            count, inverses = self.unknown.rows * self.unknown.row, like.new_zeros(n, *2 * unknown.shape[2:])
            few = unknown[..., :count], weight[..., :count], _weights(self.unknown), inverses[:, :count, :count]
            self.prepare.append(partial(_invert, *few))
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
        residual, guess, spare, other = (one.all for one in (self.residual, self.guess, self.spare, self.other))
        self.calls = [
            partial(torch.mul, residual, weight, out=guess),
            # After a Jacobi step from 0 the residual is what the guesses around each pixel say about it.
            *_around(self.guess, self.spare, scratch),
            partial(spare.mul_, share.all),
            *_down(self.spare, coarse.residual, scratch),
            *coarse.calls,
            *_up(coarse.guess, self.spare, scratch),
            partial(torch.addcmul, guess, share.all, spare, out=other),
            *_around(self.other, self.spare, scratch),
            # The second step: what the residual says, which is the first guess, and what the neighbours say.
            partial(guess.addcmul_, weight, spare),
        ]

    def set(self, total: torch.Tensor) -> None:
        """For the masks that are in `unknown`. total [1,1,P]: the weights of all neighbours that a pixel has, and 4."""
        _run(self.around_unknown)
        torch.sub(total, self.held.all, out=self.held.all).mul_(self.unknown.all)
        _run(self.prepare)


def _run(calls: Calls) -> None:
    for call in calls:
        call()


def _scratch(planes: _Planes) -> torch.Tensor:
    """Memory for what the calls below keep between them, two vectors that begin with a line of 0."""
    found = planes.vector.new_empty(2, _lines(len(planes.vector) + LINE))
    found[:, :LINE] = 0
    return found


def _around(planes: _Planes, out: _Planes, scratch: torch.Tensor, itself: bool = False) -> Calls:
    """Into `out`: twelve times the weighted sum of each pixel's neighbours, 2 for one beside it, 1 for a diagonal one.

    itself: and 4 for the pixel. What is 16 times a pixel less that sum is 0 on a level image, whatever is rounded.
    What is behind the planes gets numbers without a meaning.
    """
    found = out.all.view(-1)
    count, row = len(found), planes.row
    # One more value on each side than there are.
    above, here, below = (planes.at(place - 1, (count + 2,), (1,)) for place in (-row, 0, row))
    beside, column = scratch[:, LINE : LINE + count + 2]
    return [
        partial(torch.add, above, below, out=beside),
        partial(torch.add, beside, here, alpha=2, out=column),
        partial(torch.add, column[:-2], column[2:], out=found),
        partial(found.add_, (column if itself else beside)[1:-1], alpha=2),
    ]


def _up(coarse: _Planes, fine: _Planes, scratch: torch.Tensor) -> Calls:
    """Sixteen times the bilinear interpolation to twice the size, beyond `fine` where that is odd; 0 outside.

    Each value becomes two, which lie a quarter of the way to its neighbours: first in a row, then in a column.
    """
    (height, width), count = fine.half, fine.all.shape[:2].numel()
    found = fine.grid.flatten(0, 1)[:, : 2 * height, : 2 * width].unflatten(1, (height, 2))
    wide = scratch[0, LINE : LINE + count * (height + 2) * 2 * width].view(count, height + 2, width, 2)
    # A row of 0 before the first one of a plane and one behind its last.
    places = [
        coarse.at(place - coarse.row, (count, height + 2, width), (coarse.size, coarse.row, 1)) for place in (-1, 0, 1)
    ]
    rows = wide.flatten(2)
    return [
        *(partial(torch.add, places[2 * i], places[1], alpha=3, out=wide[..., i]) for i in (0, 1)),
        *(
            partial(torch.add, rows[:, 2 * i : 2 * i + height], rows[:, 1:-1], alpha=3, out=found[:, :, i])
            for i in (0, 1)
        ),
    ]


def _down(fine: _Planes, coarse: _Planes, scratch: torch.Tensor) -> Calls:
    """The adjoint of `_up`, which keeps the cycle symmetric. What is behind the planes of `fine` has to be 0."""
    (height, width), row, count = fine.half, fine.row, fine.all.shape[:2].numel()
    before, first, second, after = (
        fine.at(place * row, (count, height, row), (fine.size, 2 * row, 1)) for place in (-1, 0, 1, 2)
    )
    size = count * height * row
    flat, pairs = scratch[:, LINE : LINE + size]
    rows = flat.view(count, height, row)
    own, others = (one.as_strided((count, height, width), (height * row, row, 2)) for one in (pairs[1:], flat))
    return [
        partial(torch.add, before, first, alpha=3, out=rows),
        partial(rows.add_, second, alpha=3),
        partial(rows.add_, after),
        # In a row, 1 3 3 1 is 1 2 1 of the sums of two neighbours, the first of which is that of a 0 and a value.
        partial(torch.add, scratch[0, LINE - 1 : LINE + size - 1], flat, out=pairs),
        partial(torch.add, pairs[:-2], pairs[2:], out=flat[:-2]),
        partial(torch.add, others, own, alpha=2, out=coarse.pixels.flatten(0, 1)),
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
