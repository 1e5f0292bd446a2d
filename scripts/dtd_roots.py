"""Where the roots of train-free deep Taylor decomposition lie: Table 1 of Sixt 2022, chapter 5, made again.

    python scripts/dtd_roots.py --inputs 1000

For every rule, roots of the first layer's neurons on a random ReLU network with biases of 0 and less: the share that
lies in the linear region of the input (the decomposition needs 100 %) and the share at which the network's output is
that of the input (it needs 0 %), per input and per root. A neuron without relevance has the input itself as its root,
which the definition forbids: the shares without those are given as well.

The table that was printed has the z+ rule in all four columns, and counts inputs with at least one root outside.
"""

import argparse

import torch
from torch import nn

from xaibench.methods.context import Context
from xaibench.methods.rules.dtd import TrainFreeDTD
from xaibench.models.classifier import Classifier
from xaibench.models.tracing.graph import Graph
from xaibench.models.tracing.steps import Dense

# What one gets by running the released notebook (commit 2744c28) with its rules really applied, n = 1000, in percent:
# inputs with a root outside of the region, roots in the region, roots with the input's output.
BEFORE = {
    "zero": (100.0, 0.0, 0.0),
    "zplus": (41.1, 91.18, 13.99),
    "gamma": (46.5, 88.47, 13.51),
    "square": (45.7, 88.38, 0.0),
}


def network(seed: int = 1) -> Classifier:
    """10 inputs, 10 and 10 ReLUs, 2 outputs behind ReLUs; as released, positive weights are scaled by 1.4 three times
    (and biases twice, before they get their sign), or hardly any input would have an output above 0."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), *(part for n in (10, 10, 2) for part in (nn.Linear(10, n), nn.ReLU())))
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, nn.Linear):
                layer.weight[layer.weight > 0] *= 1.4**3
                layer.bias[layer.bias > 0] *= 1.4**2
                layer.bias.copy_(-layer.bias.abs())
    return Classifier("toy", module.double(), (1, 1, 10), batch_size=10_000)


def drawn(classifier: Classifier, count: int, seed: int = 0) -> torch.Tensor:
    """|N(0, I)|, those with a first output above 0.1: [count,1,1,10]."""
    draw, found = torch.Generator().manual_seed(seed), []
    while sum(map(len, found)) < count:
        x = torch.randn(count, 1, 1, 10, generator=draw).abs().double()
        found.append(x[classifier.logits(x)[:, 0] > 0.1])
    return torch.cat(found)[:count]


def shares(classifier: Classifier, inputs: torch.Tensor, root: str, gamma: float = 1.0) -> dict[str, float]:
    """In percent: `inputs_outside` with at least one root of another gradient; of roots, those in the `region` (all
    gradients within 1e-5) and at the same `output` (within 1e-6); both without the roots that are the input.

    For `zero` the root is 0 itself, as LRP-0 is explained.
    """
    graph, method = Graph.of(classifier), TrainFreeDTD(root, gamma)
    values, targets = graph.run(inputs), torch.zeros(len(inputs), dtype=torch.long)
    start = method.initial(classifier, values[-1], targets)
    place, first = next((p, step) for p, step in enumerate(graph.steps, 1) if isinstance(step, Dense))
    (layer,) = [name for name, places in graph.places.items() if places == [place]]
    relevance = graph.back(values, start, method.rules(classifier, inputs, Context()), keep=(layer,))[layer]
    roots = method.rule.roots(first.weight, inputs.flatten(1), relevance)
    roots = torch.zeros_like(roots) if root == "zero" else roots
    count, neurons, size = roots.shape
    points, zeros = roots.view(-1, 1, 1, size), targets.repeat_interleave(neurons)
    slopes = classifier.gradient(points, zeros).view(count, neurons, size)
    inside = ((slopes - classifier.gradient(inputs, targets).view(count, 1, size)).abs() <= 1e-5).all(2)
    outputs = classifier.scores(points, zeros).view(count, neurons)
    same = (outputs - classifier.scores(inputs, targets)[:, None]).abs() < 1e-6
    other = (roots != inputs.view(count, 1, size)).any(2)
    found = {
        "inputs_outside": ~inside.all(1),
        "region": inside,
        "output": same,
        "region_of_others": inside[other],
        "output_of_others": same[other],
    }
    return {name: 100 * float(share.double().mean()) for name, share in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    options = parser.parse_args()
    toy = network()
    inputs = drawn(toy, options.inputs, options.seed)
    print(f"{options.inputs} inputs; in percent; in brackets the released code with its rules applied, 1000 inputs")
    print("rule     inputs with a root outside     roots in region      same output   without trivial roots")
    for rule, (outside, region, output) in BEFORE.items():
        got = shares(toy, inputs, rule)
        print(
            f"{rule:8s} {got['inputs_outside']:17.1f} ({outside:5.1f})   {got['region']:8.2f} ({region:5.2f})"
            f"   {got['output']:6.2f} ({output:5.2f})   {got['region_of_others']:8.2f} {got['output_of_others']:6.2f}"
        )


if __name__ == "__main__":
    main()
