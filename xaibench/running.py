"""`xaibench run`: Hydra runs one job, or a sweep of cells.

A sweep's cells differ in what is chosen (a method's yaml) and in values. Hydra composes each choice once; values are
applied to that as Hydra does it. Launchers get runs of cells, so that what cells share is loaded once per process.
"""

import contextlib
import copy
import functools
import gc
import itertools
import json
import logging
import math
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from . import interrupt, launching, sweeps
from .config import (
    NOT_COMPOSED,
    Composition,
    Outside,
    check_arguments,
    command,
    compose,
    explain,
    make_job,
    search,
    sources,
)
from .errors import BrokenImport, Elsewhere, UserError, XaibenchError, unforeseen
from .garbage import uncollected
from .job import Job
from .listing import CONF, GROUPS, plugin_folders
from .sweeps import Plan

if TYPE_CHECKING:
    from .report.terminal import Sweep as Place

log = logging.getLogger(__name__)

# Launched jobs for each worker, so that none is left with the longest cells alone; where workers stay, the next job has
# one part in so many, and for each worker, of the cells that are left.
PORTIONS, GUIDED = 4, 2
# Choices that are composed before anything runs, to refuse what is wrong with them.
LOOKED_AT = 20
# Cells after which a sweep says how long it will take: the first ones load what all of them need.
FEW = 2
# Compositions that a process keeps: some 100 kB each.
COMPOSITIONS = 256
# Before a job's end a scheduler sends a signal, which submitit answers by queueing the job again. That takes a while;
# the rest of the time before the end (the launcher's signal_delay_s, or submitit's own) is for the block at work.
SECONDS_TO_REQUEUE, SIGNAL_DELAY = 20, 30


def run_hydra(arguments: list[str], debug: bool) -> int:
    """`xaibench run ARGUMENTS`: compose and run one job, or with -m a sweep -> exit code.

    With --detach the jobs of a sweep are left to SLURM.

    Composition errors are explained and raised as UserError. A single job's errors are raised; a sweep's cells
    never raise: each writes its status, and the statuses decide.
    """
    check_arguments([argument for argument in arguments if argument != "--detach"])
    _check_detach(arguments)
    with _starting():
        job = _alone(arguments)
        if job is None:
            return _by_hydra(arguments, debug)
        run_job(job)
        return 0


def _check_detach(arguments: list[str]) -> None:
    """Raise UserError for --detach where there is nobody to leave a sweep to."""
    sweep = {"-m", "--multirun"}.intersection(arguments)
    if "--detach" in arguments and not (sweep and "hydra/launcher=submitit_slurm" in arguments):
        raise UserError("--detach: expected a sweep that SLURM has: xaibench run -m hydra/launcher=submitit_slurm ...")


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Without garbage collection until work begins (`_work_begins`)."""
    with uncollected():
        try:
            yield
        finally:
            gc.unfreeze()


def _work_begins() -> None:
    """What is there now stays, and is not looked through again."""
    gc.freeze()
    gc.enable()


def _alone(arguments: list[str]) -> Job | None:
    """The Job of arguments that are overrides of one run and nothing to Hydra itself, which would compose it twice to
    find that out; None for all others, and for mistakes: Hydra says those of the command line best."""
    left, _ = sources(arguments)
    if any(argument.startswith("-") or "hydra" in argument for argument in left):
        return None
    try:
        composed = compose(arguments)
    except (*NOT_COMPOSED, UserError):
        return None
    return None if HydraConfig.get().mode is RunMode.MULTIRUN else _made(composed)


def _by_hydra(arguments: list[str], debug: bool) -> int:
    """As `run_hydra`, through Hydra's own command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printing and exiting
    raised: list[Exception] = []

    def task(config: DictConfig) -> None:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            run_cells(config)
            return
        try:
            run_job(_made(Composition.of(config, HydraConfig.get())))
        except Exception as error:  # Hydra would print its own account of it first
            raised.append(error)

    detach = "--detach" in arguments
    left, outside = sources([argument for argument in arguments if argument != "--detach"])
    given = sys.argv
    with tempfile.TemporaryDirectory(prefix="xaibench-") as folder:
        ended = Path(folder, "sweep.json")
        options = [f"hydra.callbacks.xaibench.{key}={value}" for key, value in (("ended", ended), ("detach", detach))]
        options += search(plugin_folders(), outside)
        chosen = _chosen_by_preset(left, outside)
        sys.argv = ["xaibench", *_as_sweep(left, set(chosen)), *options]
        entry = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)
        try:
            entry()
        except UserError:
            raise
        except NOT_COMPOSED as error:
            if debug:
                traceback.print_exc()
            raise explain(error, [*(f"{group}={names}" for group, names in chosen.items()), *arguments]) from error
        finally:
            sys.argv = given
        if raised:
            raise raised[0]
        return 1 if ended.exists() and json.loads(ended.read_text())["failed"] else 0


