"""Commands that compute: run, sweep, train, decode."""

from pathlib import Path

from .. import __version__
from ..errors import UserError
from .options import parser_of


def run(arguments: list[str], debug: bool) -> int:
    """Compose and run with Hydra's own command line."""
    if "--version" in arguments:
        print(f"xaibench {__version__}")
        return 0
    from ..running import run_hydra

    return run_hydra(_options_first(arguments), debug)


def _options_first(arguments: list[str]) -> list[str]:
    """Hydra's options before the overrides: its parser refuses overrides on both sides of an option."""
    options: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i"):
            options += [argument, *([value] if (value := next(rest, None)) is not None else [])]
        else:
            (options if argument.startswith("-") else overrides).append(argument)
    return [*options, *overrides]


def sweep(arguments: list[str]) -> int:
    """A sweep that was left to SLURM: how far it is, its end, or no more of it."""
    parser = parser_of(
        "sweep", "a sweep that SLURM has (run -m --detach): how far it is, wait for its end, or cancel it"
    )
    parser.add_argument("what", choices=("status", "wait", "cancel"))
    parser.add_argument("folder", metavar="FOLDER", help="of the sweep, such as results/.sweeps/20260131-120000-000000")
    options = parser.parse_args(arguments)
    from .. import launching, sweeps
    from ..report import terminal

    folder = Path(options.folder).absolute()
    plan = sweeps.read_plan(folder)
    if options.what == "status":
        print(launching.status(folder))
        terminal.failures(sweeps.statuses(folder, plan, lost=False), brief=True)
        return 0
    if options.what == "cancel":
        left = launching.still(folder)
        if left:
            launching.cancel(left)
        terminal.cancelled(left)
        return 0
    launching.wait_for_slurm(folder)
    return 1 if sweeps.end(folder).failed else 0


def train(arguments: list[str]) -> int:
    """Train a model by its recipe and say where the checkpoint is."""
    if "-h" in arguments or "--help" in arguments:
        print("usage: xaibench train model=NAME dataset=NAME [key=value] ... [--config-dir=DIR]")
        return 0
    from ..config import compose_job
    from ..report import terminal

    job = compose_job(arguments)
    terminal.talk_on_stderr()
    from ..engine.device import find_device
    from ..engine.training import train_and_test

    path, name, value = train_and_test(job, find_device(job.runner.device))
    print(f"{path}\n{name} {value:.4f}; used by model.weights=recipe")
    if kept := sorted(path.parent.glob("epoch-*.safetensors")):
        print(f"kept for model.weights=FILE: {', '.join(map(str, kept))}")
    return 0


def decode(arguments: list[str]) -> int:
    """Draw the inputs that the paths of a method answer to."""
    parser = parser_of("decode", "the inputs that the path of a method answers to; then key=value as for run")
    parser.add_argument("--out", default="decoded", metavar="DIR", help="for decoded.png and .csv (default: decoded)")
    parser.add_argument("--steps", type=int, default=128, help="of the search for each input (default: 128)")
    parser.add_argument("--jitter", type=int, default=4, help="largest shift before each step in pixels (default: 4)")
    parser.add_argument("--config-dir", action="append", default=[], help="a folder with configurations of your own")
    options, overrides = parser.parse_known_args(arguments)
    from ..config import compose_job
    from ..engine.decoding import decode
    from ..methods.pathways.decode import Decoding
    from ..report import decoded, terminal

    try:
        how = Decoding(steps=options.steps, jitter=options.jitter)
    except ValueError as error:
        raise UserError(f"decode: {error}") from error
    folders = [f"--config-dir={folder}" for folder in options.config_dir]
    method = [] if any(override.startswith("method=") for override in overrides) else ["method=neuron_mct"]
    job = compose_job([*method, "dataset.limit=4", *overrides, *folders])  # a limit of one's own comes after ours
    terminal.talk_on_stderr()
    pictures, found = decode(job, how)
    title = f"{job.model} x {job.dataset}: {job.method} {job.method_variant}".strip()
    print(decoded.write(Path(options.out), title, pictures, found))
    return 0
