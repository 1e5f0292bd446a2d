"""What `make lint` makes of types: the package is clean, an outsider's mistake is found, and wheels say so."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MYPY = Path(sys.executable).with_name("mypy")
# Fine but for the lines that end in the code of an error.
PLANTED = """\
from typing import Any

import torch
from torch import Tensor

import xaibench as xb

images, module = torch.rand(2, 3, 32, 32), torch.nn.Linear(1, 1)
net = xb.Classifier(module, mean=[0.5] * 3, std=[0.25] * 3)
net = xb.Classifier(module, mean=0.5, std=[0.25] * 3)  # arg-type
maps = xb.explain(net, images, "integrated_gradients", steps=50)
maps = xb.explain(net, "photo.jpg", "gradient")  # arg-type
scores: str = xb.score(net, images, maps, "degradation")  # assignment
board = xb.leaderboard("results")["value"]
xb.run(method=["gradient"], metric="degradation", limit="48")  # arg-type


class Mine(xb.Method):
    def attribute(self, classifier: Any, inputs: Tensor, targets: Tensor, context: xb.Context) -> Tensor:
        return inputs * context.masks  # operator


class Halves(xb.Metric):
    statistics = (xb.Statistic("halves", "higher", column=3),)  # arg-type

    def evaluate(self, classifier: Any, batch: Any, maps: Tensor, context: xb.Context) -> Tensor:  # override
        return context.explain(batch.inputs, batch.targets, "again") - maps
"""


def mypy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """mypy as `make lint` runs it, with its cache."""
    return subprocess.run([MYPY, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_planted_type_errors_are_found_and_no_others(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED)
    found = mypy("xaibench", planted)
    assert found.returncode == 1, found.stdout + found.stderr
    errors = [line for line in found.stdout.splitlines() if ": error:" in line]
    lines = enumerate(PLANTED.splitlines(), 1)
    expected = [(str(n), f"[{line.rpartition('# ')[2]}]") for n, line in lines if "  # " in line]
    assert [(line.split(":")[1], line.split()[-1]) for line in errors] == expected, found.stdout
    assert all(line.split(":")[0].endswith("planted.py") for line in errors), found.stdout


def test_lint_runs_mypy_over_the_package():
    rules = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert "$(BIN)/mypy" in rules
    assert "ignore_errors" not in (ROOT / "pyproject.toml").read_text()


def test_the_package_says_that_it_is_typed(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "xaibench/py.typed" in zipfile.ZipFile(wheel).namelist()
