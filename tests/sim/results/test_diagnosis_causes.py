"""A run with one planted cause: the diagnosis names it first."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
from diagnosis_runs import Planted, Sources, simulated, step_latency, trace_of
from pydantic import BaseModel

from sim.engine.config import EngineConfig
from sim.engine.host_work import HostWorkSettings
from sim.results.diagnosis.causes import CAUSES
from sim.results.diagnosis.diagnosis import Diagnosis, diagnose
from sim.results.recorder import EventRecorder
from sim.study.deployment import deploy
from sim.study.scenario import Scenario, make_scenario
from sim.study.simulate import load_trace, simulate


def found_in(
    trace: pl.DataFrame,
    config: EngineConfig,
    *,
    host: HostWorkSettings | None = None,
    sources: Sources | None = None,
    **latency: Any,
) -> Diagnosis:
    times = step_latency(config, **latency)
    return diagnose(simulated(trace, config, times, host=host, sources=sources), times, measured=False)


def planted(kind: str, once: float, each: float = 0.0) -> Sources:
    def sources(replica: int, events: EventRecorder) -> list[Planted]:
        return [Planted(events, replica, kind, once, each)]

    return sources


def overload() -> Diagnosis:
    """Arrivals faster than a few seats can serve."""
    config = EngineConfig(kv_blocks=400, max_num_seqs=2, max_num_batched_tokens=64)
    return found_in(trace_of(100, gap=0.001, prompt=30, output=20), config)


def few_blocks() -> Diagnosis:
    """The blocks that one long answer leaves do not suffice for another's prompt, which begins again and again."""
    config = EngineConfig(kv_blocks=101, max_num_batched_tokens=256, enable_prefix_caching=False)
    return found_in(trace_of(2, gap=0.0, prompt=780, output=800), config)


def waits_for_blocks() -> Diagnosis:
    """Ten begin together, and blocks suffice for one to the end."""
    config = EngineConfig(kv_blocks=64, enable_prefix_caching=False)
    return found_in(trace_of(10, gap=0.0, prompt=16, output=900), config)


def evicted_prefixes() -> Diagnosis:
    """Many long prefixes in turn, in a cache that holds a few."""
    prefixes = [[1000 * (i % 8) + block for block in range(60)] for i in range(80)]
    trace = trace_of(80, gap=0.1, prompt=965, output=2, prefix_ids=prefixes, prefix_block_tokens=[16] * 80)
    return found_in(trace, EngineConfig(kv_blocks=150))


def long_prompts() -> Diagnosis:
    return found_in(trace_of(30, gap=0.1, prompt=1000, output=2), EngineConfig(kv_blocks=200))


def one_short_sequence() -> Diagnosis:
    return found_in(trace_of(3, gap=1.0, prompt=16, output=100), EngineConfig(kv_blocks=200))


def long_contexts() -> Diagnosis:
    """Sequences that decode behind long prompts."""
    config = EngineConfig(kv_blocks=3000, max_num_batched_tokens=2048)
    return found_in(trace_of(8, gap=0.0, prompt=2000, output=2500), config)


def slow_links() -> Diagnosis:
    return found_in(trace_of(8, gap=0.0, prompt=64, output=50), EngineConfig(kv_blocks=200), ranks=2, link=(1e-3, 1e8))


def busy_host() -> Diagnosis:
    host = HostWorkSettings(per_step=0.01)
    return found_in(trace_of(8, gap=0.0, prompt=64, output=50), EngineConfig(kv_blocks=200), host=host)


def slow_swap() -> Diagnosis:
    """Blocks that move over a link of 1 MB/s."""
    config = EngineConfig(kv_blocks=64, enable_prefix_caching=False, swap_blocks=1000)
    return found_in(trace_of(3, gap=0.0, prompt=300, output=200), config, host_bandwidth=1e6)


def stalls(kind: str) -> Callable[[], Diagnosis]:
    def run() -> Diagnosis:
        trace = trace_of(10, gap=0.05, prompt=64, output=20)
        return found_in(trace, EngineConfig(kv_blocks=200), sources=planted(kind, 0.3))

    return run


