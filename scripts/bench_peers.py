"""What other libraries take for the same work: Quantus, pytorch-grad-cam and Captum beside ours, in one run.

    python scripts/bench_peers.py --threads 1
    python scripts/bench_peers.py --rows road            # rows whose name contains this

The same images, maps, network and settings: 32 images of 112x112 in colour (or grey, where a library handles nothing
else) in calls of 32, and a network of two convolutions, in which Quantus spends about four tenths of its time. Rows of
a library that is not installed are left out. The two run in turn and the median ratio of a pair counts; with one thread
it is the processor's time.

Where both compute the same, the table says by how much they differ at most. Where they do not, it says why:

channels     Quantus flips single channels of a colour image where a map has one value per pixel: three times the
             steps of a pixel. "Equal calls" gives both as many images to the network, "finished curve" takes the steps
             that removing 224 pixels at a time needs.
definition   Quantus' SensitivityN is another quantity (see tests/oracles); as many images to the network.
noise        Draws of its own: equal in distribution alone.
"""

import argparse
import importlib
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bench import pairs, seconds
from rich.console import Console
from rich.table import Table
from torch import nn

from xaibench.datasets.base import Batch
from xaibench.methods.context import Context
from xaibench.metrics.base import Metric
from xaibench.metrics.ground_truth.mass_accuracy import MassAccuracy
from xaibench.metrics.ground_truth.pointing_game import PointingGame
from xaibench.metrics.ground_truth.rank_accuracy import RankAccuracy
from xaibench.metrics.ground_truth.roc_auc import RocAuc
from xaibench.metrics.properties.complexity import Complexity
from xaibench.metrics.properties.max_sensitivity import MaxSensitivity
from xaibench.metrics.properties.sparseness import Sparseness
from xaibench.metrics.ranking import places
from xaibench.metrics.removal._perturbation import Removal, curve
from xaibench.metrics.removal.infidelity import Infidelity
from xaibench.metrics.removal.sensitivity_n import SensitivityN
from xaibench.models.classifier import Classifier
from xaibench.rng import sample_generators

IMAGES, SIDE, STEP = 32, 112, 224
PIXELS = SIDE * SIDE
PERCENTAGES = (10, 30, 50, 70, 90)
DRAWS, NOISE = 50, 0.02
QUIET = {"disable_warnings": True, "display_progressbar": False, "normalise": False}


@dataclass
class Row:
    """What both do: functions that return what they found, [images, ...] where it can be compared.

    remark: in place of the largest difference, where there is nothing to compare. target: of theirs / ours.
    """

    name: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    target: float | None = None
    remark: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="part of the names of rows (all)")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of both, one after the other")
    parser.add_argument("--threads", type=int, help="torch's threads (its own choice if not given)")
    options = parser.parse_args()
    options.device = "cpu"
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    colour, grey = Fixture(3), Fixture(1)
    rows = [row for library in (quantus_rows, grad_cam_rows, captum_rows) for row in library(colour, grey)]
    console = Console(width=140)
    console.print(
        f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads, {IMAGES} images of {SIDE}x{SIDE}"
    )
    table = Table("ours", "peer", "ours ms", "theirs ms", "in network", "theirs / ours", "target", "largest difference")
    for row in rows:
        if options.rows in row.name:
            cells = measure(row, options)
            print(f"{row.name}: {cells[2]} ms, {row.peer} {cells[3]} ms", file=sys.stderr)
            table.add_row(*cells)
    console.print(table)
    console.print(
        f"a pass of all images in colour: {1e3 * pass_of(colour):.1f} ms, in grey: {1e3 * pass_of(grey):.1f} ms"
    )


def measure(row: Row, options: argparse.Namespace) -> list[str]:
    remark, ours = row.remark, row.ours()
    if not remark:
        ours, theirs = (np.asarray(found, dtype=float) for found in (ours, row.theirs()))
        remark = f"{np.abs(ours - theirs).max():.1g}"
    network = NetworkTime()
    found = pairs(row.ours, lambda: network.during(row.theirs), options)
    ratio = statistics.median(theirs / ours for ours, theirs in found)
    ours, theirs = (f"{1e3 * statistics.median(times):.1f}" for times in zip(*found))
    shown = f"{ratio:.1f}"
    if row.target is not None:
        shown = f"[{'green' if ratio >= row.target else 'red'}]{shown}[/]"
    share = f"{network.seconds / sum(times for _, times in found):.0%}"
    return [row.name, row.peer, ours, theirs, share, shown, "" if row.target is None else f"{row.target:g}", remark]


