"""What is built for every shape: keys, padding, first use, and what is kept."""

from bisect import bisect_left
from collections import Counter, OrderedDict
from typing import ClassVar

import polars as pl
import pytest
from engine_workloads import LinearStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.datasheet import datasheet_profile
from calibrate.latency import StepLatency
from calibrate.model import load_model
from sim.engine.config import EngineConfig
from sim.engine.host_work import HostWork, HostWorkSettings
from sim.engine.plan import Chunk, Plan
from sim.engine.request import Request
from sim.engine.shape_cache import ShapeCache, ShapeSettings
from sim.engine.step_costs import StepCosts
from sim.fleet.equal_replicas import equal_replicas
from sim.results.recorder import EventRecorder

NUMBERS = {"build_seconds": 0.25, "build_bytes": 1000, "eager_launch_seconds": 0.125}
LIMITS = 64, 2048


class Padded(LinearStepTimes):
    extrapolated: ClassVar[Counter[str]] = Counter()  # stays empty: their law holds everywhere

    def computed_tokens(self, tokens: int, *, prefills: bool) -> int:
        return tokens


TIMES = Padded(base=0.01, per_token=0.001, per_kv=0.0001)


def cache_of(settings: dict, times: object = TIMES) -> tuple[ShapeCache, EventRecorder]:
    events = EventRecorder()
    return ShapeCache(ShapeSettings(**NUMBERS | settings), times, LIMITS, 0, events), events  # type: ignore[arg-type]


def plan_of(chunks: list[tuple[int, int]], decodes: int = 0, kv_tokens: int = 0) -> Plan:
    """`chunks` are (start, tokens)."""
    plan = Plan(0)
    plan.chunks = [Chunk(Request(i, 0.0, start + tokens, 5), start, tokens) for i, (start, tokens) in enumerate(chunks)]
    plan.decodes, plan.kv_tokens = decodes, kv_tokens
    return plan


@pytest.mark.parametrize(
    ("kind", "plan", "shape"),
    [
        ("tokens", plan_of([(0, 30), (8, 10)], 3), (43,)),
        ("tokens", plan_of([], 3), (3,)),
        ("sequences", plan_of([(0, 30)], 3), None),
        ("sequences", plan_of([], 3), (3,)),
        ("sequences_and_longest", plan_of([(0, 30), (8, 10)], 3), (5, 30)),
        ("sequences_and_longest", plan_of([], 3), (3, 1)),
    ],
)
def test_what_counts_as_the_shape(kind: str, plan: Plan, shape: tuple[int, ...] | None) -> None:
    assert cache_of({"shape": kind})[0].shape(plan) == shape


@pytest.mark.parametrize(
    ("settings", "plan", "shape", "size"),
    [
        ({"buckets": (8, 64)}, plan_of([], 9), (64,), None),
        ({"buckets": (8, 64)}, plan_of([(0, 65)]), None, None),  # above the largest: eager
        ({"buckets": "pow2"}, plan_of([(0, 65)]), (128,), None),
        ({"shape": "sequences", "buckets": "pow2"}, plan_of([], 33), (64,), None),
        (
            {"shape": "sequences_and_longest", "buckets": (32, 512), "sequence_buckets": (4, 8)},
            plan_of([(0, 40), (7, 3)], 3),
            (8, 512),
            (8 * 512, 8),
        ),
        ({"shape": "sequences_and_longest", "buckets": (32, 512)}, plan_of([], 3), (3, 1), (3, 3)),
    ],
)
def test_shapes_are_padded(settings: dict, plan: Plan, shape: tuple | None, size: tuple | None) -> None:
    cache, _ = cache_of(settings)
    assert cache.shape(plan) == shape
    if size is not None:
        assert cache.step_size(plan) == size


@settings(max_examples=50)
@given(st.sampled_from(["tokens", "sequences"]), st.integers(1, 64))
def test_the_step_times_pad_as_the_shapes_do(kind: str, decodes: int) -> None:
    chosen = ShapeSettings(shape=kind, buckets="pow2")  # type: ignore[arg-type]
    model = load_model("tiny-llama")
    times = StepLatency(
        datasheet_profile("h100-sxm-80gb", model, 1),
        model,
        graph_sizes=chosen.graph_sizes(*LIMITS),
        graphs_decode_only=chosen.pads_decodes_only,
    )
    cache, _ = cache_of({"shape": kind, "buckets": "pow2"}, times)
    assert cache.shape(plan_of([], decodes)) == (times.computed_tokens(decodes, prefills=False),)
    plan = plan_of([(0, 77)], decodes)
    assert cache.step_size(plan)[0] == (77 + decodes if kind == "sequences" else cache.shape(plan)[0])  # type: ignore[index]


def test_a_padded_prefill_is_computed_at_its_padded_size() -> None:
    cache, events = cache_of({"shape": "sequences_and_longest", "buckets": (32, 512), "sequence_buckets": (4,)})
    cost = cache.begin(plan_of([(100, 20), (0, 8)], 1, 60), 0.0)
    padded = TIMES.step([(32, 100), (32, 0), (32, 60), (32, 0)], 0, 0)
    assert cost.padding == pytest.approx(padded - TIMES.step([(20, 100), (8, 0)], 1, 60))
    assert cost.padding == pytest.approx(0.001 * (4 * 32 - 29))
    assert cost.each == 0.0
    cache.end(0.0, 1)
    assert cache.begin(plan_of([], 3, 60), 1.0).padding == 0.0
    cache.end(1.0, 5)
    told = events.take_table().filter(pl.col("kind") == "padding")
    assert told.select("time", "seconds", "amount").rows() == [(0.0, cost.padding, 4 * 32 - 29)]


