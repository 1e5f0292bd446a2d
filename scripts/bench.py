"""What the perturbation metrics cost over the bare forward passes that they need, and whether their memory grows.

    python scripts/bench.py                      # time and memory, every network with every metric
    python scripts/bench.py --profile            # and where the rest of the time goes
    python scripts/bench.py --models smallcnn --no-memory --threads 1

Time: `metric.evaluate` at the runner's own batch size, beside bare passes of as many images, from a buffer that is
there already, at the fastest batch of 8, 16, 32 and 64. The two run in turn and the median ratio of a pair counts, so
that a busy machine slows both alike. Weights are random: they change no time.

Memory (Linux, CPU): for each number of samples processes of their own, and the peak of their resident memory during
evaluation above what they held after imports and loading the model. Samples come in blocks, as in a run; few steps,
since steps change the number of passes and not what is held. Once with the C library's allocator as it is, which keeps
some freed memory and more of it in some runs than in others, and once returning every large block when it is freed,
which shows what the metric itself holds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn

from xaibench.datasets.base import Batch
from xaibench.device import default_batch_size
from xaibench.fills import filled
from xaibench.listing import CONF
from xaibench.metrics.base import Metric
from xaibench.metrics.degradation import Degradation
from xaibench.metrics.insertion_deletion import InsertionDeletion
from xaibench.metrics.ranking import places
from xaibench.models.classifier import Classifier
from xaibench.models.loading import load_classifier
from xaibench.rng import sample_generators

METRICS = {"degradation": Degradation, "insertion_deletion": InsertionDeletion}
TIME_TARGETS = {"smallcnn": 1.25, "mobilenet_v2": 1.15}
MEMORY_TARGET = 1.10
BATCH_SIZES = (8, 16, 32, 64)
MEMORY_SAMPLES = (50, 500)
MEMORY_BLOCK = 25
MEMORY_STEPS = 2
MEMORY_RUNS = 3
ALLOCATORS = {"as it is": {}, "returning": {"MALLOC_MMAP_THRESHOLD_": str(2**18)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=TIME_TARGETS, default=list(TIME_TARGETS))
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--samples", type=int, default=4, help="samples per evaluation")
    parser.add_argument("--pairs", type=int, default=7, help="evaluations, each beside its bare passes")
    parser.add_argument("--threads", type=int, help="torch's threads (its own choice if not given)")
    parser.add_argument("--batch-size", type=int, help="of the metric (the runner's own choice if not given)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="what the time beside the network is spent on")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", nargs=3, metavar=("MODEL", "METRIC", "SAMPLES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        model, metric, samples = arguments.memory_of
        print(peak_growth(model, metric, int(samples)))
        return
    cells = [(model, metric) for model in arguments.models for metric in arguments.metrics]
    console = Console(width=120)
    console.print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    times = Table("model", "metric", "batch", "fastest", "metric ms", "bare ms", "ratio", "quartiles", "target")
    profile = Table("model", "metric", "ranking ms", "fills ms", "building and scoring ms", title="beside the network")
    for model, metric in cells:
        print(f"{model} {metric} ...", file=sys.stderr)
        times.add_row(model, metric, *measure_time(model, metric, arguments))
        if arguments.profile:
            profile.add_row(model, metric, *measure_parts(model, metric, arguments))
    console.print(times, "(milliseconds per sample)")
    if arguments.profile:
        console.print(profile)
    if not arguments.no_memory:
        few, many = MEMORY_SAMPLES
        memory = Table("model", "metric", "allocator", f"{few} samples MiB", f"{many} samples MiB", "ratio", "target")
        for model, metric in cells:
            for allocator in ALLOCATORS:
                print(f"{model} {metric} memory, allocator {allocator} ...", file=sys.stderr)
                memory.add_row(model, metric, allocator, *measure_memory(model, metric, allocator))
        console.print(memory)


def measure_time(model: str, metric_name: str, arguments: argparse.Namespace) -> list[str]:
    classifier, metric = classifier_of(model, arguments.device), METRICS[metric_name]()
    evaluate = evaluation(metric, classifier, arguments.samples)
    classifier.batch_size = arguments.batch_size or classifier.batch_size
    rows = count_rows(classifier, evaluate)
    fastest = fastest_batch(classifier)
    buffer = torch.randn(fastest, *classifier.input_size, device=classifier.device)

    def bare() -> None:
        for start in range(0, rows, fastest):
            classifier.module(buffer[: min(fastest, rows - start)])

    pairs = [(seconds(evaluate), seconds(bare)) for _ in range(arguments.pairs)]
    low, ratio, high = statistics.quantiles([spent / needed for spent, needed in pairs], n=4)
    spent, needed = (statistics.median(times) / arguments.samples * 1e3 for times in zip(*pairs))
    target = TIME_TARGETS[model]
    return [
        str(classifier.batch_size),
        str(fastest),
        f"{spent:.1f}",
        f"{needed:.1f}",
        verdict(ratio, target),
        f"{low:.3f} to {high:.3f}",
        f"{target:.2f}",
    ]


def measure_parts(model: str, metric_name: str, arguments: argparse.Namespace) -> list[str]:
    """The parts of an evaluation that are not the network: ranking and fills alone, the rest with a stub for it."""
    classifier, metric = classifier_of(model, arguments.device), METRICS[metric_name]()
    classifier.module = Stub().to(classifier.device)
    batch = batch_of(classifier, arguments.samples)
    maps = torch.randn(arguments.samples, *classifier.input_size[1:], device=classifier.device)
    words = {getattr(metric, name) for name in ("fill", "deletion_fill", "insertion_fill") if hasattr(metric, name)}

    def rank() -> None:
        places(maps, sample_generators(0, "metric", batch.samples), getattr(metric, "tile", 1))

    def fill() -> None:
        for word in words:
            filled(batch.inputs, word, classifier.preprocessing)

    evaluate = evaluation(metric, classifier, arguments.samples)
    ranking, filling, everything = (
        statistics.median(seconds(part) for _ in range(arguments.pairs)) / arguments.samples * 1e3
        for part in (rank, fill, evaluate)
    )
    return [f"{ranking:.2f}", f"{filling:.2f}", f"{everything - ranking - filling:.2f}"]


def measure_memory(model: str, metric: str, allocator: str) -> list[str]:
    """The medians of several processes each."""

    def growth(samples: int) -> float:
        command = [sys.executable, __file__, "--memory-of", model, metric, str(samples)]
        environment = {**os.environ, **ALLOCATORS[allocator]}
        runs = [
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(MEMORY_RUNS)
        ]
        return statistics.median(int(run.stdout) for run in runs)

    few, many = map(growth, MEMORY_SAMPLES)
    return [f"{few / 2**20:.0f}", f"{many / 2**20:.0f}", verdict(many / few, MEMORY_TARGET), f"{MEMORY_TARGET:.2f}"]


def peak_growth(model: str, metric_name: str, samples: int) -> int:
    """Bytes by which evaluating samples, block by block, raises this process's peak above what it holds now."""
    classifier, metric = classifier_of(model), METRICS[metric_name](steps=MEMORY_STEPS)
    held = memory("VmRSS")
    # Otherwise the peak would be that of the imports, or of the parent process.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(0, samples, MEMORY_BLOCK):
        evaluation(metric, classifier, MEMORY_BLOCK)()
    return memory("VmHWM") - held


