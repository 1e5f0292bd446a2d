"""The command line: one thin function per subcommand. Nothing heavy is imported before it is needed."""

import importlib
import os
import sys
from pathlib import Path

from .. import __version__, interrupt
from ..errors import UserError, XaibenchError, nearest, unforeseen
from ..trust import trusting

USAGE = """\
usage: xaibench <command> ...

Which saliency method tells the truth about a network, and how do we know?

  run          compute maps and score them      xaibench run method=gradcam metric=degradation
               sweep with -m                    xaibench run -m method=gradient,gradcam,random
  sweep        status, wait for or cancel one   xaibench sweep status results/.sweeps/20260131-120000-000000
  list         what there is to run             xaibench list methods
  leaderboard  the results as a table and CSV   xaibench leaderboard --metric degradation
  rank         who can be told apart            xaibench rank --metric degradation
  report       the results as a page           xaibench report
  compare      published numbers beside ours    xaibench compare iba_table1
  check        compare with a baseline          xaibench check --baseline results/baseline.csv
  study        questions for people            xaibench study stimuli --method gradcam
  decode       what a path answers to           xaibench decode method=neuron_mct dataset.limit=4
  train        train a model by its recipe      xaibench train model=lenet dataset=mnist
  cache        ls, verify or prune the cache    xaibench cache ls
  doctor       versions, device, data           xaibench doctor

`xaibench <command> --help` says more. Options everywhere: --debug shows the traceback of an error,
--allow-target PREFIX lets a configuration name code from elsewhere, such as timm (docs/security.md).
Exit codes: 0 done, 1 a regression or failed cells, 2 a mistake in what was asked, 3 nothing comparable, 130 Ctrl-C.
"""

# A claim asks whether a process lives by sending it signal 0, which would end it there.
WINDOWS = """\
xaibench: the commands need Linux or macOS: their cache is shared between processes by POSIX signals and renames.
On Windows run them within WSL."""

# Where each command is: its module is imported when it is called.
COMMANDS = {
    "run": "computing.run",
    "sweep": "computing.sweep",
    "list": "inventory.list_choices",
    "leaderboard": "results.leaderboard",
    "rank": "results.rank",
    "report": "results.report",
    "compare": "results.compare",
    "check": "results.check",
    "train": "computing.train",
    "study": "study.study",
    "decode": "computing.decode",
    "cache": "inventory.cache",
    "doctor": "inventory.doctor",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; every error is one or two lines on stderr."""
    if sys.platform == "win32":
        print(WINDOWS, file=sys.stderr)
        return 2
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        arguments, prefixes = _taken(arguments, "--allow-target")
        folders = [Path(folder) for name in ("--config-dir", "-cd") for folder in _taken(arguments, name)[1]]
        with interrupt.heeded(), trusting(prefixes, folders):
            return _dispatch(arguments, debug)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough. Nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except XaibenchError as error:
        if debug:
            raise
        print(f"xaibench: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        print(f"xaibench: {unforeseen(error)}\n(--debug shows where)", file=sys.stderr)
        return 1


def _taken(arguments: list[str], option: str) -> tuple[list[str], list[str]]:
    """The arguments without an option that has a value, and its values."""
    left, values, rest = [], [], iter(arguments)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if name == option:
            values.append(value if has_value else next(rest, ""))
        else:
            left.append(argument)
    return left, values


def _dispatch(arguments: list[str], debug: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"xaibench {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "-sc":
        return _complete(rest)
    if name in COMMANDS:
        module, _, function = COMMANDS[name].partition(".")
        command = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return int(command(rest, debug) if name == "run" else command(rest))
    if "=" in name or name == "-m":
        raise UserError(f"'{name}' belongs to a command: xaibench run {' '.join(arguments)}")
    raise UserError(f"there is no command '{name}': {nearest(name, COMMANDS)}")


def _complete(arguments: list[str]) -> int:
    """Shell completion: Hydra's for `run`, the names of the commands before it.

    `eval "$(xaibench -sc install=bash)"` installs it; Hydra's script then calls `xaibench -sc query=bash`.
    """
    words = os.environ.get("COMP_LINE", "").split(" ")
    if arguments[:1] == ["query=bash"]:
        if len(words) <= 2:
            print("\n".join(c for c in COMMANDS if c.startswith(words[-1] if len(words) == 2 else "")))
            return 0
        if words[1] not in ("run", "train"):
            return 0
        line = " ".join([words[0], *words[2:]])
        os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", len(line))) - len(words[1]) - 1)
        os.environ["COMP_LINE"] = line
    from ..running import run_hydra

    return run_hydra(["-sc", *arguments], debug=False)
