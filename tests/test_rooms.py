"""The plan of the house: imports point down, and what a command does not need is not imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the copy of the package in a folder."""
    return subprocess.run([LINTER, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("room", "line", "breach"),
    [
        ("models", "def late():\n    from ..engine import runner\n", "models is not allowed to import xaibench.engine"),
        ("store", "from ..scores import check\n", "store is not allowed to import xaibench.scores"),
        ("methods", "from ..store.cache import Artefact\n", "methods.planted -> xaibench.store.cache"),
    ],
)
def test_an_upward_import_fails_the_lint(tmp_path, room, line, breach):
    shutil.copytree(ROOT / "xaibench", tmp_path / "xaibench", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "xaibench" / room / "planted.py").write_text(line)
    found = lint(tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    assert breach in " ".join(found.stdout.split())


def test_the_rooms_as_they_are_pass(tmp_path):
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("xaibench.cli", "torch hydra pandas rich numpy"),
        (
            "xaibench.engine.runner",
            "hydra omegaconf rich pandas matplotlib torchvision torch._dynamo scipy.stats triton",
        ),
        ("xaibench.scores.leaderboard", "torch hydra rich matplotlib"),
    ],
)
def test_what_a_module_does_not_load(module, absent):
    code = f"import sys, {module}; print(*sorted(set('{absent}'.split()) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == ""


def test_what_a_finished_cell_asked_for_again_does_not_load(tmp_path):
    """torchvision and with it torch._dynamo are for networks of torchvision's, scipy.stats for comparisons."""
    absent = "torchvision torch._dynamo sympy scipy.stats matplotlib captum"
    code = (
        "import sys; from xaibench.cli import main\n"
        "code = main(['run', 'dataset.limit=2', 'metric.steps=2'])\n"
        f"print(code, *sorted(set('{absent}'.split()) & set(sys.modules)))"
    )
    for _ in range(2):  # computed, and found finished
        found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert found.stdout.splitlines()[-1] == "0", found.stdout + found.stderr
