"""Maps beside masks of what the label is about."""
