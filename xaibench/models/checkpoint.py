"""Weights in files: read so that nothing in the file can run, fitted to a network with every difference named."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..errors import UserError, first_line
from ..store.files import existing, write_atomically
from .fitting import Sized

SUFFIXES = (".safetensors", ".pt", ".pth")
State = dict[str, torch.Tensor]


def read(path: str | Path, where: str) -> State:
    """The state dict in a .safetensors, .pt or .pth file, on the CPU.

    A dict nested under `state_dict` or `model` and the prefixes of data-parallel training and of
    torch.compile are unwrapped.
    where: the config path to name in messages. Raises UserError if the file is missing, damaged, or holds anything
    besides tensors and plain containers; code in it is never run.
    """
    path = existing(path, where)
    content: Any = _read_safetensors(path, where) if path.suffix == ".safetensors" else _read_pickle(path, where)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(
            f"{where}={path}: expected a state dict (names and tensors), it holds a {type(content).__name__}"
        )
    if others := [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(
            f"{where}={path}: expected a state dict (names and tensors), these are no tensors: {', '.join(others[:5])}"
        )
    for prefix in ("module.", "_orig_mod."):
        if content and all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors as a safetensors file, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(plain, dict(metadata or {})))


def read_own(path: Path, metadata: Mapping[str, str]) -> State | None:
    """The tensors of a file that `write` made with this very metadata; None if it is absent, damaged, or another."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if file.metadata() != dict(metadata):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError):
        return None


def fit(module: nn.Module, state: State, where: str) -> None:
    """Load a state dict into the network. Raises UserError naming the first differences and how many there are."""
    if isinstance(module, Sized):
        module.take_sizes(state)
    own = module.state_dict()
    shapes = [
        f"{name} is {list(state[name].shape)} where the network has {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if shapes:
        raise UserError(_misfit(where, [("differ in shape", shapes)], len(state)))
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{where} does not fit the network: {first_line(error)}") from error
    if missing or unexpected:
        raise UserError(_misfit(where, [("missing", missing), ("not in the network", unexpected)], len(state)))


def _misfit(where: str, groups: list[tuple[str, list[str]]], size: int) -> str:
    found = "; ".join(
        f"{len(names)} {what}: {', '.join(names[:3])}" + (", ..." if len(names) > 3 else "")
        for what, names in groups
        if names
    )
    return f"{where} does not fit the network (of {size} tensors in the file)\n{found}"


def _read_safetensors(path: Path, where: str) -> State:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{where}={path}: not a readable safetensors file ({first_line(error)})") from error


def _read_pickle(path: Path, where: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about old pickles; what matters is in the error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names what the file wanted to import; anything but tensors is refused before it can run.
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{where}={path}: refused, it holds {wanted[1]} besides tensors, and loading that could run code\n"
                "save the network's state dict alone: torch.save(model.state_dict(), FILE), or as safetensors"
            ) from error
        raise UserError(
            f"{where}={path}: refused, it is not a file of tensors that can be read without running code"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{where}={path}: not a readable checkpoint ({first_line(error)})") from error
