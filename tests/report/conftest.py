"""One small run, shared by the tests of the report: its score files and its cache."""

import shutil
import sys
from pathlib import Path

import pytest

from xaibench.cli import main
from xaibench.report import terminal


def run_in(folder: Path, *arguments: str) -> None:
    """`xaibench run -m` with a folder as the working directory, for fixtures that many tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # rich keeps the stream it was made with, which may be another test's.
        patch.setattr(terminal.stdout, "file", sys.stdout)
        patch.setattr(terminal.stderr, "file", sys.stderr)
        assert main(["run", "-m", *arguments]) == 0


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `results` and `cache` of three methods under two metrics on five images."""
    folder = tmp_path_factory.mktemp("ran")
    run_in(folder, "method=gradient,gradcam,random", "metric=pointing_game,degradation", "dataset.limit=5")
    return folder


@pytest.fixture
def copied(ran: Path, here: Path) -> Path:
    """A copy of that folder, which is the working directory and may be damaged."""
    for name in ("results", "cache"):
        shutil.copytree(ran / name, here / name)
    return here
