"""Properties of maps that need no truth: stability, sparseness, complexity."""
