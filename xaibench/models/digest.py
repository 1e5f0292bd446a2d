"""The identity of a network: its architecture and every number in it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch


def weights_digest(state: Mapping[str, torch.Tensor], definition: Mapping[str, Any]) -> str:
    """sha256 over the sorted (name, dtype, shape, bytes) of a state dict and over the class with its arguments.

    definition: `build.describe` of the network. The file format the numbers came from plays no part.
    """
    sha = hashlib.sha256(json.dumps(definition, sort_keys=True, default=str).encode())
    for name, tensor in sorted(state.items()):
        sha.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        if tensor.numel():
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
