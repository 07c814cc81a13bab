"""None is lost: whatever fails, every request ends once, and nothing of it is left anywhere."""

from functools import partial
from typing import Any

import polars as pl
from engine_workloads import LinearStepTimes, configs, traces
from failing_fleets import INSTANTS, assert_nothing_is_left, client_settings, failure_settings, run_failing
from group_step_times import GroupStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from session_workloads import conversations, retaining
from weight_runs import SIZE, cache_settings, with_models

from sim.engine.config import EngineConfig
from sim.fleet.routers import ROUTERS
from sim.fleet.weights.cache import WeightCache
from sim.fleet.weights.models import Models, models_asked
from sim.fleet.weights.settings import WeightCacheSettings
from sim.results.metric_names import STATUSES

scalings = st.lists(st.tuples(INSTANTS, st.sampled_from([1, 1, -1, -2]), st.sampled_from([0.0, 0.2, 2.0])), max_size=5)
admissions = st.none() | st.just({"policy": "max_outstanding", "per_replica": 4})


def variants(config: EngineConfig, kv: str) -> tuple[EngineConfig, Any]:
    """The same engine with another place for its KV cache, and its step times."""
    # What is rounded up must fit too.
    plain = {"swap_blocks": 0, "enable_prefix_caching": False, "kv_blocks": config.kv_blocks + 16}
    updates: dict[str, dict[str, Any]] = {
        "paged": {},
        "swap": {"swap_blocks": 50},
        "oracle": {"kv_reservation": "oracle", **plain},
        "pow2": {"kv_reservation": "pow2", **plain},
        "no cache": {"kv_cache": False, **plain},
        "lock-step": {"data_parallel": 2},
    }
    times = GroupStepTimes() if kv == "lock-step" else LinearStepTimes()
    return config.model_copy(update=updates[kv]), times


@settings(max_examples=67, deadline=None)
@given(
    configs(block_size=4),
    traces(),
    st.none() | client_settings(),
    st.none() | failure_settings(),
    admissions,
    scalings,
    st.sampled_from(["paged", "paged", "swap", "oracle", "pow2", "no cache", "lock-step"]),
    st.sampled_from(sorted(ROUTERS)),
    st.integers(1, 3),
)
def test_every_request_ends_once(
    config: EngineConfig,
    trace: pl.DataFrame,
    clients: dict[str, Any] | None,
    failures: dict[str, Any] | None,
    admission: dict[str, Any] | None,
    scaling: list[tuple[float, int, float]],
    kv: str,
    router: str,
    replicas: int,
) -> None:
    config, times = variants(config, kv)
    options: dict[str, Any] = {
        "clients": clients,
        "failures": failures,
        "admission": admission,
        "scaling": scaling,
        "router": router,
        "replicas": replicas,
        "times": times,
        "seed": 5,
    }
    result = run_failing(trace, config, **options)
    requests = result.run.requests
    counts = requests["status"].value_counts()
    assert set(counts["status"]) <= set(STATUSES)
    assert counts["count"].sum() == len(trace)
    for number, status in enumerate(result.statuses):
        assert result.ends[number] == (status != "unfinished")
    assert (requests["arrival"] == trace["arrival"]).all()
    assert_nothing_is_left(result)
    finished = requests.filter(status="finished")
    for earlier, later in (
        ("arrival", "first_scheduled"),
        ("first_scheduled", "first_token"),
        ("first_token", "finish"),
    ):
        assert (finished[earlier] <= finished[later]).all()
    again = run_failing(trace, config, **options)
    for name in ("requests", "steps", "events", "replicas"):
        assert_frame_equal(getattr(result.run, name), getattr(again.run, name), check_exact=True)
    stepped = run_failing(trace, config, leap=False, **options)
    assert_frame_equal(requests, stepped.run.requests, check_exact=True)
    assert_frame_equal(result.run.replicas, stepped.run.replicas, check_exact=True)


dyadic = st.integers(0, 160).map(lambda steps: steps / 64)


