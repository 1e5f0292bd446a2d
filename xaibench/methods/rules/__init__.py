"""Backward passes by a rule per layer."""
