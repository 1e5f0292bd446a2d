"""Every target of the Makefile does its work: in its smallest form, or by what the test suite runs anyway."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest

from xaibench.datasets.shapes import Shapes

ROOT = Path(__file__).parents[2]
# What these targets run is the tests, an installation, the linters, or the site (tests/test_site.py).
ELSEWHERE = ("pip", "venv", "pytest", "ruff", "lint-imports", "mypy", "touch", "rm", "docs/build.py")
TABLES = (
    "limits", "sharing", "memory", "cascade", "trainings", "probes", "backwards", "rendering", "scenes", "paths",
    "units", "xrays",
)  # fmt: skip


def recipes() -> dict[str, list[list[str]]]:
    """The commands of each target, as the shell splits them."""
    text = (ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace("$(PYTHON)", "python")
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if match := re.match(r"([a-z./]+):(?!=)", line):
            target = found.setdefault(match[1], [])
        elif line.startswith("\t") and not line.startswith("\t@"):
            target.append(shlex.split(line, comments=True))
    return found


def test_every_command_is_tried_by_a_test():
    """The tables of bench.py and the soak below, xaibench's commands in the next test, the others by running `make`."""
    commands = [words for target in recipes().values() for words in target]
    scripts = {words[1] for words in commands if words[0] == "python" and words[1].startswith("scripts/")}
    assert scripts == {"scripts/bench.py", "scripts/crash_soak.py"}
    rest = [words for words in commands if words[0] != "xaibench" and not scripts & set(words[1:2])]
    assert rest and all(set(words[:3]) & set(ELSEWHERE) for words in rest)


def test_the_commands_are_what_the_program_takes(xaibench, here):
    ran = []
    for target in recipes().values():
        for words in (words[1:] for words in target if words[0] == "xaibench"):
            words = [word.replace("results/baseline.csv", str(ROOT / "results" / "baseline.csv")) for word in words]
            code, _, said = xaibench(*words, *(["--cfg", "job"] if words[0] == "run" else []))
            assert code in ((0,) if words[0] == "run" else (0, 1, 3)), said
            ran.append(words[0])
    assert sorted(ran) == ["check", "run", "run"]


@pytest.fixture
def options() -> argparse.Namespace:
    return argparse.Namespace(
        models=["smallcnn"], metrics=None, samples=1, pairs=2, batch_size=None, device="cpu", profile=True
    )


@pytest.mark.parametrize("name", TABLES)
def test_every_table_of_the_bench(name, script, options, monkeypatch, here):
    bench = script("bench")
    assert set(bench.TABLES) == set(TABLES)
    monkeypatch.setattr(bench, "MEMORY_SAMPLES", (2, 4))
    monkeypatch.setattr(bench, "UNIT_IMAGES", (2, 4))
    smallest = {
        "limits": dict(metrics=["sparseness", "ehr"]),
        "sharing": dict(metrics=["infidelity"]),
        "memory": dict(metrics=["pointing_game"]),
        "xrays": dict(metrics=["quality"]),
    }
    options = argparse.Namespace(**vars(options) | smallest.get(name, {}))
    if name == "memory":  # of processes, and so of the whole program
        monkeypatch.setattr(bench, "ALLOCATORS", {"as it is": {}})
        options.pairs = 1
    further = {"trainings": dict(networks=2, images=32), "probes": dict(samples=2), "scenes": dict(together=2)}.get(
        name, {}
    )
    tables = bench.TABLES[name](options, **further)
    assert tables and all(table.row_count for table in tables)


def test_the_bench_leaves_out_metrics_that_shapes_cannot_serve(script):
    bench = script("bench")
    names = bench.per_sample_metrics()
    assert "degradation" in names and "region_shares" not in names
    for name in names:
        bench.metric_of(name).check_data(Shapes())


def test_the_soak_kills_and_resumes(script, monkeypatch, capsys):
    soak = script("crash_soak")
    few = [word.replace("dataset.limit=700", "dataset.limit=140") for word in soak.RUN]
    monkeypatch.setattr(soak, "RUN", few)
    monkeypatch.setattr(sys, "argv", ["crash_soak.py", "--kills", "1"])
    assert soak.main() == 0
    assert "undisturbed: " in capsys.readouterr().out
