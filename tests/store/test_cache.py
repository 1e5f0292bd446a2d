"""Artefacts on disk: keys, integrity, concurrency. Real files, really damaged."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from xaibench.errors import CacheError
from xaibench.store import cache, claims, upkeep
from xaibench.store.cache import Artefact
from xaibench.store.keys import digest
from xaibench.store.shards import SCHEMA


@pytest.fixture
def artefact(tmp_path):
    made = Artefact(tmp_path, "maps", ("net", "data", "method"), {"what": 1})
    made.create({"versions": {}})
    return made


def columns(samples):
    rng = np.random.default_rng(list(samples))
    return {"maps": rng.normal(size=(len(samples), 3, 8, 8)).astype(np.float32), "status": np.zeros(len(samples), int)}


def again(artefact):
    """The same artefact as another process sees it."""
    return Artefact(artefact.folder.parents[4], "maps", ("net", "data", "method"), {"what": 1})


def test_rows_come_back_in_the_order_asked_for_from_several_shards(artefact):
    first, second = columns([7, 3, 5]), columns([2, 9])
    artefact.write([7, 3, 5], first)
    artefact.write([2, 9], second)
    rows = again(artefact).read([9, 3, 4, 7])
    assert rows.samples == (9, 3, 7)
    expected = np.stack([second["maps"][1], first["maps"][1], first["maps"][0]])
    np.testing.assert_array_equal(rows.arrays["maps"], expected)
    assert artefact.missing([1, 2, 3, 4]) == [1, 4]


def test_a_shard_is_plain_hdf5_as_the_design_says(artefact):
    path = artefact.write([4, 6], columns([4, 6]))
    assert path.name == "shard-00000.h5"
    with h5py.File(path) as file:
        assert file.attrs["key"] == artefact.key
        assert file.attrs["schema"] == SCHEMA
        assert file["sample"][:].tolist() == [4, 6]
        assert file["maps"].dtype == np.float32
        assert file["maps"].chunks == (1, 3, 8, 8)
        assert file["maps"].fletcher32
        assert file["maps"].compression is None


def test_the_same_rows_give_the_same_bytes(artefact, tmp_path):
    other = Artefact(tmp_path / "other", "maps", ("net", "data", "method"), {"what": 1})
    other.create({})
    one, two = artefact.write([1, 2], columns([1, 2])), other.write([1, 2], columns([1, 2]))
    assert one.read_bytes() == two.read_bytes()


def test_keys_depend_on_everything_in_the_spec_and_on_nothing_else():
    assert digest({"a": 1, "b": [1.0, 2]}) == digest({"b": [1.0, 2], "a": 1})
    assert len({digest(s) for s in ({"a": 1}, {"a": 2}, {"a": 1.5}, {"a": "1"}, {"b": 1}, {"a": None})}) == 6
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


@pytest.mark.parametrize("place", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_flipped_byte_anywhere_is_found_said_and_computed_again(artefact, caplog, place):
    path = artefact.write([1, 2, 3], columns([1, 2, 3]))
    artefact.finish(0.0)
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x10
    path.write_bytes(data)
    fresh = again(artefact)
    rows = fresh.read([1, 2, 3])
    assert rows.samples == ()
    assert "computed again" in caplog.text
    assert fresh.missing([1, 2, 3]) == [1, 2, 3]
    fresh.write([1, 2, 3], columns([1, 2, 3]))
    np.testing.assert_array_equal(fresh.read([2]).arrays["maps"][0], columns([1, 2, 3])["maps"][1])


@pytest.mark.parametrize("length", [0, 10, 600, 3000])
def test_a_shard_cut_short_is_found(artefact, caplog, length):
    path = artefact.write([1, 2], columns([1, 2]))
    os.truncate(path, length)
    assert again(artefact).read([1, 2]).samples == ()
    assert "computed again" in caplog.text


def test_a_shard_of_another_key_is_not_believed(artefact, tmp_path, caplog):
    other = Artefact(tmp_path, "maps", ("net", "data", "method"), {"what": 2})
    other.create({})
    foreign = other.write([1], columns([1]))
    (artefact.folder / "shard-00000.h5").write_bytes(foreign.read_bytes())
    assert again(artefact).read([1]).samples == ()
    assert "another schema or key" in caplog.text


def test_every_code_that_made_rows_is_recorded(tmp_path):
    def made(**provenance):
        artefact = Artefact(tmp_path, "maps", ("net",), {"what": 1})
        artefact.create(provenance)
        return artefact.sources()

    assert Artefact(tmp_path, "maps", ("net",), {"what": 1}).sources() == set()
    assert [made(sources=name) for name in "aba"] == [{"a"}, {"a", "b"}, {"a", "b"}]
    spec = next(tmp_path.rglob("spec.json"))
    assert digest(json.loads(spec.read_text())["spec"]) == spec.parent.name
    spec.write_text(spec.read_text().replace('"sources"', '"earlier"'))  # by a version that recorded none
    assert made(sources="c") == {"c", "unknown"}


@pytest.mark.parametrize("text", ["", "{", '{"spec": {"what": 2}}', "[]"])
def test_an_unreadable_or_wrong_spec_is_said_and_written_anew(artefact, caplog, text):
    path = artefact.folder / "spec.json"
    artefact.write([1], columns([1]))
    path.write_text(text)
    fresh = again(artefact)
    fresh.create({})
    assert "written anew" in caplog.text
    assert digest(json.loads(path.read_text())["spec"]) == artefact.key
    assert fresh.read([1]).samples == (1,)


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"shards": 3}', '{"shards": [{"name": "x"}]}', '{"shards": [], "seconds": "long"}']
)
def test_a_manifest_that_is_none_costs_nothing_and_is_named(artefact, text):
    artefact.write([1], columns([1]))
    artefact.finish(1.0)
    root = artefact.folder.parents[4]
    (artefact.folder / "manifest.json").write_text(text)
    (wrong,) = upkeep.verify(root)[1]
    assert "manifest.json: it is no manifest" in wrong
    assert [entry.shards for entry in upkeep.listing(root)] == [1]
    fresh = again(artefact)
    assert fresh.read([1]).samples == (1,)
    assert fresh.finish(2.0)["seconds"] == 2.0
    assert upkeep.verify(root) == (1, [])


def test_a_shard_with_the_name_of_one_that_is_gone_is_known_by_what_it_holds(artefact):
    """Dropped, its name given to another, and dead before the manifest: what the manifest says is of the one before."""
    artefact.write([1, 2], columns([1, 2]))
    dropped = artefact.write([177, 178], columns([177, 178]))
    artefact.finish(0.0)
    root, before = artefact.folder.parents[4], again(artefact)
    assert before.missing([1, 177]) == []
    dropped.unlink()
    assert [line for line in upkeep.verify(root)[1] if "shard-00001.h5: it is gone" in line]
    running = again(artefact)
    assert running.missing([1, 177]) == [177]
    assert running.write([5, 178], columns([5, 178])).name == "shard-00001.h5"
    (wrong,) = upkeep.verify(root)[1]
    assert "manifest.json: it means another shard-00001.h5" in wrong
    fresh = again(artefact)
    rows = fresh.read([177, 5, 178, 1])
    assert rows.samples == (5, 178, 1)
    np.testing.assert_array_equal(rows.arrays["maps"][:2], columns([5, 178])["maps"])
    assert fresh.missing([177, 5]) == [177]
    # One that had read the manifest while it was true, and knows the name of old.
    assert before.read([177, 5]).samples == (5,) and before.missing([177, 5]) == [177]
    fresh.finish(0.0)
    assert upkeep.verify(root)[1] == []


def test_the_manifest_lists_shards_samples_checksums_and_adds_seconds(artefact):
    artefact.write([5, 1], columns([5, 1]))
    artefact.finish(1.5)
    fresh = again(artefact)
    path = fresh.write([2], columns([2]))
    manifest = fresh.finish(2.0)
    assert [s["samples"] for s in manifest["shards"]] == [[5, 1], [2]]
    assert manifest["seconds"] == 3.5
    assert len(manifest["shards"][1]["sha256"]) == 64
    assert manifest["shards"][1]["sha256"].encode() in path.read_bytes()[:200]


def test_discarding_samples_removes_their_shard_only(artefact):
    artefact.write([1, 2], columns([1, 2]))
    artefact.write([3], columns([3]))
    artefact.discard([2])
    assert again(artefact).missing([1, 2, 3]) == [1, 2]


def test_a_full_disk_is_one_clean_error_and_loses_nothing(artefact):
    artefact.write([1], columns([1]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(CacheError, match=r"File too large[\s\S]*kept"):
            artefact.write([2], columns([2]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert again(artefact).read([1, 2]).samples == (1,)
    assert [p.name for p in artefact.folder.iterdir() if p.name.startswith(".aside")] == []


def test_a_cache_that_cannot_be_written_is_the_users_mistake(tmp_path):
    """As an unprivileged user: root is allowed everything."""
    (tmp_path / "cache").mkdir()
    code = (
        "import os, sys; from pathlib import Path\n"
        "from xaibench.store.cache import Artefact; from xaibench.errors import UserError\n"
        "os.getuid() or os.setuid(65534)\n"
        "try: Artefact(Path(sys.argv[1]), 'maps', ('m',), {}).create({})\n"
        "except UserError as error: print('refused:', error); sys.exit(0)\n"
        "sys.exit('it was written')"
    )
    os.chmod(tmp_path / "cache", 0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            os.chmod(folder, 0o755)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cache")], capture_output=True, text=True)
    assert "paths.cache" in done.stdout, done.stderr
    assert "Permission denied" in done.stdout


def test_a_claim_is_held_by_one_process_and_released_by_its_death(artefact, spawn):
    code = (
        "import sys, time; from pathlib import Path; from xaibench.store.cache import Artefact\n"
        "a = Artefact(Path(sys.argv[1]), 'maps', ('net', 'data', 'method'), {'what': 1})\n"
        "with a.claim((1, 2)): Path('held').touch(); time.sleep(60)"
    )
    folder = artefact.folder.parents[4]
    process = spawn(code, str(folder))
    while not (folder / "held").exists():
        assert process.poll() is None, (folder / "log.txt").read_text()
        time.sleep(0.02)
    with artefact.claim((1, 2), wait=False) as mine:
        assert not mine
    with artefact.claim((3,), wait=False) as mine:
        assert mine
    process.kill()
    process.wait()
    with artefact.claim((1, 2), wait=False) as mine:
        assert mine


HOLD = (
    "import sys, time; from pathlib import Path; from xaibench.store.cache import Artefact\n"
    "a = Artefact(Path(sys.argv[1]), 'maps', ('net', 'data', 'method'), {'what': 1})\n"
    "with a.claim((1, 2)): Path('held').touch(); time.sleep(60)"
)
WAIT = (
    "import logging, sys; from pathlib import Path; from xaibench.store import cache, claims\n"
    "logging.basicConfig(); claims.WAIT_SAID, claims.WAIT_AGAIN, claims.WAIT_MOST = 0.2, 0.3, 1.0\n"
    "a = cache.Artefact(Path(sys.argv[1]), 'maps', ('net', 'data', 'method'), {'what': 1})\n"
    "with a.claim((1, 2)) as mine: print('computes', mine)"
)


def test_a_process_that_waits_says_for_whom_and_goes_on_after_a_while(artefact, spawn):
    """The holder of the claim is stopped, for real: its kernel lock stays, and it never ends."""
    folder = artefact.folder.parents[4]
    holder = spawn(HOLD, str(folder))
    while not (folder / "held").exists():
        assert holder.poll() is None
        time.sleep(0.02)
    holder.send_signal(signal.SIGSTOP)
    assert spawn(WAIT, str(folder)).wait(timeout=30) == 0
    log = (folder / "log.txt").read_text()
    assert log.count(f"waiting for process {holder.pid} on") >= 2 and "which is stopped" in log
    assert "going on without" in log and "computes True" in log
    holder.send_signal(signal.SIGCONT)
    holder.kill()
    holder.wait()
    assert spawn(WAIT, str(folder)).wait(timeout=30) == 0
    assert (folder / "log.txt").read_text().count("waiting for") == log.count("waiting for")


def test_prune_leaves_what_a_process_is_at(artefact, spawn):
    folder = artefact.folder.parents[4]
    artefact.write([1], columns([1]))
    other = Artefact(folder, "maps", ("net", "data", "other"), {"what": 3})
    other.create({})
    holder = spawn(HOLD, str(folder))
    while not (folder / "held").exists():
        assert holder.poll() is None
        time.sleep(0.02)
    assert [entry.path.split("/")[2] for entry in upkeep.prune(folder, None, 0)] == ["other"]
    assert artefact.folder.exists() and not other.folder.exists()
    holder.kill()
    holder.wait()
    assert len(upkeep.prune(folder, None, 0)) == 1 and not artefact.folder.exists()
    assert [path for path in (folder / "maps").rglob("*") if path.is_file()] == []


def test_work_goes_on_where_locks_do_not_work(artefact, monkeypatch, caplog):
    def broken(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(claims.FileLock, "acquire", broken)
    claims.warn_once.cache_clear()
    for _ in range(2):
        with artefact.claim((1,)) as mine:
            assert mine
    assert caplog.text.count("work may be done twice") == 1


def test_two_writers_never_replace_each_others_shards(artefact):
    """Without claims: both write, both shards stay, and either row is right."""
    one, two = again(artefact), again(artefact)
    one.write([1], columns([1]))
    two.write([1], columns([1]))
    assert sorted(p.name for p in artefact.folder.glob("shard-*")) == ["shard-00000.h5", "shard-00001.h5"]
    np.testing.assert_array_equal(again(artefact).read([1]).arrays["maps"], columns([1])["maps"])


def test_verify_names_what_is_wrong_and_prune_removes_the_oldest(tmp_path):
    made = []
    for number in range(3):
        made.append(Artefact(tmp_path, "maps", ("net", f"data{number}"), {"n": number}))
        made[-1].create({})
        path = made[-1].write([1], columns([1]))
        made[-1].finish(0.0)
        for file in made[-1].folder.iterdir():
            os.utime(file, (1e9 + number * 1000,) * 2)
    assert upkeep.verify(tmp_path) == (3, [])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    checked, wrong = upkeep.verify(tmp_path)
    assert checked == 3
    assert len(wrong) == 1
    assert "data2" in wrong[0]

    sizes = [entry.size for entry in upkeep.listing(tmp_path)]
    removed = upkeep.prune(tmp_path, older_than=None, max_size=sum(sizes) - 1)
    assert [entry.path.split("/")[1] for entry in removed] == ["data0"]
    removed = upkeep.prune(tmp_path, older_than=time.time() - 1e9 - 1500, max_size=None)
    assert [entry.path.split("/")[1] for entry in removed] == ["data1"]


# ---- many small shards -----------------------------------------------------------------------------------------------


@pytest.fixture
def scattered(artefact, monkeypatch):
    """Twelve shards of one or two rows, of which four make many, and two more columns in the last."""
    monkeypatch.setattr(cache, "MANY", 4)
    for first in range(0, 22, 2):
        artefact.write([first, first + 1], columns([first, first + 1]))
    artefact.write([22], {**columns([22]), "extra": np.ones(1)})
    return artefact


def rows_of(artefact, samples):
    return {name: values.tobytes() for name, values in artefact.read(samples).arrays.items()}


def shard_names(artefact):
    return sorted(path.name for path in artefact.folder.glob("shard-*.h5"))


def test_many_small_shards_become_one_of_the_same_numbers(scattered):
    before, asked = rows_of(scattered, range(23)), again(scattered)
    assert asked.missing(range(24)) == [23]
    manifest = scattered.finish(1.0)
    # The odd one out has other columns, and stays as it is.
    assert shard_names(scattered) == ["shard-00011.h5", "shard-00012.h5"]
    assert {s["name"]: s["samples"] for s in manifest["shards"]} == {
        "shard-00011.h5": [22], "shard-00012.h5": list(range(22)),
    }  # fmt: skip
    root = scattered.folder.parents[4]
    assert upkeep.verify(root) == (2, [])
    assert [(entry.shards, entry.samples) for entry in upkeep.listing(root)] == [(2, 23)]
    for reader in (again(scattered), scattered, asked):  # the last knew the small ones
        assert rows_of(reader, range(23)) == before
    with h5py.File(scattered.folder / "shard-00012.h5") as file:  # what every shard is
        assert file.attrs["key"] == scattered.key and file["maps"].chunks == (1, 3, 8, 8) and file["maps"].fletcher32
    before_again = (scattered.folder / "shard-00012.h5").stat().st_ino
    again(scattered).finish(1.0)
    assert (scattered.folder / "shard-00012.h5").stat().st_ino == before_again


def test_a_reader_whose_shards_are_merged_looks_again_and_says_nothing(scattered, caplog):
    before, reader = rows_of(scattered, range(23)), again(scattered)
    assert reader.missing(range(23)) == []
    again(scattered).finish(0.0)
    assert rows_of(reader, range(23)) == before and caplog.text == ""
    assert reader.missing([22, 23]) == [23]
    # A run that was at it goes on with the next free name, and sees what others wrote after the merge.
    other = again(scattered)
    other.write([30], columns([30]))
    assert reader.missing([30, 31]) == [31]
    reader.write([31], columns([31]))
    assert other.missing([30, 31]) == []


def test_shards_are_merged_up_to_so_many_rows_and_bytes(artefact, monkeypatch):
    monkeypatch.setattr(cache, "MANY", 4)
    monkeypatch.setattr(cache, "PACKED_ROWS", 8)
    for sample in range(20):
        artefact.write([sample], columns([sample]))
    assert [len(s["samples"]) for s in artefact.finish(0.0)["shards"]] == [8, 8, 4]
    monkeypatch.setattr(cache, "PACKED_BYTES", 3 * 800)  # three rows of 3 x 8 x 8 floats, status and id
    for sample in range(20, 26):
        artefact.write([sample], columns([sample]))
    merged = again(artefact).finish(0.0)["shards"]
    # The four of before and the six, by threes; the last one keeps its shard, whose name is older.
    assert [len(s["samples"]) for s in merged] == [8, 8, 1, 3, 3, 3]


def test_an_input_that_changed_costs_what_it_cost_before_shards_were_merged(scattered):
    before = rows_of(scattered, range(23))
    scattered.finish(0.0)
    fresh = again(scattered)
    fresh.discard([5])
    assert fresh.missing(range(23)) == again(scattered).missing(range(23)) == [4, 5]
    fresh.write([4, 5], columns([4, 5]))
    fresh.finish(0.0)
    assert rows_of(again(scattered), range(23)) == before and upkeep.verify(scattered.folder.parents[4])[1] == []


def test_a_damaged_merged_shard_is_said_and_its_rows_are_missing(scattered, caplog):
    scattered.finish(0.0)
    path = scattered.folder / "shard-00012.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert again(scattered).read(range(23)).samples == (22,)
    assert "its 22 samples are computed again" in caplog.text


MERGE = """
import sys
from pathlib import Path
from tests.crashing import kill_at
from xaibench.store import cache
cache.MANY = 4
point, when, number = sys.argv[2], sys.argv[3], int(sys.argv[4])
owner, _, name = point.rpartition(".")
kill_at(getattr(cache, owner) if owner else cache, name, when, number)
cache.Artefact(Path(sys.argv[1]), "maps", ("net", "data", "method"), {"what": 1}).finish(0.0)
"""


@pytest.mark.parametrize(
    ("point", "when", "number"),
    [
        ("write_synced", "after", 1),  # the merged shard is written, and has no name yet
        ("_sync_folder", "after", 1),  # it has its name, and is in no manifest
        ("Artefact._list_shards", "before", 2),
        ("Artefact._list_shards", "after", 2),  # listed; the small ones are still there
        ("Artefact._forget", "before", 1),
        ("Artefact.tidy", "before", 1),  # all is done but the claim
    ],
)
def test_killed_in_the_middle_of_a_merge_no_row_is_lost_and_the_next_run_ends_it(
    scattered, spawn, caplog, point, when, number
):
    before, root = rows_of(scattered, range(23)), scattered.folder.parents[4]
    process = spawn(MERGE, str(root), point, when, str(number), PYTHONPATH=str(Path(__file__).parents[2]))
    assert process.wait() == -signal.SIGKILL, (root / "log.txt").read_text()
    assert upkeep.verify(root)[1] == []
    reader = again(scattered)
    assert reader.missing(range(24)) == [23]
    assert rows_of(reader, range(23)) == rows_of(scattered, range(23)) == before
    reader.finish(0.0)
    assert len(shard_names(reader)) == 2 and upkeep.verify(root) == (2, [])
    assert rows_of(again(scattered), range(23)) == before and caplog.text == ""
    assert [path for path in reader.folder.iterdir() if path.name.startswith(".")] == []


READ = """
import sys, time
from pathlib import Path
from xaibench.store import cache
import logging; logging.basicConfig()
reader = cache.Artefact(Path(sys.argv[1]), "maps", ("net", "data", "method"), {"what": 1})
reader.missing([0])
before = None
Path("reading").touch()
while not Path("stop").exists() or before is None:
    rows = reader.read(range(40))
    assert rows.samples == tuple(range(40)), rows.samples
    found = rows.arrays["maps"].tobytes()
    assert before in (None, found)
    before = found