class Gridded(Padded):
    """Measured up to 64 tokens, of which the attention up to 100 cached ones."""

    def __init__(self) -> None:
        super().__init__(base=0.01, per_token=0.001, per_kv=0.0001)
        object.__setattr__(self, "extrapolated", Counter())

    def step(self, prefills, decodes, kv_tokens, spread=None) -> float:  # type: ignore[no-untyped-def]
        if decodes + sum(new for new, _ in prefills) > 64:
            self.extrapolated["dense"] += 1
        if kv_tokens + sum(start for _, start in prefills) > 100:
            self.extrapolated["attention"] += 1
        return super().step(prefills, decodes, kv_tokens, spread)


@pytest.mark.parametrize(
    ("chunks", "outside"),
    [
        ([(0, 20)], {}),
        ([(0, 20), (50, 3)], {"dense": 1}),  # 4 rows of 32 tokens
        ([(0, 90)], {"dense": 1}),  # by itself and padded
        ([(120, 40)], {"dense": 1, "attention": 1}),
    ],
)
def test_a_step_outside_the_grid_counts_once(chunks: list[tuple[int, int]], outside: dict[str, int]) -> None:
    times = Gridded()
    rows = (1,) if len(chunks) == 1 else (4,)
    cache, _ = cache_of({"shape": "sequences_and_longest", "buckets": (32, 512), "sequence_buckets": rows}, times)
    plan = plan_of(chunks)
    cache.begin(plan, 0.0)
    times.step([(chunk.tokens, chunk.start) for chunk in plan.chunks], 0, 0)  # what the engine asks for
    assert times.extrapolated == outside


@pytest.mark.parametrize(
    ("ahead", "host", "prefill", "decode"),
    [
        (True, 0.5, 0.5, 0.5),  # the host outlasts even the padded prefill
        (True, 0.12, 0.01 + 0.128, 0.12),  # and here all but it
        (False, 0.5, 0.01 + 0.128 + 0.5, 0.511),
    ],
)
def test_padding_is_part_of_what_hides_the_host(ahead: bool, host: float, prefill: float, decode: float) -> None:
    """A prompt of 100 tokens, computed as 128 of a millisecond each, and two tokens behind it."""
    times = Padded(base=0.01, per_token=0.001, per_kv=0.0)
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [100], "output_tokens": [3]})

    def costs(replica: int, events: EventRecorder) -> StepCosts:
        chosen = ShapeSettings(
            shape="sequences_and_longest", buckets="pow2", **NUMBERS | {"build_seconds": 0.0, "build_bytes": 0}
        )
        cache = ShapeCache(chosen, times, LIMITS, replica, events)
        return StepCosts([HostWork(HostWorkSettings(per_step=host), replica, events), cache])

    config = EngineConfig(kv_blocks=100, async_scheduling=ahead)
    requests = equal_replicas(trace, config, times, costs=costs).run().requests
    assert requests["first_token"].item() == pytest.approx(prefill)
    assert requests["finish"].item() == pytest.approx(prefill + 2 * decode)


def test_what_runs_without_a_graph_is_launched_kernel_by_kernel() -> None:
    cache, events = cache_of({"shape": "sequences"})
    assert cache.begin(plan_of([(0, 8)], 2), 0.0) == (0.0, 0.125, 0.0, False, 0.0)
    assert len(events.take_table()) == 0


@settings(max_examples=100)
@given(st.lists(st.integers(1, 40), max_size=80), st.none() | st.integers(1, 6), st.sampled_from(["none", (4, 16, 40)]))
def test_builds_are_those_of_a_plain_lru_cache(decodes: list[int], keep: int | None, buckets: object) -> None:
    cache, events = cache_of({"keep": keep, "buckets": buckets})
    plain: OrderedDict[int, None] = OrderedDict()
    builds = []
    for at, number in enumerate(decodes):
        key = number if buckets == "none" else (4, 16, 40)[bisect_left((4, 16, 40), number)]
        new = key not in plain
        plain[key] = None
        plain.move_to_end(key)
        if keep is not None and len(plain) > keep:
            plain.popitem(last=False)
        if new:
            builds.append((float(at), 0.25, 1000, str(key)))
        assert cache.begin(plan_of([], number), float(at)).once == (0.25 if new else 0.0)
        assert cache.built == len(plain)
    table = events.take_table()
    assert (table["kind"] == "graph").all()
    assert list(table.select("time", "seconds", "amount", "detail").iter_rows()) == builds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"buckets": (8, 4)}, "buckets are"),
        ({"buckets": ()}, "buckets are"),
        ({"buckets": (0, 4)}, "buckets are"),
        ({"sequence_buckets": "pow2"}, "sequence_buckets are of sequences_and_longest"),
        ({"build_bytes": 1 << 51}, "build_bytes"),
        ({"build_seconds": 1e7}, "build_seconds"),
        ({"eager_launch_seconds": 1e7}, "eager_launch_seconds"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ShapeSettings(**settings)
