"""A fleet at work: requests arrive, a service takes them, what became of them is written down."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import polars as pl
import simpy

from ground.garbage import uncollected
from sim.engine.request import Request
from sim.engine.reservation_use import shares
from sim.engine.session_accounts import sessions_table
from sim.fleet.model_prefixes import tell_models_apart
from sim.fleet.request_rows import LaterTurns, RequestRows
from sim.fleet.service import Service
from sim.fleet.world import FINISHED, OnEnd, World
from sim.results.energy import ReplicaPower
from sim.results.recorder import RequestRecorder


@dataclass(frozen=True)
class FleetRun:
    """What a fleet did: the tables of `sim.results.tables`, and how many of SimPy's events it took to simulate."""

    requests: pl.DataFrame
    steps: pl.DataFrame
    events: pl.DataFrame
    replicas: pl.DataFrame
    event_count: int
    sessions: pl.DataFrame | None = None  # where KV blocks are kept for idle sessions
    powers: Sequence[ReplicaPower | None] = ()  # what each replica draws, by its number
    kv_use: dict[str, float | None] | None = None  # `reservation_use.shares`, where the KV cache is reserved in ranges


class Fleet:
    """Everything between the trace and the tables. `run` can be called once."""

    def __init__(
        self,
        requests: pl.DataFrame,
        service: Callable[[World, OnEnd], Service],
        *,
        seed: int = 0,
        leap: bool = True,
    ) -> None:
        """`requests` has the columns of `traces.table`; `service` makes what serves them."""
        requests = tell_models_apart(requests)
        self._trace = requests
        self._records = RequestRecorder(requests["prompt_tokens"].to_numpy(), requests["output_tokens"].to_numpy())
        self.world = World(self._records, seed, leap)
        later = LaterTurns(requests)
        self._later = later if len(later) else None
        self.service = service(self.world, self._ended)
        self.world.clock.process(self._arrivals())

    def run(self) -> FleetRun:
        """Simulate until nothing is left to do."""
        world = self.world
        # A simulation makes next to no cycles. With hundreds of full prefix caches to look at, searches for them were a
        # twelfth of a run.
        with uncollected():
            events = world.clock.run_out()
        requests = self._records.table()
        self.service.close(requests["finish"].max() or 0.0)  # type: ignore[arg-type]
        return FleetRun(
            requests,
            world.steps.take_table(),
            world.events.take_table(),
            world.replicas.table(),
            events,
            sessions=sessions_table(dict(sorted(world.accounts.items()))) if world.accounts else None,
            powers=world.replicas.powers,
            kv_use=shares(world.uses) if world.uses else None,
        )

    def _arrivals(self) -> Generator[simpy.Event, None, None]:
        clock = self.world.clock
        first_turns = RequestRows(self._trace.filter(pl.col("arrival").is_not_null()))
        for row in range(len(first_turns)):
            request = first_turns.make(row)
            if request.arrival > clock.now:
                yield clock.at(request.arrival, simpy.events.NORMAL)
            self._arrive(request)

    def _arrive(self, request: Request) -> None:
        self._records.arrival[request.request_id] = request.arrival
        self.service.submit(request)

    def _ended(self, request: Request, status: str) -> None:
        self.world.open -= 1
        if status == FINISHED:
            self._records.finished(request)
        else:
            self._records.failed[request.request_id] = status
        if self._later is not None:
            self._release_next_turns(self._later.of(request.request_id))

    def _release_next_turns(self, turns: Sequence[tuple[Request, float]]) -> None:
        """The user reads the answer (or the error), thinks, and goes on."""
        clock = self.world.clock
        for turn, think_time in turns:
            turn.arrival = clock.now + think_time
            event = clock.at(turn.arrival, simpy.events.NORMAL)
            event.callbacks = [lambda _, turn=turn: self._arrive(turn)]
