"""The front door for notebooks: explain, score, run and leaderboard, by the same code as the command line.

Images are pixels [B,C,H,W] in 0 to 1; their sample ids are 0 to B-1, so that what is drawn at random is what a run
draws for these ids. Names, parameters and refusals are those of the command line.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import nn

from .build import TARGET, build, with_defaults
from .config import compose_job
from .datasets.base import Dataset, Example
from .engine import runner
from .engine.checks import check_method, check_setting
from .engine.device import default_batch_size
from .engine.kept import Kept
from .engine.maps import Maps
from .engine.runner import SCORINGS, fill
from .engine.setting import Network, Setting, Split
from .errors import UserError, XaibenchError, nearest
from .job import FitSelection, Job, Runner, Selection
from .listing import GROUPS, items
from .methods.base import Method
from .methods.context import Context
from .metrics.base import Metric
from .models import classifier as models
from .models.digest import weights_digest
from .models.loading import on_device
from .models.preprocessing import Preprocessing
from .models.probe import adapted, probe
from .scores import index, score_files
from .scores import leaderboard as boards


class Classifier(models.Classifier):
    """Any torch.nn.Module as methods and metrics take it: a copy in evaluation mode; yours is left as it was.

    Args:
        module: From inputs [B,C,H,W] to logits [B,K] (a single logit stands for two classes). It is refused if it is
            random, mixes samples or returns probabilities, see `models.probe`.
        mean: Of its inputs per channel, subtracted from pixels of 0 to 1.
        std: Of its inputs per channel, divided into what is left.
        layers: Alias -> module path, such as {"last_conv": "features.12"}, for methods that need a layer.
        class_names: One per output.
        output: What is explained: `logit`, `probability`, or `raw` for a regressor.
        returns: `probabilities`, `log_probabilities` or `values` if it returns those.
        name: For messages and tables.
        batch_size: Most inputs per call of the network; None is chosen by their size, and it never changes a number.
    """

    def __init__(
        self,
        module: nn.Module,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        *,
        layers: Mapping[str, str] | None = None,
        class_names: Sequence[str] = (),
        output: str = "logit",
        returns: str | None = None,
        name: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        device = next(module.parameters(), torch.empty(0)).device
        copied = on_device(device, copy.deepcopy(module))
        definition = {TARGET: f"{type(module).__module__}.{type(module).__qualname__}"}
        super().__init__(
            name=name or type(module).__name__,
            module=copied,
            input_size=(0, 0, 0),  # that of the first images
            preprocessing=Preprocessing(mean=tuple(mean), std=tuple(std)),
            class_names=tuple(class_names),
            layers=dict(layers or {}),
            definition=definition,
            weights_digest=weights_digest(copied.state_dict(), definition),
            returns=returns,
            output=output,
        )
        self.batch_size = batch_size or 0  # 0: by the size of the images


def explain(
    net: Classifier,
    images: torch.Tensor,
    method: str | Method,
    *,
    targets: torch.Tensor | int | None = None,
    fit: torch.Tensor | None = None,
    seed: int = 0,
    **parameters: Any,
) -> torch.Tensor:
    """A method's maps [B,C or 1,H,W], float32 and signed, of images [B,C,H,W] in 0 to 1.

    Args:
        net: The network.
        images: Pixels [B,C,H,W] in 0 to 1.
        method: A name of `xaibench list methods`, or a `Method` of your own.
        targets: The classes [B] that are explained, or one for all images; None is the predicted ones.
        fit: Images [N,C,H,W] for a method that estimates something once.
        seed: Of whatever is random.
        parameters: Those of the method's yaml that differ.

    Returns:
        Maps [B,C or 1,H,W], float32 and signed.

    Raises:
        UserError: For what is not there, or is not as expected.
        Refusal: Where the method cannot serve the network.
    """
    made, spec = _named("method", method, parameters, Method)
    with tempfile.TemporaryDirectory(prefix="xaibench-") as folder:
        names = {"method": _name(method)}
        setting = _setting(net, _Pictures(images, targets, fit=fit), Path(folder), seed, names, method=spec)
        check_method(setting, made)
        maps = Maps(setting, made)
        fill([*maps.stage.reads, maps.stage])
        return torch.from_numpy(maps.stage.rows(range(len(images)))["maps"])


def score(
    net: Classifier,
    images: torch.Tensor,
    maps: torch.Tensor,
    metric: str | Metric,
    *,
    targets: torch.Tensor | int | None = None,
    masks: torch.Tensor | None = None,
    fit: torch.Tensor | None = None,
    seed: int = 0,
    collapse: str = "sum",
    **parameters: Any,
) -> pd.DataFrame:
    """How a metric scores maps [B,C or 1,H,W] of images [B,C,H,W] in 0 to 1: a row per statistic.

    Args:
        net: The network.
        images: Pixels [B,C,H,W] in 0 to 1.
        maps: One per image, [B,C or 1,H,W].
        metric: A name of `xaibench list metrics`, or a `Metric` of your own.
        targets: As for `explain`, the classes that the maps explain.
        masks: Bool [B,H,W], for metrics of ground truth.
        fit: As for `explain`.
        seed: As for `explain`.
        collapse: How channels become one value per pixel, where the metric leaves that to the method (`max_abs` for
            saliency).
        parameters: Those of the metric's yaml that differ.

    Returns:
        Columns: statistic, direction (which values are better), value, ci_low and ci_high (95 %), n, excluded.

    Raises:
        UserError: For what is not there, or is not as expected.
        Refusal: Where the metric needs what these maps cannot give.
    """
    made, spec = _named("metric", metric, parameters, Metric)
    pictures = _Pictures(images, targets, masks=masks, fit=fit)
    given = _Given(maps, collapse)
    if len(maps) != len(images):
        raise UserError(f"maps: {len(maps)} for {len(images)} images")
    with tempfile.TemporaryDirectory(prefix="xaibench-") as folder:
        names = {"method": "maps", "metric": _name(metric)}
        setting = _setting(net, pictures, Path(folder), seed, names, metric=spec)
        scoring = SCORINGS[made.kind](setting, made, given)
        fill(scoring.stages)
        outcome = score_files.write(scoring.record(), scoring.scores.rows(scoring.scores.order))
        table = boards.table(boards.read_cells(setting.job.results, [outcome.rows]))
    return table[["statistic", "direction", "value", "ci_low", "ci_high", "n", "excluded"]].reset_index(drop=True)


def run(
    method: str | Sequence[str] = "gradient",
    metric: str | Sequence[str] = "degradation",
    *,
    model: str | Sequence[str] = "smallcnn",
    dataset: str | Sequence[str] = "shapes",
    limit: int | None = None,
    cache: str | Path = "cache",
    results: str | Path = "results",
    overrides: Sequence[str] = (),
) -> pd.DataFrame:
    """`xaibench run` of every combination: computes what the cache lacks, and returns the leaderboard of these cells.

    A cell that fails leaves the others standing and is warned of; if all fail, the first error is raised.

    Args:
        method: A name of `xaibench list methods`, or several.
        metric: A name of `xaibench list metrics`, or several.
        model: A name of `xaibench list models`, or several.
        dataset: A name of `xaibench list datasets`, or several.
        limit: `dataset.limit`.
        cache: The folder of what is computed once.
        results: The folder of score files and leaderboards.
        overrides: Any further settings, as on the command line (`"seed=1"`, `"method.steps=20"`).

    Returns:
        The leaderboard of these cells: a row per statistic, ranked.
    """
    common = [f"paths.cache={cache}", f"paths.results={results}", *overrides]
    common += [] if limit is None else [f"dataset.limit={limit}"]
    kept, files, errors = Kept(), [], []
    for cell in product(*map(_listed, (model, dataset, method, metric))):
        names = [f"{group}={name}" for group, name in zip(GROUPS, cell)]
        try:
            outcome = runner.run(compose_job([*names, *common]), kept=kept)
        except XaibenchError as error:
            errors.append(error)
            warnings.warn(f"{' '.join(names)} failed: {error}", stacklevel=2)
        else:
            files += [outcome.rows] if isinstance(outcome, score_files.Outcome) else []
    if errors and not files:
        raise errors[0]
    sound, damaged = index.update(Path(results).expanduser().absolute())
    if damaged:
        raise damaged[0]
    of_run = set(files)
    return boards.table([cell for cell in sound if cell.path in of_run])


def leaderboard(results: str | Path = "results") -> pd.DataFrame:
    """The leaderboard of a results folder.

    Args:
        results: The folder, as `run` or the command line left it.

    Returns:
        A row per model, data set, method, metric and statistic, ranked.
    """
    sound, damaged = index.summaries(Path(results))
    if damaged:
        raise damaged[0]
    return boards.table(sound)


# ---- the caller's objects as a Job's --------------------------------------------------------------------------------


class _Pictures(Dataset):
    """The caller's images as a data set; labels are the targets. fit: those that something is estimated from."""

    def __init__(
        self,
        images: torch.Tensor | None = None,
        targets: torch.Tensor | int | None = None,
        masks: torch.Tensor | None = None,
        fit: torch.Tensor | None = None,
        split: str = "test",
    ) -> None:
        if images is None:
            return
        if images.ndim != 4 or not len(images):
            raise UserError(f"images: {list(images.shape)}, expected [B,C,H,W] with values of 0 to 1")
        if images.min() < 0 or images.max() > 1:
            said = f"{images.min():.3g} to {images.max():.3g}"
            raise UserError(f"images: values of {said}, expected 0 to 1; mean and std belong to the Classifier")
        self.images, self.masks, self.fit = images.detach().cpu().float(), masks, fit
        self.predicted = targets is None
        chosen = torch.as_tensor(0 if targets is None else targets).cpu().expand(len(images))
        self.targets = chosen.tolist()
        self.has_masks = masks is not None
        self.fingerprint = "images"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        mask = None if self.masks is None else self.masks[index].cpu()
        return Example(self.images[index], self.targets[index], mask)


