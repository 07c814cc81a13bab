"""Where the latency of a run's requests went: every second has a cause."""
