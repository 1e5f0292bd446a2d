"""Methods as users get them: from the yamls under conf/method."""

import numpy as np
import pytest

from tests.methods.helpers import settings
from tests.methods.nets import SIZE
from xaibench.build import build
from xaibench.models.tracing.graph import Graph

# Enough copies to be cut by every batch size, few enough to be quick.
SMALL = {"samples": 6, "steps": 6, "players": 4, "references": 4, "directions": 2}
# Few steps have to be large: gates that have hardly moved tie.
# SLIC takes a photograph of 16 pixels for one superpixel, of which LIME says nothing.
LARGER = {"pathway_dgr": {"learning_rate": 1.0}, "lime": {"segments": "grid"}}


@pytest.fixture
def make(tmp_path):
    """make(name, **overrides): the method that a yaml describes, with few copies unless overrides say otherwise."""

    def make(name, **overrides):
        spec = settings(name)
        if name == "precomputed":
            spec["path"] = str(tmp_path / "maps.npz")
            maps = np.random.default_rng(0).standard_normal((64, *SIZE))
            np.savez(spec["path"], maps=maps, sample=np.arange(64)[::-1])
        return build(small(spec) | LARGER.get(name, {}) | overrides, "method")

    return make


def small(spec: dict) -> dict:
    """A specification with few copies, those within it too."""
    spec = {key: small(value) if isinstance(value, dict) else value for key, value in spec.items()}
    return spec | {key: value for key, value in SMALL.items() if key in spec}


@pytest.fixture
def passes(monkeypatch):
    """passes(network) -> a list that gets the number of inputs of each forward pass from then on, however it is run."""

    def count(network):
        calls, run = [], Graph.run
        network.module.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))

        def counted(graph, inputs):
            calls.append(len(inputs))
            return run(graph, inputs)

        monkeypatch.setattr(Graph, "run", counted)
        return calls

    return count
