"""How much a map changes with the network's weights, its labels or the explained class."""
