"""ROAD's noisy linear imputer: removed pixels are inferred from those that are left, a whole batch on its device.

Rong et al. 2022 ("A Consistent and Efficient Evaluation Strategy for Attribution Methods", section 4) let every
removed pixel be the weighted mean of its neighbours: 1/6 for each of the four beside it, 1/12 for each diagonal one.
At the border the neighbours that exist share the weight, as in the authors' code. That is one linear system per
channel, which other tools solve image by image with a sparse direct solver. Here conjugate gradients solve all of
them at once, preconditioned by one multigrid cycle each step: seven or eight steps, whatever is removed.
"""

import torch
from torch.nn import functional

LIMIT = 100  # steps; far more than any mask takes
PART = 2**19  # values at a time on a CPU: what its caches hold


@torch.no_grad()
def impute(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Images [n,C,H,W] whose pixels in masks [n,1,H,W] (1.0 removed, 0.0 left) are inferred from the others; no noise.

    The system is solved to about 1e-5 of the image's largest value (images in float64: 1e-10), each image without
    looking at its neighbours. Where no pixel is left to infer from, every pixel is the channel's mean over the image.
    Raises ArithmeticError if the solver does not converge.
    """
    if images.is_cpu and images.numel() > PART and len(images) > 1:
        size = max(1, PART // images[0].numel())
        return torch.cat([impute(*part) for part in zip(images.split(size), masks.split(size))])
    removed, channels = masks.to(images), images.shape[1]
    left = (1 - removed).sum((2, 3), keepdim=True)
    mean_left = ((1 - removed) * images).sum((2, 3), keepdim=True) / left.clamp(min=1)
    start = torch.where(left > 0, mean_left, images.mean((2, 3), keepdim=True))
    solution = images.lerp(start.expand_as(images), removed.expand_as(images))
    unknown = removed * (left > 0)
    cycle, total = _Multigrid(unknown.float(), channels), _each(_around(torch.ones_like(unknown)), channels)
    unknown = _each(unknown, channels)
    tolerance = (1e-10 if images.dtype == torch.float64 else 1e-5) * images.abs().amax((1, 2, 3), keepdim=True)

    residual = _around(solution).sub_(total * solution).mul_(unknown)
    direction, energy = torch.zeros_like(solution), torch.ones_like(solution[..., :1, :1])
    for _ in range(LIMIT):
        # The cycle nearly inverts the system, so its answer to the residual estimates the error of each pixel.
        error = cycle(residual.float()).to(images)
        # A channel that has converged stands still, whatever the others of the batch still need.
        active = error.abs().amax((2, 3), keepdim=True) > tolerance
        if not active.any():
            return solution
        previous, energy = energy, _dot(residual, error)
        direction.mul_(torch.where(active, energy / previous, 0.0)).add_(error)
        change = (total * direction).sub_(_around(direction)).mul_(unknown)
        stride = torch.where(active, energy / _dot(direction, change), 0.0)
        solution.addcmul_(stride, direction)
        residual.addcmul_(stride, change, value=-1)
    raise ArithmeticError(f"impute: no solution after {LIMIT} steps")


class _Multigrid:
    """A V-cycle for the systems of masks `unknown` [n,1,H,W] (float32): residuals [n,C,H,W] -> corrections.

    Each level halves the image: a coarse pixel is unknown if one of its four is, and is held by all the known pixels
    that held those. In two dimensions the weights between pixels stay the same on every level. The smoother is one
    Jacobi step on the way down and one on the way up; for these weights it takes two thirds off all that is rough.

    channels: C.
    """

    def __init__(self, unknown: torch.Tensor, channels: int) -> None:
        self.inverses, self.shares = [], []
        held = unknown * _around(1 - unknown)
        while True:
            # Every unknown pixel has a neighbour, so the clamp only keeps the others from dividing by 0.
            self.inverses.append(_each(unknown / (_around(unknown) + held).clamp(min=1), channels))
            if max(unknown.shape[2:]) == 1:
                return
            finer, unknown = unknown, functional.max_pool2d(_even(unknown), 2)
            held = _of_four(_even(held))
            # Bilinear interpolation from the unknown pixels alone: the known ones need no correction.
            self.shares.append(_each(torch.where(finer > 0, finer / _up(unknown, finer), 0.0), channels))

    def __call__(self, residual: torch.Tensor, level: int = 0) -> torch.Tensor:
        inverse = self.inverses[level]
        guess = inverse * residual
        if level == len(self.shares):
            return guess
        share = self.shares[level]
        # After a Jacobi step from 0 the residual is what the guesses around each pixel say about it.
        coarse = self(_down(_around(guess).mul_(share)), level + 1)
        guess.addcmul_(share, _up(coarse, guess))
        return _around(guess).add_(residual).mul_(inverse)


def _each(planes: torch.Tensor, channels: int) -> torch.Tensor:
    """Planes [n,1,H,W] for each channel, in memory: a product with them takes a tenth of that with one for all."""
    return planes.expand(-1, channels, -1, -1).contiguous()


def _up(coarse: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear interpolation to twice the size, cropped to that of `like`; 0 outside."""
    height, width = like.shape[2:]
    return _doubled(_doubled(coarse, 2), 3)[..., :height, :width]


def _doubled(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Each value along a dimension as two, which lie a quarter of the way to its neighbours; 0 outside."""
    size, quarter, before = values.shape[dim], 0.25 * values, 0.75 * values
    after = before.clone()
    before.narrow(dim, 1, size - 1).add_(quarter.narrow(dim, 0, size - 1))
    after.narrow(dim, 0, size - 1).add_(quarter.narrow(dim, 1, size - 1))
    found = values.new_empty(*values.shape[:dim], 2 * size, *values.shape[dim + 1 :])
    pairs = found.unflatten(dim, (size, 2))
    for place, part in enumerate((before, after)):
        pairs.select(dim + 1, place).copy_(part)
    return found


def _down(fine: torch.Tensor) -> torch.Tensor:
    """The adjoint of `_up`, up to its factor, which keeps the cycle symmetric."""
    return _of_four(_blurred(_even(fine))).div_(16)


def _of_four(fine: torch.Tensor) -> torch.Tensor:
    """The sums of each two by two values; a pooling takes four times as long."""
    rows = fine[..., 0::2, :] + fine[..., 1::2, :]
    return rows[..., 0::2] + rows[..., 1::2]


def _around(values: torch.Tensor) -> torch.Tensor:
    """Twelve times the weighted sum [n,C,H,W] of each pixel's neighbours: 2 for one beside it, 1 for a diagonal one."""
    return _blurred(values).sub_(values, alpha=4)


def _blurred(values: torch.Tensor) -> torch.Tensor:
    """Values [n,C,H,W] under [1, 2, 1] both ways, 0 outside.

    Slices take a tenth of the time of conv2d on a CPU, and are free of TF32 on a GPU.
    """
    padded = functional.pad(values, (1, 1, 1, 1))
    rows = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)
    return (rows[..., :-2] + rows[..., 2:]).add_(rows[..., 1:-1], alpha=2)


def _even(planes: torch.Tensor) -> torch.Tensor:
    """Planes [n,C,H,W] with a row and a column of 0 more where the size is odd."""
    height, width = planes.shape[2:]
    if height % 2 == width % 2 == 0:
        return planes
    return functional.pad(planes, (0, width % 2, 0, height % 2))


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))[..., None, None]
