"""What a device can do: model shapes, microbenchmarks, importers, the profile on disk, and `StepLatency`."""