class _Given(Method):
    """The caller's maps; or, without any, what stands for an object of the caller's in keys of a passing cache."""

    own_samples_only = True

    def __init__(self, maps: torch.Tensor | None = None, collapse: str = "sum") -> None:
        self.maps, self.collapse = maps, collapse

    def cost(self, classifier: models.Classifier) -> tuple[int, int]:
        return 0, 0

    def attribute(
        self, classifier: models.Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        assert self.maps is not None  # or nobody asks
        return self.maps[list(context.samples)].to(inputs.device)


class _Objects(Kept):
    """The caller's network and images, where a run loads those that its configuration names."""

    def __init__(self, network: Network, pictures: _Pictures) -> None:
        super().__init__()
        self.network, self.pictures = network, pictures

    def get(self, kind: str, name: Mapping[str, Any], make: Callable[[], Any], most: int | None = None) -> Any:
        if kind == "network":
            return self.network
        if kind == "split" and name["spec"]["split"] == "fit":
            if self.pictures.fit is None:
                raise UserError("fit: this method is estimated from images once; give some, such as fit=images")
            fit = _Pictures(self.pictures.fit)
            return super().get(kind, {"split": "fit"}, lambda: Split(fit, self.network.trained.preprocessing, CPU))
        if kind == "split":
            return super().get(kind, {}, lambda: Split(self.pictures, self.network.trained.preprocessing, CPU))
        return super().get(kind, name, make, most)


CPU = torch.device("cpu")
NOTHING = {TARGET: f"{__name__}._Given"}


def _setting(
    net: Classifier,
    pictures: _Pictures,
    folder: Path,
    seed: int,
    names: Mapping[str, str],
    method: Mapping[str, Any] = NOTHING,
    metric: Mapping[str, Any] = NOTHING,
) -> Setting:
    """What a run would have loaded, with the caller's objects in its place."""
    channels, height, width = pictures.images.shape[1:]
    size = (channels, height, width)
    batch_size = net.batch_size or default_batch_size(size, net.device)
    sized = models.Classifier(**{**vars(net), "input_size": size, "batch_size": batch_size})
    network = Network(adapted(sized, probe(sized)))
    job = Job(
        model=net.name,
        dataset="images",
        method=names["method"],
        metric=names.get("metric", ""),
        method_variant="",
        run_variant="",
        metric_variant="",
        tuned_on=(),
        model_spec={},
        dataset_spec={TARGET: f"{__name__}._Pictures", "split": "test"},
        method_spec=dict(method),
        metric_spec=dict(metric),
        selection=Selection(),
        fit=FitSelection(split="fit", limit=None),
        runner=Runner(device=str(net.device)),
        seed=seed,
        target="predicted" if pictures.predicted else "label",
        output=net.output,
        cache=folder / "cache",
        results=folder / "results",
        config={},
        command="",
    )
    setting = Setting(job, folder / "cache", _Objects(network, pictures), samples=range(len(pictures)))
    check_setting(setting)
    classes = network.outputs
    if not pictures.predicted and not all(0 <= target < classes for target in pictures.targets):
        raise UserError(f"targets: expected classes 0 to {classes - 1}, as {net.name} has {classes} outputs")
    return setting


def _named(group: str, given: Any, parameters: Mapping[str, Any], base: type) -> tuple[Any, dict[str, Any]]:
    """A method or metric, from its name and parameters or as it is, and its specification."""
    if not isinstance(given, str):
        if parameters:
            raise UserError(f"{group}: {next(iter(parameters))} belongs to the constructor of {type(given).__name__}")
        return with_defaults(given, base), dict(NOTHING)
    choices = {item.name: item.path for item in items(group)}
    if given not in choices:
        raise UserError(f"{group}={given}: there is no such {group}; {nearest(given, choices)}")
    spec = yaml.safe_load(choices[given].read_text(encoding="utf-8")) | parameters
    return build(spec, group), spec


def _name(given: Any) -> str:
    return given if isinstance(given, str) else type(given).__name__


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names
