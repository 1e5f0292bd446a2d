"""Gradients of the explained output, and averages of them along paths and over noise."""
