"""Gradients along paths of selected neurons."""
