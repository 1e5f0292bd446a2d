"""Metrics, one file each: maps, a classifier and data -> per-sample columns."""
