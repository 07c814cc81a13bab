"""A fleet: arrivals → router → engines, over one request table."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import simpy

from ground.assumption import Assumption
from ground.errors import UserError
from sim.engine.clock import Clock
from sim.engine.config import EngineConfig
from sim.engine.contiguous_pool import reserved_slots
from sim.engine.process import Engine, StepTimes
from sim.engine.request import Request
from sim.engine.reservation_use import shares
from sim.engine.session_accounts import sessions_table
from sim.engine.step_costs import StepCosts
from sim.fleet.request_rows import LaterTurns, RequestRows
from sim.fleet.routers import ROUTERS
from sim.fleet.routers.router import RouterSetting
from sim.fleet.weight_cache import WeightCache
from sim.results.recorder import EventRecorder, RequestRecorder, StepRecorder
from traces.streams import stream

REJECTED = "rejected"


@dataclass(frozen=True)
class FleetRun:
    """What a fleet did: the tables of `sim.results.tables`, and how many of SimPy's events it took to simulate."""

    requests: pl.DataFrame
    steps: pl.DataFrame
    events: pl.DataFrame
    event_count: int
    memory: pl.DataFrame | None = None  # where the devices' memory is modelled
    sessions: pl.DataFrame | None = None  # where KV blocks are kept for idle sessions
    assumptions: Sequence[Assumption] = ()  # beyond those of the engines
    kv_use: dict[str, float | None] | None = None  # `reservation_use.shares`, where the KV cache is reserved in ranges


class Fleet:
    """Equal replicas behind a router."""

    def __init__(
        self,
        requests: pl.DataFrame,
        engine: EngineConfig,
        step_times: StepTimes,
        *,
        replicas: int = 1,
        router: str = "round_robin",
        seed: int = 0,
        costs: Callable[[int, EventRecorder], StepCosts | None] = lambda replica, events: None,
        weights: Callable[[Clock, int, EventRecorder, Callable[[Request], None]], WeightCache] | None = None,
        leap: bool = True,
    ) -> None:
        """`requests` has the columns of `traces.table`. Every request must fit an engine or be over its
        `max_model_len`, in which case the engine rejects it on arrival, as vLLM does. `costs` makes what a replica's
        steps take beyond `step_times`; `weights` the cache of models that stands before its engine, where there is one.

        Raises:
            UserError: a request that no engine could ever finish.
        """
        _check_fit(requests, engine)
        self._clock = Clock()
        self._max_model_len = engine.max_model_len
        self._trace = requests
        self._records = RequestRecorder(requests["prompt_tokens"].to_numpy(), requests["output_tokens"].to_numpy())
        self._steps = StepRecorder()
        self._events = EventRecorder()
        setting = RouterSetting(replicas, stream(seed, "router"), engine.kv_blocks * engine.block_size)
        self._router = ROUTERS[router](setting)
        self._outstanding = [0] * replicas
        self._engines = [
            Engine(
                self._clock,
                replica,
                engine,
                step_times,
                self._steps,
                self._events,
                self._finished,
                costs=costs(replica, self._events),
                leap=leap,
            )
            for replica in range(replicas)
        ]
        self._caches: list[WeightCache] = []
        if weights is not None:
            self._caches = [
                weights(self._clock, replica, self._events, engine.submit)
                for replica, engine in enumerate(self._engines)
            ]
        self._hosts: Sequence[Engine | WeightCache] = self._caches or self._engines
        self._later = LaterTurns(requests)
        self._clock.process(self._arrivals())

    def run(self) -> FleetRun:
        """Simulate until nothing is left to do."""
        events = self._clock.run_out()
        requests = self._records.table()
        end: Any = requests["finish"].max()
        for engine in self._engines:
            engine.close(end or 0.0)
        kept = {place: one.retention.accounts for place, one in enumerate(self._engines) if one.retention is not None}
        uses = [engine.reservation_use for engine in self._engines if engine.reservation_use is not None]
        return FleetRun(
            requests,
            self._steps.take_table(),
            self._events.take_table(),
            events,
            sessions=sessions_table(kept) if kept else None,
            kv_use=shares(uses) if uses else None,
        )

    def _arrivals(self) -> Generator[simpy.Event, None, None]:
        clock = self._clock
        first_turns = RequestRows(self._trace.filter(pl.col("arrival").is_not_null()))
        for row in range(len(first_turns)):
            request = first_turns.make(row)
            if request.arrival > clock.now:
                yield clock.at(request.arrival, simpy.events.NORMAL)
            self._dispatch(request)

    def _dispatch(self, request: Request) -> None:
        records, index = self._records, request.request_id
        records.arrival[index] = request.arrival
        if self._max_model_len is not None and request.prompt_tokens + request.output_tokens > self._max_model_len:
            records.failed[index] = REJECTED
            self._release_next_turns(request)
            return
        replica = self._router.choose(request, self._outstanding)
        records.replica[index] = replica
        self._outstanding[replica] += 1
        self._hosts[replica].submit(request)

    def _finished(self, request: Request) -> None:
        records, index = self._records, request.request_id
        assert request.first_scheduled is not None and request.first_token is not None and request.finish is not None
        records.first_scheduled[index] = request.first_scheduled
        records.first_token[index] = request.first_token
        records.finish[index] = request.finish
        records.cached_tokens[index] = request.cached_tokens
        records.preemptions[index] = request.preemptions
        self._outstanding[records.replica[index]] -= 1
        if self._caches:
            self._caches[records.replica[index]].finished(request)
        if self._later:
            self._release_next_turns(request)

    def _release_next_turns(self, request: Request) -> None:
        """The user reads the answer (or the error), thinks, and goes on."""
        for turn, think_time in self._later.of(request.request_id):
            turn.arrival = self._clock.now + think_time
            event = self._clock.at(turn.arrival, simpy.events.NORMAL)
            event.callbacks = [lambda _, turn=turn: self._dispatch(turn)]


