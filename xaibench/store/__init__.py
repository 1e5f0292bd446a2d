"""What lies on disk: keyed HDF5 artefacts, files written whole or not at all, provenance."""
