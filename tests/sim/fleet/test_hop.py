"""A service behind a network: what is on the way takes its time, and clients may go at any moment of it."""

from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy.events import NORMAL

from sim.engine.clock import Clock
from sim.engine.request import Request
from sim.fleet.links.network import Network
from sim.fleet.places.hop import Hop
from sim.fleet.places.wide_area import Payload, WideArea
from sim.fleet.service import Service
from sim.fleet.world import FINISHED, SHED, OnEnd, World
from sim.results.recorder import RequestRecorder

SERVED = 1.0


class Waiter:
    """Serves every request in `SERVED` seconds, its first token after half of that, or turns it away."""

    def __init__(self, clock: Clock, on_end: OnEnd, sheds: bool) -> None:
        self.came: list[tuple[int, float]] = []
        self.aborted: list[int] = []
        self._clock = clock
        self._on_end = on_end
        self._sheds = sheds

    def submit(self, request: Request) -> None:
        self.came.append((request.request_id, self._clock.now))
        if self._sheds:
            self._on_end(request, SHED)
            return
        request.first_token = self._clock.now + SERVED / 2
        event = self._clock.at(self._clock.now + SERVED, NORMAL)
        event.callbacks = [lambda _: self._end(request)]

    def abort(self, request: Request) -> None:
        self.aborted.append(request.request_id)

    def close(self, end: float) -> None:
        pass

    def _end(self, request: Request) -> None:
        if request.request_id not in self.aborted:
            request.finish = self._clock.now
            self._on_end(request, FINISHED)


def world() -> World:
    return World(RequestRecorder(pl.Series([1]).to_numpy(), pl.Series([1]).to_numpy()))


def run(
    requests: list[tuple[float, int]],
    *,
    rtt: float = 0.0,
    up: float | None = None,
    down: float | None = None,
    streamed: bool = True,
    gone: dict[int, float] | None = None,
    sheds: bool = False,
    when_gone: Callable[[Clock], None] = lambda _: None,
) -> tuple[World, Waiter, list[tuple[Request, str, float]]]:
    """Requests of (time, prompt tokens) and 10 output tokens, a byte a token; `gone`: which client goes when."""
    here = world()
    clock = here.clock
    ended: list[tuple[Request, str, float]] = []
    route = WideArea(clock, Network(clock), "far", Payload(1.0, 1.0, streamed, lambda _: 0), rtt=rtt, up=up, down=down)
    made: list[Waiter] = []

    def inner(on_end: OnEnd) -> Service:
        made.append(Waiter(clock, on_end, sheds))
        return made[0]

    hop = Hop(here, route, inner, lambda request, status: ended.append((request, status, clock.now)))

    def leave(request: Request) -> None:
        if not any(request is one for one, *_ in ended):
            hop.abort(request)
            when_gone(clock)

    def at(time: float, call: Callable[[], None]) -> None:
        clock.at(time, NORMAL).callbacks.append(lambda _: call())

    for number, (time, tokens) in enumerate(requests):
        request = Request(number, time, tokens, 10)
        at(time, lambda request=request: hop.submit(request))
        if gone and number in gone:
            at(gone[number], lambda request=request: leave(request))
    clock.run_out()
    assert not hop._going and not hop._coming
    return here, made[0], ended


def test_there_and_back() -> None:
    here, waiter, ended = run([(2.0, 100)], rtt=0.4, up=50.0, down=10.0)
    assert waiter.came == [(0, pytest.approx(2.0 + 100 / 50 + 0.2))]
    request, status, at = ended[0]
    assert status == FINISHED and at == request.finish == pytest.approx(4.2 + SERVED + 0.2 + 0.1)
    assert request.first_token == pytest.approx(4.2 + SERVED / 2 + 0.2 + 0.1)
    hops = here.events.take_table()
    assert hops["kind"].to_list() == ["hop", "hop"] and hops["detail"].to_list() == ["to far", "from far"]
    assert hops["seconds"].sum() == pytest.approx(2.2 + 0.3) and hops["amount"].to_list() == [100, 10]
    assert hops["request_id"].to_list() == [0, 0] and hops["replica"].to_list() == [-1, -1]


def test_an_answer_that_comes_whole_has_its_first_token_at_the_end() -> None:
    _, _, ended = run([(0.0, 100)], rtt=0.4, down=10.0, streamed=False)
    request, _, at = ended[0]
    assert request.first_token == request.finish == at == pytest.approx(0.2 + SERVED + 0.2 + 10 / 10)


def test_requests_that_are_sent_at_once_share_the_way_up() -> None:
    _, waiter, _ = run([(0.0, 100), (0.0, 100)], up=50.0)
    assert waiter.came == [(0, pytest.approx(4.0)), (1, pytest.approx(4.0))]


def test_to_be_turned_away_takes_a_round_trip() -> None:
    _, _, ended = run([(1.0, 10)], rtt=0.4, sheds=True)
    assert [(status, at) for _, status, at in ended] == [(SHED, pytest.approx(1.4))]


@pytest.mark.parametrize("gone", [0.1, 0.25 + SERVED + 0.1])
def test_nobody_waits_for_what_is_on_its_way_to_or_from_a_client_that_has_gone(gone: float) -> None:
    quiet: list[bool] = []
    run([(0.0, 10)], rtt=0.5, gone={0: gone}, when_gone=lambda clock: quiet.append(clock.quiet))
    assert quiet == [True]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 500)), min_size=1, max_size=10),
    st.dictionaries(st.integers(0, 9), st.floats(0, 10), max_size=10),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([None, 100.0]),
    st.booleans(),
)
def test_every_request_ends_once_unless_its_client_goes(
    requests: list[tuple[float, int]], gone: dict[int, float], rtt: float, up: float | None, sheds: bool
) -> None:
    requests = sorted(requests)
    gone = {number: max(time, requests[number][0]) for number, time in gone.items() if number < len(requests)}
    _, waiter, ended = run(requests, rtt=rtt, up=up, gone=gone, sheds=sheds)
    numbers = [request.request_id for request, *_ in ended]
    assert len(set(numbers)) == len(numbers)
    for number in range(len(requests)):
        assert number in numbers or number in gone
    for request, _, at in ended:
        assert at >= request.arrival + rtt - 1e-9
        assert request.request_id not in gone or at <= gone[request.request_id]
    assert set(waiter.aborted) <= {number for number, _ in waiter.came} & set(gone)