def _check_fit(requests: pl.DataFrame, engine: EngineConfig) -> None:
    tokens = pl.col("prompt_tokens") + pl.col("output_tokens")
    if engine.max_model_len is not None:
        requests = requests.filter(tokens <= engine.max_model_len)
    if engine.kv_cache and engine.reserved_blocks >= engine.kv_blocks:
        raise UserError(
            f"engine.reserved_blocks is {engine.reserved_blocks} and the KV pool has {engine.kv_blocks} blocks; "
            "expected fewer, so that requests find any"
        )
    # The last token is never computed, so it needs no place.
    budget, pool = engine.max_num_batched_tokens, (engine.kv_blocks - engine.reserved_blocks) * engine.block_size
    if not engine.enable_chunked_prefill and (budget < pool or not engine.kv_cache):
        what = f"max_num_batched_tokens is {budget} and chunked prefill is off"
        _refuse(requests.filter(tokens - 1 > budget), what)
    if engine.kv_reservation != "paged":
        what = f"kv_reservation is {engine.kv_reservation} and the KV pool has {pool} token slots"
        _refuse(requests.filter(_reserved(requests, engine) > pool), what)
    elif engine.kv_cache:
        what = f"the KV pool has {engine.kv_blocks} blocks of {engine.block_size}"
        _refuse(requests.filter(tokens - 1 > pool), what)


def _refuse(too_long: pl.DataFrame, what: str) -> None:
    """Raises UserError: `too_long` holds requests, which cannot run because of `what`."""
    if len(too_long):
        row = too_long.row(0, named=True)
        raise UserError(
            f"request {row['request_id']}: {row['prompt_tokens']} prompt + {row['output_tokens']} output tokens can "
            f"never run, {what} ({len(too_long)} such requests); set engine.max_model_len to have them rejected"
        )


def _reserved(requests: pl.DataFrame, engine: EngineConfig) -> pl.Series:
    """Token slots that each request would be admitted with, (requests,)."""
    lengths = requests.select("prompt_tokens", "output_tokens").iter_rows()
    slots = [reserved_slots(engine.kv_reservation, prompt, out, engine.max_model_len) for prompt, out in lengths]
    return pl.Series(slots, dtype=pl.Int64)
