"""What pruning costs in quality: a small model that learns from Python's own text, and its policies against it."""
