"""xaibench: which saliency method tells the truth about a network, and how do we know?

    import xaibench as xb

    net = xb.Classifier(module, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    maps = xb.explain(net, images, "integrated_gradients", steps=50)
    xb.score(net, images, maps, "degradation")
    xb.run(method=["iba", "gradcam", "random"], metric="degradation", limit=48)
    xb.leaderboard("results")

What is named in `__all__` is what outsiders may import; it is loaded when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Classifier, explain, leaderboard, run, score
    from .datasets.base import Dataset, Example
    from .errors import Refusal, UserError
    from .methods.base import Method
    from .methods.context import Context
    from .metrics.base import Metric, Statistic

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "api", "explain": "api", "score": "api", "run": "api", "leaderboard": "api",
    "Method": "methods.base", "Context": "methods.context",
    "Metric": "metrics.base", "Statistic": "metrics.base",
    "Dataset": "datasets.base", "Example": "datasets.base",
    "Refusal": "errors", "UserError": "errors",
}  # fmt: skip
__all__ = [
    "Classifier",
    "Context",
    "Dataset",
    "Example",
    "Method",
    "Metric",
    "Refusal",
    "Statistic",
    "UserError",
    "__version__",
    "explain",
    "leaderboard",
    "run",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'xaibench' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