"""
COMPACT = """
import sys
from pathlib import Path
from xaibench.store import cache
import logging; logging.basicConfig()
cache.MANY = 4
cache.Artefact(Path(sys.argv[1]), "maps", ("net", "data", "method"), {"what": 1}).finish(0.0)
"""


def test_readers_go_on_while_two_processes_merge_at_once(artefact, spawn):
    """Read over and over, every row of every reading the same, while shards appear and two others merge them."""
    root = artefact.folder.parents[4]
    for sample in range(40):
        artefact.write([sample], columns([sample]))
    reader = spawn(READ, str(root))
    while not (root / "reading").exists():
        assert reader.poll() is None, (root / "log.txt").read_text()
        time.sleep(0.02)
    for start in range(40, 60, 10):
        both = [spawn(COMPACT, str(root)) for _ in range(2)]
        for sample in range(start, start + 10):
            artefact.write([sample], columns([sample]))
        assert [process.wait() for process in both] == [0, 0], (root / "log.txt").read_text()
    (root / "stop").touch()
    assert reader.wait() == 0, (root / "log.txt").read_text()
    assert spawn(COMPACT, str(root)).wait() == 0
    assert (root / "log.txt").read_text() == ""
    fresh = again(artefact)
    assert fresh.missing(range(60)) == [] and upkeep.verify(root)[1] == [] and len(shard_names(artefact)) < 8
    expected = np.stack([columns([sample])["maps"][0] for sample in range(60)])
    np.testing.assert_array_equal(fresh.read(range(60)).arrays["maps"], expected)


def test_two_processes_that_merge_without_locks_lose_no_row(artefact, monkeypatch):
    """Both have published; each removes what later shards hold, and neither the other's."""
    monkeypatch.setattr(cache, "MANY", 4)
    for sample in range(8):
        artefact.write([sample], columns([sample]))
    one, two = again(artefact), again(artefact)
    for merger in (one, two):
        merger.missing([0])
        for parts in merger._packs(merger._small()):
            merger._publish_parts(parts)
    assert len(shard_names(artefact)) == 10
    one._merge()
    two._merge()
    assert len(shard_names(artefact)) == 1 and upkeep.verify(artefact.folder.parents[4]) == (1, [])
    assert again(artefact).read(range(8)).samples == tuple(range(8))


def test_looking_for_new_shards_reads_no_folder(artefact, monkeypatch):
    """However many there are: the folder is listed at the first look, and again when the manifest has changed."""
    for sample in range(3):
        artefact.write([sample], columns([sample]))
    listed = []
    original = Artefact._learn_all
    monkeypatch.setattr(Artefact, "_learn_all", lambda self: listed.append(1) or original(self))
    fresh = again(artefact)
    for sample in range(3, 9):
        assert fresh.missing([sample]) == [sample]
        artefact.write([sample], columns([sample]))
        assert fresh.missing([sample]) == []
    assert len(listed) == 1
