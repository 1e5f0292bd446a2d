"""Training by recipe: deterministic given the seed, and resumed after an interruption as if there had been none."""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from .. import interrupt
from ..errors import UserError
from ..rng import generator, seed_of
from ..store.files import remove_leftovers
from . import checkpoint as files
from .accuracy import share_right
from .batch_norm import add_batch_norm, fold_batch_norm
from .labelled import ImageSource
from .losses import Objective, Weights, objective, right
from .recipe import Recipe
from .transfer import frozen

Progress = Callable[[int, int, Mapping[str, float]], None]


def train(
    module: nn.Module,
    recipe: Recipe,
    images: ImageSource,
    *,
    seed: int | None = None,
    validation: ImageSource | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    keep: Callable[[int, Mapping[str, torch.Tensor]], None] | None = None,
) -> dict[str, list[float]]:
    """Train the network in place -> {"loss": one per epoch, "accuracy": one per epoch}, over the epoch's own batches.

    With `loss: flow` there are the "bits_per_dimension" too; with real labels there is no accuracy.
    seed: instead of the recipe's. validation: for recipes that look at it, which add the accuracy (of real labels
    R squared) and the loss there, "validation" and "validation_loss", to what is returned.
    checkpoint: a file for the state (weights, optimiser, history), replaced after every epoch. If it holds the state
    of this very training, that is taken up, and the weights end up bit for bit what they are without the interruption
    (on one machine, with one thread count); any other content is ignored and replaced.
    progress: called after every epoch with (epochs done, epochs, {"loss": ..., "accuracy": ..., ...} of this epoch).
    keep: called for every epoch of `recipe.keep` with its number and the weights as they would be if the training ended
    there; before its checkpoint is written, so that no interruption loses them.
    The network ends up in evaluation mode without gradients.
    Raises UserError if the loss stops being finite, and ValueError if validation images are asked for and absent.
    """
    if recipe.validates and validation is None:
        raise ValueError(
            f"select={recipe.select}, schedule={recipe.schedule}, patience={recipe.patience} needs validation images"
        )
    seed = recipe.seed if seed is None else seed
    device, whole = next(module.parameters()).device, module
    if recipe.frozen is not None:
        sources = [images] if validation is None else [images, validation]
        module, (images, *rest) = frozen(module, recipe.frozen, sources)
        validation = rest[0] if rest else None
    _prepare_one(module, recipe)
    optimizer = recipe.make_optimizer(module)
    identity = {
        "recipe": json.dumps(recipe.described() | {"seed": seed}, sort_keys=True),
        "data": images.identity,
    }
    history, best = _take_up(checkpoint, identity, module, optimizer)
    weights = Weights.rarity(images.labels) if recipe.loss == "weighted_mse" else None
    if keep is not None and 0 in recipe.keep and not history["loss"]:
        keep(0, _as_finished(whole, recipe))
    # Kernels that add in a varying order would make two trainings differ.
    with (
        torch.enable_grad(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        for epoch in range(len(history["loss"]), recipe.epochs):
            losses = history.get("validation_loss", [])
            if recipe.is_over(losses):
                break
            torch.manual_seed(seed_of(seed, "recipe", epoch, "network"))
            random = generator(seed, "recipe", epoch)
            found = _train_epoch(module, recipe, images, optimizer, epoch, random, weights, losses)
            if not math.isfinite(found["loss"]):
                raise UserError(
                    f"the training diverged in epoch {epoch + 1}: try a smaller model.recipe.lr={recipe.lr}"
                )
            for name, value in found.items():
                history.setdefault(name, []).append(value)
            if recipe.validates and validation is not None:
                share, loss = _validated(module.eval(), recipe, validation, weights)
                shares, losses = (history.setdefault(name, []) for name in ("validation", "validation_loss"))
                by_loss, by_share = loss < min(losses, default=math.inf), share > max(shares, default=-math.inf)
                if by_share if recipe.select == "best" else by_loss:
                    best = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
                shares.append(share)
                losses.append(loss)
            if keep is not None and epoch + 1 in recipe.keep:
                keep(epoch + 1, _as_finished(whole, recipe))
            if checkpoint is not None:
                files.write(checkpoint, _state(module, optimizer, history, best), identity)
                interrupt.answer()
            if progress is not None:
                progress(epoch + 1, recipe.epochs, found)
    finish(module, recipe, {} if recipe.select == "last" else best)
    whole.to(memory_format=torch.contiguous_format)
    return history


def prepare(module: nn.Module, recipe: Recipe) -> None:
    """Make a network ready to be trained, in place."""
    if recipe.folds:
        add_batch_norm(module)
    module.train().requires_grad_(True)


def _prepare_one(module: nn.Module, recipe: Recipe) -> None:
    """As `prepare`, of a network that is trained alone: on a CPU, channels last take two thirds of the time."""
    prepare(module, recipe)
    if next(module.parameters()).device.type == "cpu":
        module.to(memory_format=torch.channels_last)


def seconds_of_step(module: nn.Module, recipe: Recipe, images: ImageSource, steps: int = 3) -> float:
    """Seconds that a step of `train` takes, from a few steps after a first one; the network is not to be used after."""
    _prepare_one(module, recipe)
    optimizer, like, times = recipe.make_optimizer(module), next(module.parameters()), []
    positions = torch.arange(min(recipe.batch_size, len(images)))
    with torch.enable_grad():
        for _ in range(steps + 1):
            started = time.perf_counter()
            inputs, labels = images.batch(positions, like)
            _step(module, recipe, optimizer, inputs, labels, None)
            times.append(time.perf_counter() - started)
    return sum(times[1:]) / steps


def finish(module: nn.Module, recipe: Recipe, best: Mapping[str, torch.Tensor]) -> None:
    """Make a trained network ready to be used, in place, with the weights `best` if there are any."""
    if best:
        module.load_state_dict(best)
    module.eval().requires_grad_(False)
    if recipe.folds:
        fold_batch_norm(module)


def _as_finished(module: nn.Module, recipe: Recipe) -> Mapping[str, torch.Tensor]:
    """The weights of a network in training as `finish` would leave them."""
    finished = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    finish(finished, recipe, {})
    return finished.state_dict()


@torch.no_grad()
def _validated(
    module: nn.Module, recipe: Recipe, images: ImageSource, weights: Weights | None, batch_size: int = 64
) -> tuple[float, float]:
    """The accuracy (see `accuracy_on`) and the mean loss of a network in evaluation mode."""
    like, lost, answers = next(module.parameters()), 0.0, []
    for positions in torch.arange(len(images)).split(batch_size):
        inputs, labels = images.batch(positions, like)
        found = objective(recipe.loss, module, inputs, labels, None, recipe.supervised, weights)
        answers.append((found.logits, labels))
        lost += found.loss.item() * len(positions)
    return share_right(answers, recipe.loss), lost / len(images)


def _train_epoch(
    module: nn.Module,
    recipe: Recipe,
    images: ImageSource,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    random: torch.Generator,
    weights: Weights | None,
    losses: Sequence[float],
) -> dict[str, float]:
    """One pass over the images -> the means over it of the loss, the accuracy and what else the loss reports.

    losses: on validation, of the epochs before.
    """
    module.train()
    like = next(module.parameters())
    batches = torch.randperm(len(images), generator=random).split(recipe.batch_size)
    totals: dict[str, torch.Tensor] = {}
    for number, positions in enumerate(batches):
        interrupt.check()
        step, steps = epoch * len(batches) + number, recipe.epochs * len(batches)
        optimizer.param_groups[0]["lr"] = recipe.rate(step, steps, losses)
        inputs, labels = images.batch(positions, like, recipe.augment, random)
        found = _step(module, recipe, optimizer, inputs, labels, random, weights)
        means = {"loss": found.loss.detach(), **found.reported}
        if recipe.reads_vectors or not labels.is_floating_point():
            means["accuracy"] = right(found.logits.detach(), labels, recipe.loss).mean()
        for name, value in means.items():
            totals[name] = totals.get(name, 0) + value.double() * len(positions)
    return {name: total.item() / len(images) for name, total in totals.items()}


def _step(
    module: nn.Module,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    random: torch.Generator | None,
    weights: Weights | None = None,
) -> Objective:
    found = objective(recipe.loss, module, inputs, labels, random, recipe.supervised, weights, recipe.label_smoothing)
    optimizer.zero_grad()
    found.loss.backward()
    if recipe.max_norm is not None:
        nn.utils.clip_grad_norm_(module.parameters(), recipe.max_norm)
    optimizer.step()
    return found


def _state(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: dict[str, list[float]],
    best: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    tensors = {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": v for key, v in values.items() if isinstance(v, torch.Tensor)}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    return tensors | {f"history/{key}": torch.tensor(v, dtype=torch.float64) for key, v in history.items()}


def _take_up(
    path: Path | None, identity: dict[str, str], module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Load the state of this very training, if the file holds it -> its history and the best weights so far."""
    history: dict[str, list[float]] = {"loss": [], "accuracy": []}
    best: dict[str, torch.Tensor] = {}
    if path is None:
        return history, best
    remove_leftovers(path.parent)
    tensors = files.read_own(path, identity)
    if tensors is None:
        return history, best
    state: dict[int, dict[str, torch.Tensor]] = {}
    weights: dict[str, torch.Tensor] = {}
    parameters = [parameter.detach() for parameter in module.parameters()]
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "module":
            weights[rest] = tensor
        elif kind == "best":
            best[rest] = tensor
        elif kind == "history":
            history[rest] = tensor.tolist()
        else:
            index, _, key = rest.partition("/")
            # In the weights' order in memory: in another one the optimiser may round otherwise.
            like = parameters[int(index)]
            state.setdefault(int(index), {})[key] = like.clone().copy_(tensor) if tensor.dim() else tensor
    files.fit(module, weights, str(path))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return history, best
