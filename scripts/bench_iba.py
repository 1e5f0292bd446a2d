"""How close IBA comes to the time that its network passes need, and how many maps per second it makes.

    python scripts/bench_iba.py --size 112 --batches 1 8 --repeats 3

The limit of a batch is one pass of the part before the layer and steps x copies passes (forwards and backwards) of the
part behind it, at the same number of rows per call. Maps and limits are timed in turns; the ratio is the median over
the pairs. Networks have random weights and blank statistics, which changes no time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torchvision.models import get_model

from xaibench.methods.bottleneck.iba import IBA
from xaibench.methods.context import Context
from xaibench.models.classifier import Classifier
from xaibench.models.cut import Cut, feature_shape
from xaibench.rng import sample_generators

NETWORKS = {"resnet50": "layer2", "vgg16": "features.17", "mobilenet_v2": "features.10"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vgg16"], choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="images side by side")
    parser.add_argument("--size", type=int, default=224, help="side of the inputs in pixels")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of map and limit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="1 times the processor, which a busy machine disturbs less")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print("network       layer         batch   seconds per map   limit   ratio   maps per second")
    for name in options.networks:
        for batch in options.batches:
            found, limit, ratio = compare(name, batch, options)
            print(
                f"{name:13s} {NETWORKS[name]:13s} {batch:5d}   {found / batch:15.3f} {limit / batch:7.3f} "
                f"{ratio:7.3f}   {batch / found:15.3f}",
                flush=True,
            )


def compare(name: str, batch: int, options: argparse.Namespace) -> tuple[float, float, float]:
    """Median seconds of a batch of maps, of its limit, and the median ratio of the pairs."""
    module = get_model(name, weights=None).to(options.device)
    size = (3, options.size, options.size)
    network = Classifier(name, module, size, batch_size=batch * options.copies)
    layer = NETWORKS[name]
    shape = feature_shape(network, layer)
    fitted = {
        f"{layer}.{key}": torch.full(shape, float(value)) for key, value in [("mean", 0), ("std", 1), ("active", 1)]
    }
    inputs = torch.randn(batch, *size, device=options.device)
    targets = torch.zeros(batch, dtype=torch.long, device=options.device)
    method = IBA(layer=layer, steps=options.steps, copies=options.copies)
    cut = Cut(network, layer, inputs[:1])
    assert cut.separable

    def maps() -> None:
        method.attribute(network, inputs, targets, Context(sample_generators(0, "bench", range(batch)), fitted=fitted))

    def passes() -> None:
        with torch.no_grad():
            features = cut.before(inputs)
        z = features.values.repeat_interleave(options.copies, dim=0).requires_grad_(True)
        labels = targets.repeat_interleave(options.copies)
        for _ in range(options.steps):
            # Multiplied by 1, so that an in-place layer may write into what it gets.
            F.cross_entropy(cut.behind(z * 1, features, options.copies), labels, reduction="sum").backward()
            z.grad = None

    maps()
    passes()
    pairs = [(seconds(maps, options.device), seconds(passes, options.device)) for _ in range(options.repeats)]
    found, limit = (statistics.median(column) for column in zip(*pairs))
    return found, limit, statistics.median(a / b for a, b in pairs)


def seconds(work: Callable[[], None], device: str) -> float:
    """Wall time of a call, the device's queue emptied before and after; processor time if there is one thread."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
