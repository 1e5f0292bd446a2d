"""Maps from files: found by sample id, never unpickled, clear about what is wrong."""

import hashlib
import pickle

import h5py
import numpy as np
import pytest
import torch

from tests.methods.nets import SIZE, Linear, classifier, seeded
from xaibench.errors import Refusal, UserError
from xaibench.methods.context import Context
from xaibench.methods.controls.precomputed import Precomputed

MAPS = np.random.default_rng(0).standard_normal((4, *SIZE)).astype(np.float32)
SAMPLE = np.array([30, 10, 20, 40])


def write(path, **arrays):
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return Precomputed(str(path))


def attribute(method, samples, dtype=torch.float64):
    inputs = seeded(len(samples), dtype=dtype)
    targets = torch.zeros(len(samples)).long()
    return method.attribute(classifier(Linear()), inputs, targets, Context(samples=samples))


@pytest.mark.parametrize("name", ["maps.npz", "maps.h5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_are_found_by_sample_id(name, channels, tmp_path):
    method = write(tmp_path / name, maps=MAPS[:, :channels], sample=SAMPLE)
    method.check(classifier(Linear()))
    maps = attribute(method, (10, 40, 30))
    assert torch.equal(maps, torch.tensor(MAPS[[1, 3, 0], :channels]))
    assert method.cost(classifier(Linear())) == (0, 0)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i2", "f4"), ("i4", "f8"), ("u8", "f8"), ("?", "f4")],
)
def test_maps_have_the_precision_of_their_file(dtype, kept, tmp_path):
    """Whatever the network computes in."""
    method = write(tmp_path / "maps.npz", maps=(10 * MAPS).astype(dtype), sample=SAMPLE)
    for network in (torch.float32, torch.float64):
        maps = attribute(method, (10, 40), network)
        assert maps.numpy().dtype == np.dtype(kept)
        np.testing.assert_array_equal(maps, (10 * MAPS[[1, 3]]).astype(dtype))


def test_fingerprint_is_the_content(tmp_path):
    first = write(tmp_path / "a.npz", maps=MAPS, sample=SAMPLE)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    other = write(tmp_path / "c.npz", maps=MAPS + 1, sample=SAMPLE)
    assert first.fingerprint() == hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    assert first.fingerprint() == Precomputed(str(tmp_path / "b.npz")).fingerprint() != other.fingerprint()


def test_missing_samples_are_counted(tmp_path):
    method = write(tmp_path / "maps.h5", maps=MAPS, sample=SAMPLE)
    with pytest.raises(UserError, match=r"maps.h5 has no map for 2 of 3 samples, the first is 11"):
        attribute(method, (10, 11, 12))


def test_maps_of_another_size_are_refused(tmp_path):
    for maps in (MAPS[..., :8], MAPS[:, :2]):
        method = write(tmp_path / "maps.npz", maps=maps, sample=SAMPLE)
        with pytest.raises(Refusal, match="Linear takes 3x16x16: expected that or 1x16x16"):
            method.check(classifier(Linear()))


@pytest.mark.parametrize("name", ["maps.npz", "maps.h5"])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"maps": MAPS}, r"it has \['maps'\]"),
        ({"heat": MAPS, "sample": SAMPLE}, r"it has \['heat', 'sample'\]"),
        ({"maps": MAPS[0], "sample": SAMPLE}, r"maps is float32 \[3, 16, 16\], expected numbers"),
        ({"maps": MAPS, "sample": SAMPLE[:3]}, r"sample is int64 \[3\], expected whole numbers \[4\]"),
        ({"maps": MAPS, "sample": SAMPLE * 1.0}, "sample is float64"),
        ({"maps": MAPS, "sample": SAMPLE * 0}, "sample has 3 repeated ids"),
        ({"maps": MAPS.astype("S4"), "sample": SAMPLE}, "expected numbers"),
    ],
)
def test_other_contents_are_named(name, arrays, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        write(tmp_path / name, **arrays)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_maps(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        Precomputed(str(tmp_path / "absent.npz"))
    with pytest.raises(ValueError, match="there is no such file"):
        Precomputed(str(tmp_path))
    for name, content in [("maps.csv", b"1,2"), ("maps.npz", b"PK\x03\x04 cut"), ("maps.h5", b"\x89HDF\r\n\x1a\n cut")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="expected npz or HDF5 with arrays maps and sample"):
            Precomputed(str(tmp_path / name))
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        file.create_group("maps")
        file["sample"] = SAMPLE
    with pytest.raises(ValueError, match="they are groups"):
        Precomputed(str(tmp_path / "groups.h5"))


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "maps.npz", maps=np.array([Malicious()], dtype=object), sample=np.array([0]))
    (tmp_path / "maps.pkl").write_bytes(pickle.dumps(Malicious()))
    for name in ("maps.npz", "maps.pkl"):
        with pytest.raises(ValueError, match="expected npz or HDF5"):
            Precomputed(str(tmp_path / name))
