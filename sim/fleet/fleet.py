"""A fleet: arrivals → router → engines, over one request table."""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import repeat

import polars as pl
import simpy

from ground.errors import UserError
from sim.engine.clock import Clock
from sim.engine.config import EngineConfig
from sim.engine.process import Engine, StepTimes
from sim.engine.request import Request
from sim.engine.step_costs import StepCosts
from sim.fleet.routers import ROUTERS
from sim.fleet.routers.router import RouterSetting
from sim.results.recorder import EventRecorder, RequestRecorder, StepRecorder
from traces.streams import stream

REJECTED = "rejected"
_REQUESTS_AT_ONCE = 8192  # rows of a trace that are Python objects at one time


@dataclass(frozen=True)
class FleetRun:
    """What a fleet did: the tables of `sim.results.tables`, and how many of SimPy's events it took to simulate."""

    requests: pl.DataFrame
    steps: pl.DataFrame
    events: pl.DataFrame
    event_count: int


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
        leap: bool = True,
    ) -> None:
        """`requests` has the columns of `traces.table`. Every request must fit an engine or be over its
        `max_model_len`, in which case the engine rejects it on arrival, as vLLM does. `costs` makes what a replica's
        steps take beyond `step_times`.

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
        self._turns = _turns_after(requests)
        self._clock.process(self._arrivals())

    def run(self) -> FleetRun:
        """Simulate until nothing is left to do."""
        events = self._clock.run_out()
        return FleetRun(self._records.table(), self._steps.take_table(), self._events.take_table(), events)

    def _arrivals(self) -> Generator[simpy.Event, None, None]:
        clock = self._clock
        first_turns = self._trace.filter(pl.col("arrival").is_not_null())
        for request in _make_requests(first_turns):
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
        self._engines[replica].submit(request)

    def _finished(self, request: Request) -> None:
        records, index = self._records, request.request_id
        assert request.first_scheduled is not None and request.first_token is not None and request.finish is not None
        records.first_scheduled[index] = request.first_scheduled
        records.first_token[index] = request.first_token
        records.finish[index] = request.finish
        records.cached_tokens[index] = request.cached_tokens
        records.preemptions[index] = request.preemptions
        self._outstanding[records.replica[index]] -= 1
        if self._turns:
            self._release_next_turns(request)

    def _release_next_turns(self, request: Request) -> None:
        """The user reads the answer (or the error), thinks, and goes on."""
        for turn, think_time in self._turns.pop(request.request_id, ()):
            turn.arrival = self._clock.now + think_time
            event = self._clock.at(turn.arrival, simpy.events.NORMAL)
            event.callbacks = [lambda _, turn=turn: self._dispatch(turn)]


def _make_requests(rows: pl.DataFrame) -> Generator[Request, None, None]:
    """Request objects, one at a time, in the order of the rows."""
    for part in rows.iter_slices(_REQUESTS_AT_ONCE):

        def column(name: str, default: object, part: pl.DataFrame = part) -> Sequence | repeat:
            return part[name].fill_null(default).to_list() if name in part.columns else repeat(default)

        ids = part["prefix_ids"].to_list() if "prefix_ids" in part.columns else repeat(None)
        for request_id, arrival, prompt_tokens, output_tokens, prefix_ids, block_tokens, priority, session in zip(
            part["request_id"].to_list(),
            column("arrival", 0.0),
            part["prompt_tokens"].to_list(),
            part["output_tokens"].to_list(),
            ids,
            column("prefix_block_tokens", 16),
            column("priority", 0),
            part["session"].to_list() if "session" in part.columns else repeat(None),
            strict=False,
        ):
            yield Request(
                request_id, arrival, prompt_tokens, output_tokens, prefix_ids or (), block_tokens, priority, session
            )


def _turns_after(requests: pl.DataFrame) -> dict[int, list[tuple[Request, float]]]:
    """parent request_id → the turns that it releases, each with its think time."""
    turns: dict[int, list[tuple[Request, float]]] = defaultdict(list)
    if "parent" in requests.columns:
        later = requests.filter(pl.col("arrival").is_null())
        think = later["think_time"].fill_null(0.0) if "think_time" in later.columns else [0.0] * len(later)
        for request, parent, think_time in zip(_make_requests(later), later["parent"], think, strict=True):
            turns[parent].append((request, think_time))
    return turns


def _check_fit(requests: pl.DataFrame, engine: EngineConfig) -> None:
    tokens = pl.col("prompt_tokens") + pl.col("output_tokens")
    if engine.max_model_len is not None:
        requests = requests.filter(tokens <= engine.max_model_len)
    pool = engine.kv_blocks * engine.block_size
    # The last token is never computed, so it needs no place.
    limit, what = pool, f"the KV pool has {engine.kv_blocks} blocks of {engine.block_size}"
    if not engine.enable_chunked_prefill and engine.max_num_batched_tokens < pool:
        limit = engine.max_num_batched_tokens
        what = f"max_num_batched_tokens is {limit} and chunked prefill is off"
    too_long = requests.filter(tokens - 1 > limit)
    if len(too_long):
        row = too_long.row(0, named=True)
        raise UserError(
            f"request {row['request_id']}: {row['prompt_tokens']} prompt + {row['output_tokens']} output tokens can "
            f"never run, {what} ({len(too_long)} such requests); set engine.max_model_len to have them rejected"
        )
