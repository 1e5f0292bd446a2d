"""The only module that knows Hydra and OmegaConf: compose, validate, explain mistakes, hand on a frozen Job."""

import contextlib
import functools
import inspect
import json
import logging
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from .build import TARGET, build, coerce, describe, locate
from .errors import BrokenImport, UserError, XaibenchError, first_line, nearest, unforeseen
from .job import SELECTION, Filter, FitSelection, Job, Paths, Runner, Selection
from .listing import CONF, GROUPS, LISTED, items, plugin_folders, read_item
from .store.files import write_atomically
from .trust import allowed, check_yaml

if TYPE_CHECKING:
    from .report.terminal import Sweep

log = logging.getLogger(__name__)


# ---- from a composed configuration to a Job ------------------------------------------------------------------------

TOP_LEVEL = (*GROUPS, "seed", "target", "output", "fit", "runner", "paths")
_USUAL = {"seed": 0, "target": "label", "output": "logit"}
# Where the data lies and how it is fetched does not make it another data set.
_NOT_IN_LABEL = ("root", "download", "classes", "boxes")


def make_job(config: DictConfig) -> Job:
    """The Job of a composed configuration. Raises UserError for unknown keys and impossible values."""
    plain = _plain(config)
    choices = _choices()
    yamls = {group: _yaml_of(group, choices[group]) for group in GROUPS}
    defaults = {
        group: cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path), resolve=False)) if path else {}
        for group, path in yamls.items()
    }
    model_spec, dataset_spec = dict(plain["model"]), dict(plain["dataset"])
    selection = {key: dataset_spec.pop(key) for key in SELECTION if key in dataset_spec}
    # A yaml may name itself; `model=torchvision` takes the name of its architecture.
    model, dataset = _own_name(model_spec) or choices["model"], _own_name(dataset_spec) or choices["dataset"]
    changed = _changes(dataset_spec, defaults["dataset"])
    dataset += "".join(f",{key}={value}" for key, value in changed.items() if key not in _NOT_IN_LABEL)

    run = {"seed": coerce(plain["seed"], int, "seed"), "target": _target(plain["target"])}
    run["output"] = str(plain["output"])
    of_run = {key: value for key, value in run.items() if value != _USUAL[key]}
    fit, paths = _options(FitSelection, plain["fit"], "fit"), _options(Paths, plain["paths"], "paths")
    overridden = {
        group: _overridden(plain[group], defaults[group], group) | _fit_overrides(plain[group], group, fit)
        for group in ("method", "metric")
    }
    job = Job(
        model=model,
        dataset=dataset,
        method=choices["method"],
        metric=choices["metric"],
        method_variant=_variant(overridden["method"] | of_run),
        run_variant=_variant(of_run),
        metric_variant=_variant(overridden["metric"]),
        tuned_on=read_item(yamls["method"]).tuned_on if yamls["method"] else (),
        model_spec=model_spec,
        dataset_spec=dataset_spec,
        method_spec=plain["method"],
        metric_spec=plain["metric"],
        selection=_options(Selection, {**selection, "filter": selection.get("filter") or {}}, "dataset"),
        fit=fit,
        runner=_options(Runner, plain["runner"], "runner"),
        **run,
        cache=Path(paths.cache).expanduser().absolute(),
        results=Path(paths.results).expanduser().absolute(),
        config=plain,
        command=_command(),
    )
    _check_values(job)
    return job


def _plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, all of whose keys we know and whose groups name a class."""
    try:
        plain = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is missing: set {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(f"a value cannot be resolved: {first_line(error)}") from error
    for key in plain:
        if key not in TOP_LEVEL:
            raise UserError(f"'{key}' is not a setting of xaibench: {nearest(key, TOP_LEVEL)}")
    for group in GROUPS:
        if not isinstance(plain[group], dict) or TARGET not in plain[group]:
            raise UserError(f"{group}={plain[group]}: expected the name of a {group} configuration with _target_")
    return plain


def _fit_overrides(spec: Mapping[str, Any], group: str, fit: FitSelection) -> dict[str, Any]:
    """The fit's overrides, where they change the numbers: for what has something to fit."""
    usual = FitSelection()
    changed = {f"fit.{key}": value for key, value in asdict(fit).items() if value != getattr(usual, key)}
    return changed if changed and getattr(build(spec, group), "fit", None) is not None else {}


