"""An engine all of whose steps take the same time, and whose KV cache nobody fills."""

from engine_workloads import LinearStepTimes

from sim.engine.config import EngineConfig

STEP = 0.125  # seconds; a power of two, so that instants are exact
CONSTANT = LinearStepTimes(base=STEP, per_token=0.0, per_kv=0.0)
PLAIN = EngineConfig(kv_blocks=10_000, enable_prefix_caching=False)
