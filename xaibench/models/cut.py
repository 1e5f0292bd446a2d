"""A network cut behind one layer, so that the part before it runs once however often the part behind it is run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..errors import Refusal
from .classifier import Classifier
from .tokens import token_grid

INPUT, LOGITS = "input", "logits"


@dataclass(frozen=True)
class Features:
    """What the part behind the layer needs from one pass of the part before it.

    values: the layer's output, one row per input. context: other tensors that are used behind the layer (a skip
    connection around it), one row per input. inputs: what went into the network.
    """

    values: torch.Tensor
    inputs: torch.Tensor
    context: tuple[torch.Tensor, ...] = ()

    def __getitem__(self, rows: slice | torch.Tensor) -> "Features":
        return Features(self.values[rows], self.inputs[rows], tuple(tensor[rows] for tensor in self.context))


class _Reached(Exception):
    """Ends a forward pass at the layer."""


class Cut:
    """`before(inputs)` runs a network up to a layer, `behind(values, features, copies)` from there to the logits.

    layer: an alias or a module path of the classifier, or `input`, which cuts before the first layer.

    The network is traced (torch.fx) only through the modules that contain the layer; all others are called as they
    are. `probe` [1,C,H,W], one typical input, is run through the two parts and through the whole network. Where the
    trace fails or the results differ, `separable` is False, and `behind` runs the whole network with the layer's
    output replaced: the same numbers, only slower.
    """

    def __init__(self, classifier: Classifier, layer: str, probe: torch.Tensor) -> None:
        self.network, self.path = classifier.module, classifier.layers.get(layer, layer)
        self.batch_size = classifier.batch_size
        self.at_input = layer == INPUT and layer not in dict(self.network.named_modules()) | dict(classifier.layers)
        self.layer = self.network if self.at_input else classifier.layer(layer)
        self.parts = None if self.at_input else _parts(self.network, self.path)
        self.separable = self.at_input or (self.parts is not None and self._agrees(probe))
        if not self.separable:
            self.parts = None

    def before(self, inputs: torch.Tensor) -> Features:
        """The layer's output for each input; differentiable."""
        if self.at_input:
            return Features(inputs, inputs)
        if self.parts is not None:
            values, *context = self.parts[0](inputs)
            return Features(values, inputs, tuple(context))
        return Features(_run(self.network, {self.path: self.layer}, inputs)[self.path], inputs)

    def behind(self, values: torch.Tensor, features: Features, copies: int = 1) -> torch.Tensor:
        """Logits [B*copies,K] with the layer's output replaced by values [B*copies,...]: the copies of one input are
        neighbours. features: of the B inputs, from `before`."""
        if self.at_input:
            return self.network(values)
        # Repeated anew in each call, because a network may write into what it gets (in-place ReLU).
        if self.parts is not None:
            return self.parts[1](values, *(_repeat(tensor, copies) for tensor in features.context))
        handle = self.layer.register_forward_hook(lambda module, arguments, output: values)
        try:
            return self.network(_repeat(features.inputs, copies))
        finally:
            handle.remove()

    @torch.no_grad()
    def _agrees(self, probe: torch.Tensor) -> bool:
        """Whether the two parts give what the whole network gives, also for several copies of an input."""
        copies = min(2, self.batch_size)
        try:
            features = self.before(probe)
            if any(not isinstance(t, torch.Tensor) or len(t) != len(probe) for t in features.context):
                return False
            parts = self.behind(_repeat(features.values, copies), features, copies)
        except Exception:
            # Whatever a trace breaks in somebody's network, the whole network is still there to be run.
            return False
        whole = self.network(_repeat(probe, copies))
        return whole.shape == parts.shape and torch.allclose(
            parts, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max())
        )


