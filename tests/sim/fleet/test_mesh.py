"""A service mesh: connections are kept as a naive pool would keep them, and proxies add what was measured."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.engine.clock import Clock
from sim.engine.request import Request
from sim.fleet.places.mesh import Connections, Mesh
from sim.fleet.places.mesh_settings import MeshSettings, ProxyLatency

Stays = Sequence[tuple[float, float, bool]]  # (from, for how long, whether its client goes before the answer)


def naive(stays: Stays, timeout: float, most: int | None) -> list[bool]:
    """Whether each request waits for a new connection, one request a connection: all of them looked at every time."""
    idle: list[tuple[float, int]] = []  # (since, requests carried)
    busy: list[tuple[float, int, bool]] = []  # (until, requests carried by then, lost)
    new = []
    for begin, seconds, lost in stays:
        for until, carried, gone in sorted(busy):
            if until <= begin and not gone and (most is None or carried < most):
                idle.append((until, carried))
        busy = [one for one in busy if one[0] > begin]
        idle = [one for one in sorted(idle) if one[0] + timeout > begin]
        new.append(not idle)
        carried = idle.pop()[1] if idle else 0
        busy.append((begin + seconds, carried + 1, lost))
    return new


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10), st.booleans()), max_size=30),
    st.integers(1, 15),
    st.none() | st.integers(1, 4),
)
def test_connections_are_those_of_a_naive_pool(
    drawn: list[tuple[int, int, bool]], timeout: int, most: int | None
) -> None:
    # No two things happen at one instant.
    stays = [(begin + place / 100, seconds + 0.005, lost) for place, (begin, seconds, lost) in enumerate(sorted(drawn))]
    connections = Connections(MeshSettings(idle_timeout=timeout, max_requests_per_connection=most))
    handshake = MeshSettings().handshake
    ends: list[tuple[float, int, bool]] = []
    new = []
    for begin, seconds, lost in stays:
        for until, carried, gone in sorted(one for one in ends if one[0] <= begin):
            (connections.lose if gone else connections.give)(until, carried)
        ends = [one for one in ends if one[0] > begin]
        wait, carried = connections.take(begin)
        new.append(wait > 0)
        assert wait == (0.0 if carried else handshake)
        ends.append((begin + seconds, carried, lost))
    assert new == naive(stays, timeout, most)
    assert connections.opened == sum(new)


def test_a_shared_connection_is_opened_once_and_waited_for_together() -> None:
    settings = MeshSettings(multiplexed=True, handshake_round_trips=0, handshake_seconds=1.0, idle_timeout=10.0)
    connections = Connections(settings)
    assert [connections.take(time)[0] for time in (0.0, 0.25, 5.0)] == [1.0, 0.75, 0.0]
    for time in (6.0, 7.0, 8.0):
        connections.give(time, 0)
    assert connections.take(17.9)[0] == 0.0  # idle since 8
    connections.give(18.0, 3)
    assert connections.take(28.0)[0] == 1.0 and connections.opened == 2


def test_a_shared_connection_is_replaced_when_it_has_carried_enough() -> None:
    settings = MeshSettings(multiplexed=True, max_requests_per_connection=2, handshake_seconds=1.0)
    connections = Connections(settings)
    assert [connections.take(time)[0] > 0 for time in (0.0, 10.0, 20.0, 30.0)] == [True, False, True, False]


@pytest.mark.parametrize(("p90", "p99"), [(0.0017, 0.00269), (0.002, 0.002)])
def test_proxies_add_what_was_measured(p90: float, p99: float) -> None:
    clock = Clock()
    mesh = Mesh(clock, MeshSettings(latency=ProxyLatency(p90=p90, p99=p99), handshake_seconds=0, round_trip=0), seed=1)
    added = []
    for number in range(40_000):
        request = Request(number, 0.0, 1, 1)
        mesh.go(request, lambda: None)
        added.append(2 * mesh.back(request).seconds)
    assert np.percentile(added, 90) == pytest.approx(p90, rel=0.02)
    assert np.percentile(added, 99) == pytest.approx(p99, rel=0.04)
    assert mesh.connections.opened == 1
    again = Mesh(clock, MeshSettings(latency=ProxyLatency(p90=p90, p99=p99)), seed=1)
    again.go(Request(0, 0.0, 1, 1), lambda: None)
    assert 2 * again.back(Request(0, 0.0, 1, 1)).seconds == added[0]


def test_nobody_waits_for_a_request_that_turned_back() -> None:
    clock = Clock()
    mesh = Mesh(clock, MeshSettings(handshake_seconds=1.0), seed=1)
    _, turn_back = mesh.go(Request(0, 0.0, 1, 1), lambda: pytest.fail("it turned back"))
    turn_back()
    assert clock.quiet
    clock.run_out()


def test_percentiles_must_rise() -> None:
    with pytest.raises(ValidationError, match=r"p99 is 0\.001; expected at least p90"):
        ProxyLatency(p90=0.002, p99=0.001)
