"""Metrics on scenes that are made from the network itself, whose features have a known role."""