def activations(classifier: Classifier, layers: Sequence[str], inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of several layers from one pass, which ends as soon as all have run; no gradients.

    layers: aliases or module paths, `input` for the inputs themselves and `logits` for what the network returns.
    """
    special = {name for name in (INPUT, LOGITS) if name in layers and name not in classifier.layers}
    modules = {name: classifier.layer(name) for name in layers if name not in special}
    if LOGITS in special:
        modules[LOGITS] = classifier.module
    with torch.no_grad():
        found = _run(classifier.module, modules, inputs) if modules else {}
    return found | {INPUT: inputs} if INPUT in special else found


def _run(network: nn.Module, modules: dict[str, nn.Module], inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of modules by name, from a pass that ends when all have run."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        # What runs next may overwrite the output (in-place ReLU); behind the last one nothing runs.
        found[name] = output if len(found) + 1 == len(modules) else output.clone()
        if len(found) == len(modules):
            raise _Reached

    handles = [
        module.register_forward_hook(lambda module, arguments, output, name=name: keep(name, output))
        for name, module in modules.items()
    ]
    try:
        network(inputs)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def output_shape(classifier: Classifier, layer: str) -> tuple[int, ...]:
    """Shape of a layer's output per sample, from one pass of a blank input; layers are named as in `activations`.

    Raises Refusal for an unknown layer, and for one that does not run exactly once per pass.
    """
    blank = classifier.blank
    if layer in (INPUT, LOGITS) and layer not in classifier.layers:
        return tuple(activations(classifier, [layer], blank)[layer].shape[1:])
    outputs = []
    handle = classifier.layer(layer).register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        classifier.module(blank)
    finally:
        handle.remove()
    if len(outputs) != 1:
        raise Refusal(
            f"layer '{layer}' of {classifier.name} runs {len(outputs)} times per pass: name one that runs once"
        )
    if not isinstance(outputs[0], torch.Tensor):
        raise Refusal(f"layer '{layer}' of {classifier.name} returns no tensor: name one inside it or after it")
    return tuple(outputs[0].shape[1:])


def feature_shape(classifier: Classifier, layer: str) -> tuple[int, int, int]:
    """Shape (c,h,w) of a layer's feature maps; raises Refusal as `output_shape` does, and if it has none."""
    return _of_maps(classifier, layer, output_shape(classifier, layer))


def grid_shape(classifier: Classifier, layer: str) -> tuple[int, int, int]:
    """As `feature_shape`, for who serves tokens as well, whose patches are the places (`tokens.feature_maps`)."""
    shape = output_shape(classifier, layer)
    grid = token_grid(shape[0], classifier.input_size[1:]) if len(shape) == 2 else None
    return _of_maps(classifier, layer, shape) if grid is None else (shape[1], grid.height, grid.width)


def _of_maps(classifier: Classifier, layer: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise Refusal(f"layer '{layer}' of {classifier.name} has no feature maps [B,C,H,W]: name a convolutional layer")
    return shape


def _repeat(tensor: torch.Tensor, copies: int) -> torch.Tensor:
    return tensor.repeat_interleave(copies, dim=0)


class _Tracer(fx.Tracer):
    """Traces through the modules that contain `path`; every other module stays one opaque call."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not self.path.startswith(name + ".")


def _parts(network: nn.Module, path: str) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """The graphs before and behind a layer, or None if the network cannot be traced or runs the layer repeatedly."""
    try:
        graph = _Tracer(path).trace(network)
    except Exception:
        return None
    nodes = list(graph.nodes)
    layer = [node for node in nodes if node.op == "call_module" and node.target == path]
    placeholders = [node for node in nodes if node.op == "placeholder"]
    if len(layer) != 1 or len(placeholders) != 1 or path not in dict(network.named_modules()):
        return None
    return _split(network, nodes, layer, placeholders)


def _split(
    network: nn.Module, nodes: list[fx.Node], layer: list[fx.Node], placeholders: list[fx.Node]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    downstream = _dependents(nodes, layer) - {*layer}
    # What depends on no input (a position embedding) is not a row per sample: both parts compute it for themselves.
    constant = set(nodes) - _dependents(nodes, placeholders)
    upstream = [node for node in nodes if node not in constant and node not in downstream]
    context = [node for node in upstream if node not in layer and any(user in downstream for user in node.users)]
    before = [node for node in nodes if node not in downstream and node.op != "output"]
    behind = [node for node in nodes if node in constant or node in downstream]
    return _graph(network, before, placeholders, [*layer, *context]), _graph(network, behind, [*layer, *context], None)


def _dependents(nodes: list[fx.Node], roots: list[fx.Node]) -> set[fx.Node]:
    """The roots and every node that uses them, directly or not. Nodes come in the order in which they run."""
    found = set(roots)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _graph(
    network: nn.Module, nodes: list[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node] | None
) -> fx.GraphModule:
    """The nodes as a network of their own that takes `inputs` and returns `outputs`, or what the nodes return.

    Nodes without users stay: an in-place operation may be one.
    """
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    if outputs is not None:
        graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(network, graph)