def captures_every_step() -> Diagnosis:
    trace = trace_of(10, gap=0.05, prompt=64, output=20)
    return found_in(trace, EngineConfig(kv_blocks=200), sources=planted("graph", 0.0, each=0.02))


BASE: dict[str, Any] = {
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "trace": {
        "synth": {
            "requests": 60,
            "arrivals": {"process": "poisson", "rate": 2.0},
            "lengths": {
                "prompt": {"distribution": "lognormal", "median": 300, "sigma": 0.8, "low": 16, "high": 1500},
                "output": {"distribution": "lognormal", "median": 40, "sigma": 0.5, "low": 2, "high": 100},
            },
        }
    },
}


def scenario(**keys: Any) -> Callable[[], Diagnosis]:
    """A scenario as a user writes it; keys with `__` for a dot."""

    def run() -> Diagnosis:
        changes = {name.replace("__", "."): value for name, value in keys.items()}
        made = make_scenario(BASE, changes, Path(), "the test")
        return diagnose(simulate(made), deploy(made).step_times, measured=False)

    return run


def loads_of_weights() -> Diagnosis:
    """Models in turn, on a host that holds one at a time."""
    loading = {"capacity_models": 1, "load_bandwidth": 16e9}
    made = make_scenario(BASE, {"fleet.weight_cache": loading}, Path(), "the test")
    trace = load_trace(made)
    names = pl.Series("model", [f"model-{i % 3}" for i in range(len(trace.requests))])
    trace = replace(trace, requests=trace.requests.with_columns(names))
    return diagnose(simulate(made, trace), deploy(made).step_times, measured=False)


LEAK = {"device_bytes": 2 << 30, "leak_per_request": 150 << 20, "restart_seconds": 60.0}
NATIVE = {"allocator": "native", "malloc_seconds": 1e-3, "free_seconds": 1e-3}
BUILDS = {"shape": "sequences_and_longest", "build_seconds": 1.0, "build_bytes": 1 << 20}
EAGER = {"shape": "sequences", "buckets": [1], "build_seconds": 0.0, "build_bytes": 0, "eager_launch_seconds": 0.05}


@pytest.mark.parametrize(
    ("cause", "run"),
    [
        ("queueing", overload),
        ("preempted", waits_for_blocks),
        ("model_load", loads_of_weights),
        ("prefill", long_prompts),
        ("recompute", few_blocks),
        ("eviction_misses", evicted_prefixes),
        ("decode_weights", one_short_sequence),
        ("decode_kv", long_contexts),
        ("graph", stalls("graph")),
        ("graph", captures_every_step),
        ("allocator", stalls("allocator")),
        ("restart", stalls("restart")),
        ("copies", slow_swap),
        ("communication", slow_links),
        ("host", busy_host),
        ("recompute", scenario(engine__kv_cache=False)),
        ("restart", scenario(engine__memory=LEAK)),
        ("allocator", scenario(engine__memory=NATIVE)),
        ("graph", scenario(engine__shapes=BUILDS)),
        ("graph", scenario(engine__shapes=EAGER, trace__synth__arrivals__rate=20.0)),
    ],
)
def test_a_planted_cause_is_named_first(cause: str, run: Callable[[], Diagnosis]) -> None:
    found = run()
    assert found.ranking[0] == cause, [(name, round(found.share(name), 3)) for name in found.ranking]
    other, e2e, finish = (found.attributed[name].to_numpy() for name in ("other", "e2e", "finish"))
    assert (abs(other) <= 1e-9 * e2e + 1e-14 * finish).all() and not found.notes
    assert CAUSES[cause].label in found.sentence and CAUSES[cause].advice in found.sentence


def test_every_remedy_is_a_key_of_a_scenario() -> None:
    for cause in CAUSES.values():
        for key in cause.remedies:
            kind: type[BaseModel] = Scenario
            *path, last = key.split(".")
            for part in path:
                annotation = kind.model_fields[part].annotation
                inner = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
                kind = next(one for one in inner if issubclass(one, BaseModel))
            assert last in kind.model_fields, key


def test_every_cause_is_described() -> None:
    labels = [cause.label for cause in CAUSES.values()]
    assert len(set(labels)) == len(labels)
    for cause in CAUSES.values():
        assert all(getattr(cause, field.name) for field in fields(cause) if field.name != "remedies")
