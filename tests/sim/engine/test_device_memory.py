"""Device memory inside the engine: exact where steps are leapt over, and grows, stays or runs out as worked by hand."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from calibrate.model import ModelShape, load_model
from ground.errors import UserError
from sim.engine.activations import Activations
from sim.engine.config import EngineConfig
from sim.engine.device_memory import DeviceMemory, MemorySettings
from sim.engine.host_work import HostWork, HostWorkSettings
from sim.engine.plan import Plan
from sim.engine.shape_cache import ShapeCache, ShapeSettings
from sim.engine.step_costs import CostSource, StepCosts
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.results.memory_recorder import MemoryRecorder, memory_table
from sim.results.recorder import EventRecorder

MIB, GIB = 1 << 20, 1 << 30
TINY = load_model("tiny-llama")
WIDE = replace(TINY, name="wide", hidden=1024, intermediate=5504, vocab=32000)
STEADY = LinearStepTimes(base=0.5, per_token=0.0, per_kv=0.0)
COSTS = {"malloc_seconds": 0.001, "free_seconds": 0.002, "restart_seconds": 30.0}


class PaddedSteps(LinearStepTimes):
    """Pads to nothing."""

    extrapolated: ClassVar[Counter[str]] = Counter()  # stays empty: their law holds everywhere

    def computed_tokens(self, tokens: int, *, prefills: bool) -> int:
        return tokens


def run(
    trace: pl.DataFrame,
    config: EngineConfig,
    memory: dict[str, Any],
    shapes: dict[str, Any] | None = None,
    *,
    model: ModelShape = WIDE,
    leap: bool = True,
    times: LinearStepTimes = STEADY,
    replicas: int = 1,
    host: HostWorkSettings | None = None,
    watch: Callable[[DeviceMemory, Plan], None] = lambda memory, plan: None,
) -> tuple[FleetRun, pl.DataFrame]:
    """The run, and its memory table."""
    recorders: list[MemoryRecorder] = []
    padded = PaddedSteps(times.base, times.per_token, times.per_kv, has_law=times.has_law)

    class Watched(DeviceMemory):
        def begin(self, plan: Plan, now: float) -> Any:
            cost = super().begin(plan, now)
            if not cost.restart:
                watch(self, plan)
            return cost

    def costs(replica: int, events: EventRecorder) -> StepCosts:
        cache: ShapeCache | None = None

        def size(plan: Plan) -> tuple[int, int]:
            if cache is not None:
                return cache.step_size(plan)
            return plan.decodes + sum(chunk.tokens for chunk in plan.chunks), plan.decodes + len(plan.chunks)

        own = Watched(MemorySettings(**{"device_bytes": GIB, **COSTS, **memory}), model, 1, replica, events, size)
        recorders.append(own.recorder)
        sources: list[CostSource] = [own]
        if shapes is not None:
            chosen = ShapeSettings(**{"build_seconds": 0.25, "build_bytes": 3 * MIB, "eager_launch_seconds": 0.125}
                                   | shapes)  # fmt: skip
            limits = config.max_num_seqs, config.max_num_batched_tokens
            cache = ShapeCache(chosen, padded, limits, replica, events, own)
            sources = [cache, own]
        if host is not None:
            sources.insert(0, HostWork(host, replica, events, own))
        return StepCosts(sources)

    fleet = equal_replicas(trace, config, padded, replicas=replicas, costs=costs, leap=leap)
    return fleet.run(), memory_table(recorders)


def requests(lengths: list[tuple[int, int]], *, gap: float) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "request_id": range(len(lengths)),
            "arrival": [gap * i for i in range(len(lengths))],
            "prompt_tokens": [prompt for prompt, _ in lengths],
            "output_tokens": [output for _, output in lengths],
        }
    )


ALONE = EngineConfig(kv_blocks=1000, enable_prefix_caching=False)

memories = st.fixed_dictionaries(
    {
        "allocator": st.sampled_from(["caching", "caching", "native", "size_class"]),
        "leak_per_request": st.sampled_from([0, 0, 3_000_000]),
        "leak_per_minute": st.sampled_from([0.0, 6e9]),
        "retain_per_token": st.sampled_from([0, 30_000]),
        "retained_requests": st.sampled_from([None, 3]),
        "sample_every": st.sampled_from([0.01, 0.3]),
        "device_bytes": st.sampled_from([64 * MIB, GIB]),
        "restart_seconds": st.just(0.7),
    }
)
shape_choices = st.none() | st.fixed_dictionaries(
    {
        "shape": st.sampled_from(["tokens", "sequences", "sequences_and_longest"]),
        "buckets": st.sampled_from(["none", "pow2", (4, 8)]),
        "keep": st.sampled_from([None, 1, 3]),
    }
)
host_choices = st.none() | st.builds(
    HostWorkSettings, per_session=st.sampled_from([0.001, 0.02]), forget_after=st.sampled_from([None, 0.5])
)


@settings(max_examples=70, deadline=None)
@given(configs(block_size=4), traces(), memories, shape_choices, st.booleans(), st.integers(1, 2), host_choices)
def test_leap_equals_step(
    config: EngineConfig,
    trace: pl.DataFrame,
    memory: dict[str, Any],
    shapes: dict[str, Any] | None,
    law: bool,
    replicas: int,
    host: HostWorkSettings | None,
) -> None:
    trace = trace.with_columns(session=pl.format("of {}", pl.col("request_id") % 7))

    def both(leap: bool) -> tuple[FleetRun, pl.DataFrame] | str:
        times = LinearStepTimes(has_law=law)
        try:
            return run(trace, config, memory, shapes, model=TINY, leap=leap, times=times, replicas=replicas,
                       host=host)  # fmt: skip
        except UserError as error:
            return error.message

    leapt, stepped = both(True), both(False)
    if isinstance(leapt, str) or isinstance(stepped, str):
        assert leapt == stepped
        return
    assert_frame_equal(leapt[0].requests, stepped[0].requests, check_exact=True)
    assert_frame_equal(leapt[1], stepped[1], check_exact=True)
    kinds = pl.col("kind").is_in(["graph", "restart", "preempted", "padding"])
    assert_frame_equal(leapt[0].events.filter(kinds), stepped[0].events.filter(kinds), check_exact=True)
    spent = [one[0].events.filter(pl.col("kind") == "allocator")["seconds"].sum() for one in (leapt, stepped)]
    assert spent[0] == pytest.approx(spent[1], rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), traces(), memories, shape_choices)
def test_the_table_is_in_order_and_within_bounds(
    config: EngineConfig, trace: pl.DataFrame, memory: dict[str, Any], shapes: dict[str, Any] | None
) -> None:
    try:
        result, table = run(trace, config, memory, shapes, model=TINY, times=LinearStepTimes())
    except UserError as error:
        assert "out of memory" in error.message
        return
    assert result.requests["status"].to_list() == ["finished"] * len(trace)
    assert (table["time"].diff().drop_nulls() >= 0).all()
    assert (table["requested"] <= table["allocated"]).all() and (table["allocated"] <= table["active"]).all()
    assert (table["active"] <= table["reserved"]).all() and (table["reserved"] <= memory["device_bytes"]).all()
    assert (table["leaked"] + table["graphs"] <= table["requested"]).all()
    close = table["time"].diff() < memory["sample_every"] * (1 - 1e-9)
    assert not (close & (table["reserved"].diff() == 0)).any()


@pytest.mark.parametrize("size", [20 * MIB, 40 * MIB])
def test_a_leak_grows_by_exactly_its_rate(size: int) -> None:
    """Tensors that are segments of their own leave no trace but themselves."""
    trace = requests([(8, 4)] * 300, gap=2.0)
    memory = {"leak_per_minute": 2.0 * size, "leak_tensor_bytes": size, "device_bytes": 40 * GIB}
    _, table = run(trace, ALONE, memory)
    first = table["reserved"][0]
    for row in table.iter_rows(named=True):
        due = row["time"] // 30.0 * size
        assert row["leaked"] == due
        assert row["reserved"] == first + due
    assert table["leaked"][-1] == 19 * size


def test_a_leak_per_request_is_as_large_as_the_requests_are_many() -> None:
    _, table = run(requests([(8, 4)] * 50, gap=2.0), ALONE, {"leak_per_request": 1_000_000})
    assert table["leaked"].unique().sort().to_list() == [1_000_000 * n for n in range(50)]


@pytest.mark.parametrize(("keep", "most"), [(4, 4), (None, 39)])
def test_what_is_retained_for_the_last_requests_comes_to_rest(keep: int | None, most: int) -> None:
    memory = {"retain_per_request": 20 * MIB, "retained_requests": keep}
    _, table = run(requests([(8, 4)] * 40, gap=2.0), ALONE, memory)
    held = table["reserved"] - table["reserved"][0]
    # The newest is there before the oldest goes.
    assert held.max() == (most + 1 if keep else most) * 20 * MIB
    assert (table["active"].max() - table["active"][0]) // (20 * MIB) == most
    assert (table["leaked"] == 0).all()


def test_a_leak_runs_out_when_worked_out_by_hand() -> None:
    """100 MiB hold a step's 2 MiB and four leaks of 20. For the fifth the 2 MiB are given back, and then the step's
    first tensor finds nothing: 30 s go by, and all starts over."""
    sizes = Activations(TINY).sizes(8, 1)
    assert sum(sizes.values()) < MIB
    trace = requests([(8, 2)] * 8, gap=10.0)
    memory = {"leak_per_request": 20 * MIB, "device_bytes": 100 * MIB}
    result, table = run(trace, ALONE, memory, model=TINY)
    # Each is answered after two steps of 0.5 s, and leaks at the next one's first step: request 5 meets four leaks and
    # makes the fifth.
    restarts = result.events.filter(pl.col("kind") == "restart")
    assert restarts["time"].to_list() == [50.0]
    assert (restarts["seconds"].to_list(), restarts["amount"].to_list()) == ([30.0], [sizes["residual"]])
    # A first step takes one call of the driver, for itself or for the leak: 1 ms.
    assert result.requests["finish"].to_list()[:5] == pytest.approx([10.0 * n + 1.001 for n in range(5)])
    # The driver had 2 MiB before; the first step after the restart takes them again.
    assert result.requests["finish"][5] == pytest.approx(50.0 + 30.0 + 1.001)
    after = table.filter(pl.col("time") == 50.0)
    assert (after["reserved"][-1], after["leaked"][-1]) == (0, 0)


def test_a_process_that_starts_anew_knows_no_idle_session() -> None:
    """The same five leaks; meanwhile two more requests come, which then run beside the one that met the fifth."""
    trace = requests([(8, 2)] * 8, gap=10.0).with_columns(session=pl.format("s{}", pl.col("request_id")))
    memory = {"leak_per_request": 20 * MIB, "device_bytes": 100 * MIB}
    result, _ = run(trace, ALONE, memory, model=TINY, host=HostWorkSettings(per_session=0.001))
    assert result.events.filter(pl.col("kind") == "restart")["time"].to_list() == [pytest.approx(50.0)]
    known = result.events.filter(pl.col("kind") == "host")["amount"].to_list()
    assert known == [n for n in (1, 2, 3, 4, 5, 3) for _ in range(2)]


def test_what_no_restart_helps_is_said() -> None:
    """The hidden state of 1000 tokens finds no 20 MiB to be a part of, or no room beside the residual of that size."""
    hidden = 1000 * 1024 * 4
    for name, free, but in (("caching", 4 * MIB, ", in no piece or segment"), ("native", 4 * MIB - 4_096_000, "; 3 ")):
        said = rf"at 90 s: {hidden} bytes were asked for, and {free} of the 4194304 of device_bytes are free{but}"
        with pytest.raises(UserError, match=said):
            run(requests([(1000, 4)], gap=1.0), ALONE, {"device_bytes": 4 * MIB, "allocator": name})


def test_a_native_allocator_pays_for_every_tensor_of_every_step() -> None:
    tensors = Activations(WIDE).tensors
    result, table = run(requests([(8, 101)], gap=0.0), ALONE, {"allocator": "native"})
    each = tensors * 0.003
    assert result.requests["finish"].to_list() == pytest.approx([101 * (0.5 + each)])
    spent = result.events.filter(pl.col("kind") == "allocator")
    assert spent["seconds"].to_list() == pytest.approx([each, 100 * each])
    assert len(result.steps) == 2
    assert (table["reserved"] == table["active"]).all()


def test_a_caching_allocator_pays_for_the_first_step_alone() -> None:
    result, _ = run(requests([(8, 101)], gap=0.0), ALONE, {})
    spent = result.events.filter(pl.col("kind") == "allocator")
    assert spent["time"].to_list() == [0.0]
    assert result.requests["finish"].to_list() == pytest.approx([101 * 0.5 + spent["seconds"][0]])


def lengths(count: int) -> list[tuple[int, int]]:
    """No two prompts of a dozen in a row are equally long, and they keep getting longer."""
    return [(40 + 16 * i + 7 * (i * 37 % 11), 3) for i in range(count)]


def growth(table: pl.DataFrame) -> int:
    """Bytes by which the reserved memory grew in the second half."""
    half = table["time"].max() / 2  # type: ignore[operator]
    return int(table["reserved"][-1] - table.filter(pl.col("time") <= half)["reserved"][-1])


def test_memory_grows_with_the_shapes_and_stops_with_buckets() -> None:
    """Prompts whose lengths all differ: a graph a length. Padded to powers of two they are few, and soon all met."""
    trace = requests([(40 + i * 37 % 911, 3) for i in range(200)], gap=2.0)
    config = ALONE.model_copy(update={"max_num_batched_tokens": 1024})
    roomy = {"device_bytes": 40 * GIB}
    dynamic = run(trace, config, roomy, {"shape": "tokens", "buckets": "none"})
    bucketed = run(trace, config, roomy, {"shape": "tokens", "buckets": "pow2"})
    graphs = [one[0].events.filter(pl.col("kind") == "graph") for one in (dynamic, bucketed)]
    assert len(graphs[0]) == 201 and len(graphs[1]) <= 11 + 1
    assert growth(dynamic[1]) >= 90 * 3 * MIB
    assert growth(bucketed[1]) == 0
    assert dynamic[0].requests["e2e"].mean() > bucketed[0].requests["e2e"].mean()  # type: ignore[operator]


def test_kept_shapes_bound_the_memory() -> None:
    trace = requests([(40 + i * 37 % 911, 3) for i in range(200)], gap=2.0)
    config = ALONE.model_copy(update={"max_num_batched_tokens": 1024})
    result, table = run(trace, config, {}, {"shape": "tokens", "buckets": "none", "keep": 8})
    assert table["graphs"].max() == 8 * 3 * MIB
    assert growth(table) == 0
    assert result.events.filter(pl.col("kind") == "graph").height >= 200


def test_lengthening_prompts_fragment_and_segments_that_grow_do_not() -> None:
    """Each longer step finds no segment large enough and takes another, while those that it outgrew lie idle."""
    trace = requests(lengths(100), gap=2.0)
    config = ALONE.model_copy(update={"max_num_batched_tokens": 4096})
    _, plain = run(trace, config, {})
    _, growing = run(trace, config, {"settings": "expandable_segments:True"})
    emptied_run, emptied = run(trace, config, {"empty_cache_every": 5})
    needed = plain["active"].max()
    assert plain["reserved"][-1] > 2 * needed  # type: ignore[operator]
    assert growing["reserved"][-1] < 1.5 * needed  # type: ignore[operator]
    assert emptied["reserved"].max() < plain["reserved"].max()  # type: ignore[operator]
    calls = emptied_run.events.filter((pl.col("kind") == "allocator") & pl.col("detail").str.contains(", [1-9]"))
    assert 15 <= len(calls) <= 20, "once in five answers the cached segments go back"


@settings(max_examples=20, deadline=None)
@given(configs(block_size=4), traces(), st.sampled_from(["caching", "native", "size_class"]), st.booleans())
def test_a_grown_cache_holds_what_the_sequences_read(
    config: EngineConfig, trace: pl.DataFrame, name: str, scarce: bool
) -> None:
    """Where blocks are scarce requests are preempted, and then hold nothing."""
    config = config.model_copy(
        update={"enable_prefix_caching": False, "swap_blocks": 0, "kv_blocks": 25 if scarce else 100_000}
    )
    token = 2 * TINY.layers * TINY.kv_heads * TINY.head_dim * TINY.dtype_bytes

    def watch(memory: DeviceMemory, plan: Plan) -> None:
        grown = memory._grown
        assert grown is not None
        assert memory._allocator.stats().requested == grown.tokens * token
        if not plan.chunks and not plan.decodes:  # it only preempts, and nothing grows
            return
        read = sum(length - 1 for one, length in grown._growing if not any(
            chunk.request.request_id == one for chunk in plan.chunks))  # fmt: skip
        assert (read, len(grown._growing)) == (plan.kv_tokens, plan.decodes + len(plan.chunks))

    memory = {"kv": "grown", "allocator": name, "sample_every": 1e-9}
    result, table = run(trace, config, memory, model=TINY, leap=False, watch=watch, times=LinearStepTimes())
    assert result.requests["status"].to_list() == ["finished"] * len(trace)
    assert table["requested"].max() >= trace["prompt_tokens"].max() * token  # type: ignore[operator]


def test_growing_tensors_fragment_the_cache() -> None:
    trace = requests([(200 + 30 * i, 120) for i in range(12)], gap=3.0)
    config = EngineConfig(kv_blocks=10_000, enable_prefix_caching=False)
    times = LinearStepTimes(base=0.05, per_token=0.0, per_kv=0.0)
    model = replace(TINY, layers=2, kv_heads=8, head_dim=128)
    _, table = run(trace, config, {"kv": "grown"}, model=model, leap=False, times=times)
    _, pool = run(trace, config, {"kv": "pool"}, model=model, times=times)
    assert table["reserved"].max() - table["active"].max() > pool["reserved"].max()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"allocator": "native"}, "expected malloc_seconds and free_seconds"),
        ({"allocator": "size_class", "settings": "expandable_segments:True"}, "settings is of the caching allocator"),
        ({"allocator": "native", "empty_cache_every": 5}, "empty_cache_every is of the caching allocator"),
        ({"leak_tensor_bytes": 511}, "leak_tensor_bytes"),
        ({"leak_per_minute": 1e7, "leak_tensor_bytes": 512}, "19531 a minute; expected at most 10000"),
        ({"leak_per_request": 1 << 51}, "leak_per_request"),
        ({"retain_per_token": 1 << 41}, "retain_per_token"),
        ({"retain_per_request": 1 << 51}, "retain_per_request"),
        ({"device_bytes": 1 << 63}, "device_bytes"),
        ({"restart_seconds": 1e7}, "restart_seconds"),
        ({"settings": "max_split_size_mb:19"}, "settings\n.*max_split_size_mb is 19"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MemorySettings(**settings)
