"""What PyTorch's caching allocator did on a real GPU, event by event, so that a simulated one can be held to it."""