def _as_sweep(arguments: list[str], swept: set[str]) -> list[str]:
    """`method.x=1` as a sweep of one value where `method` is swept: Hydra would try it on the default method first.

    swept: the groups of which that is known; beside them are those that the arguments sweep.
    """
    if {"-m", "--multirun"}.intersection(arguments):
        by_command = (group for group in GROUPS if any(re.match(rf"{group}=.*[,(]", word) for word in arguments))
        swept = swept.union(by_command)

    def one(argument: str) -> str:
        # Not an interpolation, of which a sweep makes a text.
        match = re.fullmatch(r"(\w+)\.([\w.]+)=([^,()$]+|\[[^$]*\])", argument)
        if not match or match[1] not in swept:
            return argument
        # choice() takes no null, and a text is one again in a cell.
        value = "'null'" if match[3].lower() == "null" else match[3]
        return f"{match[1]}.{match[2]}=choice({value})"

    return [one(argument) for argument in arguments]


def _chosen_by_preset(arguments: Iterable[str], outside: Iterable[Path]) -> dict[str, str]:
    """What the sweep of the preset among the arguments chooses: group -> names. outside: the folders of
    `--config-dir`."""
    names = [argument.partition("=")[2] for argument in arguments if argument.startswith("experiment=")]
    paths = (Path(folder, "experiment", f"{name}.yaml") for name in names for folder in (*outside, CONF))
    try:
        preset = next((OmegaConf.load(path) for path in paths if path.is_file()), OmegaConf.create())
    except NOT_COMPOSED:  # Hydra says what is wrong with it
        return {}
    params = OmegaConf.select(preset, "hydra.sweeper.params") or {}
    return {group: str(params[group]) for group in GROUPS if group in params}


def run_job(job: Job) -> None:
    """One job alone: its rows are shown, and the leaderboard is brought up to date."""
    from .engine.runner import Plan, run
    from .report import terminal
    from .scores import index, leaderboard

    terminal.talk_on_stderr()
    _work_begins()
    with _unfinished(job):
        outcome = run(job, terminal.progress)
    if isinstance(outcome, Plan):
        terminal.plan(outcome.title, outcome.rows)
    else:
        sound, damaged = index.update(job.results, terminal.tracked("score files read"))
        of_job = [cell for cell in sound if cell.path == outcome.rows]
        terminal.leaderboard_table(leaderboard.table(of_job))
        terminal.qualities(leaderboard.qualities(of_job, sound))
        terminal.damaged(damaged)


def _unfinished(job: Job) -> AbstractContextManager[None]:
    """Notes the cell as unfinished until it is done, unless nothing is to be done."""
    from .scores import score_files

    labels = {name: getattr(job, name) for name in score_files.LABELS}
    return contextlib.nullcontext() if job.runner.plan else score_files.unfinished(job.results, labels)


def _made(composed: Composition) -> Job:
    """As `make_job`. Where a class cannot be imported any more, what it made before is noted as failed."""
    try:
        return make_job(composed)
    except BrokenImport as error:
        from .scores import score_files

        labels = {name: choice for name, choice in composed.choices.items() if name == error.where.partition(".")[0]}
        if labels.keys() & {"method", "metric"}:
            results = Path(composed.config.paths.results).expanduser().absolute()
            score_files.note_failed(results, labels, error)
        raise


# ---- which cells a sweep has -----------------------------------------------------------------------------------------


