"""Many networks for the exclusive or, under the methods of Heurich 2021: what holds for all, and what is luck.

    python scripts/xor_nets.py --nets 48 --out results/reference/plane_xor_nets.csv

The networks of one kind (sigmoid or linear output) are trained side by side and differ in their initial weights only.
The weights are an artefact of the cache. Networks below 98 % test accuracy are left out, as in a local minimum.
One row per network and method goes to --out; a summary beside the thesis's Tables 3.2 and 3.3 goes to stdout.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
import yaml
from torch import nn

from xaibench.build import build
from xaibench.datasets.base import Batch, Samples
from xaibench.datasets.images import Images
from xaibench.datasets.planes import Xor
from xaibench.engine.training import epochs
from xaibench.listing import CONF
from xaibench.methods.context import Context
from xaibench.metrics.two_features.dim_diff import DimDiff
from xaibench.metrics.two_features.masked_pearson import MaskedPearson
from xaibench.models.classifier import Classifier, predicted
from xaibench.models.loading import build_module
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.recipe import Recipe
from xaibench.models.train import Progress
from xaibench.rng import generator, sample_generators
from xaibench.store.cache import Artefact

# The rates of the thesis; it does not give epochs and batch size. A linear output learns faster.
RECIPES = {"sigmoid": Recipe(300, 32, 0.001), "linear": Recipe(60, 32, 0.001)}
LEAST_ACCURACY = 0.98
# Method -> (d, rho_C, rho_DB) of the thesis. Its text says that IG starts at 0.5.
METHODS = {
    "saliency": (61.41, 0.199, 0.809),
    "input_x_gradient": (47.59, 0.291, -0.363),
    "integrated_gradients": (99.81, -0.582, -0.300),
    "integrated_gradients_half": (99.81, -0.582, -0.300),
    "feature_ablation": (58.26, 0.949, 0.559),
    "iba_features": (36.28, 0.520, 0.014),
}
COLUMNS = ("dim_diff", "rho_sure", *(f"rho_boundary_{align}" for align in ("none", "rot90", "rot270", "transpose")))
# The rows of one network, indexed by method -> whether it is as in 88 of 88 networks of an independent count.
ASSERTIONS: dict[str, Callable[[pd.DataFrame], bool]] = {
    "rho_C of occlusion is above 0.9 and the highest, IG from 0.5 apart": lambda net: (
        net.rho_sure.feature_ablation > 0.9
        and net.rho_sure.drop("integrated_gradients_half").idxmax() == "feature_ablation"
    ),
    "rho_C of IG from 0 is below -0.4": lambda net: net.rho_sure.integrated_gradients < -0.4,
    "rho_C of IG from 0.5 is above 0": lambda net: net.rho_sure.integrated_gradients_half > 0,
    "rho_DB of saliency, rot90, is above 0.4": lambda net: net.rho_boundary_rot90.saliency > 0.4,
    "rho_DB of input x gradient, rot90, is below -0.4": lambda net: net.rho_boundary_rot90.input_x_gradient < -0.4,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=48, help="of each kind")
    parser.add_argument("--points", type=int, default=51, help="of the grid, per axis")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    options = parser.parse_args()
    rows = []
    for kind, recipe in RECIPES.items():
        for seed, module in enumerate(trained(kind, options.nets, recipe, options.cache)):
            rows += [{"output": kind, "seed": seed, **row} for row in measured(module, options.points)]
    frame = pd.DataFrame(rows)
    frame.to_csv(options.out, index=False, float_format="%.6g", lineterminator="\n")
    print("\n".join(summary(frame)))


def trained(kind: str, count: int, recipe: Recipe, cache: Path) -> list[nn.Module]:
    """`count` trained networks of a kind, from the cache if they are there; network k starts from seed k."""
    spec = {**yaml.safe_load((CONF / "model" / "xor_net.yaml").read_text()), "sigmoid": kind == "sigmoid"}
    modules = [build_module(spec, seed) for seed in range(count)]
    data = Xor("train")
    images = Images(Samples(data, Preprocessing(), range(len(data))))
    key = {"script": "xor_nets", "nets": count, "recipe": recipe.described(), "data": data.fingerprint, "output": kind}
    artefact = Artefact(cache, "weights", ("xor_net", "side_by_side"), key)
    found = artefact.load_whole("weights")
    if found is None:
        artefact.create({})
        report = epochs(f"training {count} networks, {kind} output")
        train_side_by_side(modules, recipe, images, kind == "sigmoid", report)
        stacked = {name: torch.stack([m.state_dict()[name] for m in modules]) for name in modules[0].state_dict()}
        artefact.save_whole("weights", {name: tensor.numpy() for name, tensor in stacked.items()})
    else:
        for index, module in enumerate(modules):
            module.load_state_dict({name: torch.from_numpy(array[index]) for name, array in found.items()})
    return modules


def train_side_by_side(
    modules: Sequence[nn.Module],
    recipe: Recipe,
    images: Images,
    sigmoid: bool,
    report: Progress = lambda *done: None,
) -> None:
    """Train PlaneNets in place, by SGD at a constant rate, on the same batches: two batched products a step.

    (`models.stacked` trains any network, but gathers every network's own batches, which here is all the work.)
    """
    layers = [(module.linear1, module.linear2) for module in modules]
    weights = [
        torch.stack([part(pair[place]) for pair in layers]).requires_grad_()
        for place in (0, 1)
        for part in (lambda linear: linear.weight.detach().T, lambda linear: linear.bias.detach()[None])
    ]
    optimizer = torch.optim.SGD(weights, lr=recipe.lr, momentum=recipe.momentum)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator(recipe.seed, "recipe", epoch))
        total, right = 0.0, 0.0
        for positions in order.split(recipe.batch_size):
            inputs, labels = images.batch(positions, weights[0])
            points = inputs.flatten(1).expand(len(modules), -1, -1)
            hidden = torch.baddbmm(weights[1], points, weights[0]).relu()
            outputs = torch.baddbmm(weights[3], hidden, weights[2])[..., 0]
            outputs = outputs.sigmoid() if sigmoid else outputs
            loss = (outputs - labels).square().mean(1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(positions)
            right += ((outputs > 0.5) == labels).sum().item()
        found = {"loss": total, "accuracy": right}
        report(epoch + 1, recipe.epochs, {name: value / len(images) / len(modules) for name, value in found.items()})
    for index, pair in enumerate(layers):
        for linear, weight, bias in zip(pair, weights[::2], weights[1::2]):
            linear.weight.data.copy_(weight[index].detach().T)
            linear.bias.data.copy_(bias[index, 0].detach())


def measured(module: nn.Module, points: int) -> Iterator[dict[str, object]]:
    """A row per method: accuracy on the test split, output at (0.5, 0.5), and the metrics on the grid."""
    classifier = Classifier("xor_net", module, (1, 1, 2), layers={"bottleneck": "input"}, batch_size=4096)
    test, batch = loaded("test"), loaded(f"grid:{points}")
    about = {
        "accuracy": (predicted(classifier.logits(test.inputs)) == test.labels).double().mean().item(),
        "centre": classifier.logits(torch.full((1, 1, 1, 2), 0.5)).item(),
    }
    outputs = classifier.logits(batch.inputs)[:, 0]
    for name in METHODS:
        method = build(yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text()), "method")
        samples = Samples(Xor("train"), classifier.preprocessing, range(1000))
        fitted = method.fit(classifier, samples, generator("fit")) if method.fit else {}
        context = Context(sample_generators(0, "method", batch.samples), fitted, labels=batch.labels)
        targets = torch.zeros_like(batch.labels)
        maps = method.attribute(classifier, batch.inputs, targets, context)[:, 0]
        scores = DimDiff().pool(maps, outputs) | MaskedPearson().pool(maps, outputs)
        yield {**about, "method": name, **{column: scores[column].item() for column in COLUMNS}}


@functools.cache
def loaded(split: str) -> Batch:
    """All points of a split, the same for every network."""
    samples = Samples(Xor(split), Preprocessing(), range(len(Xor(split))))
    return samples.load(samples.ids)


def summary(frame: pd.DataFrame) -> Iterator[str]:
    """Lines of Markdown: how many networks learned it, the assertions, and each method beside the thesis."""
    for kind, every in frame.groupby("output", sort=False):
        kept = every[every.accuracy > LEAST_ACCURACY]
        nets = [net.set_index("method") for _, net in kept.groupby("seed")]
        firsts = kept.groupby("seed").first()
        yield f"{kind}: {len(nets)} of {every.seed.nunique()} networks are above {LEAST_ACCURACY:.0%}"
        yield f"test accuracy {spread(firsts.accuracy)} (Bayes {Xor().bayes_accuracy():.4f})"
        yield f"output at (0.5, 0.5): above 0.8 in {sum(firsts.centre > 0.8)}, below 0.2 in {sum(firsts.centre < 0.2)}"
        for said, holds in ASSERTIONS.items():
            yield f"- {said}: {sum(map(holds, nets))} of {len(nets)}"
        yield "| method | d thesis | dim_diff | rho_C thesis | rho_C | rho_DB thesis | none | rot90 | transpose |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for name, (difference, sure, boundary) in METHODS.items():
            own = kept[kept.method == name]
            cells = [spread(own[column]) for column in COLUMNS if column != "rho_boundary_rot270"]
            cells = [name, f"{difference}", cells[0], f"{sure}", cells[1], f"{boundary}", *cells[2:]]
            yield f"| {' | '.join(cells)} |"
        yield ""


def spread(values: pd.Series) -> str:
    """`mean [least, most]`."""
    return f"{statistics.fmean(values):.3f} [{values.min():.3f}, {values.max():.3f}]"


if __name__ == "__main__":
    main()