def memory(field: str) -> int:
    """A figure of this process in bytes: VmRSS is what it holds, VmHWM the most that it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def classifier_of(model: str, device: str = "cpu") -> Classifier:
    """The network of conf/model with random weights, as the runner would load it."""
    spec = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    spec.weights = "random"
    classifier = load_classifier(model, OmegaConf.to_container(spec), device=device)
    classifier.batch_size = default_batch_size(classifier.input_size, classifier.device)
    return classifier


def batch_of(classifier: Classifier, samples: int) -> Batch:
    inputs = torch.randn(samples, *classifier.input_size, device=classifier.device)
    targets = torch.zeros(samples, dtype=torch.int64, device=classifier.device)
    return Batch(tuple(range(samples)), inputs, targets, targets, None, (0,) * samples)


def evaluation(metric: Metric, classifier: Classifier, samples: int) -> Callable[[], None]:
    """One evaluation of random maps, with the method-independent responses there already, as in a run."""
    batch = batch_of(classifier, samples)
    maps = torch.randn(samples, *classifier.input_size[1:], device=classifier.device)
    responses = metric.respond(classifier, batch, [])

    def evaluate() -> None:
        generators = sample_generators(0, "metric", batch.samples)
        metric.evaluate(classifier, batch, maps, responses, generators)

    return evaluate


def count_rows(classifier: Classifier, evaluate: Callable[[], None]) -> int:
    """How many images the network sees in one evaluation."""
    sizes: list[int] = []
    hook = classifier.module.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    evaluate()
    hook.remove()
    return sum(sizes)


def fastest_batch(classifier: Classifier, rounds: int = 3) -> int:
    """The batch size at which bare passes take the least time per image, by the median of interleaved rounds."""
    buffer = torch.randn(max(BATCH_SIZES), *classifier.input_size, device=classifier.device)
    times: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for round_ in range(rounds + 1):
        for size in BATCH_SIZES:
            spent = seconds(lambda: [classifier.module(part) for part in buffer.split(size)])  # noqa: B023
            if round_:  # the first warms up
                times[size].append(spent)
    return min(BATCH_SIZES, key=lambda size: statistics.median(times[size]))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def verdict(ratio: float, target: float) -> str:
    return f"[{'green' if ratio <= target else 'red'}]{ratio:.3f}[/]"


class Stub(nn.Module):
    """A network that answers at once."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, 10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(inputs), -1)


if __name__ == "__main__":
    main()