class CellSweeper(Sweeper):
    """Makes the cells that Hydra's basic sweeper makes of the same overrides, but hands launchers runs of cells.

    A launched job has the overrides that all cells share, and reads its cells from the sweep's plan by its number.
    Cells of the same model and data set follow one another; the order is otherwise that of the overrides.
    max_batch_size: the most cells that are launched at once. params: overrides beside those of the command.
    """

    def __init__(self, max_batch_size: int | None, params: Mapping[str, str] | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's: what the sweep runs, and by which configuration."""
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run the cells of these overrides and of `params` -> what the launcher returned of each batch."""
        assert self.config is not None and self.launcher is not None
        from .report import terminal

        folder = Path(self.config.hydra.sweep.dir).absolute()
        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(given)
        overrides = {override.get_key_element(): override for override in parsed}  # of a repeated key the last counts
        lists = {key: _alternatives(override) for key, override in overrides.items()}
        swept = {key: len(lists[key]) for key, override in overrides.items() if override.is_sweep_override()}
        cells = cells_of(lists)
        terminal.sweep_begins(len(cells), swept)
        composer = Composer(self.loader, self.config.hydra, self.config)
        _look_at(lists, composer)
        first = composer.configured(cells[0])
        portion = _portion(first.config, len(cells), self.config.hydra.launcher)
        batches = _batches(len(cells), self.max_batch_size, portion)
        leave = bool(self.config.hydra.callbacks.xaibench.detach)
        if leave and len(batches) > 1:
            raise UserError(f"hydra.sweeper.max_batch_size={self.max_batch_size}: --detach submits all jobs at once")
        results = str(Path(self.config.paths.results).expanduser().absolute())
        plan = Plan(cells, [], time.time(), results, command(composer.outside, []))
        sweeps.write_plan(folder, plan)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        launching.name(self.launcher, self.config.hydra.job.name, _name(first.choices, swept))

        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        shared = [lists[key][0] for key in overrides if key not in swept] + [f"hydra.sweep.dir='{quoted}'"]
        returned = []
        for batch in batches:
            chunks = launching.further(folder, batch)
            returned.append(launching.launch(self.launcher, folder, chunks, shared, leave))
            for job in returned[-1]:
                _ = job.return_value  # raises what the job raised
        return returned


# Hydra takes plugins of its own packages alone, so ours stands in the place of the basic one.
Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"] = CellSweeper


def _alternatives(override: Override) -> list[str]:
    """The overrides that cells have of one: itself, or those that it sweeps."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line}: expected values to choose from, such as {key}=1,2 or range(3)")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def cells_of(lists: Mapping[str, list[str]]) -> list[list[str]]:
    """The overrides of every cell, from the alternatives of each key: all combinations. As Hydra makes them, but
    what is of a model or data set changes last, since cells of one network and one data set share what they load."""
    keys = list(lists)
    order = sorted(range(len(keys)), key=lambda place: not re.match(r"\+*(model|dataset)\b", keys[place]))
    back = sorted(range(len(keys)), key=order.__getitem__)
    return [[cell[place] for place in back] for cell in itertools.product(*(lists[keys[place]] for place in order))]


def _cells_per_task(config: DictConfig) -> int | None:
    """How many cells a launched job gets, if a cell's configuration says so."""
    size = config.runner.get("cells_per_task")
    if size is None or (isinstance(size, int) and size > 0):
        return size
    raise UserError(f"runner.cells_per_task={size}: expected a positive number, or null")


def _name(choices: Mapping[str, str], swept: Mapping[str, int]) -> str:
    """What a scheduler calls the jobs of a sweep: xaibench-<model>-<metric>, where there are several how many.
    choices: of one cell."""
    said = (f"{swept[group]}-{group}s" if group in swept else choices[group] for group in ("model", "metric"))
    return "-".join(["xaibench", *said])


def _portion(config: DictConfig, cells: int, launcher: DictConfig) -> Callable[[int], int]:
    """How many of the cells that are left a launched job gets: as many as a cell's configuration says, or all, from a
    launcher that runs one job after another. joblib's processes stay, so that its jobs become smaller to the end
    (guided self-scheduling: Polychronopoulos and Kuck 1987, IEEE Transactions on Computers 36): none is left with much
    alone. Those of others start anew for each."""
    if size := _cells_per_task(config):
        return lambda left: size
    if launcher._target_ == "hydra._internal.core_plugins.basic_launcher.BasicLauncher":
        return lambda left: left
    if "n_jobs" in launcher:  # below 0 it counts from the number of cores
        workers = launcher.n_jobs if launcher.n_jobs > 0 else (os.cpu_count() or 1) + 1 + launcher.n_jobs
        return lambda left: math.ceil(left / (max(workers, 1) * GUIDED))
    workers = launcher.get("array_parallelism") or 256  # submitit's default
    return lambda left: math.ceil(cells / (max(workers, 1) * PORTIONS))


