"""What a GPU does in a second: maps and scores beside the bare passes they need, in one command and under ten minutes.

    python scripts/bench_gpu.py                          # on the GPU: every table
    python scripts/bench_gpu.py blocks                   # blocks of ResNet-50 before and after; needs no GPU
    python scripts/bench_gpu.py --device cpu --quick     # smallcnn, few images: that the script runs

blocks     Of each method: the passes of a map, how many maps of ResNet-50 are a block (a shard, a claim and an fsync of
           its own) by the limit of a CPU, which was that of every device once, and by that of a GPU; and the blocks of
           so many images. From the methods' `cost`, as the runner plans: nothing is computed.
methods    Images a second of ten methods, for 1, 8, 32 and 128 side by side in calls of as many, and their time over as
           many bare passes in the same calls.
metrics    The same of five metrics, responses included.
iba        IBA's maps a second, and those of the authors' library one by one, where it is installed (target: 8 times).
imputing   Milliseconds per image that ROAD infers, and by Quantus on the CPU, where that is installed.
trainings  ROAR's trainings, stacked and one by one (target: 3 times).

Weights are random: they change no time. Clocks start and stop when the device has nothing left to do; the first call of
each is not timed. What would begin after --minutes is left out, and said so.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from bench import Work, count_passes, metric_of, ratio_of, seconds, trainings
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from xaibench.build import build
from xaibench.engine.device import BLOCK_FLOPS, block_size, default_batch_size, find_device
from xaibench.errors import Refusal
from xaibench.listing import CONF
from xaibench.methods.base import Method
from xaibench.methods.bottleneck.iba import IBA
from xaibench.methods.context import Context
from xaibench.models.classifier import Classifier
from xaibench.models.cut import feature_shape
from xaibench.models.flops import forward_flops
from xaibench.models.loading import load_classifier
from xaibench.perturb.imputer import impute
from xaibench.rng import sample_generators

METHODS: dict[str, dict[str, object]] = {
    "gradient": {},
    "guided_backprop": {},
    "gradcam": {},
    "lrp_epsilon": {},
    "deeplift": {},
    "smoothgrad": {"samples": 10},
    "integrated_gradients": {"steps": 10},
    "occlusion": {},
    "rise": {"samples": 50},
    "iba": {},
}
METRICS: dict[str, dict[str, object]] = {
    "degradation": {"steps": 20},
    "insertion_deletion": {"steps": 20},
    "sensitivity_n": {"points": 2, "sets": 20},
    "infidelity": {"draws": 20},
    "road": {},
}
BATCHES, PLANNED = (1, 8, 32, 128), 1000
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
LAYER = {"resnet50": "layer2", "smallcnn": "features.7"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="smallcnn, batches of 1 and 2")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of work and limit, by turns")
    parser.add_argument("--minutes", type=float, default=9.0, help="when nothing more is begun")
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"{', '.join(unknown)}: expected of {', '.join(TABLES)}")
    options.model, options.batches = ("smallcnn", (1, 2)) if options.quick else ("resnet50", BATCHES)
    options.end = time.monotonic() + 60 * options.minutes
    names = options.tables or list(TABLES)
    if names != ["blocks"]:
        options.device = str(find_device(options.device))
    console = Console(width=120)
    console.print(f"torch {torch.__version__}, {options.device}, {options.model}")
    for name in names:
        console.print(TABLES[name](options))


# ---- blocks ----------------------------------------------------------------------------------------------------------


def blocks(options: argparse.Namespace) -> Table:
    columns = ("method", "passes", "maps per block", "on a GPU", f"blocks of {PLANNED}", "on a GPU")
    table = Table(*columns, title=f"blocks of {options.model}: by {BLOCK_FLOPS:.0e} operations, as once on all devices")
    network = network_of(options.model, "cpu", batch_size=1)
    flops, cpu, gpu = forward_flops(network), torch.device("cpu"), torch.device("cuda")
    for path in sorted((CONF / "method").glob("*.yaml")):
        try:
            forwards, backwards = method_of(path.stem, network, {}).cost(network)
        except Exception as refused:  # of another kind of network: whatever it says, it has no row
            print(f"{path.stem}: {str(refused).splitlines()[0]}", file=sys.stderr)
            continue
        of_map = flops * max(1, forwards + 2 * backwards)
        sizes = [block_size(of_map, network.input_size, device) for device in (cpu, gpu)]
        counts = [-(-PLANNED // size) for size in sizes]
        table.add_row(path.stem, f"{forwards}+{backwards}", *map(str, sizes), *map(str, counts))
    return table


# ---- rates -----------------------------------------------------------------------------------------------------------


def methods(options: argparse.Namespace) -> Table:
    table = Table("method", "side by side", "images/s", "bare images/s", "over bare passes", "quartiles", title="maps")
    for name, batch in in_time(options, METHODS):
        network = network_of(options.model, options.device, batch)
        method = method_of(name, network, METHODS[name])
        try:
            method.check(network)
        except Refusal as refusal:
            table.add_row(name, str(batch), str(refusal)[:60])
            continue
        inputs = torch.randn(batch, *network.input_size, device=options.device)
        targets, fitted = torch.zeros(batch, dtype=torch.int64, device=options.device), moments(network, method)

        def maps(method=method, network=network, inputs=inputs, targets=targets, fitted=fitted) -> None:
            draws = sample_generators(0, "bench", range(len(inputs)))
            method.attribute(network, inputs, targets, Context(draws, fitted))

        forwards, backwards = (batch * passes for passes in method.cost(network))
        limit = passes_of(network, forwards - backwards, backwards)
        table.add_row(name, str(batch), *compared(maps, limit, batch, options))
    return table


def metrics(options: argparse.Namespace) -> Table:
    table = Table(
        "metric", "side by side", "images/s", "bare images/s", "over bare passes", "quartiles", title="scores"
    )
    for name, batch in in_time(options, METRICS):
        network = network_of(options.model, options.device, batch)
        work = Work(metric_of(name, METRICS[name]), network, batch)
        limit = passes_of(network, *count_passes(network, work.everything))
        table.add_row(name, str(batch), *compared(work.everything, limit, batch, options))
    return table


def in_time(options: argparse.Namespace, names: dict[str, dict[str, object]]) -> Iterator[tuple[str, int]]:
    """Each name with each batch size, as long as there is time; those left out are named."""
    rows = [(name, batch) for name in names for batch in options.batches]
    for number, row in enumerate(rows):
        if time.monotonic() > options.end:
            print(f"out of time, left out: {rows[number:]}", file=sys.stderr)
            return
        print(*row, "...", file=sys.stderr)
        yield row


def compared(
    work: Callable[[], None], limit: Callable[[], None], images: int, options: argparse.Namespace
) -> list[str]:
    """Cells of a table: images a second of both, the ratio of their times and its quartiles."""
    work(), limit()
    pairs = [(seconds(work, options.device), seconds(limit, options.device)) for _ in range(max(2, options.pairs))]
    rates = [f"{images / statistics.median(times):.1f}" for times in zip(*pairs)]
    return [*rates, *ratio_of(pairs, None)[:2]]


def passes_of(network: Classifier, forwards: int, gradients: int) -> Callable[[], None]:
    """So many passes, and nothing else, in calls as large as the network's."""
    buffer = torch.randn(network.batch_size, *network.input_size, device=network.device)
    targets = torch.zeros(network.batch_size, dtype=torch.int64, device=network.device)

    def passes() -> None:
        for part in network.chunks(max(0, forwards)):
            network.logits(buffer[: part.stop - part.start])
        for part in network.chunks(gradients):
            network.gradient(buffer[: part.stop - part.start], targets[: part.stop - part.start])

    return passes