@settings(max_examples=45, deadline=None)
@given(
    st.lists(st.tuples(dyadic, st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 20),
    dyadic,
    dyadic,
)
def test_what_happens_at_one_instant_has_one_order(
    rows: list[tuple[float, int, int]], ahead: bool, timeout: int, ttft: int, crash: float, slow: float
) -> None:
    """Steps of a 64th of a second, and everything else at multiples of it."""
    arrival, prompt, output = zip(*sorted(rows), strict=True)
    columns = {"arrival": arrival, "prompt_tokens": prompt, "output_tokens": output}
    trace = pl.DataFrame({"request_id": range(len(rows)), **columns})
    config = EngineConfig(kv_blocks=12, block_size=4, max_num_seqs=3, async_scheduling=ahead)
    options: dict[str, Any] = {
        "clients": {
            "ttft_timeout": ttft / 64,
            "timeout": (ttft + timeout) / 64,
            "abort_delay": 2 / 64,
            "retries": {"on": ["failed", "timed_out"], "attempts": 2, "backoff_base": 0.0},
        },
        "failures": {
            "script": [
                {"kind": "crash", "at": crash, "replica": 0},
                {"kind": "slow", "at": slow, "replica": 0, "factor": 2.0, "duration": 8 / 64},
            ],
            "restart_seconds": 4 / 64,
        },
        "replicas": 1,
        "times": LinearStepTimes(base=1 / 64, per_token=0.0, per_kv=0.0),
    }
    if max(p + o for _, p, o in rows) > 48:
        return
    leapt, stepped = (run_failing(trace, config, leap=leap, **options).run for leap in (True, False))
    for name in ("requests", "replicas"):
        assert_frame_equal(getattr(leapt, name), getattr(stepped, name), check_exact=True)
    told = pl.col("kind").is_in(["retried", "timed_out", "crashed"])
    assert_frame_equal(leapt.events.filter(told), stepped.events.filter(told), check_exact=True)


@settings(max_examples=27, deadline=None)
@given(
    st.data(),
    conversations(),
    st.none() | client_settings(),
    failure_settings(),
    scalings,
)
def test_turns_go_on_after_an_error(
    data: st.DataObject,
    trace: pl.DataFrame,
    clients: dict[str, Any] | None,
    failures: dict[str, Any],
    scaling: list[tuple[float, int, float]],
) -> None:
    """Sessions in closed loop, whose blocks are kept: who ends, however, releases the next turn."""
    config = data.draw(retaining(data.draw(configs(block_size=4))))
    options: dict[str, Any] = {"clients": clients, "failures": failures, "scaling": scaling}
    result = run_failing(trace, config, **options)
    came = result.run.requests["arrival"].is_not_null()
    for number, (status, there) in enumerate(zip(result.statuses, came, strict=True)):
        assert result.ends[number] == (status != "unfinished")
        parent = trace["parent"][number]
        assert there == (parent is None or result.statuses[parent] != "unfinished")
    if "unfinished" not in result.statuses:
        assert_nothing_is_left(result)
    stepped = run_failing(trace, config, leap=False, **options)
    assert_frame_equal(result.run.requests, stepped.run.requests, check_exact=True)


@settings(max_examples=36, deadline=None)
@given(
    configs(block_size=4),
    traces(),
    cache_settings(),
    st.none() | client_settings(),
    st.none() | failure_settings(),
    st.integers(1, 3),
)
def test_a_cache_of_weights_forgets_who_has_gone(
    config: EngineConfig,
    trace: pl.DataFrame,
    cache: dict[str, Any],
    clients: dict[str, Any] | None,
    failures: dict[str, Any] | None,
    replicas: int,
) -> None:
    trace = with_models(trace)
    checked = WeightCacheSettings.model_validate({"load_bandwidth": SIZE, **cache})
    models = Models(SIZE, checked.bytes_of, update_every=checked.update_every, seed=0)
    weights = partial(WeightCache, checked, models, models_asked(trace, "default"))
    result = run_failing(trace, config, weights=weights, clients=clients, failures=failures, replicas=replicas)
    assert sum(result.ends.values()) == len(trace) - result.statuses.count("unfinished")
    assert_nothing_is_left(result)
    for replica in result.pool.members:
        host = replica._cache
        assert host is not None
        assert not host._used_by and not host._waiting and not host._behind and not host._queue and not host._loading
        known = list(host._known.values())
        assert all(weights.resident and not weights.users and not weights.loads for weights in known)
        assert set(known) == set(host._idle)
        assert host._bytes == sum(one.size for one in known) and host._count == len(known)


@settings(max_examples=27, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 3), st.sampled_from(sorted(ROUTERS)))
def test_clients_that_wait_and_failures_that_do_not_come_change_nothing(
    config: EngineConfig, trace: pl.DataFrame, replicas: int, router: str
) -> None:
    plain = run_failing(trace, config, replicas=replicas, router=router).run
    patient = {"ttft_timeout": 1e6, "timeout": 1e6, "deadline": 1e6, "retries": {"on": ["failed", "timed_out"]}}
    never = {"script": [{"kind": "crash", "at": 1e5}], "random": [{"kind": "crash", "mtbf": 1e9}], "restart_seconds": 1}
    with_both = run_failing(trace, config, replicas=replicas, router=router, clients=patient, failures=never).run
    for name in ("requests", "steps", "events", "replicas"):
        assert_frame_equal(getattr(plain, name), getattr(with_both, name), check_exact=True)
