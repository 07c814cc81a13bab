"""A run as operators see a fleet: vLLM's metrics as OpenMetrics text, its requests as OpenTelemetry spans."""
