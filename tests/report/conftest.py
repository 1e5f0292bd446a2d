"""One small run, shared by the tests of the report: its score files and its cache."""

import shutil
import sys
from pathlib import Path

import pytest

from xaibench.cli import main
from xaibench.report import terminal


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `results` and `cache` of three methods under two metrics on five images."""
    folder = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # rich keeps the stream it was made with, which may be another test's.
        patch.setattr(terminal.stdout, "file", sys.stdout)
        patch.setattr(terminal.stderr, "file", sys.stderr)
        sweep = ("method=gradient,gradcam,random", "metric=pointing_game,degradation", "dataset.limit=5")
        assert main(["run", "-m", *sweep]) == 0
    return folder


@pytest.fixture
def copied(ran: Path, here: Path) -> Path:
    """A copy of that folder, which is the working directory and may be damaged."""
    for name in ("results", "cache"):
        shutil.copytree(ran / name, here / name)
    return here