def _batches(cells: int, most: int | None, portion: Callable[[int], int]) -> list[list[tuple[int, int]]]:
    """Batches of at most `most` cells, each in runs (first, end). portion: how many of those that are left the next
    run has, at most."""
    most = most if most and most > 0 else max(cells, 1)
    return [_runs(start, min(start + most, cells), portion) for start in range(0, cells, most)]


def _runs(first: int, end: int, portion: Callable[[int], int]) -> list[tuple[int, int]]:
    runs = []
    while first < end:
        runs.append((first, min(first + portion(end - first), end)))
        first = runs[-1][1]
    return runs


def _look_at(lists: Mapping[str, list[str]], composer: "Composer") -> None:
    """Raise what Hydra raises for a mistake in the cells' overrides: of every group the first LOOKED_AT choices are
    composed, once each; of further ones the names are looked up."""
    choices = {key: texts for key, texts in lists.items() if composer.chooses(_parsed(texts[0]))}
    for number in range(min(max((len(texts) for texts in choices.values()), default=1), LOOKED_AT)):
        composer.configured([texts[number % len(texts)] for texts in lists.values()])
    for group, texts in choices.items():
        names = [str(_parsed(text).value()) for text in texts[LOOKED_AT:]]
        options = composer.repository.get_group_options(group) if names else []
        for name in names:
            if name not in options:
                raise MissingConfigException("", f"{group}/{name}", options)


# ---- from a cell's overrides to its configuration --------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Override:
    """An override. Of numbers a sweep may have thousands, and Hydra's parser takes milliseconds for each."""
    if match := re.fullmatch(r"([\w.]+)=(-?(?:0|[1-9]\d*)(?:\.\d+)?)", text):
        key, number = match.groups()
        if number != "0":
            return replace(_parsed(f"{key}=0"), _value=float(number) if "." in number else int(number), input_line=text)
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


