"""Information bottleneck attribution."""
