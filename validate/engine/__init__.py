"""The real engine: the simulator's own scheduler and block pool, with real kernels and the wall clock."""
