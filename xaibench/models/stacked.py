"""Many small trainings at once: networks of one architecture as one network with a further dimension."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from ..errors import Refusal, UserError
from ..rng import generator
from .recipe import Images, Recipe, accuracy_on, add_batch_norm, fold_batch_norm, loss_of


def train_stacked(
    modules: Sequence[nn.Module],
    recipe: Recipe,
    images: Sequence[Images],
    seeds: Sequence[int],
    validation: Sequence[Images] = (),
) -> None:
    """Train networks of one architecture in place, side by side, each on its own images [N] with its own seed.

    Every network takes the steps that `recipe.train` would give it alone: the same batches in the same order, the same
    augmentation, the same rates. Rounding differs, and grows over a training, so that a result says which of the two
    made it. It pays on a GPU that one small network leaves idle; on a CPU it is slower than one by one.

    validation: each network's own, for `select: best`.
    The networks end up in evaluation mode without gradients. Raises Refusal for networks with dropout, whose draws
    would differ, ValueError for images that differ in number, and UserError if a loss stops being finite.
    """
    if any(isinstance(part, nn.modules.dropout._DropoutNd) for part in modules[0].modules()):
        raise Refusal("networks with dropout cannot be trained side by side: set metric.stack=1")
    if len({len(part) for part in images}) != 1:
        raise ValueError("networks that are trained side by side need the same number of images")
    for module in modules:
        if recipe.folds:
            add_batch_norm(module)
        module.train().requires_grad_(True)
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

    count, best = len(images[0]), [(-1.0, {})] * len(modules)
    with (
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        for epoch in range(recipe.epochs):
            draws = [generator(seed, "recipe", epoch) for seed in seeds]
            orders = [torch.randperm(count, generator=draw).split(recipe.batch_size) for draw in draws]
            steps = len(orders[0])
            for number in range(steps):
                rate = recipe.rate(epoch * steps + number, recipe.epochs * steps)
                optimizer.param_groups[0]["lr"] = rate
                batches = [
                    part.batch(order[number], like, recipe, draw) for part, order, draw in zip(images, orders, draws)
                ]
                inputs, labels = (torch.stack(column) for column in zip(*batches))
                logits = vmap(forward)(dict(zip(parameters, holder)), buffers, inputs)
                # The sum of the networks' own mean losses: none of them feels the others.
                loss = loss_of(logits.flatten(0, 1), labels.flatten(), "none").view(labels.shape).mean(1).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if not math.isfinite(loss.item()):
                raise UserError(f"a training diverged in epoch {epoch + 1}: try a smaller model.recipe.lr={recipe.lr}")
            if recipe.select == "best":
                restore()
                for index, (module, part) in enumerate(zip(modules, validation, strict=True)):
                    share = accuracy_on(module.eval(), part)
                    if share > best[index][0]:
                        best[index] = share, copy.deepcopy(module.state_dict())
    restore()
    for module, (_, state) in zip(modules, best):
        if state:
            module.load_state_dict(state)
        module.eval().requires_grad_(False)
        if recipe.folds:
            fold_batch_norm(module)
