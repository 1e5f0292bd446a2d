"""Which of torchvision's classifiers are traced into steps, and how far the engine's gradient is from autograd's.

    python scripts/trace_networks.py vit_b_16 swin_t convnext_tiny efficientnet_b0
    python scripts/trace_networks.py            # all of them

In double precision, with random weights, none of them 0, and inputs of 64 pixels where the network takes these. The
error is the largest difference of the two gradients over the largest gradient; steps that LRP cannot serve are named.
"""

import argparse
import time

import torch
from torch.nn import functional as F
from torchvision import models

from xaibench.errors import Refusal
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import Composite, Epsilon
from xaibench.models.classifier import Classifier
from xaibench.models.torchvision_nets import torchvision_net
from xaibench.models.tracing.graph import Graph

# Sides of inputs that are no choice.
SIDES = {"vit": 224, "maxvit": 224, "inception": 96, "alexnet": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=models.list_models(module=models))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("network                    steps   trace, s     error   layer-wise relevance propagation")
    for name in options.networks:
        try:
            print(f"{name:25s} {checked(name)}", flush=True)
        except Refusal as refusal:
            print(f"{name:25s} {refusal}", flush=True)


def checked(name: str) -> str:
    """A row of the table. Raises Refusal for a network that cannot be traced."""
    torch.manual_seed(0)
    module = torchvision_net(name, num_classes=10).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.02 * torch.randn_like(weight)
    side = next((side for start, side in SIDES.items() if name.startswith(start)), 64)
    network = Classifier(name, module, (3, side, side))
    start = time.process_time()
    graph = Graph.of(network)
    took = time.process_time() - start
    inputs, targets = network.probe(1), torch.tensor([3])
    values = graph.run(inputs)
    found = graph.back(values, F.one_hot(targets, 10).double(), Composite())["input"]
    expected = network.gradient(inputs, targets)
    error = float((found - expected).abs().max() / expected.abs().max())
    try:
        LRP(Epsilon()).check(network)
        served = "served"
    except Refusal as refusal:
        served = str(refusal).splitlines()[0]
    return f"{len(graph.steps):6d} {took:10.1f} {error:9.1e}   {served}"


if __name__ == "__main__":
    main()
