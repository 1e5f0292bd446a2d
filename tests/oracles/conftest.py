"""The small classifiers and batches of the metrics' tests, for the oracles of metrics."""

from tests.metrics.helpers import batch_for, convnet, linear, scored

__all__ = ["batch_for", "convnet", "linear", "scored"]
