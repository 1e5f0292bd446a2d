"""What the metrics cost: time over the bare passes that they need, what methods share, and whether memory grows.

    python scripts/bench.py limits sharing --threads 1     # tables by name; all of them if none is named
    python scripts/bench.py limits --models smallcnn --metrics degradation --profile
    python scripts/bench.py memory                         # peak memory of runs on 100 and 1000 images
    python scripts/bench.py cascade trainings              # maps under randomised networks, and ROAR's trainings

Time: medians over pairs of the work and of what it is held against, one after the other, so that a busy machine slows
both alike; with one thread it is the processor's time. Weights are random: they change no time.

limits    A metric as a method pays for it: `respond` and `evaluate` at the runner's own batch size. Beside it as many
          bare forward passes (and gradients, where it asks for further maps) as it makes, from a buffer that is there
          already, at the fastest batch of 8, 16, 32 and 64. A target is set for metrics that perturb: 1.15, or 1.25 on
          networks under 20 million multiply-adds.
sharing   Ten methods under a metric, whose responses are computed once, over one method.
memory    (Linux, CPU) For each number of samples processes of their own: the peak of the resident memory of a whole
          run, maps and result files included, above what the process held after imports. Few steps, which change the
          number of passes. Once with the C library's allocator as it is, which keeps some freed memory and more of it
          in some runs than in others, and once returning every large block when it is freed.
cascade   The runner's maps under k randomised networks over k times the bare maps of the same images.
trainings ROAR's trainings per hour, one by one and stacked.
probes    What the look at a network before it is believed takes of a first run of 50 samples (target: 0.05), and
          whether a second run asks it anything.
backwards two4two_inn: counterfactuals both ways, the rows that need them and a step of its training, over as many bare
          forward passes and gradients as they need by their `cost` (a decoding counts as a forward pass).
rendering Two4Two's images drawn together over the same ones drawn one by one, and the minutes that 10 000 take (target:
          3, of 64 pixels).
scenes    Scenes made side by side over the bare passes that they take, and over the same scenes made one by one.
paths     Metrics of paths over the bare passes that they take, the path of neuron_mct among them.
units     network_dissection and the metric semantic_attribution over the bare passes that they take, their fit too; and
          (Linux, CPU) the peak of the resident memory of a fit to 200 and to 2000 images, above what was held before.
xrays     chest_regressor on generated lungs: regression IBA by its losses, its inverse and its multi-layer form over
          the bare passes that they take, metrics of maps over a forward pass, and (Linux, CPU) the peak memory of runs.

What other libraries take for the same work: scripts/bench_peers.py.
"""

import argparse
import copy
import cProfile
import functools
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn

from xaibench.build import build
from xaibench.config import compose_job
from xaibench.datasets.base import Samples
from xaibench.datasets.chest import Chest
from xaibench.datasets.images import Images
from xaibench.datasets.shapes import Shapes
from xaibench.datasets.two4two import Two4Two
from xaibench.engine.device import default_batch_size, find_device
from xaibench.engine.runner import fill, prepare, run
from xaibench.errors import Refusal
from xaibench.listing import CONF
from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient
from xaibench.methods.pathways.selectors import selector
from xaibench.metrics.base import Metric
from xaibench.metrics.ranking import collapse
from xaibench.metrics.removal._perturbation import Removal
from xaibench.metrics.scenes._generators import GENERATORS
from xaibench.models.classifier import Classifier
from xaibench.models.invertible import Line
from xaibench.models.loading import load_classifier
from xaibench.models.losses import objective
from xaibench.models.probe import probe
from xaibench.models.stacked import train_stacked
from xaibench.models.train import train
from xaibench.rng import sample_generators

TIME_TARGETS = {"smallcnn": 1.25, "mobilenet_v2": 1.15}
# What a network of 1000 classes needs.
OVERRIDES = {("mobilenet_v2", "completeness_soundness"): {"labels": 5}}
BATCH_SIZES = (8, 16, 32, 64)
PASSES = 100

SHARING = ("sensitivity_n", "infidelity")
SHARING_METHODS = 10
SHARING_TARGET = 1.3

PROBE_TARGET = 0.05

