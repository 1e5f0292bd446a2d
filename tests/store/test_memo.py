"""What is remembered of files: read once, again when anything about them changed, and not believed if damaged."""

import hashlib
import os
import time

import pytest

from xaibench.errors import UserError
from xaibench.store import memo
from xaibench.store.memo import contents, memoised


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three files that have settled, beside an empty memo."""
    monkeypatch.setenv("XAIBENCH_MEMO", str(tmp_path / "memo"))
    (tmp_path / "data" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "data" / "a" / f"{number}").write_bytes(bytes([number]) * 100)
    time.sleep(2.1)
    return tmp_path / "data"


@pytest.fixture
def look(folder):
    """The first byte of every file, and which files were read for it."""

    def call(what="first byte"):
        read = []

        def first(content):
            read.append(content[0])
            return str(content[0])

        return memoised(folder, sorted((folder / "a").iterdir()), what, first), sorted(read)

    return call


def test_files_are_read_once_and_again_when_they_changed(folder, look):
    assert look() == (["0", "1", "2"], [0, 1, 2])
    assert look() == (["0", "1", "2"], [])
    assert look("another function")[1] == [0, 1, 2]
    path = folder / "a" / "1"
    stat = path.stat()
    path.write_bytes(b"\x07" * 100)  # the same name, size and inode, and the time set back
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino, path.stat().st_mtime_ns) == (
        *(stat.st_size, stat.st_ino),
        stat.st_mtime_ns,
    )
    assert look() == (["0", "7", "2"], [7])
    assert look() == (["0", "7", "2"], [7]), "it changed just now, another change would not show in its times"
    time.sleep(2.1)
    assert look()[1] == [7] and look() == (["0", "7", "2"], [])


def test_digests_are_of_the_content_and_no_time_is_in_them(folder):
    first = contents(folder, sorted((folder / "a").iterdir()))
    assert first == {f"a/{n}": hashlib.sha256(bytes([n]) * 100).hexdigest() for n in range(3)}
    os.utime(folder / "a" / "0")
    assert contents(folder, sorted((folder / "a").iterdir())) == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: whole.replace(b'"1"', b'"8"'),
        lambda whole: b"[1, 2]",
        lambda whole: b"\xff\xfe" + whole,
    ],
)
def test_a_damaged_memo_is_not_believed(folder, look, damage, tmp_path):
    look()
    (file,) = (tmp_path / "memo").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert look() == (["0", "1", "2"], [0, 1, 2])
    assert look() == (["0", "1", "2"], [])


def test_a_memo_that_cannot_be_written_costs_time_alone(folder, look, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file" / "memo"), ""):
        monkeypatch.setenv("XAIBENCH_MEMO", place)
        assert look() == look() == (["0", "1", "2"], [0, 1, 2])
    monkeypatch.delenv("XAIBENCH_MEMO")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert look()[1] == [0, 1, 2] and look()[1] == []
    assert len(list((tmp_path / "xdg" / "xaibench").iterdir())) == 1


def test_processes_at_once(folder, spawn, tmp_path):
    for number in range(3, 40):
        (folder / "a" / f"{number}").write_bytes(bytes([number]) * 100)
    time.sleep(2.1)
    code = (
        "import sys; from pathlib import Path; from xaibench.store.memo import contents\n"
        "root = Path(sys.argv[1]); files = sorted((root / 'a').iterdir())[int(sys.argv[2])::4]\n"
        "for start in range(len(files)): contents(root, files[: start + 1])"
    )
    processes = [spawn(code, str(folder), str(part)) for part in range(4)]
    assert [process.wait() for process in processes] == [0] * 4, (tmp_path / "log.txt").read_text()
    (file,) = (tmp_path / "memo").iterdir()
    known = memo._read(file)
    assert known, "whole, whoever wrote last"
    assert all(value == hashlib.sha256(bytes([int(name[2:])]) * 100).hexdigest() for name, (_, value) in known.items())


def test_a_file_that_is_gone_is_named(folder):
    with pytest.raises(UserError, match=r"data/a/9: cannot be read \(No such file"):
        contents(folder, [folder / "a" / "9"])
