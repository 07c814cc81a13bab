"""The kernels of a Llama-family decoder, one a file: device-agnostic torch, so CPU and CUDA run the same code."""