def _check_values(job: Job) -> None:
    """Raise UserError for values that no run can have, before anything is loaded."""
    positive = {"dataset.limit": job.selection.limit, "fit.limit": job.fit.limit}
    positive["runner.batch_size"] = job.runner.batch_size
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise UserError(f"{name}={value}: expected a positive number, or null")
    if not 0 <= job.selection.filter.min_probability <= 1:
        raise UserError(f"dataset.filter.min_probability={job.selection.filter.min_probability}: expected 0 to 1")
    describe(job.method_spec, "method")
    describe(job.metric_spec, "metric")
    describe(job.dataset_spec, "dataset")


def _options(kind: type, values: Mapping[str, Any] | None, where: str) -> Any:
    spec = {TARGET: f"{kind.__module__}.{kind.__qualname__}", **_mapping(values or {}, where)}
    if kind is Selection:
        spec["filter"] = {TARGET: f"{Filter.__module__}.Filter", **_mapping(spec["filter"], f"{where}.filter")}
    return build(spec, where)


def _target(value: Any) -> str:
    if value in ("label", "predicted") or re.fullmatch(r"fixed:\d+", str(value)):
        return str(value)
    raise UserError(f"target={value}: expected label, predicted, or fixed:<class index> such as fixed:3")


def _choices() -> dict[str, str]:
    choices = HydraConfig.get().runtime.choices
    return {group: str(choices[group]) for group in GROUPS}


def _command() -> str:
    """The command that runs this cell alone, as a shell takes it: its folders and what it allows included."""
    hydra_config = HydraConfig.get()
    folders = [source.path for source in hydra_config.runtime.config_sources if source.schema == Outside.scheme()]
    options = [*(f"--config-dir={folder}" for folder in folders), *(f"--allow-target={name}" for name in allowed())]
    return shlex.join(["xaibench", "run", *options, *hydra_config.overrides.task])


def _yaml_of(group: str, name: str) -> Path | None:
    """The yaml on disk, from wherever Hydra found it: what a variant is measured against."""
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema in ("file", Outside.scheme()) and (path := Path(source.path, group, f"{name}.yaml")).is_file():
            return path
    return None


def _changes(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping | None):
            changes |= _changes(value, default or {}, f"{prefix}{key}.")
        elif value != default and not (isinstance(default, str) and "${" in default):
            changes[prefix + key] = value
    return changes