class Composer:
    """Composes the cells of a sweep: each choice of groups once, by Hydra; values are set in what that gave.

    made: Hydra's section of the sweep or of a launched job. resolved: the configuration that has it, whose resolved
    values, such as the time, count for all cells. asks_hydra: whether a yaml reads Hydra's section (${hydra:job.num}).
    """

    def __init__(self, loader: ConfigLoader, made: Any, resolved: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self.loader, self.resolved, self.name = loader, resolved, made.job.config_name
        self.overrides = list(made.overrides.hydra)
        self.folder, self.asks_hydra = str(Path(made.sweep.dir).absolute()), False
        _, self.repository = loader._parse_overrides_and_create_caching_repo(self.name, self.overrides)
        self._is_group = functools.cache(self.repository.group_exists)
        places = self.repository.get_sources()
        self.outside = [place.path for place in places if place.scheme() == Outside.scheme()]

    def chooses(self, override: Override) -> bool:
        """Whether an override takes part in composing, as those of groups do; others set values. (Hydra's rule.)"""
        if override.is_hydra_override() or override.package is not None:
            return True
        return not isinstance(override.value(), dict) and self._is_group(override.key_or_group)

    def configured(self, cell: Iterable[str]) -> Composition:
        """The composition of a cell's overrides. Raises what Hydra raises.

        Cells of a choice that set the same keys set them in place: `config` holds until the next call.
        """
        overrides = {text: _parsed(text) for text in cell}
        choice = [text for text, override in overrides.items() if self.chooses(override)]
        values = [override for text, override in overrides.items() if text not in choice]
        composed = self._composition(choice, [value.get_key_element() for value in values])
        anew = all(value.type is OverrideType.CHANGE and not isinstance(value.value(), dict) for value in values)
        config = composed.config if anew else copy.deepcopy(composed.config)
        self.loader._apply_overrides_to_config(values, config)
        return replace(composed, config=config, overrides=tuple(overrides))

    def _composition(self, choice: list[str], keys: list[str]) -> Composition:
        from .engine.kept import KEPT

        def compose() -> Composition:
            config = self.loader.load_configuration(self.name, [*self.overrides, *choice], RunMode.RUN)
            OmegaConf.copy_cache(from_config=self.resolved, to_config=config)
            with read_write(config), open_dict(config):
                made = config.pop("hydra")
            self.asks_hydra |= "${hydra:" in OmegaConf.to_yaml(config)
            return Composition.of(config, made)

        name = {"sweep": self.folder, "choice": choice, "keys": keys}
        return KEPT.get("composition", name, compose, most=COMPOSITIONS)


# ---- running cells ---------------------------------------------------------------------------------------------------


def run_cells(config: DictConfig) -> None:
    """What a launched job does, from whatever process: its cells of the sweep, in turn. Before a scheduler ends it the
    block at work is written."""
    from .engine import runner  # noqa: F401  # before work begins
    from .report import terminal

    terminal.talk_on_stderr()  # a worker process starts without it
    made = HydraConfig.get()
    folder, job = Path(made.sweep.dir).absolute(), made.job.num
    plan = sweeps.read_plan(folder)
    composer = Composer(GlobalHydra.instance().config_loader(), made, config)
    delay = made.launcher.get("signal_delay_s", SIGNAL_DELAY)
    _work_begins()
    with interrupt.put_off(signal.SIGUSR2, max(delay - SECONDS_TO_REQUEUE, delay / 2)):
        _in_turn(folder, job, plan, composer)
    sweeps.end_job(folder, job)


def _in_turn(folder: Path, job: int, plan: Plan, composer: Composer) -> None:
    """The cells of a launched job; at the end those that another process was at."""
    from .report import terminal

    total, began, says = len(plan.cells), plan.time, job == 0
    waiting = list(range(*plan.chunks[job]))
    for wait in (False, True):
        left = []
        for number in waiting:
            place = terminal.Sweep(number + 1, total, began)
            sweeps.begin_cell(folder, job, number)
            status = _run_cell(plan.cells[number], place, composer, wait)
            if status is None:
                left.append(number)
                continue
            sweeps.write_status(folder, number, status)
            terminal.sweep_goes_on(place)
            if says and place.number > FEW and time.time() - began >= terminal.SECONDS_BEFORE_ESTIMATE:
                says = False
                terminal.sweep_estimate(len(sweeps.told(folder)), total, began)
        waiting = left


def _run_cell(cell: list[str], place: "Place", composer: Composer, wait: bool) -> dict[str, Any] | None:
    """One cell of a sweep -> its status, for `SweepEnd`; None if another process is at it and `wait` is false."""
    from .engine.kept import KEPT
    from .engine.runner import Plan, run
    from .report import terminal

    words = " ".join(cell)
    status: dict[str, Any] = {"cell": words, "command": command(composer.outside, cell), "status": "ok", "files": []}
    try:
        interrupt.answer()
        composed = composer.configured(cell)
        if composer.asks_hydra or "${hydra:" in words:
            _tell_hydra(cell, place.number - 1)
        job = _made(composed)
        with _unfinished(job):
            outcome = run(job, functools.partial(terminal.progress, sweep=place), KEPT, wait)
        if isinstance(outcome, Plan):
            terminal.plan(outcome.title, outcome.rows)
        status["files"] = [] if isinstance(outcome, Plan) else [str(outcome.rows)]
    except Elsewhere:
        return None
    except XaibenchError as error:
        status |= {"status": "failed", "error": str(error)}
    except NOT_COMPOSED as error:
        status |= {"status": "failed", "error": str(explain(error, cell))}
    except Exception as error:
        if type(error).__name__ == "UncompletedJobError":  # submitit's, from a signal: the job ends, not this cell
            raise SystemExit(f"error: {error}") from error
        status |= {"status": "failed", "error": unforeseen(error), "traceback": traceback.format_exc()}
    if status["status"] == "failed":
        told = KEPT.get("told", {"error": status["error"]}, lambda: words)
        log.error("failed: %s: %s", words, status["error"] if told == words else "for the same reason as before")
    return status


def _tell_hydra(cell: list[str], number: int) -> None:
    """Hydra's own section as of this cell, for values such as ${hydra:job.num}."""
    made: Any = HydraConfig.get()
    with read_write(made), open_dict(made):
        made.job.num, made.overrides.task = number, cell


class SweepEnd(Callback):
    """Around a sweep: cells share what they load; at the end, what failed and the leaderboard of what ran.

    ended: the file that says how many cells failed, for the process that started Hydra. detach: leave the sweep to the
    scheduler; `xaibench sweep wait` tells its end.
    """

    def __init__(self, ended: str | None = None, detach: bool = False) -> None:
        self.ended, self.detach = ended, detach

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from .engine.kept import KEPT

        KEPT.clear()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from .engine.kept import KEPT

        KEPT.clear()
        if self.detach:
            return
        counts = sweeps.end(Path(config.hydra.sweep.dir).absolute())
        if self.ended:
            Path(self.ended).write_text(json.dumps(asdict(counts)))
