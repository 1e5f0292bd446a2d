"""Networks some of whose layers are made new: a map must change with them if it shows what the network has learned."""

import copy
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError, nearest
from ..rng import seed_of
from .classifier import Classifier

Mode = Literal["cascade", "independent", "bottom_up"]
Init = Literal["he_normal", "normal"]
BatchNorm = Literal["reset", "affine", "keep"]
MODES: tuple[str, ...] = get_args(Mode)
# The weights state of a network that was trained on permuted labels, followed by :SEED.
PERMUTED_LABELS = "permuted_labels"
# Between the first and the last layer of a block that is no module of its own.
TO = ".."


@dataclass(frozen=True)
class Randomisation:
    """Which layers of a network are made new, and how; as text it is the `weights_state` of the network.

    mode: `cascade` is the block and everything above it (Adebayo et al. 2018), `independent` the block alone,
        `bottom_up` the block and everything below it.
    block: as `blocks` names it: a module path, or FIRST..LAST for the layers from one to another.
    seed: each layer draws from a generator of (seed, layer), so that it is the same in every mode and step.
    init: `he_normal` draws weights from N(0, 2 / fan_in) (He et al. 2015), with biases 0, and scales of normalisations
        1; `normal` draws every parameter, those included, from N(0, 0.1^2) (Khakzar 2022, chapter 4).
    batch_norm: `reset` makes a batch normalisation new, running statistics included; `affine` its scale and shift
        only, so that the statistics are those of the trained network, which a random one does not have; `keep` leaves
        it alone.
    """

    mode: Mode
    block: str
    seed: int
    init: Init = "he_normal"
    batch_norm: BatchNorm = "reset"

    def __str__(self) -> str:
        return f"{self.mode}:{self.block}:{self.seed}:{self.init}:{self.batch_norm}"

    @classmethod
    def parse(cls, state: str) -> "Randomisation":
        """The inverse of `str`. Raises UserError for anything else."""
        mode, _, rest = state.partition(":")
        parts = rest.rsplit(":", 3)
        known = mode in MODES and len(parts) == 4 and parts[2] in get_args(Init) and parts[3] in get_args(BatchNorm)
        if not known or not parts[1].isdigit():
            raise UserError(f"weights state {state}: expected MODE:BLOCK:SEED:INIT:BATCH_NORM, {nearest(mode, MODES)}")
        init, batch_norm = cast(Init, parts[2]), cast(BatchNorm, parts[3])
        return cls(cast(Mode, mode), parts[0], int(parts[1]), init, batch_norm)


def is_randomised(state: str) -> bool:
    """Whether a weights state is a `Randomisation`."""
    return state.partition(":")[0] in MODES


def randomised(classifier: Classifier, randomisation: Randomisation) -> Classifier:
    """A copy of the classifier whose named layers are made new; the digest remains that of the weights it came from."""
    module = copy.deepcopy(classifier.module)
    for path in randomised_layers(classifier, randomisation):
        seed = seed_of(randomisation.seed, "randomise", path)
        _renew(module.get_submodule(path), randomisation.init, randomisation.batch_norm, seed)
    return replace(classifier, module=module, weights_state=str(randomisation))


def randomised_layers(classifier: Classifier, randomisation: Randomisation) -> list[str]:
    """The module paths of the layers that are made new. Raises UserError for a block that the network does not have."""
    paths = layers(classifier)
    first, is_range, last = randomisation.block.partition(TO)
    if is_range:
        inside = [path for path in (first, last) if path in paths]
    else:
        inside = [path for path in paths if path == first or path.startswith(f"{first}.")]
    if not inside or (is_range and len(inside) < 2):
        raise UserError(f"block {randomisation.block} is not in {classifier.name}: {nearest(first, paths)}")
    start, end = paths.index(inside[0]), paths.index(inside[-1]) + 1
    if randomisation.mode == "cascade":
        end = len(paths)
    elif randomisation.mode == "bottom_up":
        start = 0
    return paths[start:end]


def blocks(classifier: Classifier, count: int) -> list[str]:
    """The layers of a network in at most `count` consecutive blocks, from the bottom to the top, by name.

    The topmost block is the last layer alone, which the verdict is about; the others hold equally many, the lower ones
    one more where it does not come out even. A normalisation belongs to the layer before it.
    """
    paths = layers(classifier)
    units: list[list[str]] = []
    for path in paths:
        parameters = classifier.module.get_submodule(path).parameters(recurse=False)
        if units and all(parameter.ndim < 2 for parameter in parameters):
            units[-1].append(path)
        else:
            units.append([path])
    groups = min(count, len(units))
    sizes = [len(units)]
    if groups > 1:
        each, more = divmod(len(units) - 1, groups - 1)
        sizes = [each + (number < more) for number in range(groups - 1)] + [1]
    names, start = [], 0
    for size in sizes:
        names.append(_name([path for unit in units[start : start + size] for path in unit], paths))
        start += size
    return names


def layers(classifier: Classifier) -> list[str]:
    """The paths of the modules that have parameters of their own, in the order in which a forward pass calls them.

    One whose weights are read by the module around it comes where that is called; one that is never called is left
    out.
    """
    calls: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: calls.append(path))
        for path, module in classifier.module.named_modules()
    ]
    try:
        with torch.no_grad():
            classifier.module(classifier.blank)
    finally:
        for hook in hooks:
            hook.remove()
    called = {path: place for place, path in enumerate(dict.fromkeys(calls))}
    places: dict[str, int] = {}
    for path, module in classifier.module.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        around = path
        while around and around not in called:
            around = around.rpartition(".")[0]
        if around or not path:
            places[path] = called[around]
    return sorted(places, key=places.__getitem__)


def _name(block: list[str], paths: list[str]) -> str:
    """The path of the largest module that holds the layers of the block and no others; else FIRST..LAST."""
    parts = block[0].split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        if [other for other in paths if other == path or other.startswith(f"{path}.")] == block:
            return path
    return f"{block[0]}{TO}{block[-1]}"


@torch.no_grad()
def _renew(layer: nn.Module, init: Init, batch_norm: BatchNorm, seed: int) -> None:
    is_batch_norm = isinstance(layer, _BatchNorm)
    if is_batch_norm and batch_norm == "keep":
        return
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(layer.named_parameters(recurse=False))
    is_norm = all(parameter.ndim < 2 for parameter in parameters.values())
    for name, parameter in parameters.items():
        new = torch.zeros(parameter.shape)  # drawn on the CPU, so that every device has the same network
        if init == "normal":
            new.normal_(std=0.1, generator=generator)
        elif parameter.ndim > 1:
            nn.init.kaiming_normal_(new, nonlinearity="relu", generator=generator)
        elif is_norm and name == "weight":
            new.fill_(1)
        parameter.copy_(new)
    if isinstance(layer, _BatchNorm) and batch_norm == "reset":
        layer.reset_running_stats()
