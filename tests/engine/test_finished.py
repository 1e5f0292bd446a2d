"""Finished cells asked for again: known by digests, and made right wherever a byte has changed."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xaibench.engine import finished
from xaibench.scores.cells import read_cell
from xaibench.store import cache, provenance, shards, upkeep

CELL = ("run", "method=gradient", "dataset.limit=3", "metric.steps=2")


def score_file(suffix: str) -> Path:
    (path,) = Path("results/scores").glob(f"*/*/*/gradient-*{suffix}")
    return path


def shard() -> Path:
    (path,) = Path("cache/scores").rglob("gradient/*/shard-*.h5")
    return path


def note() -> Path:
    return shard().with_name(finished.WRITTEN)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)


def forge() -> None:
    """Another number, and a card that vouches for it."""
    rows, card = score_file(".csv"), score_file(".json")
    rows.write_text(rows.read_text().replace("ok,0.", "ok,1.", 1))
    said = json.loads(card.read_text())
    said["files"][".csv"] = hashlib.sha256(rows.read_bytes()).hexdigest()
    card.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    read_cell(rows)  # which believes it


DAMAGES = {
    "a byte of the rows": lambda: flip(score_file(".csv")),
    "a byte of the curves": lambda: flip(score_file(".h5")),
    "a byte of the card": lambda: flip(score_file(".json")),
    "rows and card agree on another number": forge,
    "no rows": lambda: score_file(".csv").unlink(),
    "no curves": lambda: score_file(".h5").unlink(),
    "no card": lambda: score_file(".json").unlink(),
    "a byte of the cache": lambda: flip(shard()),
    "nothing in the cache": lambda: shard().unlink(),
    "no cache": lambda: shutil.rmtree("cache"),
}


@pytest.fixture(scope="session")
def asked_once(tmp_path_factory) -> Path:
    """A folder with one cell, run by a process of its own."""
    folder = tmp_path_factory.mktemp("finished")
    subprocess.run([sys.executable, "-m", "xaibench", *CELL], check=True, cwd=folder)
    return folder


@pytest.fixture
def unpacked(asked_once, here, monkeypatch) -> list[str]:
    """A copy of that folder to work in; the keys of the scores that are unpacked from now on."""
    shutil.copytree(asked_once, here, dirs_exist_ok=True)
    seen, unpack = [], shards.unpack

    def counted(data, key):
        seen.append(key)
        return unpack(data, key)

    monkeypatch.setattr(cache, "unpack", counted)
    return seen


def test_a_finished_cell_is_known_without_unpacking_its_scores(xaibench, unpacked):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path("results/scores").rglob("gradient*")}
    key = shard().parent.name
    assert xaibench(*CELL)[0] == 0 and key not in unpacked
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} and len(before) == 3
    note().unlink()
    assert xaibench(*CELL)[0] == 0 and key in unpacked
    unpacked.clear()
    assert xaibench(*CELL)[0] == 0 and key not in unpacked  # noted again


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_altered_is_made_again(xaibench, unpacked, damage):
    before = [score_file(suffix).read_bytes() for suffix in (".csv", ".h5")]
    DAMAGES[damage]()
    code, _, said = xaibench(*CELL)
    assert code == 0 and ("fails its checksum" in said.replace("\n", " ")) == (damage == "a byte of the cache"), said
    assert [score_file(suffix).read_bytes() for suffix in (".csv", ".h5")] == before
    read_cell(score_file(".csv"))
    assert upkeep.verify(Path("cache"))[1] == []
    unpacked.clear()
    assert xaibench(*CELL)[0] == 0 and shard().parent.name not in unpacked


def test_other_rows_in_the_cache_are_written(xaibench, unpacked):
    """A shard that is whole, and not the one that was written from."""
    arrays = shards.unpack(shard().read_bytes(), key := shard().parent.name)
    doubled = {**arrays, "area": 2 * arrays["area"]}
    shard().write_bytes(shards.pack(doubled, {"key": key, "schema": shards.SCHEMA}))
    assert xaibench(*CELL)[0] == 0
    found = read_cell(score_file(".csv")).columns["area"]
    np.testing.assert_allclose(found[arrays["sample"]], doubled["area"], rtol=1e-8)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"from": "x", "shards": 3, "card": ""}', "\xff"])
def test_a_damaged_note_costs_the_long_way_alone(xaibench, unpacked, text):
    before = note().read_text()
    note().write_bytes(text.encode("latin-1"))
    assert xaibench(*CELL)[0] == 0 and shard().parent.name in unpacked
    assert note().read_text() == before


@pytest.mark.parametrize("of", ["sources", "versions"])
def test_other_code_writes_for_itself(xaibench, unpacked, monkeypatch, of):
    """What it would write may be something else."""
    monkeypatch.setattr(provenance, of, lambda: "another")
    assert xaibench(*CELL)[0] == 0 and shard().parent.name in unpacked


def test_a_name_of_ones_own_has_files_of_its_own(xaibench, unpacked):
    """The same rows under another name of the method: neither's files are taken for the other's."""
    Path("conf/method").mkdir(parents=True)
    target = "xaibench.methods.gradients.gradient.Gradient"
    (Path("conf/method") / "other.yaml").write_text(f"# Gradient.\n_target_: {target}\n")
    other = [word.replace("gradient", "other") for word in CELL]
    for _ in range(2):
        for arguments in (CELL, [*other, "--config-dir=conf"]):
            code, _, said = xaibench(*arguments)
            assert code == 0, said
    (theirs,) = Path("results/scores").glob("*/*/*/other-*.csv")
    assert theirs.read_text() == score_file(".csv").read_text().replace(",gradient,", ",other,")