def _overridden(spec: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The parameters that differ from the yaml, spelled as the constructor gets them (2.0 for 2)."""
    spelled = _changes(describe(spec, where), {})
    return {key: spelled.get(key, value) for key, value in _changes(spec, defaults).items()}


def _variant(changes: Mapping[str, Any]) -> str:
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in changes.items()}
    return ",".join(f"{key}={word}" for key, word in sorted(words.items()))


# ---- running Hydra ---------------------------------------------------------------------------------------------------


class Outside(FileConfigSource):
    """A folder of `--config-dir`: Hydra reads it as any other, but each file is checked before (`trust.check_yaml`)."""

    @staticmethod
    def scheme() -> str:
        """What such folders are called on Hydra's search path: outside:///folder."""
        return "outside"

    def load_config(self, config_path: str) -> ConfigResult:
        """The configuration of a file, unless it asks for what none from outside may."""
        path = Path(self.path, self._normalize_file_name(config_path))
        if path.is_file():
            check_yaml(path, config_path)
        return super().load_config(config_path)


Plugins.instance().register(Outside)

# What Hydra takes otherwise: other configurations than ours in our place, and a pickle of an earlier run.
_NOT_TAKEN = ("--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun")


def _named_group(option: str) -> str:
    """`method` of an override such as `+method@method.inner=...`."""
    return option.lstrip("+~").partition("@")[0]


def _sources(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The arguments without `--config-dir`, and its folders. Raises UserError for other ways to Hydra's files."""
    left, folders, rest = [], [], iter(arguments)
    for argument in rest:
        option, has_value, value = argument.partition("=")
        if option in ("--config-dir", "-cd"):
            folder = Path(value if has_value else next(rest, "")).expanduser()
            if not folder.is_dir():
                raise UserError(f"--config-dir={folder}: there is no such folder")
            folders.append(folder.absolute())
        elif (
            option in _NOT_TAKEN or option.startswith(("--config", "--exp")) or option.lstrip("+") == "hydra.searchpath"
        ):
            raise UserError(f"{option}: xaibench reads configurations of yours from --config-dir=FOLDER alone")
        elif _named_group(option) in LISTED and re.search(r"(^|[,/])\.\.([,/]|$)", value):
            raise UserError(
                f"{argument}: expected a name, not a path; --config-dir=FOLDER is for configurations of yours"
            )
        else:
            left.append(argument)
    return left, folders


def run_hydra(arguments: list[str], debug: bool) -> int:
    """`xaibench run ARGUMENTS`: compose and run one job, or with -m a sweep -> exit code.

    Composition errors are explained and raised as UserError. A single job's errors are raised; a sweep's cells
    never raise: each writes its status, and the statuses decide.
    """
    check_arguments(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printing and exiting
    raised: list[Exception] = []

    def task(config: DictConfig) -> None:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            run_cell(config)
            return
        try:
            run_job(_made(config))
        except Exception as error:  # Hydra would print its own account of it first
            raised.append(error)

    left, outside = _sources(arguments)
    given = sys.argv
    with tempfile.TemporaryDirectory(prefix="xaibench-") as folder:
        ended = Path(folder, "sweep.json")
        options = [f"hydra.callbacks.xaibench.ended={ended}", *_search(plugin_folders(), outside)]
        sys.argv = ["xaibench", *_as_sweep(left), *options]
        entry = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)
        try:
            entry()
        except UserError:
            raise
        except NOT_COMPOSED as error:
            if debug:
                traceback.print_exc()
            raise explain(error, arguments) from error
        finally:
            sys.argv = given
        if raised:
            raise raised[0]
        return 1 if ended.exists() and json.loads(ended.read_text())["failed"] else 0


def _as_sweep(arguments: list[str]) -> list[str]:
    """`method.x=1` as a sweep of one value where `method` is swept: Hydra would try it on the default method first."""
    if not {"-m", "--multirun"}.intersection(arguments):
        return arguments
    swept = {group for group in GROUPS if any(re.match(rf"{group}=.*,", argument) for argument in arguments)}

    def one(argument: str) -> str:
        match = re.fullmatch(r"(\w+)\.([\w.]+)=([^,()]+|\[.*\])", argument)
        return f"{match[1]}.{match[2]}=choice({match[3]})" if match and match[1] in swept else argument

    return [one(argument) for argument in arguments]


def compose_job(overrides: list[str]) -> Job:
    """One Job from overrides, outside Hydra's own command line (`xaibench train`)."""
    check_arguments(overrides)
    left, outside = _sources(overrides)
    left = [argument for argument in left if not argument.startswith("--")]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            search = _search(plugin_folders(), outside)
            config = hydra.compose("config", [*left, *search], return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            return make_job(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    except NOT_COMPOSED as error:
        raise explain(error, overrides) from error


def _search(plugins: Sequence[Path], outside: Sequence[Path]) -> list[str]:
    """The override with which Hydra looks for configurations in further folders."""
    places = [f"file://{folder.absolute()}" for folder in plugins]
    places += [f"{Outside.scheme()}://{folder}" for folder in outside]
    quoted = ",".join("'" + place.replace("'", "\\'") + "'" for place in places)
    return [f"hydra.searchpath=[{quoted}]"] if places else []


def run_job(job: Job) -> None:
    """One job alone: its rows are shown, and the leaderboard is brought up to date."""
    from .engine.runner import Plan, run
    from .report import terminal
    from .scores import leaderboard

    terminal.talk_on_stderr()
    with _unfinished(job):
        outcome = run(job, terminal.progress)
    if isinstance(outcome, Plan):
        terminal.plan(outcome.title, outcome.rows)
    else:
        cells, damaged = leaderboard.read_sound(job.results)
        leaderboard.write(job.results, cells)
        terminal.leaderboard_table(leaderboard.table(leaderboard.read_cells(job.results, [outcome.rows])))
        terminal.damaged(damaged)


def _unfinished(job: Job) -> AbstractContextManager[None]:
    """Notes the cell as unfinished until it is done, unless nothing is to be done."""
    from .scores import score_files

    labels = {name: getattr(job, name) for name in score_files.LABELS}
    return contextlib.nullcontext() if job.runner.plan else score_files.unfinished(job.results, labels)


def _made(config: DictConfig) -> Job:
    """As `make_job`. Where a class cannot be imported any more, what it made before is noted as failed."""
    try:
        return make_job(config)
    except BrokenImport as error:
        from .scores import score_files

        labels = {name: choice for name, choice in _choices().items() if name == error.where.partition(".")[0]}
        if labels.keys() & {"method", "metric"}:
            score_files.note_failed(Path(config.paths.results).expanduser().absolute(), labels, error)
        raise


def run_cell(config: DictConfig) -> None:
    """One cell of a sweep: its status goes into a file, and from whatever process it comes, `SweepEnd` reads it."""
    from .engine.runner import Plan, run
    from .engine.setting import KEPT
    from .report import terminal

    terminal.talk_on_stderr()  # a worker process starts without it
    cell = " ".join(HydraConfig.get().overrides.task)
    status: dict[str, Any] = {"cell": cell, "command": _command(), "status": "ok", "files": []}
    try:
        job = _made(config)
        with _unfinished(job):
            outcome = run(job, functools.partial(terminal.progress, sweep=_place_in_sweep()), KEPT)
        if isinstance(outcome, Plan):
            terminal.plan(outcome.title, outcome.rows)
        status["files"] = [] if isinstance(outcome, Plan) else [str(outcome.rows)]
    except XaibenchError as error:
        status |= {"status": "failed", "error": str(error)}
    except Exception as error:
        status |= {"status": "failed", "error": unforeseen(error), "traceback": traceback.format_exc()}
    path = Path(HydraConfig.get().sweep.dir).absolute() / f"{HydraConfig.get().job.num}.json"
    write_atomically(path, json.dumps(status, indent=1) + "\n")
    if status["status"] == "failed":
        told = KEPT.get("told", {"error": status["error"]}, lambda: cell)
        log.error("failed: %s: %s", cell, status["error"] if told == cell else "for the same reason as before")


# Beside the statuses of a sweep's cells: how many there are, and when the first began.
BEGAN = "began"


def _place_in_sweep() -> "Sweep | None":
    """Which cell of how many this is, from whatever process; None if nobody wrote down how many there are."""
    from .report.terminal import Sweep

    try:
        found = json.loads(Path(HydraConfig.get().sweep.dir, BEGAN).read_text())
    except (OSError, ValueError):
        return None
    return Sweep(int(HydraConfig.get().job.num) + 1, found["cells"], found["time"])


def _cells_of(config: DictConfig) -> tuple[int, dict[str, int]]:
    """How many cells Hydra's sweeper will make, and of how many values of what."""
    swept = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*swept, *config.hydra.overrides.task])
    values = {o.get_key_element(): len(list(o.sweep_string_iterator())) for o in overrides if o.is_sweep_override()}
    return sum(len(batch) for batch in BasicSweeper.split_arguments(overrides, None)), values


class SweepEnd(Callback):
    """Around a sweep: cells share what they load; at the end, what failed and the leaderboard of what ran.

    ended: the file that says how many cells failed, for the process that started Hydra.
    """

    def __init__(self, ended: str | None = None) -> None:
        self.ended = ended

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from .engine.setting import KEPT
        from .report import terminal

        KEPT.clear()
        cells, values = _cells_of(config)
        write_atomically(Path(config.hydra.sweep.dir, BEGAN), json.dumps({"cells": cells, "time": time.time()}))
        terminal.sweep_begins(cells, values)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from .engine.setting import KEPT
        from .report import terminal
        from .scores import leaderboard

        KEPT.clear()
        folder = Path(config.hydra.sweep.dir).absolute()
        cells = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"), key=lambda p: int(p.stem))]
        files = [Path(file) for cell in cells for file in cell.get("files", [])]
        if files:
            results = Path(config.paths.results).expanduser().absolute()
            sound, damaged = leaderboard.read_sound(results)
            leaderboard.write(results, sound)
            ran = leaderboard.told_apart(leaderboard.read_cells(results, files))
            terminal.leaderboard_table(leaderboard.headlines(ran))
            terminal.damaged(damaged)
        terminal.failures(cells)
        if self.ended:
            failed = sum(cell["status"] == "failed" for cell in cells)
            Path(self.ended).write_text(json.dumps({"cells": len(cells), "failed": failed}))


# ---- explaining mistakes ---------------------------------------------------------------------------------------------


# What Hydra raises for what it cannot compose.
NOT_COMPOSED = (HydraException, OmegaConfBaseException, yaml.YAMLError)


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}={values}: expected keys of it, such as {where}.KEY=...")
    return values


def _own_name(spec: dict[str, Any]) -> str:
    """The name that a model's or data set's yaml gives itself, taken out of it unless its class wants it too."""
    name = spec.get("name")
    if "name" not in _parameters(spec[TARGET]):
        spec.pop("name", None)
    return str(name or "")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UserError for options that Hydra does not have, and for overrides that give a group no name."""
    parser = get_args_parser()
    parser.error = _refuse_option  # type: ignore[method-assign]  # argparse would exit
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
        raise UserError(f"{unknown[0]}: xaibench run has no such option; {nearest(unknown[0], known)}")
    for argument in options.overrides:
        group, _, value = argument.lstrip("+~").partition("=")
        if not group:
            raise UserError(f"{argument}: expected key=value, such as method=gradcam")
        if group not in (*GROUPS, "experiment"):
            continue
        names = nearest(value, [item.name for item in items(group)])
        if argument.startswith("~"):
            raise UserError(f"{argument}: every cell has a {group}; {names}")
        try:
            (override,) = OverridesParser.create().parse_overrides([argument])
        except OverrideParseException as error:
            raise explain(error, arguments) from error
        given = override.value()
        choices = given.list if isinstance(given, ChoiceSweep) else [given]
        if not all(isinstance(choice, str | QuotedString) for choice in choices):
            raise UserError(f"{argument}: there is no such {group}; {names}")


def _refuse_option(message: str) -> NoReturn:
    raise UserError(f"run: {message}; see xaibench run --help")


def explain(error: Exception, arguments: Iterable[str]) -> UserError:
    """A composition error of Hydra's in one or two lines, with the nearest valid choice."""
    text, arguments = str(error), list(arguments)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        place = error.problem_mark
        return UserError(f"{place.name}: line {place.line + 1} is no yaml ({error.problem})")
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return UserError(f"{group}={name}: there is no such {group}; {nearest(name, error.options)}")
    if absent := [folder for folder in _folders(arguments) if not folder.is_dir()]:
        return UserError(f"--config-dir={absent[0]}: there is no such folder; expected one such as conf/ of xaibench")
    if "Ambiguous value for argument" in text:
        argument = re.search(r"'(.*?)'", text)
        what = argument[1] if argument else first_line(error)
        return UserError(f"{what}: several values need a sweep; add -m (xaibench run -m ...)")
    if match := re.search(r"An item is already at '([^']+)'", text):
        return UserError(f"+{match[1]}: it exists already; write {match[1]}=... without the +")
    if match := re.search(r"Could not (?:override|append|delete)(?: from config\.)? '([^']+)'", text):
        return UserError(_unknown_key(match[1].lstrip("+~"), arguments))
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: this cannot be read as key=value ({first_line(error)})")
    cause = "" if error.__cause__ is None else f" ({first_line(error.__cause__)})"
    return UserError(f"this cannot be made a configuration: {first_line(error)}{cause}")


def _folders(arguments: Iterable[str]) -> list[Path]:
    """The folders of --config-dir among the arguments."""
    found, _ = get_args_parser().parse_known_args(list(arguments))
    return [] if found.config_dir is None else [Path(found.config_dir)]


# The settings of xaibench's own, by their paths.
_SETTINGS: dict[str, Any] = {"dataset": Selection, "fit": FitSelection, "runner": Runner, "paths": Paths}


def _unknown_key(key: str, arguments: Sequence[str]) -> str:
    """The message for an override of something that is not there: the nearest key of the same parent."""
    parent, _, name = key.partition("@")[0].rpartition(".")
    folders = _folders(arguments)
    chosen = [a for a in arguments if re.match(r"(model|dataset|method|metric|experiment)=", a)]
    usual = [a.split(",")[0] for a in chosen]
    if not parent:
        places = [where for where, kind in _SETTINGS.items() if key in kind.__dataclass_fields__]
        places += [group for group in GROUPS if key in _node(group, usual, folders)[1]]
        near = " or ".join(f"'{where}.{key}'" for where in dict.fromkeys(places))
        near = f"did you mean {near}?" if near else nearest(key, [*TOP_LEVEL, "experiment"])
        return f"'{key}' is not a setting of xaibench: {near}"
    # Of a sweep over the very group, the choice that lacks the key.
    group = parent.partition(".")[0]
    swept = next((a.partition("=")[2].split(",") for a in chosen if a.startswith(f"{group}=")), [None])
    for choice in swept:
        others = [a for a in usual if not a.startswith(f"{group}=")]
        node, keys = _node(parent, others + ([] if choice is None else [f"{group}={choice}"]), folders)
        if name not in keys:
            break
    if not isinstance(node, DictConfig):
        return f"'{key}' is not a setting of xaibench; see `xaibench run --cfg job`"
    where = parent if len(swept) == 1 else f"{parent}={choice}"
    if name in keys:
        return f"'{key}': it is not in the yaml of {where}; to add it write +{key}=..."
    return f"'{key}': {where} has no '{name}': {nearest(name, keys) or 'it has no parameters'}"


def _node(path: str, overrides: list[str], folders: Sequence[Path]) -> tuple[Any, list[str]]:
    """A node of the composed configuration (None if there is none), and the keys that it takes."""
    from .models.loading import RESERVED

    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            search = _search(plugin_folders(), folders)
            node = OmegaConf.select(hydra.compose("config", [*overrides, *search]), path)
    except NOT_COMPOSED:
        return None, []
    if not isinstance(node, DictConfig):
        return node, []
    known = {*node, *_parameters(node[TARGET]), *(RESERVED if path == "model" else ())} if TARGET in node else {*node}
    return node, sorted(known - {TARGET})


def _parameters(target: str) -> list[str]:
    """The parameter names of a target; empty if it cannot be imported."""
    try:
        return list(inspect.signature(locate(target, TARGET)).parameters)
    except (UserError, ValueError):
        return []
