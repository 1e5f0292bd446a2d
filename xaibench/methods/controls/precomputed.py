"""Maps that were made elsewhere, read from a file."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ...errors import Refusal, UserError
from ...models.classifier import Classifier
from ..base import Method
from ..context import Context


class Precomputed(Method):
    """Maps [B,C,H,W] or [B,1,H,W] of a file, found by sample id, as they are.

    In the file's own precision, if that is more than single: an offset may be larger than what ranks the pixels.

    path: an npz or HDF5 file with the arrays `maps` [N,C or 1,H,W] (numbers, at input resolution) and `sample` [N]
        (whole numbers, each once: the data set's own ids). Nothing in it is unpickled, and nothing outside of it is
        read: no links, external or virtual storage of HDF5. HDF5 is read sample by sample, npz as a whole.
    Raises ValueError for a file that is missing or not such a file.
    """

    version = 2
    own_samples_only = True

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise ValueError(f"path={path}: there is no such file; expected npz or HDF5 with arrays maps and sample")
        try:
            maps, sample = _arrays(self.path)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"path={path}: expected npz or HDF5 with arrays maps and sample ({error})") from error
        if len(maps.shape) != 4 or maps.dtype.kind not in "fiub":
            raise ValueError(f"path={path}: maps is {maps.dtype} {list(maps.shape)}, expected numbers [N,C or 1,H,W]")
        if sample.shape != maps.shape[:1] or sample.dtype.kind not in "iu":
            raise ValueError(
                f"path={path}: sample is {sample.dtype} {list(sample.shape)}, expected whole numbers [{len(maps)}]"
            )
        self.maps, self.rows = maps, {int(identity): row for row, identity in enumerate(sample)}
        if len(self.rows) != len(sample):
            raise ValueError(f"path={path}: sample has {len(sample) - len(self.rows)} repeated ids, expected each once")

    def fingerprint(self) -> str:
        """sha256 of the file's bytes: what identifies the maps, whatever the file is called."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self, classifier: Classifier) -> None:
        channels, height, width = classifier.input_size
        found = self.maps.shape[1:]
        if tuple(found[1:]) != (height, width) or found[0] not in (1, channels):
            raise Refusal(
                f"precomputed: the maps of {self.path.name} are {_shape(found)}, but {classifier.name} takes "
                f"{_shape(classifier.input_size)}: expected that or {_shape((1, height, width))}"
            )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        return (0, 0)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        samples = context.samples
        missing = [sample for sample in samples if int(sample) not in self.rows]
        if missing:
            raise UserError(
                f"precomputed: {self.path.name} has no map for {len(missing)} of {len(samples)} samples, "
                f"the first is {missing[0]}"
            )
        # 32-bit integers and more need double precision.
        dtype = np.float64 if np.result_type(self.maps.dtype, np.float32).itemsize > 4 else np.float32
        found = np.stack([np.asarray(self.maps[self.rows[int(sample)]], dtype=dtype) for sample in samples])
        # Of inputs that differ in size, the file has padding that they have not.
        return torch.from_numpy(found[..., : inputs.shape[2], : inputs.shape[3]]).to(inputs.device)


def _arrays(path: Path) -> tuple[np.ndarray | h5py.Dataset, np.ndarray]:
    """`maps` and `sample` of an npz or HDF5 file; raises OSError, ValueError or BadZipFile for anything else."""
    if h5py.is_hdf5(path):
        return _pick(h5py.File(path, "r"))
    if zipfile.is_zipfile(path):
        with np.load(path, allow_pickle=False) as archive:
            return _pick(archive)
    raise ValueError("it is neither")


def _pick(archive: Mapping[str, Any]) -> tuple[np.ndarray | h5py.Dataset, np.ndarray]:
    if isinstance(archive, h5py.File):
        _check_own(archive)
    if "maps" not in archive or "sample" not in archive:
        raise ValueError(f"it has {sorted(archive)}")
    maps, sample = archive["maps"], archive["sample"]
    if isinstance(maps, h5py.Group) or isinstance(sample, h5py.Group):
        raise ValueError("they are groups")
    return maps, np.asarray(sample)


def _check_own(file: h5py.File) -> None:
    """Raises ValueError where an array is not in this file itself: HDF5 can name any other file of the machine."""
    links = file.id.links
    for name in ("maps", "sample"):
        if not links.exists(name.encode()):
            continue
        if links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:  # `name in file` would follow it
            raise ValueError(f"{name} is a link, which is not followed")
        found = file[name]
        if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
            raise ValueError(f"{name} lies in another file, which is not read")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
