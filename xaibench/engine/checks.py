"""What is refused before any work: pairings of network, data, method and metric that cannot work."""

from typing import cast

from ..datasets.base import HasQuestions
from ..errors import Refusal, UserError
from ..job import classes_of
from ..methods.base import Method
from ..metrics.base import Measure, Metric
from ..models.invertible import Invertible
from ..models.questions import ReadsQuestions
from .setting import Setting


def check(setting: Setting, method: Method, metric: Measure) -> None:
    """Raise UserError (a Refusal, for a pairing), with the reason, if a Job cannot be done."""
    check_setting(setting)
    check_method(setting, method)
    _check_metric(setting, method, metric)


# In pixels from 0 to 1, what normalising there and back may cost.
TOLERANCE = 1e-4


def check_setting(setting: Setting) -> None:
    """Raise UserError if the network does not take the data set's inputs, or does not have the outputs it needs."""
    job, network, dataset = setting.job, setting.network.trained, setting.dataset
    if len(dataset) == 0:
        raise UserError(f"dataset={job.dataset}: this split has no samples")
    first = setting.split.load([0])
    network.asked(first.questions)
    if first.questions is None and isinstance(network.module, ReadsQuestions):
        raise UserError(f"{job.model} answers questions, and dataset={job.dataset} asks none: choose sort_of_clevr")
    outputs = setting.network.takes(first.inputs[0], len(dataset.class_names))
    if first.labels.is_floating_point() and outputs > 1:
        single = "; for its single output set output=raw" if network.adapted.get("two_classes") else ""
        raise UserError(f"dataset={job.dataset} has real labels, {job.model} {outputs} outputs: expected 1{single}")
    _check_classes(setting, outputs)
    if isinstance(network.module, Invertible):
        pixels = network.preprocessing.denormalise(first.inputs)
        low, high = pixels.min().item(), pixels.max().item()
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise UserError(
                f"dataset={job.dataset} has an image of values from {low:.3g} to {high:.3g}: {job.model} decodes "
                "images of pixels from 0 to 1"
            )
    if job.selection.filter.min_probability > 0 and not network.has_classes:
        raise UserError(f"dataset.filter.min_probability: {job.model} returns values, which have no probability")
    named = classes_of(job.target)
    if any(k >= outputs for k in named):
        raise UserError(f"target={job.target}: {job.model} has classes 0 to {outputs - 1}")
    if len(named) == 2 and (named[0] == named[1] or job.output != "logit"):
        raise UserError(f"target={job.target} output={job.output}: expected two different classes and output=logit")


def _check_classes(setting: Setting, outputs: int) -> None:
    """Refuse labels that name other outputs than the network's, where they are what is explained."""
    job, classes = setting.job, len(setting.dataset.class_names)
    if job.target != "label" or job.runner.classes == "any" or outputs == 1 or classes in (0, outputs):
        return
    raise UserError(
        f"{job.model} has {outputs} outputs, dataset={job.dataset} {classes} classes: label 0 need not be output 0\n"
        "name the outputs (dataset.classes=FILE for a folder), set target=predicted, or runner.classes=any if they fit"
    )


def check_method(setting: Setting, method: Method) -> None:
    """Raise UserError if a method cannot serve the network, or lacks something of the data."""
    if method.needs_mask:
        _check_masks(f"method={setting.job.method}", setting)
    method.check(setting.network.trained)


def _check_metric(setting: Setting, method: Method, metric: Measure) -> None:
    job, network = setting.job, setting.network.trained
    name, by = f"metric={job.metric}", f"method={job.method}"
    if metric.needs_mask:
        _check_masks(name, setting)
        if setting.dataset.graded_masks and not metric.reads_graded_masks:
            raise Refusal(f"{name} needs a region: the truth of dataset={job.dataset} is graded")
    metric.check(network)
    metric.check_data(setting.dataset)
    if metric.kind == "per_sample" and cast(Metric, metric).explanations(network) and method.own_samples_only:
        raise Refusal(f"{name} explains inputs of its own, which {by} has no maps of")
    if metric.own_networks and method.fit:
        raise Refusal(f"{name} explains networks of its own, to which nothing was fitted, as {by} needs it")
    if metric.propagates and not hasattr(method, "propagate"):
        raise Refusal(
            f"{name} sends signals back through the network by a method's rules for its layers, and {by} has none; "
            "gradient, guided_backprop and the lrp_* methods have"
        )
    if metric.reads_paths and not hasattr(method, "path"):
        raise Refusal(
            f"{name} looks at the path of neurons that a method chooses, and {by} chooses none; "
            "neuron_mct, neuron_intgrad and the pathway_* methods do"
        )
    if metric.kind == "retraining" and isinstance(setting.dataset, HasQuestions):
        raise Refusal(f"{name} trains on masked images, and dataset={job.dataset} asks questions of them")
    if metric.kind == "pooled" and len(setting.samples) < len(setting.dataset):
        raise Refusal(f"{name} is defined over the whole split: set dataset.limit=null and no filter")


def _check_masks(name: str, setting: Setting) -> None:
    if not setting.dataset.has_masks:
        raise Refusal(f"{name} needs ground-truth masks, dataset={setting.job.dataset} has none (shapes has)")
