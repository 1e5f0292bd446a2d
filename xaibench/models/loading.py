"""From a model's configuration to a Classifier: build the network, load its weights safely, say what it is."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..build import TARGET, build, coerce, describe
from ..errors import Refusal, UserError, first_line, nearest
from . import checkpoint
from .classifier import Classifier
from .digest import weights_digest
from .preprocessing import IMAGENET, Preprocessing
from .relus import last_conv, untangle
from .sentences import ReadsWords, Sentences

log = logging.getLogger(__name__)

RESERVED = ("weights", "mean", "std", "resize", "crop", "interpolation", "input_size", "layers", "recipe", "returns")
BUNDLED = Path(__file__).parent / "checkpoints"
AUTO = "auto"
TORCHVISION = "xaibench.models.torchvision_nets.torchvision_net"  # its frozen name


def load_classifier(
    name: str,
    spec: Mapping[str, Any],
    *,
    output: str = "logit",
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    trained: Callable[[], Path] | None = None,
) -> Classifier:
    """The Classifier that a model yaml describes.

    spec: `_target_` and the parameters of the network, with these keys for the loader:
        weights: null or `random` (random, seed 0); `recipe` (what `xaibench train` made); `bundled:FILE` (shipped with
            the package); the path of a .safetensors, .pt or .pth file; for torchvision's networks the name of its
            weights, such as DEFAULT. Absent: whatever the constructor itself makes.
        mean, std, resize, crop, interpolation: the preprocessing. Absent: none. `auto`: what torchvision measured the
            named weights with, otherwise ImageNet's values, 256 and 224.
        input_size: [C,H,W]. Absent, null or `auto`: from mean and crop.
        layers: alias -> module path. `auto`: `last_conv` of a torchvision network.
        recipe: how to train it (read by `xaibench train`).
        returns: what it returns, if that is no logits: `probabilities`, `log_probabilities`, or `values` of a
            regressor; `logits` to have it believed without a look. Absent: `probe` looks.
    trained: returns the safetensors file that the recipe made; called only for `weights: recipe`.
    Raises UserError for whatever does not fit together.
    """
    network = network_spec(spec)
    definition = describe(network, "model")
    module = build_module(spec)
    arch: Any = definition.get("arch") if definition[TARGET] == TORCHVISION else None
    weights = spec.get("weights")
    enum_name = weights if arch and _is_enum_name(weights) else None

    state: dict[str, torch.Tensor] | None
    class_names: tuple[str, ...] = ()
    values: Mapping[str, Any] = IMAGENET
    if enum_name:
        from . import torchvision_nets

        state, class_names = torchvision_nets.pretrained(arch, enum_name)
        values = torchvision_nets.preprocessing_of(arch, enum_name)
    else:
        state = _read_weights(weights, trained)
    if state is not None:
        checkpoint.fit(module, state, f"model.weights={weights}")

    preprocessing = _preprocessing(spec, values)
    places: Literal["pixels", "words", "columns"] = "pixels"
    if isinstance(module, ReadsWords):
        preprocessing, places = Sentences.of(module), "words"
        size = (module.table.embedding_dim, 1, module.length)
    else:
        size = _input_size(spec, preprocessing)
        # A row is a table's, unless the network says otherwise.
        places = getattr(module, "places", "columns" if size[:2] == (1, 1) else "pixels")
    return Classifier(
        name=name,
        module=on_device(device, module),
        input_size=size,
        preprocessing=preprocessing,
        class_names=class_names,
        layers=_layers(spec, module),
        definition=definition,
        weights_digest=weights_digest(module.state_dict(), definition),
        weights_state="random:0" if "weights" in spec and state is None else "trained",
        returns=spec.get("returns"),
        places=places,
        output=output,
        batch_size=batch_size,
    )


def network_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model yaml that its constructor gets."""
    return {key: value for key, value in spec.items() if key not in RESERVED}


