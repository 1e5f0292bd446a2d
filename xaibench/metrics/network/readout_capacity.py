"""Readout capacity: how much information the readout bottleneck keeps, and what the network recognises with it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...datasets.base import Batch, Samples
from ...methods.bottleneck._bottleneck import estimate, require
from ...methods.bottleneck.iba import Solution
from ...methods.bottleneck.iba_readout import Readout, trained_network
from ...models.classifier import Classifier
from ...models.cut import Cut, activations
from ._capacity import Capacity


@dataclass(kw_only=True, eq=False)
class ReadoutCapacity(Capacity, Readout):
    """Information kept and accuracy with the readout bottleneck in force, over beta (Schulz et al. 2020, Table 4).

    As `BottleneckCapacity`, but the masks of each beta are predicted by a readout network that was trained with it on
    the labels of the fit split, so that a mask knows neither the target nor the noise. All betas start from the same
    weights and draw the same order and noise.

    betas, beta, copies, and the columns: see `Capacity`. layer and the others: as for `IBAReadout`, but for
    learning_rate: 1e-3 is for the few thousand images of a laptop; the thesis's 1e-5 is for ten epochs of ImageNet.
    """

    where = "metric.layer"

    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 1, "copies")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """One pass, and the noisy copies of each beta and of the start; training is not counted."""
        return (2 + self.copies * (1 + len(self.all_betas)), 0)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Moments of all layers, and of each beta the weights of its readout network, `<beta> readout.<name>`."""
        fitted = estimate(classifier, self.all_layers, samples)
        state = generator.get_state()
        weights: dict[str, torch.Tensor] = {}
        for beta in self.all_betas:
            generator.set_state(state)
            trained = dataclasses.replace(self, beta=beta).train(classifier, samples, generator, fitted)
            weights |= {f"{beta} {name}": tensor for name, tensor in trained.items()}
        return fitted | weights

    def solutions(
        self,
        classifier: Classifier,
        batch: Batch,
        beta: float,
        draws: Sequence[torch.Generator],
        fitted: Mapping[str, torch.Tensor],
    ) -> Iterator[Solution]:
        """The masks that the readout network of this beta predicts."""
        prefix = f"{beta} "
        own = {name.removeprefix(prefix): tensor for name, tensor in fitted.items() if name.startswith(prefix)}
        network = trained_network(classifier, own)
        cut = Cut(classifier, self.layer, batch.inputs[:1])
        for rows in classifier.chunks(len(batch.inputs)):
            inputs = batch.inputs[rows]
            with torch.no_grad():
                bottleneck, noise = self.mask(network, fitted, activations(classifier, self.all_layers, inputs))
                features = cut.before(inputs)
            yield Solution(rows, bottleneck, noise, cut, features)
