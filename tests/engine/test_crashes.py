"""Killed at any moment, run again: the same bytes as an undisturbed run, and nothing that survived is touched."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests import crashing
from xaibench.store import upkeep

# Three blocks of samples.
ARGUMENTS = ["run", "method=gradient", "dataset.limit=140", "metric.steps=3"]


def scores(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("results/scores/**/*.csv"))}


def shards(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = sorted(folder.rglob("shard-*.h5"))
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.read_bytes()) for p in found}


def finish(folder: Path, arguments: list[str] = ARGUMENTS, many: int = 32) -> None:
    process = crashing.run(folder, arguments, many=many)
    process.join(120)
    assert process.exitcode == 0, (folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder)
    return scores(folder)


@pytest.mark.parametrize(
    ("point", "number", "survivors"),
    [
        ("temporary file written", 1, 0),
        ("temporary file written", 5, 4),
        ("renamed", 3, 3),
        ("before the manifest", 2, 12),
        ("in the middle of a metric", 2, 7),
        ("between rows and card", 1, 12),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, undisturbed, point, number, survivors):
    process = crashing.run(tmp_path, ARGUMENTS, point, number)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    left = shards(tmp_path)
    assert len(left) == survivors, sorted(left)
    finish(tmp_path)
    assert scores(tmp_path) == undisturbed
    assert shards(tmp_path) | left == shards(tmp_path)
    assert upkeep.verify(tmp_path / "cache") == (13, [])  # the shards, and what the probe found
    assert [p for p in (tmp_path / "cache").rglob(".*") if p.is_file()] == []


def test_two_processes_on_one_job_compute_each_shard_once(tmp_path, undisturbed):
    both = [crashing.run(tmp_path, ARGUMENTS) for _ in range(2)]
    for process in both:
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "log.txt").read_text()
    assert scores(tmp_path) == undisturbed
    for manifest in tmp_path.rglob("manifest.json"):
        samples = [sample for shard in json.loads(manifest.read_text())["shards"] for sample in shard["samples"]]
        assert len(samples) == len(set(samples)) == 140
    assert len(shards(tmp_path)) == 12


@pytest.mark.parametrize(("point", "number"), [("renamed", 14), ("merged, before the small ones go", 3)])
def test_a_run_killed_while_it_merges_its_shards_ends_as_if_it_had_not_been(tmp_path, undisturbed, point, number):
    """Three small shards are many here: each artefact but the maps, whose shards are larger, becomes one. A longer run
    goes on from there."""
    process = crashing.run(tmp_path, ARGUMENTS, point, number, many=3)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert upkeep.verify(tmp_path / "cache")[1] == []
    finish(tmp_path, many=3)
    assert scores(tmp_path) == undisturbed
    merged = shards(tmp_path)
    assert len(merged) == 6 and upkeep.verify(tmp_path / "cache") == (7, [])
    assert {entry.samples for entry in upkeep.listing(tmp_path / "cache") if entry.shards} == {140}
    more = [argument.replace("140", "200") for argument in ARGUMENTS]
    finish(tmp_path, more)
    assert shards(tmp_path) | merged == shards(tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "computed again" not in log and "made again" not in log


def test_a_dropped_shard_a_smaller_limit_and_a_death_before_the_manifest(tmp_path, undisturbed):
    """The last shards get the names of larger ones that are gone, and the manifests speak of those."""
    finish(tmp_path)
    for kind in ("maps", "scores"):
        (last,) = tmp_path.glob(f"cache/{kind}/**/shard-00002.h5")
        last.unlink()
    smaller = [argument.replace("140", "130") for argument in ARGUMENTS]
    process = crashing.run(tmp_path, smaller, "before the manifest", 1)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert any("it means another shard-00002.h5" in line for line in upkeep.verify(tmp_path / "cache")[1])
    finish(tmp_path)
    assert scores(tmp_path).items() >= undisturbed.items()
    assert upkeep.verify(tmp_path / "cache")[1] == []


SLOW = """
import time
from pathlib import Path
from xaibench.methods.gradients.gradient import Gradient
class Slow(Gradient):
    def attribute(self, classifier, inputs, targets, context):
        number = len(list(Path(".").glob("reached-*")))
        Path(f"reached-{number}").touch()
        while not Path(f"go-{number}").exists():
            time.sleep(0.02)
        return super().attribute(classifier, inputs, targets, context)
"""


def test_a_run_makes_again_what_is_pruned_under_its_hands(tmp_path):
    """Pruned while it is at the second block, whose maps it has claimed; removed by hand, all of it, in the third."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "slow.yaml").write_text("# Slow.\n_target_: slow.Slow\n")
    arguments = ["run", "--config-dir=own", "method=slow", "target=predicted", *ARGUMENTS[2:]]
    process = crashing.run(tmp_path, arguments)

    def reached(number):
        while not (tmp_path / f"reached-{number}").exists():
            assert process.is_alive(), (tmp_path / "log.txt").read_text()
            process.join(0.05)

    reached(0)
    (tmp_path / "go-0").touch()
    reached(1)
    kinds = {entry.kind for entry in upkeep.prune(tmp_path / "cache", None, 0)}
    assert "responses" in kinds and "maps" not in kinds
    (tmp_path / "go-1").touch()
    reached(2)
    shutil.rmtree(tmp_path / "cache")
    for number in range(2, 9):
        (tmp_path / f"go-{number}").touch()
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "log.txt").read_text()
    pruned = scores(tmp_path)
    finish(tmp_path, [*arguments, "paths.cache=fresh", "paths.results=fresh/results"])
    assert pruned.items() == scores(tmp_path / "fresh").items()


def test_damaged_shards_are_said_and_made_again(tmp_path, undisturbed):
    finish(tmp_path)
    flipped, cut, whole = sorted(tmp_path.glob("cache/maps/**/shard-*.h5"))
    untouched = whole.stat().st_ino
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:5000])
    # The scores are there, so that maps are read again only for another metric.
    finish(tmp_path, [*ARGUMENTS, "metric.tile=16"])
    log = (tmp_path / "log.txt").read_text()
    assert log.count("computed again") == 2
    assert whole.stat().st_ino == untouched
    assert upkeep.verify(tmp_path / "cache")[1] == []
    for folder in tmp_path.glob("cache/scores"):
        upkeep.prune(tmp_path / folder.name, None, 0)
    finish(tmp_path, [*ARGUMENTS, "runner.reuse=never"])
    assert scores(tmp_path).items() >= undisturbed.items()