MEMORY_TARGET = 1.10
MEMORY_SAMPLES = (100, 1000)
MEMORY_OVERRIDES = {
    "degradation": ("steps=2",),
    "insertion_deletion": ("steps=2",),
    "lerf": ("steps=2",),
    "region_perturbation": ("regions=2",),
    "road": ("percentages=[50]",),
    "sensitivity_n": ("points=2", "sets=3"),
    "infidelity": ("draws=4",),
    "completeness_soundness": ("labels=2", "steps=3"),
    "max_sensitivity": ("draws=2",),
    "smallest_sufficient_region": (),
    "pointing_game": (),
}
UNIT_IMAGES = (200, 2000)
# Of runs on generated lungs with one severity.
LUNGS = ("dataset=chest", "dataset.task=global", "output=raw")
LUNG_METHODS = {
    **{f"iba, {loss}": ("iba", {"loss": loss}) for loss in ("squared_error", "deviation", "maximisation")},
    "iba_inverse, deviation": ("iba_inverse", {"loss": "deviation"}),
    "iba_multilayer, deviation": ("iba_multilayer", {"loss": "deviation"}),
}
LUNG_METRICS = ("quality", "mask_correlation", "mask_correlation_within")
ALLOCATORS = {"as it is": {}, "returning": {"MALLOC_MMAP_THRESHOLD_": str(2**18)}}

