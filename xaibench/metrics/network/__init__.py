"""Scores of the network itself; no map is read."""
