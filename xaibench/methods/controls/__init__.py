"""Maps that know nothing of the network, and maps made elsewhere."""
