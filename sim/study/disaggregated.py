"""From a scenario's `fleet.disaggregation` to the service of its two pools."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from calibrate.model import load_model
from ground.assumption import Assumption
from ground.errors import UserError
from sim.fleet.disaggregation import Disaggregation, Serve
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World
from sim.study.deployment import deploy
from sim.study.pool_parts import PoolParts, kv_blocks_of
from sim.study.pool_scenario import of_pool, pool_scenarios
from sim.study.scenario import EngineSettings, Scenario
from sim.study.serving import Serving
from traces.table import Trace


def disaggregated(scenario: Scenario, trace: Trace) -> Serving:
    """The prefill pool and the decode pool behind one another.

    Raises:
        UserError: the pools do not fit each other, the model does not fit a device, or a request can never run.
    """
    settings = scenario.fleet.disaggregation
    assert settings is not None
    # The prefill pool computes prompts and one token of each.
    prompts = replace(trace, requests=trace.requests.with_columns(output_tokens=pl.lit(1, pl.Int64)))
    pools = []
    serve: dict[str, Serve] = {}
    assumptions: list[Assumption] = []
    for (key, own), arriving in zip(pool_scenarios(scenario).items(), (prompts, trace), strict=True):
        _check_engine(key, own.engine)
        parts = PoolParts(own, arriving, deploy(own), key)
        pools.append(parts)
        serve[key.rpartition(".")[2]] = parts.scaling.serve
        assumptions += of_pool(key, parts.assumptions)
    prefill, decode = (parts.kind for parts in pools)
    sizes = prefill.engine.block_size, decode.engine.block_size
    if sizes[0] != sizes[1]:
        raise UserError(
            f"fleet.disaggregation: prefill has blocks of {sizes[0]} tokens and decode of {sizes[1]}; expected the "
            "same, since KV blocks go from one to the other"
        )
    model = load_model(scenario.model)
    block_bytes = sizes[0] * model.kv_bytes_per_token()
    assumptions += settings.assumptions(block_bytes)

    def make(world: World, on_end: OnEnd) -> Service:
        return Disaggregation(
            world,
            settings,
            prefill,
            decode,
            on_end,
            block_bytes=block_bytes,
            layers=model.layers,
            serve=serve,
        )

    return Serving(make, pools, kv_blocks_of(pools, (settings.prefill, settings.decode)), assumptions)


def _check_engine(key: str, engine: EngineSettings) -> None:
    if not engine.kv_cache:
        raise UserError(f"{key}: kv_cache is false; expected a KV cache, whose blocks go from pool to pool")
    if engine.memory is not None:
        raise UserError(
            f"{key}: memory is given; expected none, since an engine that starts anew loses what others read"
        )
    if engine.pruning is not None:
        raise UserError(f"{key}: pruning is given; expected none, as one pool reads what the other keeps of a prompt")
    if engine.kv_offload is not None:
        raise UserError(f"{key}: kv_offload is given; expected none, as blocks come from elsewhere and go there")
    if engine.pipeline_parallel > 1:
        raise UserError(f"{key}: pipeline_parallel is {engine.pipeline_parallel}; expected 1")
    if engine.batching.policy != "continuous":
        raise UserError(
            f"{key}: batching.policy is {engine.batching.policy}; expected continuous, as blocks come from elsewhere "
            "and go there whenever they are ready"
        )
