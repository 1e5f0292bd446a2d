"""Metrics of the path of neurons that a method chooses; they read no maps."""
