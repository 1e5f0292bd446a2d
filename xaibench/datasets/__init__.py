"""Data sets: images, labels and, where known, the mask of what the label is about, under stable ids."""