# ---- beside others ---------------------------------------------------------------------------------------------------


def iba(options: argparse.Namespace) -> Table:
    table = Table("IBA", "side by side", "maps/s", title="IBA: ten steps of ten copies")
    batch = min(32, max(options.batches))
    network = network_of(options.model, options.device, 10 * batch)
    method = IBA(layer=LAYER[options.model], steps=10, copies=10)
    inputs = torch.randn(batch, *network.input_size, device=options.device)
    targets, fitted = torch.zeros(batch, dtype=torch.int64, device=options.device), moments(network, method)

    def ours() -> None:
        draws = sample_generators(0, "bench", range(batch))
        method.attribute(network, inputs, targets, Context(draws, fitted))

    ours()
    took = statistics.median(seconds(ours, options.device) for _ in range(options.pairs))
    table.add_row("ours", str(batch), f"{batch / took:.2f}")
    if importlib.util.find_spec("IBA") is None:
        table.add_row("the authors'", "", "not installed (BioroboticsLab/IBA)")
        return table
    from IBA.pytorch import IBA as Original

    original = Original(network.layer(LAYER[options.model]))
    original.estimate(network.module, [(part,) for part in inputs.split(16)], device=options.device)

    def theirs() -> None:
        for image, target in zip(inputs[:4].split(1), targets):

            def loss(copies: torch.Tensor, target: torch.Tensor = target) -> torch.Tensor:
                return functional.cross_entropy(network.module(copies), target.expand(len(copies)))

            original.analyze(image, loss, optimization_steps=10)

    theirs()
    took = statistics.median(seconds(theirs, options.device) for _ in range(options.pairs))
    original.detach()
    table.add_row("the authors'", "1", f"{len(inputs[:4]) / took:.2f}")
    return table


