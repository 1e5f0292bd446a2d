"""A network as the list of its steps, run forwards with every value kept and backwards by rules of the caller's
choice."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from ...errors import Refusal, nearest
from ..classifier import Classifier
from ..cut import INPUT, LOGITS
from .steps import Activation, Constant, Convolution, Dense, Rule, Step
from .trace import trace

Kind = TypeVar("Kind", bound=Step)


@dataclass
class Graph:
    """The steps of a classifier's network in the order in which they run; `Graph.of` makes it.

    Value 0 of a pass is the input, value i the output of step i - 1. Batch normalisation that follows a convolution or
    a linear layer which nothing else reads is folded into it: both names then stand for the folded output.

    places: module path -> the places of its outputs, one for each time that it runs. size: of an input, where the
        network computes with it, so that the steps are for inputs of this size alone.
    """

    classifier: str
    steps: list[Step]
    places: dict[str, list[int]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, ...] | None = None

    @staticmethod
    def of(classifier: Classifier) -> "Graph":
        """The graph of a classifier, kept until its weights change.

        Raises Refusal for a network that cannot be traced, or whose trace does something else than the network.
        """
        module = classifier.module
        tensors = [*module.parameters(), *module.buffers()]
        state = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors)
        for kept, its_state, graph in _RECENT:
            if kept is module and its_state == state:
                return graph
        steps, places, sized = trace(classifier)
        size = tuple(classifier.input_size) if sized else None
        graph = Graph(classifier.name, steps, places, classifier.layers, size)
        _RECENT.append((module, state, graph))
        return graph

    def place(self, layer: str) -> int:
        """Where the output of a layer is among the values: an alias, a module path, `input` or `logits`."""
        path = self.aliases.get(layer, layer)
        if path not in self.places and path in (INPUT, LOGITS):
            return 0 if path == INPUT else len(self.steps)
        found = self.places.get(path, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise Refusal(f"layer '{layer}' of {self.classifier} runs {len(found)} times: name one that runs once")
        raise Refusal(f"layer '{layer}' is not in {self.classifier}: {nearest(layer, [*self.aliases, *self.places])}")

    def trunk(self) -> list[str]:
        """The names of the layers of the main path, from the bottom up, without the logits.

        A layer here is a convolution, a linear layer, or a block whose branches come together again (a residual block
        with its sum), with the activation behind it, if that is a module; every way from the input to the logits leads
        through its output. Outputs that no module has are left out, as they have no name.
        """
        names: dict[int, str] = {}
        for path, places in self.places.items():
            if len(places) == 1 and path.count(".") < names.get(places[0], path + ".").count("."):
                names[places[0]] = path
        last_read = {source: place for place, step in enumerate(self.steps, 1) for source in step.sources}
        found: list[int] = []
        before, read_until = 0, last_read[0]
        for place, step in enumerate(self.steps, 1):
            if isinstance(step, Constant):
                continue
            if read_until <= place:  # what lies further up reads nothing from below
                if any(isinstance(one, Convolution | Dense) for one in self.steps[before:place]):
                    found.append(place)
                elif isinstance(step, Activation) and place in names and found[-1:] == [before]:
                    found[-1] = place
                before = place
            read_until = max(read_until, last_read.get(place, 0))
        return [names[place] for place in found if place in names and place < len(self.steps)]

    @torch.no_grad()
    def run(self, inputs: torch.Tensor) -> list[Any]:
        """Every value of one forward pass of inputs [B,C,H,W]: the input first, the logits [B,K] last.

        Raises Refusal for inputs of another size than the network's, where it computes with it.
        """
        if self.size not in (None, tuple(inputs.shape[1:])):
            found, wanted = ("x".join(map(str, size)) for size in (inputs.shape[1:], self.size or ()))
            raise Refusal(f"{self.classifier} computes with the size of its inputs: expected {wanted}, one is {found}")
        values: list[Any] = [inputs]
        for step in self.steps:
            values.append(step(*(values[source] for source in step.sources)))
        return values

    @torch.no_grad()
    def back(
        self,
        values: Sequence[Any],
        signal: torch.Tensor,
        rule_of: Callable[[Step], Rule],
        start: str = LOGITS,
        keep: Iterable[str] = (INPUT,),
    ) -> dict[str, torch.Tensor]:
        """Signals at the outputs of the layers `keep`, from `signal` at the output of the layer `start`.

        values: what `run` returned. rule_of: step -> its rule. Where several steps read one value, their signals add
        up. A kept layer that the signal does not reach gets zeros.
        """
        first = self.place(start)
        kept = {name: self.place(name) for name in keep}
        places = {*kept.values()}
        signals: dict[int, torch.Tensor] = {first: signal}
        for place in range(first, 0, -1):
            if place not in signals:
                continue
            step = self.steps[place - 1]
            arriving = signals[place] if place in places else signals.pop(place)
            if isinstance(step, Constant):
                continue
            inputs = tuple(values[source] for source in step.sources)
            for source, share in zip(step.sources, rule_of(step)(step, inputs, values[place], arriving)):
                if share is not None:
                    signals[source] = signals[source] + share if source in signals else share
        return {
            name: signals[place] if place in signals else torch.zeros_like(values[place])
            for name, place in kept.items()
        }

    def of_kind(self, *kinds: type[Kind]) -> list[Kind]:
        """The steps of some kinds."""
        return [step for step in self.steps if isinstance(step, kinds)]


# (module, state of its weights, graph) of the last networks asked for: the explained one and one with other weights.
_RECENT: deque[tuple[nn.Module, Any, Graph]] = deque(maxlen=2)
