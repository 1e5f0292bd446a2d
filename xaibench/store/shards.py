"""Files of named arrays that prove themselves: HDF5 behind a user block with the sha256 of all that follows it."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SCHEMA = 1
_USER_BLOCK = 512
_MARK = b"xaibench shard sha256="


class CorruptShard(Exception):
    """A shard that is truncated, altered, or not a shard of this artefact."""


def pack(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], compressed: Sequence[str] = ()) -> bytes:
    """Named arrays [n,...] as one HDF5 file in memory: one row per chunk, Fletcher32, and the sha256 of everything
    after the user block inside it. compressed: the arrays for which the time of that is well spent: mostly zeros."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=_USER_BLOCK) as file:
        file.attrs.update(attributes)
        for name, array in arrays.items():
            array = np.ascontiguousarray(array)
            rows = array if array.ndim and array.size else array.reshape(-1)
            # Scalars per row go into one chunk: a chunk of four bytes costs more than it protects.
            chunk = None if not rows.size else ((1, *rows.shape[1:]) if rows.ndim > 1 else rows.shape)
            gzip = "gzip" if name in compressed and chunk else None
            file.create_dataset(name, data=array, chunks=chunk, fletcher32=chunk is not None, compression=gzip)
    data = bytearray(buffer.getvalue())
    data[:_USER_BLOCK] = _user_block(data)
    return bytes(data)


def unpack(data: bytes, key: str) -> dict[str, np.ndarray]:
    """The arrays of a packed file. Raises CorruptShard if a byte has changed or it belongs to another key."""
    if data[:_USER_BLOCK] != _user_block(data):
        raise CorruptShard("it fails its checksum" if data.startswith(_MARK) else "it is cut short or not a shard")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            if file.attrs.get("schema") != SCHEMA or file.attrs.get("key") != key:
                raise CorruptShard("it belongs to another schema or key")
            return {name: file[name][()] for name in file}
    except (OSError, KeyError, RuntimeError) as error:
        raise CorruptShard(f"it cannot be read ({error})") from error


def is_whole(data: bytes, sha256: str) -> bool:
    """Whether these are the bytes of a packed file that states this sha256, and has it."""
    return data.startswith(_block(sha256)) and _sha256(data) == sha256


def stated_sha256(path: Path) -> str:
    """The sha256 that a file states; empty if there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read(_USER_BLOCK)[len(_MARK) : len(_MARK) + 64].decode("ascii", "replace")
    except OSError:
        return ""


def _user_block(data: bytes | bytearray) -> bytes:
    """What the first bytes of a packed file must be: the sha256 of all that follows them."""
    return _block(_sha256(data))


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(memoryview(data)[_USER_BLOCK:]).hexdigest()


def _block(sha256: str) -> bytes:
    return (_MARK + sha256.encode() + b"\n").ljust(_USER_BLOCK, b"\0")
