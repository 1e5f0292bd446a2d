"""Many small trainings at once: networks of one architecture as one network with a further dimension."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from ..errors import Refusal, UserError
from ..rng import generator
from .accuracy import accuracy_on
from .labelled import ImageSource
from .losses import loss_of
from .recipe import Recipe
from .train import finish, prepare


def train_stacked(
    modules: Sequence[nn.Module],
    recipe: Recipe,
    images: Sequence[ImageSource],
    seeds: Sequence[int],
    validation: Sequence[ImageSource] = (),
) -> None:
    """Train networks of one architecture in place, side by side, each on its own images [N] with its own seed.

    Every network takes the steps that `train.train` would give it alone: the same batches in the same order, the same
    augmentation, the same rates. Rounding differs, and grows over a training, so that a result says which of the two
    made it. It pays on a GPU that one small network leaves idle; on a CPU it is slower than one by one.

    validation: each network's own, for `select: best`.
    The networks end up in evaluation mode without gradients. Raises Refusal for networks with dropout, whose draws
    would differ, for losses that look at a whole batch (`flow`, `weighted_bce`) or at vectors of labels, and for a
    `max_norm`, or what the loss on validation decides, ValueError for images that differ in number, and UserError if a
    loss stops being finite.
    """
    _check(modules, recipe, images)
    for module in modules:
        prepare(module, recipe)
    parameters, buffers = stack_module_state(list(modules))
    like = next(iter(parameters.values()))
    skeleton = copy.deepcopy(modules[0]).to("meta")
    holder = nn.ParameterList(parameters.values())
    optimizer = recipe.make_optimizer(holder)

    def forward(weights: dict[str, torch.Tensor], state: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        return functional_call(skeleton, (weights, state), (inputs,))

    def restore() -> None:
        """Give the networks their weights and statistics as they are now."""
        states = {**dict(zip(parameters, holder)), **buffers}
        for index, module in enumerate(modules):
            module.load_state_dict({name: tensor[index].detach() for name, tensor in states.items()})

    count = len(images[0])
    best: list[tuple[float, dict[str, torch.Tensor]]] = [(-math.inf, {})] * len(modules)
    with (
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        for epoch in range(recipe.epochs):
            draws = [generator(seed, "recipe", epoch) for seed in seeds]
            orders = [torch.randperm(count, generator=draw).split(recipe.batch_size) for draw in draws]
            steps = len(orders[0])
            for number, positions in enumerate(zip(*orders)):
                rate = recipe.rate(epoch * steps + number, recipe.epochs * steps)
                optimizer.param_groups[0]["lr"] = rate
                batches = [
                    part.batch(at, like, recipe.augment, draw) for part, at, draw in zip(images, positions, draws)
                ]
                inputs, labels = (torch.stack(column) for column in zip(*batches))
                logits = vmap(forward)(dict(zip(parameters, holder)), buffers, inputs)
                # The sum of the networks' own mean losses: none of them feels the others.
                losses = loss_of(
                    logits.flatten(0, 1), labels.flatten(), recipe.loss, "none", label_smoothing=recipe.label_smoothing
                )
                loss = losses.view(labels.shape).mean(1).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if not math.isfinite(loss.item()):
                raise UserError(f"a training diverged in epoch {epoch + 1}: try a smaller model.recipe.lr={recipe.lr}")
            if recipe.select == "best":
                restore()
                best = [_better(*one) for one in zip(modules, validation, best, strict=True)]
    restore()
    for module, (_, state) in zip(modules, best):
        finish(module, recipe, state)


def _check(modules: Sequence[nn.Module], recipe: Recipe, images: Sequence[ImageSource]) -> None:
    together = recipe.loss in ("auto", "cross_entropy", "squared_error")
    if not together or recipe.max_norm is not None:
        what = f"max_norm={recipe.max_norm}" if together else f"loss={recipe.loss}"
        raise Refusal(f"networks cannot be trained side by side with model.recipe.{what}: set metric.stack=1")
    if recipe.schedule == "plateau" or recipe.patience is not None or recipe.select == "lowest_loss":
        raise Refusal(
            "networks whose training their own loss on validation decides (schedule=plateau, patience, "
            "select=lowest_loss) cannot be trained side by side: set metric.stack=1"
        )
    if any(isinstance(part, nn.modules.dropout._DropoutNd) for part in modules[0].modules()):
        raise Refusal("networks with dropout cannot be trained side by side: set metric.stack=1")
    if len({len(part) for part in images}) != 1:
        raise ValueError("networks that are trained side by side need the same number of images")


def _better(
    module: nn.Module, images: ImageSource, best: tuple[float, dict[str, torch.Tensor]]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The accuracy and the weights of the best epoch so far."""
    share = accuracy_on(module.eval(), images)
    return (share, copy.deepcopy(module.state_dict())) if share > best[0] else best
