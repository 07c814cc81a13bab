"""The same kernels in Triton, one a file. Each is proven against its neighbour on the CPU by Triton's interpreter."""
