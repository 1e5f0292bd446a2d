"""Shared fixtures. Tests that need the offline data skip, with the reason, where it is absent."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

SHARED = Path(os.environ.get("XAIBENCH_SHARED", Path(__file__).parent.parent.parent / "shared"))


FAKEGPU = pytest.StashKey[ModuleType | str]()


def _fakegpu() -> ModuleType | str:
    """`shared/tools/fakegpu.py`, which gives torch a device of that name for the rest of the process; or why not."""
    path = SHARED / "tools" / "fakegpu.py"
    if not path.is_file():
        return "the offline tools are absent (shared/tools/fakegpu.py)"
    spec = importlib.util.spec_from_file_location("fakegpu", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, AttributeError) as error:
        return f"this torch registers no device written in Python: {error}"
    return module


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of offline data and weights (`data/`, `models/`)."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the offline data folder is absent (set XAIBENCH_SHARED)")
    return SHARED


@pytest.fixture(scope="module")
def fakegpu(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A device `fakegpu` for the tests of a file: values of the CPU's kernels, and CUDA's refusals of mixed devices.
    Its COUNT counts operations, copies and synchronisations."""
    module = request.config.stash[FAKEGPU]
    if isinstance(module, str):
        pytest.skip(module)
    made = torch.tensor, torch.as_tensor
    # A parameter there is of a class of its own, whose data nobody can exchange: modules get new parameters instead.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    mode = module.on()
    yield module
    mode.__exit__(None, None, None)
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    torch.tensor, torch.as_tensor = made


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    # torch's autograd counts the kinds of devices once, at the first backward pass of a process.
    config.stash[FAKEGPU] = _fakegpu()
    # The nets are small: a second thread waits more than it works, above all beside other processes.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(autouse=True, scope="session")
def _memo(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is remembered of files stays out of the home."""
    os.environ["XAIBENCH_MEMO"] = str(tmp_path_factory.mktemp("memo"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory. Modules of the user's that are imported there are forgotten with it: in the program
    they end with the process."""
    monkeypatch.chdir(tmp_path)
    path = sys.path[:]
    yield tmp_path
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Import a file of scripts/: script("figures")."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def xaibench(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run the command line in this process, in an empty directory: xaibench("run", ...) -> (code, stdout, stderr)."""
    from xaibench.cli import main
    from xaibench.report import terminal

    def call(*arguments: str) -> tuple[int, str, str]:
        # rich keeps the stream it was made with; this test's capture has another.
        monkeypatch.setattr(terminal.stdout, "file", sys.stdout)
        monkeypatch.setattr(terminal.stderr, "file", sys.stderr)
        try:
            code = main(list(arguments))
        except SystemExit as end:  # argparse
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def spawn(here: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a real Python process in the empty directory, with its output kept in log.txt there."""
    started = []

    def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
        with open(here / "log.txt", "ab") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, *arguments],
                    env={**os.environ, **environment},
                    stdout=log,
                    stderr=log,
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
