"""Microbenchmarks of the decoder's real kernels at a rank's real shapes, one file a kernel class."""
