"""Clients that go and replicas that crash while prompts are on their way: nothing is left behind or ends twice."""

from collections import Counter
from typing import Any

import polars as pl
import pytest
from disaggregated_runs import BLOCK_BYTES, LAYERS, handovers
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from simpy.events import NORMAL

from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.fleet.disaggregation import Disaggregation
from sim.fleet.disaggregation_settings import DisaggregationSettings
from sim.fleet.fleet import Fleet, FleetRun
from sim.fleet.replica import ReplicaKind
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World

Losses = list[tuple[float, str, int]]  # (time, what, which)


class Losing:
    """Before a disaggregation: at given times clients go, and replicas crash and are replaced."""

    def __init__(self, world: World, settings: dict[str, Any], kinds: Any, on_end: OnEnd, losses: Losses) -> None:
        self.ends: Counter[int] = Counter()
        self.gone: set[int] = set()
        self._open: dict[int, Request] = {}
        self._on_end = on_end
        chosen = DisaggregationSettings.model_validate(settings)
        self.service = Disaggregation(world, chosen, *kinds, self._ended, block_bytes=BLOCK_BYTES, layers=LAYERS)
        for time, what, which in losses:
            event = world.clock.at(time, NORMAL)
            event.callbacks = [lambda _, what=what, which=which: self._lose(what, which)]

    def submit(self, request: Request) -> None:
        self._open[request.request_id] = request
        self.service.submit(request)

    def abort(self, request: Request) -> None:
        self.service.abort(request)

    def close(self, end: float) -> None:
        self.service.close(end)

    def _ended(self, request: Request, status: str) -> None:
        self.ends[request.request_id] += 1
        del self._open[request.request_id]
        self._on_end(request, status)

    def _lose(self, what: str, which: int) -> None:
        if what == "client":
            if request := self._open.pop(which, None):
                self.gone.add(which)
                self.service.abort(request)
            return
        pool = self.service.prefill if what == "prefill" else self.service.decode
        if pool.members:
            pool.crash(pool.members[which % len(pool.members)])
            pool.grow()


def run(
    trace: pl.DataFrame,
    settings: dict[str, Any],
    prefill: EngineConfig,
    decode: EngineConfig,
    losses: Losses,
    *,
    leap: bool = True,
) -> tuple[FleetRun, Losing]:
    kinds = ReplicaKind(prefill, LinearStepTimes()), ReplicaKind(decode, LinearStepTimes())

    def make(world: World, on_end: OnEnd) -> Service:
        return Losing(world, settings, kinds, on_end, losses)

    fleet = Fleet(trace, make, leap=leap)
    result = fleet.run()
    assert isinstance(fleet.service, Losing)
    return result, fleet.service


def losses(*kinds: str) -> st.SearchStrategy[Losses]:
    times = st.floats(0.0, 3.0, allow_subnormal=False)
    return st.lists(st.tuples(times, st.sampled_from(kinds), st.integers(0, 29)), max_size=20)


@settings(max_examples=150, deadline=None)
@given(
    configs(block_size=4), configs(block_size=4), traces(), handovers(), losses("client", "client", "prefill", "decode")
)
def test_nothing_is_left_behind(
    prefill: EngineConfig, decode: EngineConfig, trace: pl.DataFrame, chosen: dict[str, Any], lost: Losses
) -> None:
    result, before = run(trace, chosen, prefill, decode, lost)
    statuses = dict(result.requests.select("request_id", "status").iter_rows())
    for request_id, status in statuses.items():
        assert before.ends[request_id] == (0 if request_id in before.gone else 1)
        assert status in (("unfinished",) if request_id in before.gone else ("finished", "failed"))
    assert not before._open and not before.service._under_way
    for replica in (*before.service.prefill.members, *before.service.decode.members):
        scheduler = replica.engine.scheduler
        assert not replica.outstanding and not scheduler.blocks_held
        assert not scheduler.running_count and not scheduler.waiting_count and not scheduler.remote.kept
    assert not before.service.network._paths


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), configs(block_size=4), traces(), handovers(), losses("client"))
def test_leap_equals_step_where_clients_go(
    prefill: EngineConfig, decode: EngineConfig, trace: pl.DataFrame, chosen: dict[str, Any], lost: Losses
) -> None:
    leapt, stepped = (run(trace, chosen, prefill, decode, lost, leap=leap)[0] for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)


@pytest.mark.parametrize("transfer", ["after_prefill", "layerwise"])
@pytest.mark.parametrize(("pool", "at"), [("prefill", 1.5), ("decode", 1.5), ("prefill", 0.5), ("decode", 3.5)])
def test_a_crash_on_either_side_fails_the_request(transfer: str, pool: str, at: float) -> None:
    """The prompt takes a second, its transfer about two; then it decodes for long."""
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [40], "output_tokens": [90]})
    chosen = {"prefill": {}, "decode": {}, "link": {"bandwidth": 5e3 if transfer == "after_prefill" else 1.25e3}}
    config = EngineConfig(kv_blocks=100, block_size=4)
    times = LinearStepTimes(base=1.0, per_token=0.0, per_kv=0.0)

    def make(world: World, on_end: OnEnd) -> Service:
        kinds = ReplicaKind(config, times), ReplicaKind(config, times)
        return Losing(world, {**chosen, "transfer": transfer}, kinds, on_end, [(at, pool, 0)])

    result = Fleet(trace, make).run()
    assert result.requests["status"].to_list() == ["failed"]
    ended = result.replicas.filter(pl.col("ended").is_not_null())
    assert ended["pool"].to_list() == [pool] and ended["ended"].to_list() == [at]