def build_module(spec: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network of a model yaml with random weights from this seed; the global generator is left as it was.

    Compiled modules become those behind them, numbers float32, lazy layers are initialised by one input of the
    model's size, and every ReLU is made a module of its own that hooks can reach (`relus.untangle`), where
    that is known. Raises UserError if `_target_` gives no torch.nn.Module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = build(network_spec(spec), "model")
        if not isinstance(module, nn.Module):
            raise UserError(
                f"model.{TARGET}={spec[TARGET]}: it gives a {type(module).__name__}, expected a torch.nn.Module"
            )
        module = _in_float32(_uncompiled(module), spec)
        if any(is_lazy(parameter) for parameter in (*module.parameters(), *module.buffers())):
            _initialise(module, _input_size(spec, _preprocessing(spec, IMAGENET)), spec)
    return untangle(module)


def start_from(module: nn.Module, initial: str, spec: Mapping[str, Any], frozen: str | None = None) -> None:
    """Give a new network the weights of another task, in place: those of the same name and shape, see `recipe.Recipe`.

    Raises UserError if there are none, or not all that the layer `frozen` and those before it need.
    """
    where = "model.recipe.initial"
    if _is_enum_name(initial):
        from . import torchvision_nets

        state: Mapping[str, torch.Tensor] = torchvision_nets.pretrained(str(spec.get("arch")), initial, where)[0]
    else:
        state = checkpoint.read(initial, where)
    own = module.state_dict()
    taken = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    missing = list(own) if frozen is None and not taken else []
    if frozen is not None:
        # In the order of the modules: the layer and all before it.
        paths = [path for path, _ in module.named_modules()]
        last = max((place for place, path in enumerate(paths) if f"{path}.".startswith(f"{frozen}.")), default=-1)
        missing = [name for name in own if name.rpartition(".")[0] in paths[: last + 1] and name not in taken]
    if missing:
        what = f"what is frozen by {frozen}" if frozen else "any layer of the network"
        raise UserError(
            f"{where}={initial}: it does not hold {what}, such as {missing[0]} {list(own[missing[0]].shape)}"
        )
    module.load_state_dict(taken, strict=False)


def _uncompiled(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, wherever it was used: what was compiled can be neither traced nor hooked."""
    module = getattr(module, "_orig_mod", module)
    for part in list(module.modules()):
        if not isinstance(part, torch.jit.ScriptModule):
            part._compiled_call_impl = None  # of `module.compile()`
            for name, child in part.named_children():
                setattr(part, name, getattr(child, "_orig_mod", child))
    return module


def _in_float32(module: nn.Module, spec: Mapping[str, Any]) -> nn.Module:
    """Numbers of one precision: inputs, maps and stored outputs are float32."""
    kinds = {tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()}
    if others := sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32}):
        log.warning("%s is of %s: it is run in float32", spec[TARGET], ", ".join(others))
        module.float()
    return module


@torch.no_grad()
def _initialise(module: nn.Module, size: tuple[int, int, int], spec: Mapping[str, Any]) -> None:
    """One forward pass, after which lazy layers know their shapes."""
    try:
        module.eval()(torch.zeros(1, *size))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"model.{TARGET}={spec[TARGET]}: its lazy layers cannot be initialised by an input of {list(size)}: "
            f"{first_line(error)}"
        ) from error


@torch.no_grad()
def check_input(classifier: Classifier, image: torch.Tensor, classes: int = 0) -> int:
    """One forward pass of a preprocessed image [C,H,W] -> the number of outputs K.

    classes: how many classes the labels may name. Raises UserError if the image does not have the model's input
    size, if the network fails on it, if it returns anything but logits [1,K], or if K < classes (K = 1 is a scalar).
    """
    name, shape = classifier.name, list(image.shape)
    if tuple(shape) != tuple(classifier.input_size):
        raise UserError(
            f"the data set's inputs are {shape} after preprocessing, {name} takes {list(classifier.input_size)}\n"
            f"choose another model or data set, or set {_size_hint(shape, classifier)}"
        )
    try:
        logits = classifier.module(image[None].to(classifier.device, classifier.dtype))
    except RuntimeError as error:
        raise UserError(f"{name} cannot take an input of {shape}: {first_line(error)}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{name} returns {got} for one image: expected a tensor of logits [1, classes]")
    if 1 < logits.shape[1] < classes:
        raise UserError(f"{name} has {logits.shape[1]} outputs, the data set {classes} classes: expected as many")
    return logits.shape[1]


def _size_hint(shape: list[int], classifier: Classifier) -> str:
    """What may make inputs and a network fit: rows have no geometry, and networks of rows take any width."""
    if shape[:2] == list(classifier.input_size)[:2] == [1, 1]:
        return f"model.input_size=[1,1,{shape[2]}]"
    return "model.resize and model.crop"


def _is_enum_name(weights: Any) -> bool:
    return isinstance(weights, str) and weights not in ("random", "recipe") and not names_file(weights)


def names_file(weights: str) -> bool:
    """Whether weights are given as a file, ours or the user's."""
    return weights.startswith("bundled:") or "/" in weights or Path(weights).suffix in checkpoint.SUFFIXES


def _read_weights(weights: Any, trained: Callable[[], Path] | None) -> checkpoint.State | None:
    if weights is None or weights == "random":
        return None
    if weights == "recipe":
        if trained is None:
            raise UserError(
                "model.weights=recipe: nothing is trained yet, run xaibench train with this model and dataset"
            )
        return checkpoint.read(trained(), "model.weights")
    if isinstance(weights, str) and weights.startswith("bundled:"):
        return checkpoint.read(BUNDLED / weights.removeprefix("bundled:"), "model.weights")
    if isinstance(weights, str) and Path(weights).suffix in checkpoint.SUFFIXES:
        return checkpoint.read(weights, "model.weights")
    raise UserError(
        f"model.weights={weights}: expected null, random, recipe, bundled:FILE, or the path of a .safetensors, .pt or "
        ".pth file (only torchvision's networks have weights by name, such as DEFAULT)"
    )


def _preprocessing(spec: Mapping[str, Any], automatic: Mapping[str, Any]) -> Preprocessing:
    given = {key: spec[key] for key in ("mean", "std", "resize", "crop", "interpolation") if key in spec}
    values = {key: automatic[key] if value == AUTO else value for key, value in given.items()}
    values = {key: () if value is None and key in ("mean", "std") else value for key, value in values.items()}
    return build({TARGET: f"{Preprocessing.__module__}.Preprocessing", **values}, "model")


def _input_size(spec: Mapping[str, Any], preprocessing: Preprocessing) -> tuple[int, int, int]:
    value = spec.get("input_size")
    if value is None or value == AUTO:
        if preprocessing.crop is None:
            raise UserError("model.input_size is missing: set model.input_size=[channels,height,width]")
        return (len(preprocessing.mean) or 3, preprocessing.crop, preprocessing.crop)
    size = coerce(value, tuple[int, ...], "model.input_size")
    if len(size) != 3 or min(size) < 1:
        raise UserError(f"model.input_size={list(size)}: expected three positive numbers [channels,height,width]")
    return size


def _layers(spec: Mapping[str, Any], module: nn.Module) -> dict[str, str]:
    layers = spec.get("layers") or {}
    if layers == AUTO:
        last = last_conv(module)
        return {} if last is None else {"last_conv": last}
    known = [path for path, _ in module.named_modules() if path]
    for alias, path in layers.items():
        if path not in known:
            raise Refusal(f"model.layers.{alias}={path}: the network has no such module: {nearest(path, known)}")
    return dict(layers)


def on_device(device: torch.device | str, module: nn.Module) -> nn.Module:
    """The module on a device, laid out as its convolutions are fastest there."""
    # On CPUs convolutions with channels-last weights take a third to a half of the time (depthwise ones above all).
    if torch.device(device).type == "cpu":
        module = module.to(memory_format=torch.channels_last)
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: not available here ({first_line(error)})") from error
