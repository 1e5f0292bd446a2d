"""Training by recipe: deterministic given the seed, and resumed after an interruption as if there had been none."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import interrupt
from ..errors import UserError, nearest
from ..rng import generator, seed_of
from ..store.files import remove_leftovers
from . import checkpoint as files
from .classifier import Classifier
from .losses import OF_VECTORS, Loss, Objective, Weights, objective, right
from .transfer import frozen

Augment = Literal["none", "crop_flip"]
Schedule = Literal["constant", "step", "one_cycle", "milestones", "decay", "plateau"]
Progress = Callable[[int, int, Mapping[str, float]], None]
# Parameters that came later: recipes that leave them as they are keep the keys of their trainings.
ADDED = (
    "loss", "supervised", "label_smoothing", "max_norm", "milestones", "gamma", "every", "patience", "initial",
    "frozen", "keep",
)  # fmt: skip


class ImageSource(Protocol):
    """What is trained on, as `xaibench.datasets.images.Images` has it: labelled images, asked for by position.

    identity: of the images and what is made of them, for the checkpoint of a training. labels: of all of them, [N], or
    [N,L] where each has a vector of labels.
    """

    identity: str

    @property
    def labels(self) -> torch.Tensor: ...

    def __len__(self) -> int:
        """The number of images."""

    def batch(
        self,
        positions: torch.Tensor,
        like: torch.Tensor,
        augment: Augment = "none",
        random: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Network inputs [B,C,H,W] of the type and on the device of `like`, augmented by draws of `random`; labels."""


