"""A network as the list of its steps."""