# Parts of a metric's time, by the functions that spend it.
PARTS = {"ranking": ("ranking.py", "places"), "fills": ("fills.py", "filled"), "imputation": ("imputer.py", "__call__")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (all)")
    parser.add_argument("--models", nargs="+", choices=TIME_TARGETS, default=list(TIME_TARGETS))
    parser.add_argument("--metrics", nargs="+", help="of the table (all)")
    parser.add_argument(
        "--samples", type=int, default=4, help="the fewest of an evaluation; of the cascade, 16 times them"
    )
    parser.add_argument("--pairs", type=int, default=7, help="measurements of work and limit; processes, for memory")
    parser.add_argument("--threads", type=int, help="torch's threads (its own choice if not given)")
    parser.add_argument("--batch-size", type=int, help="of the metrics (the runner's own choice if not given)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="with limits: what the time beside the network is")
    parser.add_argument("--memory-of", nargs=3, metavar=("MODEL", "METRIC", "SAMPLES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"{', '.join(unknown)}: expected of {', '.join(TABLES)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    find_device(options.device)  # which sets what a run sets
    if options.memory_of:
        model, metric, samples = options.memory_of
        print(peak_growth(model, metric, int(samples)))
        return
    console = Console(width=120)
    console.print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    for name in options.tables or TABLES:
        for table in TABLES[name](options):
            console.print(table)


# ---- limits ----------------------------------------------------------------------------------------------------------


def limits(options: argparse.Namespace) -> list[Table]:
    columns = ("model", "metric", "n", "passes", "gradients", "ms", "bare ms", "ratio", "quartiles", "target")
    times = Table(*columns, title="over the bare passes (per sample, of n)")
    profile = Table("model", "metric", *(f"{part} ms" for part in PARTS), "all ms", title="beside the network")
    for model in options.models:
        for name in options.metrics or per_sample_metrics():
            print(f"{model} {name} ...", file=sys.stderr)
            metric = metric_of(name, OVERRIDES.get((model, name), {}))
            times.add_row(model, name, *time_over_limit(model, metric, options))
            if options.profile:
                profile.add_row(model, name, *time_of_parts(model, metric, options))
    return [times, profile] if options.profile else [times]


def time_over_limit(model: str, metric: Metric, options: argparse.Namespace) -> list[str]:
    classifier = classifier_of(model, options)
    work = Work(metric, classifier, samples_for(metric, classifier, options))
    samples = len(work.batch.samples)
    forwards, gradients = count_passes(classifier, work.everything)
    found = pairs(work.everything, bare_passes(classifier, forwards, gradients), options)
    spent, needed = (1e3 * statistics.median(times) / samples for times in zip(*found))
    row = [str(samples), f"{forwards / samples:.0f}", f"{gradients / samples:.0f}", f"{spent:.2f}"]
    if forwards + gradients < samples:  # no pass for each sample, at most one to know the network
        return [*row, "", "", "", ""]
    target = TIME_TARGETS[model] if perturbs(metric) else None
    return [*row, f"{needed:.2f}", *ratio_of(found, target)]


def time_of_parts(model: str, metric: Metric, options: argparse.Namespace) -> list[str]:
    """Where the time beside the network goes: milliseconds per sample, with a network that answers at once."""
    classifier = classifier_of(model, options)
    work = Work(metric, classifier, samples_for(metric, classifier, options))
    samples = len(work.batch.samples)
    # Further maps are those that are there.
    work.explain = lambda inputs, targets, purpose, masks=None: work.maps
    classifier.module = Stub(classifier.logits(work.batch.inputs[:1])).to(classifier.device)
    work.everything()
    total = statistics.median(seconds(work.everything, options.device) for _ in range(options.pairs))
    with cProfile.Profile(time.process_time if torch.get_num_threads() == 1 else time.perf_counter) as profile:
        work.everything()
    found = pstats.Stats(profile).stats
    parts = [
        sum(entry[3] for (path, _, function), entry in found.items() if (Path(path).name, function) == part)
        for part in PARTS.values()
    ]
    return [f"{1e3 * part / samples:.2f}" for part in (*parts, total)]


def samples_for(metric: Metric, classifier: Classifier, options: argparse.Namespace) -> int:
    """As many samples as cost about `PASSES` passes, at least `--samples` and at most the 64 of a block of a run."""
    passes = sum(metric.cost(classifier)) + 2 * metric.explanations(classifier)
    return min(max(options.samples, PASSES // max(passes, 1)), 64)


def per_sample_metrics() -> list[str]:
    """The metrics that score one map of `shapes` after the other: not those that retrain networks, score the network
    itself, or need other data."""
    names = sorted(path.stem for path in (CONF / "metric").glob("*.yaml"))
    built = {name: metric_of(name) for name in names}
    fitting = {name for name, one in built.items() if one.fit is not None}  # to networks that run backwards
    scoring = {name: one for name, one in built.items() if isinstance(one, Metric) and one.reads_maps}
    return [name for name, one in scoring.items() if name not in fitting and takes_shapes(one)]


def takes_shapes(metric: Metric) -> bool:
    try:
        metric.check_data(Shapes())
    except Refusal:
        return False
    return True


def perturbs(metric: Metric) -> bool:
    """Whether most of a metric's work is to ask for perturbed images."""
    return any(isinstance(value, Removal) for value in vars(metric).values()) or type(metric).__name__ == "Road"


class Work:
    """A metric's work on a few samples of `shapes` with the maps of `gradient`, as in a run."""

    def __init__(self, metric: Metric, classifier: Classifier, samples: int) -> None:
        self.metric, self.classifier = metric, classifier
        self.how = metric.collapse or Gradient.collapse
        self.data = Samples(Shapes(), classifier.preprocessing, range(samples), classifier.device)
        self.batch = self.data.load(self.data.ids)
        self.maps = self.explain(self.batch.inputs, self.batch.targets, "")
        self.logits = classifier.logits(self.batch.inputs)

    def respond(self) -> dict[str, torch.Tensor]:
        """What does not depend on the method."""
        return self.metric.respond(self.classifier, self.batch, Context(self._generators(), data=self.data))

    def evaluate(self, responses: dict[str, torch.Tensor]) -> None:
        """What every method pays for."""
        context = Context(
            self._generators(),
            responses=responses,
            # Of other networks, whatever they are called.
            others=defaultdict(lambda: self.maps, other=self.maps),
            other_logits=defaultdict(lambda: self.logits, other=self.logits),
            explain=self.explain,
            data=self.data,
        )
        self.metric.evaluate(self.classifier, self.batch, self.maps, context)

    def everything(self) -> None:
        self.evaluate(self.respond())

    def explain(self, inputs: torch.Tensor, targets: torch.Tensor, purpose: str, masks: object = None) -> torch.Tensor:
        maps = Gradient().attribute(self.classifier, inputs, targets, Context(self._generators()))
        return collapse(maps, self.how, self.metric.sign)

    def _generators(self) -> list[torch.Generator]:
        return sample_generators(0, "bench", self.data.ids)


def count_passes(classifier: Classifier, work: Callable[[], object]) -> tuple[int, int]:
    """How many images the network sees during some work: (forwards alone, forwards for a gradient)."""
    counts = {False: 0, True: 0}

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        counts[torch.is_grad_enabled() and inputs[0].requires_grad] += len(inputs[0])

    hook = classifier.module.register_forward_pre_hook(count)
    work()
    hook.remove()
    return counts[False], counts[True]


def bare_passes(classifier: Classifier, forwards: int, gradients: int) -> Callable[[], None]:
    """As many passes at the fastest batch, and nothing else."""
    size = fastest_batch(classifier)
    buffer = torch.randn(size, *classifier.input_size, device=classifier.device)
    targets = torch.zeros(size, dtype=torch.int64, device=classifier.device)
    classifier = replace(classifier, batch_size=size)

    def bare() -> None:
        with torch.no_grad():
            for start in range(0, forwards, size):
                classifier.module(buffer[: min(size, forwards - start)])
        for start in range(0, gradients, size):
            rows = slice(min(size, gradients - start))
            classifier.gradient(buffer[rows], targets[rows])

    return bare


@torch.no_grad()
def fastest_batch(classifier: Classifier, rounds: int = 3) -> int:
    """The batch size at which bare passes take the least time per image, by the median of interleaved rounds."""
    buffer = torch.randn(max(BATCH_SIZES), *classifier.input_size, device=classifier.device)
    times: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for round_ in range(rounds + 1):
        for size in BATCH_SIZES:
            work = lambda: [classifier.module(part) for part in buffer.split(size)]  # noqa: B023, E731
            spent = seconds(work, classifier.device)
            if round_:  # the first warms up
                times[size].append(spent)
    return min(BATCH_SIZES, key=lambda size: statistics.median(times[size]))


class Stub(nn.Module):
    """A network that answers at once."""

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, like.shape[1]), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits + 0 * inputs.flatten(1)[:, :1]  # with a gradient, for who asks for it


# ---- sharing ---------------------------------------------------------------------------------------------------------


def sharing(options: argparse.Namespace) -> list[Table]:
    columns = ("model", "metric", "ten, ms", "one, ms", "ratio", "quartiles", "target")
    table = Table(*columns, title="ten methods over one (per sample)")
    for model in options.models:
        for name in options.metrics or SHARING:
            print(f"{model} {name} sharing ...", file=sys.stderr)
            work = Work(metric_of(name), classifier_of(model, options), options.samples)

            def methods(count: int, work: Work = work) -> None:
                responses = work.respond()
                for _ in range(count):
                    work.evaluate(responses)

            methods(1)
            found = pairs(lambda: methods(SHARING_METHODS), lambda: methods(1), options)
            ten, one = (f"{1e3 * statistics.median(times) / options.samples:.1f}" for times in zip(*found))
            table.add_row(model, name, ten, one, *ratio_of(found, SHARING_TARGET))
    return [table]


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> list[Table]:
    few, many = MEMORY_SAMPLES
    columns = ("metric", "allocator", f"{few} samples MiB", f"{many} samples MiB", "ratio", "target")
    table = Table(*columns, title="peak memory of a run on smallcnn above imports")
    for metric in options.metrics or MEMORY_OVERRIDES:
        for allocator in ALLOCATORS:
            low, high = (growth("smallcnn", metric, samples, allocator, options.pairs) for samples in MEMORY_SAMPLES)
            print(f"{metric} memory, allocator {allocator}: {low:.3g} and {high:.3g} bytes", file=sys.stderr)
            cells = (f"{low / 2**20:.0f}", f"{high / 2**20:.0f}", verdict(high / low, MEMORY_TARGET))
            table.add_row(metric, allocator, *cells, f"{MEMORY_TARGET:.2f}")
    return [table]


def growth(model: str, metric: str, samples: int, allocator: str, runs: int) -> float:
    """The median of several processes' `peak_growth`."""
    command = [sys.executable, __file__, "--threads", "1", "--memory-of", model, metric, str(samples)]
    environment = {**os.environ, **ALLOCATORS[allocator]}
    outputs = [
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        for _ in range(runs)
    ]
    return statistics.median(int(output.split()[-1]) for output in outputs)


def peak_growth(model: str, metric: str, samples: int) -> int:
    """Bytes by which a whole run raises this process's peak above what it holds now."""
    overrides = [f"metric.{override}" for override in MEMORY_OVERRIDES.get(metric, ())]
    overrides += LUNGS if model == "chest_regressor" else ()
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(model, metric, samples, folder, overrides)
        held = resident("VmRSS")
        # Otherwise the peak would be that of the imports, or of the parent process.
        Path("/proc/self/clear_refs").write_text("5")
        run(job)
        return resident("VmHWM") - held


def resident(field: str) -> int:
    """A figure of this process in bytes: VmRSS is what it holds, VmHWM the most that it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


# ---- randomised and retrained networks -------------------------------------------------------------------------------


def cascade(options: argparse.Namespace) -> list[Table]:
    columns = ("model", "states", "samples", "ms per map", "bare ms per map", "ratio", "quartiles")
    table = Table(*columns, title="maps under randomised networks over as many bare maps")
    samples = 16 * options.samples
    for model in options.models:
        print(f"{model} cascade ...", file=sys.stderr)
        classifier = classifier_of(model, options)
        batch = Samples(Shapes(), classifier.preprocessing, (), classifier.device).load(range(samples))
        states, found = 0, []
        for _ in range(options.pairs):
            with tempfile.TemporaryDirectory() as folder:
                job = job_of(model, "parameter_randomization", samples, folder, ["metric.seeds=1"])
                scoring = prepare(job, Path(folder))
                fill([*scoring.maps.stage.reads, scoring.maps.stage])  # data and outputs are there from now on
                others = [other.stage for other in scoring.others.values()]
                states = len(others)

                def randomised(others: list = others) -> None:
                    for other in others:
                        other.fill(other.order)

                def bare(times: int = states) -> None:
                    for _ in range(times):
                        Gradient().attribute(classifier, batch.inputs, batch.targets, Context())  # noqa: B023

                found.append((seconds(randomised, options.device), seconds(bare, options.device)))
        each = [f"{1e3 * statistics.median(times) / samples / states:.2f}" for times in zip(*found)]
        table.add_row(model, str(states), str(samples), *each, *ratio_of(found, None)[:2])
    return [table]


def probes(options: argparse.Namespace, samples: int = 50) -> list[Table]:
    columns = ("model", "probe ms", "first run s", "share", "quartiles", "target", "asked in a second run")
    table = Table(*columns, title=f"the probe beside a first run of gradient under degradation, {samples} samples")
    for model in options.models:
        print(f"{model} probes ...", file=sys.stderr)
        classifier, found, asked = classifier_of(model, options), [], 0
        for _ in range(options.pairs):
            with tempfile.TemporaryDirectory() as folder:
                job = job_of(model, "degradation", samples, folder, [])
                shares = seconds(lambda network=classifier: probe(network)), seconds(lambda job=job: run(job))
                found.append(shares)
                before = list(Path(folder).rglob("findings.h5"))
                stamp = [path.stat().st_mtime_ns for path in before]
                run(job)
                asked += [path.stat().st_mtime_ns for path in Path(folder).rglob("findings.h5")] != stamp
        times = [statistics.median(values) for values in zip(*found)]
        row = [f"{1e3 * times[0]:.1f}", f"{times[1]:.1f}", *ratio_of(found, PROBE_TARGET)]
        table.add_row(model, *row, "no" if not asked else f"{asked} times")
    return [table]


def trainings(options: argparse.Namespace, networks: int = 4, images: int = 256) -> list[Table]:
    columns = ("model", "trained", "seconds each", "trainings per hour")
    table = Table(*columns, title=f"ROAR's trainings: an epoch of {images} images, {networks} networks")
    spec = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "smallcnn.yaml"), resolve=False)
    recipe = replace(build(spec["recipe"], "recipe"), epochs=1)
    classifier = classifier_of("smallcnn", options)
    pixels = Images(Samples(Shapes("train"), classifier.preprocessing, range(images), classifier.device))

    def one_by_one() -> None:
        for seed in range(networks):
            train(copy.deepcopy(classifier.module), recipe, pixels, seed=seed)

    def stacked() -> None:
        modules = [copy.deepcopy(classifier.module) for _ in range(networks)]
        train_stacked(modules, recipe, [pixels] * networks, range(networks))

    print("smallcnn trainings ...", file=sys.stderr)
    stacked()
    for way, times in zip(("one by one", "stacked"), zip(*pairs(one_by_one, stacked, options))):
        each = statistics.median(times) / networks
        table.add_row("smallcnn", way, f"{each:.2f}", f"{3600 / each:.0f}")
    return [table]


def rendering(options: argparse.Namespace) -> list[Table]:
    columns = ("pixels", "images", "ms each", "one by one, ms each", "minutes for 10 000", "ratio", "quartiles")
    table = Table(*columns, title="Two4Two's images drawn together over one by one")
    samples = range(64 * options.samples)
    for side in (64, 128):
        print(f"Two4Two of {side} pixels ...", file=sys.stderr)
        dataset = Two4Two(side=side)

        def together(dataset: Two4Two = dataset) -> None:
            dataset.draw(dataset.scenes(samples)[1])

        def alone(dataset: Two4Two = dataset) -> None:
            for sample in samples:
                dataset[sample]

        found = pairs(together, alone, options)
        each = [1e3 * statistics.median(times) / len(samples) for times in zip(*found)]
        shown = [f"{ms:.2f}" for ms in each]
        table.add_row(str(side), str(len(samples)), *shown, f"{each[0] / 6:.2f}", *ratio_of(found, None)[:2])
    return [table]


def backwards(options: argparse.Namespace) -> list[Table]:
    columns = ("work", "images", "passes each", "ms each", "ratio", "quartiles")
    table = Table(*columns, title="Running backwards over bare passes, two4two_inn")
    classifier, images = classifier_of("two4two_inn", options), 8 * options.samples
    data = Samples(Two4Two(), classifier.preprocessing, range(images), classifier.device)
    batch = data.load(data.ids)
    recipe = build(OmegaConf.to_container(OmegaConf.load(CONF / "model" / "two4two_inn.yaml"))["recipe"], "recipe")

    def both_ways() -> None:
        line = Line.of(classifier, batch.inputs, batch.targets, "bench")
        line.at(line.value + 1), line.at(line.value - 1)

    def training_step() -> None:
        module = classifier.module
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            random = torch.Generator().manual_seed(0)
            objective(recipe.loss, module, batch.inputs, batch.labels, random, recipe.supervised).loss.backward()
        module.zero_grad()
        module.requires_grad_(False)

    def row(name: str) -> tuple[Callable[[], None], tuple[int, int]]:
        metric = metric_of(name, {"images": 64, "epochs": 1} if name == "counterfactual_audit" else None)
        context = Context(
            sample_generators(0, "bench", data.ids),
            fitted=metric.fit(classifier, data, torch.Generator().manual_seed(0)),
            data=data,
        )
        maps = batch.inputs.abs().sum(1)
        return lambda: metric.evaluate(classifier, batch, maps, context), metric.cost(classifier)

    works = {
        "counterfactual, both ways": (both_ways, (3, 0)),
        "training step": (training_step, (0, 1)),
        **{f"row of {name}": row(name) for name in ("counterfactual_agreement", "counterfactual_audit")},
    }
    for name, (work, cost) in works.items():
        passes, each, *over = beside_its_passes(name, work, cost, classifier, images, options)
        table.add_row(name, str(images), passes, f"{each:.1f}", *over)
    return [table]


# ---- what the tables share -------------------------------------------------------------------------------------------


def scenes(options: argparse.Namespace, together: int = 8) -> list[Table]:
    columns = (
        "model",
        "generator",
        "passes a step",
        "over bare passes",
        "quartiles",
        "one by one / together",
        "quartiles",
    )
    table = Table(*columns, title=f"Scenes of null_feature: {together} side by side")
    few = {"steps": 10, "warm_up": 2, "least": 9, "tries": 1, "probability": 0.999999}
    for model in options.models:
        for generator in GENERATORS:
            print(f"{model} {generator} ...", file=sys.stderr)
            classifier, metric = (
                classifier_of(model, options),
                metric_of("null_feature", few | {"generator": generator}),
            )
            make = functools.partial(make_scenes, metric, classifier)
            side_by_side = functools.partial(make, [range(together)])
            one_by_one = functools.partial(make, [[sample] for sample in range(together)])
            forwards, gradients = count_passes(classifier, side_by_side)
            over = pairs(side_by_side, bare_passes(classifier, forwards, gradients), options)
            faster = pairs(one_by_one, side_by_side, options)
            passes = f"{(forwards + gradients) / together / few['steps']:.1f}"
            table.add_row(model, generator, passes, *ratio_of(over, None)[:2], *ratio_of(faster, None)[:2])
    return [table]


def make_scenes(metric: Metric, classifier: Classifier, groups: Iterable[Sequence[int]]) -> None:
    """Each group of scenes in a batch of its own."""
    data = Samples(Shapes(), classifier.preprocessing, range(1), classifier.device)
    for samples in groups:
        metric.respond(classifier, data.load([0]), Context(sample_generators(0, "bench", samples)))


def paths(options: argparse.Namespace) -> list[Table]:
    columns = ("model", "metric", "forwards", "with a gradient", "over bare passes", "quartiles")
    table = Table(*columns, title=f"Metrics of paths, of neuron_mct, on {options.samples} samples")
    for model in options.models:
        for name in ("path_dead", "path_output", "path_overlap", "path_linearity"):
            print(f"{model} {name} ...", file=sys.stderr)
            metric = metric_of(name, {"other": "pathway_random"} if name == "path_overlap" else {})
            classifier = classifier_of(model, options)
            work = functools.partial(score_paths, metric, classifier, options.samples)
            forwards, gradients = count_passes(classifier, work)
            if name == "path_linearity":  # what it makes is of a copy in float64, which nothing counts
                forwards, gradients = (options.samples * passes for passes in metric.cost(classifier))
            found = pairs(work, bare_passes(classifier, forwards, gradients), options)
            table.add_row(model, name, str(forwards), str(gradients), *ratio_of(found, None)[:2])
    return [table]


def score_paths(metric: Metric, classifier: Classifier, samples: int) -> None:
    """A metric of paths on a few samples of `shapes`, of neuron_mct as a run asks for it."""
    data = Samples(Shapes(), classifier.preprocessing, range(samples), classifier.device)
    batch, generators = data.load(data.ids), sample_generators(0, "bench", data.ids)

    def path(
        inputs: torch.Tensor, targets: torch.Tensor, rows: slice, purpose: str = "", beside: str | None = None
    ) -> list[torch.Tensor]:
        return selector(beside or "neuron_mct", 0.9).path(classifier, inputs, targets, generators[rows])

    metric.evaluate(classifier, batch, batch.inputs[:, 0], Context(generators, path=path, data=data))


def units(options: argparse.Namespace) -> list[Table]:
    columns = ("model", "metric", "part", "ms per image", "over bare passes", "quartiles")
    times = Table(*columns, title=f"What units know, on {16 * options.samples} images of shapes")
    memory = Table("model", *(f"fit to {count} images, MiB" for count in UNIT_IMAGES), title="peak memory of a fit")
    for model in options.models:
        classifier = classifier_of(model, options)
        data = Samples(Shapes(), classifier.preprocessing, range(16 * options.samples), classifier.device)
        batch, generators = data.load(data.ids), sample_generators(0, "bench", data.ids)
        for name in ("network_dissection", "semantic_attribution"):
            print(f"{model} {name} ...", file=sys.stderr)
            metric = metric_of(name)
            fit = functools.partial(metric.fit, classifier, data, torch.Generator())
            context = Context(generators, fitted=fit(), data=data)
            score = functools.partial(metric.evaluate, classifier, batch, None, context)
            for part, work, passes in (("fit", fit, (2, 0)), ("scores", score, metric.cost(classifier))):
                needed = (len(data) * count for count in passes)
                found = pairs(work, bare_passes(classifier, *needed), options)
                spent = 1e3 * statistics.median(spent for spent, _ in found) / len(data)
                times.add_row(model, name, part, f"{spent:.1f}", *ratio_of(found, None)[:2])
        memory.add_row(model, *(f"{peak_of_fit(classifier, count) / 2**20:.0f}" for count in UNIT_IMAGES))
    return [times, memory]


def peak_of_fit(classifier: Classifier, images: int) -> int:
    """Bytes by which the thresholds of units raise this process's peak above what it holds now."""
    data = Samples(Shapes(split="train"), classifier.preprocessing, range(images), classifier.device)
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    metric_of("network_dissection").fit(classifier, data, torch.Generator())
    return resident("VmHWM") - held


def xrays(options: argparse.Namespace) -> list[Table]:
    columns = ("work", "passes each", "ms each", "over bare passes", "quartiles")
    images = 2 * options.samples
    table = Table(*columns, title=f"chest_regressor on {images} generated lungs")
    classifier = replace(classifier_of("chest_regressor", options), output="raw")
    data = Samples(Chest(task="global"), classifier.preprocessing, range(images), classifier.device)
    batch, generators = data.load(data.ids), sample_generators(0, "bench", data.ids)
    targets = torch.zeros(images, dtype=torch.int64, device=classifier.device)

    def explaining(name: str, overrides: dict[str, object]) -> tuple[Callable[[], object], tuple[int, int]]:
        method = built("method", name, overrides)
        context = Context(generators, method.fit(classifier, data, torch.Generator()), labels=batch.labels)
        return lambda: method.attribute(classifier, batch.inputs, targets, context), method.cost(classifier)

    def scoring(name: str) -> tuple[Callable[[], object], tuple[int, int]]:
        metric = metric_of(name)
        maps, context = batch.inputs.sum(1), Context(generators, data=data)
        return lambda: metric.evaluate(classifier, batch, maps, context), (1, 0)

    def loading() -> None:
        data.load(data.ids)

    works = {name: explaining(*how) for name, how in LUNG_METHODS.items()}
    works |= {f"{name}, beside a pass": scoring(name) for name in LUNG_METRICS} | {
        "drawing, beside a pass": (loading, (1, 0))
    }
    for name, (work, cost) in works.items():
        passes, each, *over = beside_its_passes(name, work, cost, classifier, images, options)
        table.add_row(name, passes, f"{each:.2f}", *over)
    columns = ("metric", *(f"{count} samples MiB" for count in MEMORY_SAMPLES))
    held = Table(*columns, title="peak memory of a run on generated lungs above imports, every large block returned")
    for name in options.metrics or LUNG_METRICS:
        peaks = [growth("chest_regressor", name, count, "returning", 1) for count in MEMORY_SAMPLES]
        held.add_row(name, *(f"{peak / 2**20:.0f}" for peak in peaks))
    return [table, held]


def metric_of(name: str, overrides: dict[str, object] | None = None) -> Metric:
    """The metric of conf/metric, with its defaults but for the overrides."""
    return built("metric", name, overrides or {})


def built(group: str, name: str, overrides: dict[str, object]) -> object:
    """What a yaml of conf names, with its defaults but for the overrides."""
    spec = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    return build(spec | overrides, group)


def classifier_of(model: str, options: argparse.Namespace) -> Classifier:
    """The network of conf/model with random weights, as the runner would load it."""
    spec = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    spec.weights, spec.recipe = "random", None
    classifier = load_classifier(model, OmegaConf.to_container(spec), device=options.device)
    automatic = default_batch_size(classifier.input_size, classifier.device)
    classifier.batch_size = options.batch_size or automatic
    return classifier


def job_of(model: str, metric: str, samples: int, folder: str, overrides: list[str]) -> object:
    """A run on shapes with maps of `gradient` and random weights that leaves nothing behind."""
    names = [f"model={model}", "model.weights=random", "method=gradient", f"metric={metric}"]
    rest = [f"dataset.limit={samples}", f"paths.cache={folder}/cache", f"paths.results={folder}/results"]
    return compose_job([*names, *rest, "runner.device=cpu", "runner.classes=any", *overrides])


def beside_its_passes(
    name: str,
    work: Callable[[], object],
    cost: tuple[int, int],
    classifier: Classifier,
    images: int,
    options: argparse.Namespace,
) -> tuple[str, float, str, str]:
    """Of work on some images: the passes that `cost` counts of each, milliseconds of each, and the ratio over these
    passes and its quartiles as text."""
    print(f"{name} ...", file=sys.stderr)
    forwards, gradients = cost
    # A gradient takes a forward pass of its own, which `cost` counts among the forward ones.
    needed = bare_passes(classifier, images * max(forwards - gradients, 0), images * gradients)
    work(), needed()
    found = pairs(work, needed, options)
    ratio, quartiles, *_ = ratio_of(found, None)
    return f"{forwards} + {gradients}", 1e3 * statistics.median(spent for spent, _ in found) / images, ratio, quartiles


def pairs(
    work: Callable[[], object], other: Callable[[], object], options: argparse.Namespace
) -> list[tuple[float, float]]:
    """Seconds of both, one after the other, several times. What the first time makes slower has been done before."""
    return [(seconds(work, options.device), seconds(other, options.device)) for _ in range(options.pairs)]


def seconds(work: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Wall time of a call, the device's queue emptied before and after; processor time if there is one thread."""
    on_gpu = torch.device(device).type == "cuda"
    clock = time.process_time if not on_gpu and torch.get_num_threads() == 1 else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def ratio_of(found: list[tuple[float, float]], target: float | None) -> list[str]:
    """The median ratio of pairs, its quartiles, and the target."""
    ratios = [spent / needed for spent, needed in found]
    low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    shown = f"{ratio:.3f}" if target is None else verdict(ratio, target)
    return [shown, f"{low:.3f} to {high:.3f}", "" if target is None else f"{target:.2f}"]


def verdict(ratio: float, target: float) -> str:
    return f"[{'green' if ratio <= target else 'red'}]{ratio:.3f}[/]"


TABLES: dict[str, Callable[[argparse.Namespace], list[Table]]] = {
    "limits": limits,
    "sharing": sharing,
    "memory": memory,
    "cascade": cascade,
    "trainings": trainings,
    "probes": probes,
    "backwards": backwards,
    "rendering": rendering,
    "scenes": scenes,
    "paths": paths,
    "units": units,
    "xrays": xrays,
}


if __name__ == "__main__":
    main()
