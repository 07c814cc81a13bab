"""Random batching policies, and settings of engines that run under them."""

from typing import Any

from hypothesis import strategies as st

from sim.engine.config import EngineConfig

SECONDS = st.sampled_from([0.0, 0.003, 0.02, 0.1]) | st.floats(0.0, 0.5)


@st.composite
def batchings(draw: st.DrawFn, seats: int, fit_memory: bool | None = None) -> dict[str, Any]:
    """One of those under which batches form."""
    settings: dict[str, Any] = {"fit_memory": draw(st.booleans()) if fit_memory is None else fit_memory}
    policy = draw(st.sampled_from(["static", "fixed_window", "adaptive_window"]))
    if policy == "static":
        return {"policy": policy, **settings}
    settings["cap"] = draw(st.none() | st.integers(1, seats))
    settings["joins"] = draw(st.sampled_from(["idle", "running"]))
    settings["lanes"] = draw(st.booleans())
    if policy == "fixed_window":
        return {"policy": policy, "seconds": draw(SECONDS), **settings}
    minimum = draw(SECONDS)
    settings["longest"] = max(minimum, draw(SECONDS), 1e-3)
    settings["factor"] = draw(st.sampled_from([0.5, 0.8, 3.0]))
    settings["smoothing"] = draw(st.sampled_from([0.1, 0.2, 1.0]))
    return {"policy": policy, "minimum": minimum, **settings}


@st.composite
def batched(draw: st.DrawFn, configs: st.SearchStrategy[EngineConfig], fit_memory: bool | None = None) -> EngineConfig:
    """One of `configs`, with batches."""
    config = draw(configs)
    return with_batching(config, draw(batchings(config.max_num_seqs, fit_memory)))


def with_batching(config: EngineConfig, batching: dict[str, Any]) -> EngineConfig:
    return EngineConfig.model_validate(config.model_dump() | {"batching": batching})