class NetworkTime:
    """Seconds that some work spends in the forward passes of networks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def during(self, work: Callable[[], object]) -> None:
        """Run it, and add up."""
        forward = nn.Sequential.forward

        def timed(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
            outputs: list[torch.Tensor] = []
            self.seconds += seconds(lambda: outputs.append(forward(module, inputs)))
            return outputs[0]

        nn.Sequential.forward = timed
        try:
            work()
        finally:
            nn.Sequential.forward = forward


class Fixture:
    """Images, a network, and a map of each image, as all libraries want them."""

    def __init__(self, channels: int) -> None:
        module = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )
        self.classifier = Classifier("tiny", module, (channels, SIDE, SIDE), batch_size=IMAGES)
        self.images = torch.rand(IMAGES, channels, SIDE, SIDE)
        self.targets = self.classifier.logits(self.images).argmax(1)
        self.maps = torch.rand(IMAGES, SIDE, SIDE)
        self.masks = torch.rand(IMAGES, SIDE, SIDE) < 0.3
        self.batch = Batch(tuple(range(IMAGES)), self.images, self.targets, self.targets, self.masks, (0,) * IMAGES)
        self.arrays = self.images.numpy(), self.targets.numpy(), self.maps[:, None].numpy()

    @property
    def generators(self) -> list[torch.Generator]:
        return sample_generators(0, "bench", self.batch.samples)

    def path(self, counts: list[int], fill: str = "zero", tile: int = 1, output: str = "probability") -> torch.Tensor:
        """One path of removal, most relevant first, as the metrics do it: ranking, fill and scores [images, X]."""
        removal = Removal(fill)
        remove = removal.of(self.classifier, self.batch, removal.draw(self.generators))
        order = places(self.maps, self.generators, tile)
        return curve(self.classifier, self.images, remove, order, counts, self.targets, output)

    def deletion(self, steps: int) -> torch.Tensor:
        """The deletion curve in so many steps, without its start."""
        return self.path([round(PIXELS * step / steps) for step in range(1, steps + 1)])

    def score(self, metric: Metric, maps: torch.Tensor | None = None, **context: Any) -> torch.Tensor:
        """The first column of a metric, its responses included."""
        maps = self.maps if maps is None else maps
        responses = metric.respond(self.classifier, self.batch, Context(self.generators))
        context = Context(self.generators, responses=responses, **context)
        columns = metric.evaluate(self.classifier, self.batch, maps, context)
        return columns[metric.statistics[0].column]

    def quantus(self, metric: Callable[..., Any], **context: Any) -> Any:
        """Quantus' answer for all images at once."""
        context = {"softmax": True, "batch_size": IMAGES, "a_batch": self.arrays[2]} | context
        return metric(self.classifier.module, *self.arrays[:2], device="cpu", **context)

    def gradients(self, images: torch.Tensor, targets: torch.Tensor, purpose: str = "") -> torch.Tensor:
        return self.classifier.gradient(images, targets)


