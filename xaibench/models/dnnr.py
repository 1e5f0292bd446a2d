"""DNNR: nearest neighbours that each know the slope of the function around them (Sixt 2022, chapter 7; ICML 2022)."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import UserError
from ..rng import seed_of

Array = NDArray[np.float64]
Gradients = Literal["least_squares", "lasso", "random", "local", "none"]
Scaling = Literal["none", "learned", "mlkr"]
AT_ONCE = 2048  # least-squares problems that are solved together


class DNNR(nn.Module):
    """Differential nearest neighbours regression of rows [B,1,1,d]: a value [B,1].

    The answer is the mean over the k nearest training rows X_m of Y_m + g_m . (x - X_m), cut to the range of the
    training labels (equation 4; the sign is that of the equation, which the thesis's Algorithm 1 has turned round). The
    slope g_m is that of the least-squares plane through (X_m, Y_m) and the k' nearest other rows of X_m, the smallest
    of several (equation 3 without its division by the distance, as in Algorithm 1). The answer is linear in x as long
    as the neighbours stay, with the slope mean g_m.

    neighbours: k. gradient_neighbours: k'; None is 3 d. Rows equal to X_m are none of its neighbours.
    order: 2 adds H_mj (x_j - X_mj)^2 / 2 for each feature, fitted together with the slope.
    scaling: of what is near. `none`: as the inputs are. `learned`: the distance is that of inputs times a vector, which
        makes distances go with the errors of the linear prediction (equations 5 and 6: their correlation is maximised,
        which the text asks for and the printed minimum does not). It is no importance of features: one with a
        linear effect gets next to nothing. `mlkr`: that of inputs times a matrix, by metric learning for kernel
        regression (Weinberger and Tesauro 2007).
    weighting: `none`, or `distance`, the division by the distance in equation 3.
    clip: whether answers are cut to the range of the training labels.
    gradients: the thesis's ablations: `least_squares` is DNNR; `lasso` has the penalty `penalty` on the sum of |g| (of
        mean squared errors / 2); `random` takes k' rows at random in the place of the nearest (the thesis does not
        define its "DNNR Rand."; this is our reading); `none` is KNN; `local` is the local linear fit LL (Fan 1992): one
        plane through the query's own k' nearest rows, with an intercept.
    epochs, lr: of `learned`; of several epochs the one with the best R squared on a tenth of the rows is kept.

    Raises UserError for numbers out of range.
    """

    points: nn.Parameter  # [n,d], the training rows
    values: nn.Parameter  # [n], their labels
    slopes: nn.Parameter  # [n,d]
    curvatures: nn.Parameter  # [n,d], 0 for the first order
    metric: nn.Parameter  # [d,d], distances are those of x @ metric

    def __init__(
        self,
        neighbours: int = 3,
        gradient_neighbours: int | None = None,
        order: Literal[1, 2] = 1,
        scaling: Scaling = "none",
        weighting: Literal["none", "distance"] = "none",
        clip: bool = True,
        gradients: Gradients = "least_squares",
        penalty: float = 0.01,
        epochs: int = 1,
        lr: float = 0.01,
    ) -> None:
        super().__init__()
        positive = {"neighbours": neighbours, "gradient_neighbours": gradient_neighbours, "epochs": epochs, "lr": lr}
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise UserError(f"model.{name}={value}: expected a positive number")
        if penalty < 0:
            raise UserError(f"model.penalty={penalty}: expected 0 or more")
        self.neighbours, self.gradient_neighbours, self.order = neighbours, gradient_neighbours, order
        self.scaling, self.weighting, self.clip, self.gradients = scaling, weighting, clip, gradients
        self.penalty, self.epochs, self.lr = penalty, epochs, lr
        self._keep(np.zeros((0, 0)), np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((0, 0)))

    # ---- answers ---------------------------------------------------------------------------------------------------

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Values [B,1] of rows [B,1,1,d]; differentiable, with the neighbours held. Before the fit they are 0."""
        rows = inputs.flatten(1)
        if not len(self.values):
            return 0 * rows.sum(1, keepdim=True)
        answers = self._plane(rows) if self.gradients == "local" else self._taylor(rows).mean(1)
        if self.clip:
            answers = answers.clamp(float(self.values.min()), float(self.values.max()))
        return answers[:, None]

    @torch.no_grad()
    def nearest(self, rows: torch.Tensor, count: int | None = None) -> torch.Tensor:
        """The `count` (None: k) training rows that are nearest to rows [B,d]: int64 [B,k], nearest first."""
        # One difference after the other: by a matrix product, answers would depend on the batch.
        far = torch.cdist(
            rows @ self.metric, self.points @ self.metric, compute_mode="donot_use_mm_for_euclid_dist"
        )  # fmt: skip
        return far.topk(min(count or self.neighbours, len(self.points)), largest=False).indices

    def relevance(self, inputs: torch.Tensor) -> torch.Tensor:
        """How much each feature moves each neighbour's answer, |(x - X_m) * g_m| (equation 16): [B,k,d]."""
        rows = inputs.flatten(1)
        near = self.nearest(rows)
        return ((rows[:, None] - self.points[near]) * self.slopes[near]).abs()

    def _taylor(self, rows: torch.Tensor) -> torch.Tensor:
        """What each neighbour answers to rows [B,d]: [B,k]."""
        near = self.nearest(rows)
        steps = rows[:, None] - self.points[near]
        answers = self.values[near] + (self.slopes[near] * steps).sum(-1)
        return answers + (self.curvatures[near] * steps.square()).sum(-1) / 2 if self.order == 2 else answers

    def _plane(self, rows: torch.Tensor) -> torch.Tensor:
        """What the plane through each row's own neighbours answers: [B]."""
        near = self.nearest(rows, self._gradient_neighbours(rows.shape[1]))
        with torch.no_grad():
            points, values = self.points[near], self.values[near]
            centre, mean = points.mean(1), values.mean(1)
            slopes = torch.linalg.pinv(points - centre[:, None], rtol=1e-5) @ (values - mean[:, None])[..., None]
        return mean + ((rows - centre) * slopes[..., 0]).sum(1)

    # ---- the fit ---------------------------------------------------------------------------------------------------

    def fit(self, inputs: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        """Keep the training rows [n,1,1,d] with their labels [n], and find each one's slope; in double precision."""
        points, values = inputs.flatten(1).double().cpu().numpy(), labels.double().cpu().numpy()
        empty = np.zeros_like(points)
        self._keep(points, values, empty, empty, self._metric(points, values, seed), inputs)
        self.find_slopes(seed)

    def find_slopes(self, seed: int) -> None:
        """Find the slopes again, such as those of another `gradient_neighbours`; rows and distance stay."""
        kept = (self.points, self.values, self.metric)
        points, values, metric = (parameter.double().cpu().numpy() for parameter in kept)
        self._keep(points, values, *self._slopes(points, values, metric, seed), metric, self.points)

    def take_sizes(self, state: Mapping[str, torch.Tensor]) -> None:
        """Make room for the training rows of a state dict."""
        for name, kept in list(self.named_parameters()):
            if name in state and state[name].ndim == kept.ndim:
                setattr(self, name, nn.Parameter(kept.new_zeros(state[name].shape), requires_grad=False))

    def _keep(
        self,
        points: Array,
        values: Array,
        slopes: Array,
        curvatures: Array,
        metric: Array,
        like: torch.Tensor | None = None,
    ) -> None:
        kept = {"points": points, "values": values, "slopes": slopes, "curvatures": curvatures, "metric": metric}
        like = torch.empty(0) if like is None else like
        for name, array in kept.items():
            # Parameters, since they say where the network is; nothing trains them.
            setattr(self, name, nn.Parameter(torch.from_numpy(array).to(like), requires_grad=False))

    def _gradient_neighbours(self, features: int) -> int:
        return self.gradient_neighbours or 3 * features

    def _slopes(self, points: Array, values: Array, metric: Array, seed: int) -> tuple[Array, Array]:
        """The slope and the curvature of each training row: [n,d] each."""
        count, features = points.shape
        found = np.zeros((count, features * self.order))
        if self.gradients not in ("none", "local"):
            index, there = nearest_others(points @ metric, self._gradient_neighbours(features))
            if self.gradients == "random":
                draw = np.random.default_rng(seed_of(seed, "dnnr", "random"))
                index = draw.integers(count, size=index.shape)
                there = (points[index] != points[:, None]).any(2)
            for start in range(0, count, AT_ONCE):
                part = slice(start, start + AT_ONCE)
                steps, rises = differences(points, values, index[part], there[part], start)
                if self.order == 2:
                    steps = np.concatenate([steps, steps**2 / 2], axis=2)
                if self.weighting == "distance":
                    far = np.linalg.norm(steps[..., :features], axis=2)
                    far[far == 0] = 1
                    steps, rises = steps / far[..., None], rises / far
                if self.gradients == "lasso":
                    found[part] = lasso(steps, rises, self.penalty)
                else:
                    found[part] = least_squares(steps, rises)
        slopes = found[:, :features]
        return slopes, found[:, features:] if self.order == 2 else np.zeros_like(slopes)

    def _metric(self, points: Array, values: Array, seed: int) -> Array:
        """[d,d]: what distances are measured of is points @ it."""
        if self.scaling == "mlkr":
            return kernel_regression_metric(points, values, seed)
        if self.scaling == "none":
            return np.eye(points.shape[1])
        draw = np.random.default_rng(seed_of(seed, "dnnr", "scaling"))
        held = draw.permutation(len(points))[: len(points) // 10]
        kept = np.setdiff1d(np.arange(len(points)), held)
        scale, best, chosen = np.ones(points.shape[1]), -np.inf, np.ones(points.shape[1])
        if len(held) < 10 or self.epochs == 1:  # nothing to choose by, or from
            kept = np.arange(len(points))
        for _ in range(self.epochs):
            scale = scaling_epoch(points[kept], values[kept], scale, self.lr, draw)
            if not np.isfinite(scale).all():
                break
            found = 0.0 if len(kept) == len(points) else self._held_out(points, values, kept, held, scale, seed)
            if found >= best:
                best, chosen = found, scale
        return np.diag(chosen)

    def _held_out(self, points: Array, values: Array, kept: Any, held: Any, scale: Array, seed: int) -> float:
        """R squared on the rows `held`, by the rows `kept`."""
        metric = np.diag(scale)
        trial = DNNR(self.neighbours, self.gradient_neighbours, self.order, weighting=self.weighting)
        trial.gradients, trial.penalty = self.gradients, self.penalty
        slopes, curvatures = trial._slopes(points[kept], values[kept], metric, seed)
        trial._keep(points[kept], values[kept], slopes, curvatures, metric, torch.empty(0, dtype=torch.float64))
        answers = trial(torch.from_numpy(points[held])).numpy()[:, 0]
        return 1 - float(np.mean((answers - values[held]) ** 2) / max(values[held].var(), 1e-300))


def nearest_others(points: Array, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each of points [n,d] the `count` nearest that differ from it: indices [n,count], nearest first, and which of
    them are there at all (a small table has fewer)."""
    from scipy.spatial import cKDTree  # slow to import, and only a fit needs it

    copies = int(np.unique(points, axis=0, return_counts=True)[1].max())
    found = cKDTree(points).query(points, list(range(1, min(len(points), count + copies) + 1)))
    far, index = np.asarray(found[0]), np.asarray(found[1])
    order = np.argsort(far == 0, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(index, order, 1), np.take_along_axis(far, order, 1) > 0


def differences(points: Array, values: Array, index: Any, there: Any, start: int = 0) -> tuple[Array, Array]:
    """From point start + i to its neighbours index[i]: steps [m,k',d] and rises [m,k'], 0 where there is none."""
    own = slice(start, start + len(index))
    steps = (points[index] - points[own, None]) * there[..., None]
    return steps, (values[index] - values[own, None]) * there


def least_squares(steps: Array, rises: Array) -> Array:
    """g [m,d] that minimise |rises - steps g| of each problem, the smallest of several; a direction that the steps
    cover a million times less than another counts as not covered."""
    across = steps.transpose(0, 2, 1)
    inverse = np.linalg.pinv(across @ steps, rcond=1e-12, hermitian=True)
    return (inverse @ (across @ rises[..., None]))[..., 0]


def lasso(steps: Array, rises: Array, penalty: float, sweeps: int = 100) -> Array:
    """g [m,d] that minimise mean (rises - steps g)^2 / 2 + penalty |g|_1 of each problem, by coordinate descent."""
    gram = np.einsum("mki,mkj->mij", steps, steps) / steps.shape[1]
    aim = np.einsum("mki,mk->mi", steps, rises) / steps.shape[1]
    found = np.zeros_like(aim)
    for _ in range(sweeps):
        for at in range(aim.shape[1]):
            own = gram[:, at, at]
            left = aim[:, at] - np.einsum("mj,mj->m", gram[:, at], found) + own * found[:, at]
            found[:, at] = np.sign(left) * np.maximum(np.abs(left) - penalty, 0) / np.where(own > 0, own, 1)
    return found


def scaling_epoch(points: Array, values: Array, scale: Array, lr: float, draw: np.random.Generator) -> Array:
    """The scale [d] after one step for each point: uphill in the correlation, over its 8 d nearest neighbours, of
    their scaled distance with the error of the point's linear prediction of them."""
    index, there = nearest_others(points * scale, 8 * points.shape[1])
    scale = scale.copy()
    errors, squares = np.zeros(index.shape), np.zeros((*index.shape, points.shape[1]))
    for start in range(0, len(points), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        steps, rises = differences(points, values, index[part], there[part], start)
        slopes = least_squares(steps, rises)[..., None]
        errors[part], squares[part] = np.abs(rises - (steps @ slopes)[..., 0]), steps**2
    for at in draw.permutation(len(points)):
        squared, error = squares[at][there[at]], errors[at][there[at]]
        if len(error) < 2:
            continue
        far = np.sqrt(squared @ scale**2)
        u, v = far - far.mean(), error - error.mean()
        of_u, of_v = np.sqrt(u @ u), np.sqrt(v @ v)
        if of_u < 1e-12 or of_v < 1e-12 or not far.all():
            continue
        uphill = v / (of_u * of_v) - (u @ v) / (of_u**3 * of_v) * u
        scale += lr * ((uphill - uphill.mean()) / far @ squared) * scale
    return scale


def kernel_regression_metric(points: Array, values: Array, seed: int, most: int = 1000, steps: int = 50) -> Array:
    """A [d,d] that minimises the squared leave-one-out error of a Gaussian-kernel average with the distance
    |(x_i - x_j) A| (MLKR), from the identity by L-BFGS; of more than `most` points, of as many drawn ones."""
    draw = np.random.default_rng(seed_of(seed, "dnnr", "mlkr"))
    chosen = draw.permutation(len(points))[:most]
    x, y = torch.from_numpy(points[chosen]), torch.from_numpy(values[chosen])
    matrix = torch.eye(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([matrix], max_iter=steps, line_search_fn="strong_wolfe")
    itself = torch.eye(len(x), dtype=torch.bool)

    def error() -> torch.Tensor:
        optimizer.zero_grad()
        moved = x @ matrix
        squared = moved.square().sum(1)
        far = (squared[:, None] + squared - 2 * moved @ moved.T).masked_fill(itself, torch.inf)
        loss = ((-far).softmax(1) @ y - y).square().mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(error)
    return matrix.detach().numpy().copy()
