"""A Llama-family decoder's kernels, one a file: torch's for a CPU, and in `gpu` those that a GPU runs in Triton."""