def quantus_rows(colour: Fixture, grey: Fixture) -> list[Row]:
    quantus = installed("quantus")
    if quantus is None:
        return []
    flipping = quantus.PixelFlipping(features_in_step=STEP, perturb_baseline=0.0, **QUIET)
    steps = PIXELS // STEP
    regions = quantus.RegionPerturbation(patch_size=14, regions_evaluation=20, perturb_baseline=0.0, **QUIET)
    road = quantus.ROAD(percentages=list(PERCENTAGES), **QUIET)
    sensitivity_n = quantus.SensitivityN(features_in_step=STEP, perturb_baseline=0.0, **QUIET)
    sets = round(0.8 * PIXELS / STEP)  # images to the network, of each image in grey
    rows = [
        Row("deletion, grey", "Quantus", lambda: grey.deletion(steps), lambda: grey.quantus(flipping), 2),
        Row(
            "deletion, equal calls",
            "Quantus",
            lambda: colour.deletion(3 * steps),
            lambda: colour.quantus(flipping),
            2,
            "channels",
        ),
        Row(
            "deletion, finished curve",
            "Quantus",
            lambda: colour.deletion(steps),
            lambda: colour.quantus(flipping),
            5,
            "channels",
        ),
        Row(
            "region_perturbation, one path",
            "Quantus",
            lambda: colour.path(list(range(1, 21)), tile=14),
            lambda: colour.quantus(regions),
            remark="drops, not outputs",
        ),
        Row(
            "road, most relevant first, grey",
            "Quantus",
            lambda: grey.path([PIXELS * p // 100 for p in PERCENTAGES], "linear", output="accuracy"),
            lambda: grey.quantus(road),
            50,
            "noise",
        ),
        Row(
            "sensitivity_n, equal calls, grey",
            "Quantus",
            lambda: grey.score(SensitivityN(points=1, sets=sets)),
            lambda: grey.quantus(sensitivity_n),
            remark="definition",
        ),
        Row(
            "max_sensitivity",
            "Quantus",
            lambda: colour.score(
                MaxSensitivity(), colour.gradients(colour.images, colour.targets), explain=colour.gradients
            ),
            lambda: colour.quantus(
                quantus.MaxSensitivity(nr_samples=10, lower_bound=0.02, **QUIET),
                a_batch=None,
                explain_func=lambda model, inputs, targets, **_: gradient_arrays(colour, inputs, targets),
            ),
            remark="noise",
        ),
    ]
    for metric, name, masks in (
        (Sparseness(), "Sparseness", False),
        (Complexity(), "Complexity", False),
        (PointingGame(), "PointingGame", True),
        (MassAccuracy(), "RelevanceMassAccuracy", True),
        (RankAccuracy(), "RelevanceRankAccuracy", True),
        (RocAuc(), "AUC", True),
    ):
        theirs = getattr(quantus, name)(abs=not masks, **QUIET)
        context = {"s_batch": grey.masks[:, None].numpy()} if masks else {}
        rows.append(
            Row(
                type(metric).__module__.split(".")[-1],
                "Quantus",
                lambda metric=metric: grey.score(metric),
                lambda theirs=theirs, context=context: grey.quantus(theirs, **context),
            )
        )
    return rows


def grad_cam_rows(colour: Fixture, grey: Fixture) -> list[Row]:
    road = installed("pytorch_grad_cam.metrics.road")
    if road is None:
        return []
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets = [ClassifierOutputSoftmaxTarget(int(target)) for target in colour.targets]
    maps = colour.maps.numpy()

    def theirs() -> None:
        # Its percentile is that of the smallest values, which stay.
        for percentage in PERCENTAGES:
            metric = road.ROADMostRelevantFirst(percentile=100 - percentage)
            metric(colour.images, maps, targets, colour.classifier.module)

    counts = [PIXELS * percentage // 100 for percentage in PERCENTAGES]
    ours = lambda: colour.path(counts, "linear")  # noqa: E731
    return [Row("road, most relevant first", "pytorch-grad-cam", ours, theirs, 50, "noise")]


def captum_rows(colour: Fixture, grey: Fixture) -> list[Row]:
    captum = installed("captum.metrics")
    if captum is None:
        return []
    module, images, targets = colour.classifier.module, colour.images, colour.targets
    gradients = colour.gradients(images, targets)

    @captum.infidelity_perturb_func_decorator(multiply_by_inputs=False)
    def gaussian(copies: torch.Tensor) -> torch.Tensor:
        return copies - NOISE * torch.randn_like(copies)

    @captum.infidelity_perturb_func_decorator(multiply_by_inputs=True)
    def square(copies: torch.Tensor) -> torch.Tensor:
        sides = torch.randint(1, round(0.36 * SIDE) + 1, (len(copies), 1))
        first = (torch.rand(len(copies), 2) * (SIDE - sides + 1)).long()
        at = torch.arange(SIDE)
        down, across = ((start[:, None] <= at) & (at < start[:, None] + sides) for start in first.T)
        return torch.where(down[:, None, :, None] & across[:, None, None, :], 0.0, copies)

    def explained(inputs: Any, target: torch.Tensor) -> Any:
        """It hands over the images as a tuple and wants one back, and their copies in the same way."""
        return tuple(colour.gradients(images, target) for images in inputs)

    def theirs(perturb: Callable[..., Any], maps: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: captum.infidelity(
            module, perturb, images, maps, target=targets, n_perturb_samples=DRAWS, normalize=True
        )

    return [
        Row(
            "infidelity, square",
            "Captum",
            lambda: colour.score(Infidelity(draws=DRAWS), gradients * images),
            theirs(square, gradients * images),
            remark="noise",
        ),
        Row(
            "infidelity, gaussian",
            "Captum",
            lambda: colour.score(Infidelity("gaussian", draws=DRAWS, noise=NOISE), gradients),
            theirs(gaussian, gradients),
            remark="noise",
        ),
        Row(
            "max_sensitivity",
            "Captum",
            lambda: colour.score(MaxSensitivity(), colour.gradients(images, targets), explain=colour.gradients),
            lambda: captum.sensitivity_max(explained, images, n_perturb_samples=10, target=targets),
            remark="noise",
        ),
    ]


def gradient_arrays(fixture: Fixture, inputs: Any, targets: Any) -> np.ndarray:
    return fixture.gradients(torch.as_tensor(inputs), torch.as_tensor(targets)).numpy()


def pass_of(fixture: Fixture) -> float:
    """Seconds of one pass of all images."""
    work = lambda: fixture.classifier.logits(fixture.images)  # noqa: E731
    return statistics.median(seconds(work) for _ in range(5))


def installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


if __name__ == "__main__":
    main()