def imputing(options: argparse.Namespace) -> Table:
    table = Table("imputer", "on", "images at once", "ms each", title=f"ROAD, {len(SHARES)} shares of each image")
    side, batch = (64, 2) if options.quick else (224, 32)
    images = torch.rand(batch, 3, side, side, device=options.device).repeat_interleave(len(SHARES), 0)
    shares = torch.tensor(SHARES * batch, device=options.device).view(-1, 1, 1, 1)
    masks = (torch.rand(len(images), 1, side, side, device=options.device) < shares).to(images)
    impute(images, masks)
    took = statistics.median(seconds(lambda: impute(images, masks), options.device) for _ in range(options.pairs))
    table.add_row("ours", options.device, str(len(images)), f"{1e3 * took / len(images):.2f}")
    if importlib.util.find_spec("quantus") is None:
        table.add_row("Quantus", "cpu", "", "not installed")
        return table
    from quantus.functions.perturb_func import noisy_linear_imputation

    arrays = images[: len(SHARES)].cpu().numpy()
    removed = [mask.flatten().nonzero()[:, 0].numpy() for mask in masks[: len(SHARES)].cpu()]

    def theirs() -> None:
        for array, indices in zip(arrays, removed):
            noisy_linear_imputation(array, indices)

    took = statistics.median(seconds(theirs) for _ in range(options.pairs))
    table.add_row("Quantus", "cpu", "1", f"{1e3 * took / len(arrays):.2f}")
    return table


def roar(options: argparse.Namespace) -> Table:
    (table,) = trainings(argparse.Namespace(**vars(options), batch_size=None))
    return table


# ---- what is measured ------------------------------------------------------------------------------------------------


def network_of(model: str, device: str, batch_size: int) -> Classifier:
    """The network of conf/model with random weights."""
    spec = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    spec.weights, spec.recipe = "random", None
    network = load_classifier(model, OmegaConf.to_container(spec), device=device)
    return replace(network, batch_size=batch_size or default_batch_size(network.input_size, network.device))


def method_of(name: str, network: Classifier, overrides: dict[str, object]) -> Method:
    """The method of conf/method; of those at a layer, the one of the network."""
    spec = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"))
    if spec.get("layer") == "bottleneck":
        spec["layer"] = LAYER[network.name]
    return build(spec | overrides, "method")


def moments(network: Classifier, method: Method) -> dict[str, torch.Tensor]:
    """Statistics that say nothing, for a method that would fit some."""
    if not isinstance(method, IBA):
        return {}
    shape = feature_shape(network, method.layer)
    values = {"mean": 0.0, "std": 1.0, "active": 1.0}
    return {f"{method.layer}.{key}": torch.full(shape, value, device=network.device) for key, value in values.items()}


TABLES: dict[str, Callable[[argparse.Namespace], Table]] = {
    "blocks": blocks,
    "methods": methods,
    "metrics": metrics,
    "iba": iba,
    "imputing": imputing,
    "trainings": roar,
}


if __name__ == "__main__":
    main()
