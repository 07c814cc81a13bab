"""Clients far from what serves them wait for what reaches them, and not for what an engine has made."""

from collections.abc import Callable
from math import inf

import pytest
from constant_steps import CONSTANT, PLAIN, STEP
from engine_workloads import LinearStepTimes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from short_traces import trace_of

from sim.engine.request import Request
from sim.fleet.fleet import Fleet, FleetRun
from sim.fleet.links.network import Network
from sim.fleet.places.hop import Hop
from sim.fleet.places.mesh import Mesh
from sim.fleet.places.mesh_settings import MeshSettings
from sim.fleet.places.wide_area import Payload, WideArea
from sim.fleet.pool import Pool
from sim.fleet.reliability.client_settings import ClientSettings
from sim.fleet.reliability.clients import Clients
from sim.fleet.replica import ReplicaKind
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World

# An abandoned connection would be opened anew for the next request, and so be felt by it.
MESH = MeshSettings.model_validate({"multiplexed": True})


def run(
    sizes: list[tuple[int, int]],
    *,
    rtt: float = 0.0,
    streamed: bool = True,
    mesh: bool = False,
    clients: dict[str, float | None] | None = None,
    times: LinearStepTimes = CONSTANT,
    leap: bool = True,
) -> tuple[FleetRun, list[Request]]:
    """Requests of (prompt, output) tokens, each when the last is long gone; and who came to the pool."""
    came: list[Request] = []

    def make(world: World, on_end: OnEnd) -> Service:
        route = WideArea(
            world.clock, Network(world.clock), "far", Payload(1, 1, streamed, lambda _: 0), rtt=rtt, up=None, down=1e3
        )

        def served(ended: OnEnd) -> Service:
            pool = Pool(world, ReplicaKind(PLAIN, times), ended, replicas=1)
            return Seen(pool, came.append)

        def far(ended: OnEnd) -> Service:
            return Hop(world, route, served, ended)

        def whole(ended: OnEnd) -> Service:
            return Hop(world, Mesh(world.clock, MESH, 0), far, ended) if mesh else far(ended)

        if clients is None:
            return whole(on_end)
        before = Clients(world, ClientSettings.model_validate(clients), on_end)
        before.serve_by(whole(before.ended))
        return before

    trace = trace_of(*((20.0 * number, *size) for number, size in enumerate(sizes)))
    return Fleet(trace, make, leap=leap).run(), came


class Seen:
    """Before a pool: tells of what comes to it."""

    def __init__(self, pool: Pool, tell: Callable[[Request], None]) -> None:
        self._pool, self._tell = pool, tell

    def submit(self, request: Request) -> None:
        self._tell(request)
        self._pool.submit(request)

    def abort(self, request: Request) -> None:
        self._pool.abort(request)

    def close(self, end: float) -> None:
        self._pool.close(end)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.05, 0.4]),
    st.booleans(),
    st.booleans(),
    st.floats(0.01, 1.0),
    st.none() | st.floats(0.0, 2.0),
)
def test_a_client_gives_up_if_it_would_have_waited_longer(
    sizes: list[tuple[int, int]], rtt: float, streamed: bool, mesh: bool, ttft: float, more: float | None
) -> None:
    times = LinearStepTimes()
    plain, _ = run(sizes, rtt=rtt, streamed=streamed, mesh=mesh, times=times)
    timeout = None if more is None else ttft + more
    limits = {"ttft_timeout": ttft, "timeout": timeout}
    result, _ = run(sizes, rtt=rtt, streamed=streamed, mesh=mesh, times=times, clients=limits)
    for row in plain.requests.iter_rows(named=True):
        arrival, number = row["arrival"], row["request_id"]
        waits = [(ttft, row["first_token"]), (timeout or inf, row["finish"])]
        assume(all(abs(comes - arrival - limit) > 1e-9 for limit, comes in waits))  # sums of one order or the other
        late = [arrival + limit for limit, comes in waits if comes > arrival + limit]
        assert result.requests["status"][number] == ("timed_out" if late else "finished")
        gave_up = result.events.filter(kind="timed_out", request_id=number)
        assert gave_up["time"].to_list() == ([min(late)] if late else [])
        if not late:
            assert result.requests.row(number) == plain.requests.row(number)


@pytest.mark.parametrize("leap", [True, False])
def test_a_first_token_on_its_way_back_is_not_seen(leap: bool) -> None:
    """Half a round trip of 0.5 s there, a step of 0.125 s, half a round trip back, and a token of a byte at 1 kB/s."""
    seen = 0.25 + STEP + 0.25 + 0.001
    for limit, status in ((seen - 1e-6, "timed_out"), (seen + 1e-6, "finished")):
        result, _ = run([(10, 30)], rtt=0.5, clients={"ttft_timeout": limit}, leap=leap)
        assert result.requests["status"].item() == status


def test_an_answer_that_comes_whole_is_seen_with_its_last_token() -> None:
    whole = 0.25 + 8 * STEP + 0.25 + 8 * 0.001
    for limit, status in ((whole - 1e-6, "timed_out"), (whole + 1e-6, "finished")):
        result, _ = run([(10, 8)], rtt=0.5, streamed=False, clients={"ttft_timeout": limit})
        assert result.requests["status"].item() == status


@pytest.mark.parametrize(("streamed", "mesh"), [(True, False), (True, True), (False, False), (False, True)])
def test_who_has_its_answer_waits_for_nothing_more(streamed: bool, mesh: bool) -> None:
    _, came = run([(10, 8)] * 3, rtt=0.5, streamed=streamed, mesh=mesh)
    assert len(came) == 3 and [request.way_back for request in came] == [0.0] * 3
