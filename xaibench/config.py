"""From Hydra's configurations to a frozen Job: compose, validate, explain mistakes. `running` has Hydra run them."""

import inspect
import json
import logging
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import hydra
import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from .build import TARGET, build, coerce, describe, locate
from .errors import UserError, first_line, nearest
from .job import SELECTION, Filter, FitSelection, Job, Paths, Runner, Selection
from .listing import CONF, GROUPS, LISTED, items, plugin_folders, read_item
from .trust import allowed, check_yaml

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


# ---- from a composed configuration to a Job ------------------------------------------------------------------------

TOP_LEVEL = (*GROUPS, "seed", "target", "output", "fit", "runner", "paths")
_USUAL = {"seed": 0, "target": "label", "output": "logit"}
# Where the data lies and how it is fetched does not make it another data set.
_NOT_IN_LABEL = ("root", "download", "classes", "boxes")


@dataclass(frozen=True)
class Composition:
    """What Hydra made of overrides, and how.

    config: without Hydra's own section. choices: group -> what was chosen. outside: the folders of `--config-dir`.
    defaults: group -> its yaml, which variants are measured against. tuned_on: what the method's yaml says of it.
    overrides: those of this cell.
    """

    config: DictConfig
    choices: Mapping[str, str]
    outside: tuple[str, ...]
    defaults: Mapping[str, Mapping[str, Any]]
    tuned_on: tuple[str, ...]
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, config: DictConfig, made: Any) -> "Composition":
        """The composition of a configuration by what Hydra's section says of it."""
        choices = {group: str(made.runtime.choices[group]) for group in GROUPS}
        sources = [source for source in made.runtime.config_sources if source.schema in ("file", Outside.scheme())]
        yamls = {group: _yaml_of(group, name, sources) for group, name in choices.items()}
        return cls(
            config=config,
            choices=choices,
            outside=tuple(source.path for source in sources if source.schema == Outside.scheme()),
            defaults={group: _unresolved(path) for group, path in yamls.items()},
            tuned_on=read_item(yamls["method"]).tuned_on if yamls["method"] else (),
            overrides=tuple(made.overrides.task),
        )


def _yaml_of(group: str, name: str, sources: Iterable[Any]) -> Path | None:
    """The yaml on disk, from wherever Hydra found it."""
    paths = (Path(source.path, group, f"{name}.yaml") for source in sources)
    return next((path for path in paths if path.is_file()), None)


def _unresolved(path: Path | None) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path), resolve=False)) if path else {}


def command(outside: Iterable[str], overrides: Iterable[str]) -> str:
    """The command that runs a cell alone, as a shell takes it: the folders of its configurations and what is allowed
    included."""
    options = [*(f"--config-dir={folder}" for folder in outside), *(f"--allow-target={name}" for name in allowed())]
    return shlex.join(["xaibench", "run", *options, *overrides])


def make_job(composed: Composition) -> Job:
    """The Job of a composed configuration. Raises UserError for unknown keys and impossible values."""
    plain, choices, defaults = _plain(composed.config), composed.choices, composed.defaults
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
        tuned_on=composed.tuned_on,
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
        command=command(composed.outside, composed.overrides),
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
    positive |= {f"runner.{name}": getattr(job.runner, name) for name in ("batch_size", "cells_per_task")}
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
    if re.fullmatch(r"contrast:\d+,\d+", str(value)):
        return str(value)
    raise UserError(
        f"target={value}: expected label, predicted, fixed:<class index> such as fixed:3,\n"
        "or contrast:<two of them>, in quotes for the comma, such as \"target='contrast:3,5'\""
    )


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


# ---- where configurations are ---------------------------------------------------------------------------------------


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


def sources(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
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


def compose_job(overrides: list[str]) -> Job:
    """One Job from overrides, outside Hydra's own command line (`xaibench train`)."""
    check_arguments(overrides)
    try:
        return make_job(compose(overrides))
    except NOT_COMPOSED as error:
        raise explain(error, overrides) from error


def compose(arguments: Sequence[str]) -> Composition:
    """What Hydra composes of overrides and `--config-dir`, outside its own command line. Raises what Hydra raises."""
    left, outside = sources(arguments)
    left = [argument for argument in left if not argument.startswith("--")]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", [*left, *search(plugin_folders(), outside)], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return Composition.of(without_hydra(config), config.hydra)


def without_hydra(config: DictConfig) -> DictConfig:
    """A configuration without Hydra's section."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def search(plugins: Sequence[Path], outside: Sequence[Path]) -> list[str]:
    """The override with which Hydra looks for configurations in further folders."""
    places = [f"file://{folder.absolute()}" for folder in plugins]
    places += [f"{Outside.scheme()}://{folder}" for folder in outside]
    quoted = ",".join("'" + place.replace("'", "\\'") + "'" for place in places)
    return [f"hydra.searchpath=[{quoted}]"] if places else []


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
        if not all(isinstance(choice, str | QuotedString | Glob) for choice in choices):
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
            further = search(plugin_folders(), folders)
            node = OmegaConf.select(hydra.compose("config", [*overrides, *further]), path)
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
