"""Feature maps of a layer, weighted: class activation maps."""