class LabelledBatch(Protocol):
    """Network inputs [B,C,H,W] and their labels [B], and where they have several, all of them [B,L]."""

    @property
    def inputs(self) -> torch.Tensor: ...

    @property
    def labels(self) -> torch.Tensor: ...

    @property
    def vectors(self) -> torch.Tensor | None: ...


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    epochs, batch_size, lr, weight_decay: as usual; every epoch sees every sample once, in a new order.
    optimizer, momentum: momentum is Adam's beta1.
    schedule: `constant`; `step`, a tenth of lr after half and a hundredth after three quarters of the training (He et
        al. 2016); `one_cycle`, up to lr and down again in cosines (Smith and Topin 2018, PyTorch's OneCycleLR);
        `milestones`, lr times `gamma` from each of the epochs `milestones` on (PyTorch's MultiStepLR); `decay`, times
        `gamma` after every `every` epochs (StepLR); `plateau`, times `gamma` whenever the loss on the validation split
        has not been lower than before for more than `every` epochs (ReduceLROnPlateau).
    augment: `crop_flip` shifts by up to 4 pixels, black at the border, and mirrors half of the images.
    batch_norm: `folded` trains with batch normalisation behind every biased convolution and folds it in at the end, so
        that the trained network is what its class says; `as_is` trains the network as it is.
    select: `last` keeps the weights of the last epoch, `best` those of the epoch with the highest accuracy (of real
        labels R squared) on the validation split, `lowest_loss` those of the one with the lowest loss there, the first
        one of equals.
    patience: the training ends when the loss on the validation split has not been lower for so many epochs; None:
        after `epochs`.
    seed: of the order, the augmentation and the network's own randomness; the initial weights are the caller's.
    loss: `cross_entropy`; `squared_error` of a scalar output; `auto`, the one of the two that the number of outputs
        says; `weighted_mse`, the squared error times how rare the label is among those of the training (Khakzar 2022,
        chapter 9, eq. 2; the rarest counts 1). Of the vector of labels that examples carry: `bce`, the mean binary
        cross-entropy of an output per label; `weighted_bce`, in which what is present counts beta times, the number of
        absent over that of present labels in the batch (chapter 8, eq. 6, and chapter 9); `zones`, levels of severity
        of each zone, see `losses.zone_losses`. `flow`, for an invertible network, the bits per dimension of its
        inputs, to which U(0, 1/255) is added, plus `supervised` times the cross-entropy of its logits (Sixt 2022,
        section 6.3, whose beta it is).
    label_smoothing: this share of every label is spread evenly over the classes, in cross-entropies (the study draws
        this share of the labels anew, which is the same on average).
    max_norm: a longer gradient is shortened to this norm.
    initial: weights to start from, of another task: a file, or torchvision's by name, such as DEFAULT. What the file
        has of a network's layers is taken, by name and shape; the others, such as a new head, start at random.
    frozen: a layer (module path) up to which the network keeps these weights, it included. What lies before runs once
        per image and is kept in memory, so that only what lies behind costs time. It allows no augmentation.
    keep: after which epochs the weights are kept besides, 0 for those that it begins with: what a network learns when.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    augment: Augment = "none"
    batch_norm: Literal["as_is", "folded"] = "as_is"
    select: Literal["last", "best", "lowest_loss"] = "last"
    seed: int = 0
    loss: Loss = "auto"
    supervised: float = 1.0
    label_smoothing: float = 0.0
    max_norm: float | None = None
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    every: int = 2
    patience: int | None = None
    initial: str | None = None
    frozen: str | None = None
    keep: Sequence[int] = ()

    @property
    def validates(self) -> bool:
        """Whether it looks at the validation split, after each epoch."""
        return self.select != "last" or self.schedule == "plateau" or self.patience is not None

    @property
    def reads_vectors(self) -> bool:
        """Whether it is trained on the vectors of labels that examples carry, and not on the explained ones."""
        return self.loss in OF_VECTORS

    @property
    def folds(self) -> bool:
        return self.batch_norm == "folded"

    def __post_init__(self) -> None:
        for name in ("milestones", "keep"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, words in (("schedule", get_args(Schedule)), ("select", ("last", "best", "lowest_loss"))):
            if getattr(self, name) not in words:
                raise UserError(f"model.recipe.{name}={getattr(self, name)}: {nearest(getattr(self, name), words)}")
        for name in ("epochs", "batch_size", "lr", "gamma", "every"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.recipe.{name}={getattr(self, name)}: expected a positive number")
        if self.supervised < 0:
            raise UserError(f"model.recipe.supervised={self.supervised}: expected a number of 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.recipe.label_smoothing={self.label_smoothing}: expected a share from 0 to below 1")
        for name in ("max_norm", "patience"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"model.recipe.{name}={getattr(self, name)}: expected a positive number, or null")
        if self.schedule == "milestones" and not self.milestones:
            raise UserError(
                "model.recipe.schedule=milestones: expected epochs in model.recipe.milestones, such as [30]"
            )
        if self.frozen is not None and (self.augment != "none" or self.folds or self.loss == "flow"):
            raise UserError(
                f"model.recipe.frozen={self.frozen}: what is frozen runs once, so augment=none, batch_norm=as_is and "
                "another loss than flow"
            )
        if not all(0 <= epoch <= self.epochs for epoch in self.keep):
            raise UserError(f"model.recipe.keep={list(self.keep)}: expected epochs from 0 to {self.epochs}")

    def described(self) -> dict[str, Any]:
        """The parameters, as keys have them."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name not in ADDED or value != defaults[name]}

    def rate(self, step: int, steps: int, losses: Sequence[float] = ()) -> float:
        """The learning rate of this step, counted from 0, of so many. losses: on validation, of the epochs so far."""
        if self.schedule == "step":
            return self.lr * 0.1 ** ((step >= steps / 2) + (step >= steps * 3 / 4))
        if self.schedule == "one_cycle":
            top, last = 0.3 * steps - 1, steps - 1
            if step < top:
                return _cosine(self.lr / 25, self.lr, step / top)
            return _cosine(self.lr, self.lr / 25e4, (step - top) / (last - top))
        epoch = step * self.epochs // steps
        if self.schedule == "milestones":
            return self.lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if self.schedule == "decay":
            return self.lr * self.gamma ** (epoch // self.every)
        if self.schedule == "plateau":
            return self.lr * self.gamma ** _plateaus(losses, self.every)
        return self.lr

    def is_over(self, losses: Sequence[float]) -> bool:
        """Whether it ends early. losses: on validation, of the epochs so far."""
        if self.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.patience

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the network's parameters."""
        if self.optimizer == "adam":
            betas = (self.momentum, 0.999)
            return torch.optim.Adam(module.parameters(), lr=self.lr, betas=betas, weight_decay=self.weight_decay)
        return torch.optim.SGD(module.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


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


def add_batch_norm(module: nn.Module) -> None:
    """Put a batch normalisation behind every convolution that has a bias, in place: that is where it can be folded."""
    convolutions = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and child.bias is not None
    ]
    for parent, name, child in convolutions:
        norm = nn.BatchNorm2d(child.out_channels).to(child.weight)
        setattr(parent, name, nn.Sequential(child, norm))


def fold_batch_norm(module: nn.Module) -> None:
    """Undo `add_batch_norm`, in place: a network in evaluation mode computes the same without them."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential) and [type(part) for part in child] == [nn.Conv2d, nn.BatchNorm2d]:
                setattr(parent, name, fuse_conv_bn_eval(*child).requires_grad_(False))


def accuracy(classifier: Classifier, batches: Iterable[LabelledBatch], loss: Loss = "auto") -> float:
    """How right a network answers samples, see `share_right`. loss: what it was trained by."""
    found = []
    for batch in batches:
        labels = batch.vectors if loss in OF_VECTORS and batch.vectors is not None else batch.labels
        found.append((classifier.logits(batch.inputs), labels))
    return share_right(found, loss)


@torch.no_grad()
def accuracy_on(module: nn.Module, images: ImageSource, batch_size: int = 64, loss: Loss = "auto") -> float:
    """How right a network in evaluation mode answers images, see `share_right`."""
    like = next(module.parameters())
    batches = (images.batch(positions, like) for positions in torch.arange(len(images)).split(batch_size))
    return share_right([(module(inputs), labels) for inputs, labels in batches], loss)


def share_right(answers: Sequence[tuple[torch.Tensor, torch.Tensor]], loss: Loss) -> float:
    """The mean of how right answers are (`losses.right`), given batches of logits and labels. Of real labels [B] it is
    R squared, 1 - squared error / variance of the labels: 1 for all right, 0 for their mean, and below for worse."""
    if loss not in OF_VECTORS and answers[0][1].is_floating_point():
        values, labels = (torch.cat(column).double() for column in zip(*answers))
        errors = (values[:, 0] - labels).square().sum()
        return 1 - (errors / (labels - labels.mean()).square().sum()).item()
    rights = torch.cat([right(logits, labels, loss) for logits, labels in answers])
    return rights.sum().item() / len(rights)


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


def _plateaus(losses: Sequence[float], wait: int) -> int:
    """How often the losses of the epochs so far did not fall below the lowest for more than `wait` epochs."""
    lowest, waited, plateaus = math.inf, 0, 0
    for loss in losses:
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        if waited > wait:
            waited, plateaus = 0, plateaus + 1
    return plateaus


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


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
