"""A replica starts in parts, each as long as is set; what is shared is shared; nothing is started for nobody."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from engine_workloads import LinearStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled_fleets import PLAIN, cold_starts, requests_at, scaled

from sim.engine.clock import Clock
from sim.fleet.cold_start import ColdStart
from sim.fleet.cold_start_settings import GRAPH_SECONDS, GRAPHS, INIT_SECONDS, ColdStartSettings, NodeSettings
from sim.fleet.duration import Lognormal
from sim.fleet.fleet import FleetRun
from sim.fleet.nodes import Node, Nodes
from sim.fleet.pool import Pool
from sim.fleet.replica import ReplicaKind
from sim.fleet.world import World
from sim.results.recorder import RequestRecorder
from sim.results.scaling_metrics import compute
from sim.results.sleeping import stays

STEPS = [{"at": 0, "replicas": 1}, {"at": 10, "replicas": 3}]
UNTIL = requests_at([1.0, 200.0])  # long enough for every start


def run(cold: dict[str, Any], steps: list[dict[str, Any]] = STEPS, **more: Any) -> FleetRun:
    return scaled(UNTIL, {"policy": "schedule", "min": 0, "steps": steps}, cold=cold, **more)


def parts(result: FleetRun, replica: int) -> list[tuple[float, str, float]]:
    own = result.events.filter((pl.col("kind") == "cold_start") & (pl.col("replica") == replica))
    return [
        (round(time, 9), detail, round(took, 9))
        for time, detail, took in own.select("time", "detail", "seconds").rows()
    ]


def ready(result: FleetRun) -> list[float | None]:
    return [None if time is None else round(time, 9) for time in result.replicas["ready"].to_list()]


def test_the_parts_follow_one_another() -> None:
    cold = {
        "node_provision": 20.0,
        "image_bytes": 600,
        "image_bandwidth": 100.0,
        "weights": {"bandwidth": 50.0, "bytes": 400},
        "engine_init": 5.0,
        "graph_capture": 2.0,
    }
    result = run(cold)
    expected = [(10.0, "node", 20.0), (30.0, "image", 6.0), (36.0, "weights from disk", 8.0)]
    expected += [(44.0, "init", 5.0), (49.0, "graphs", 2.0)]
    assert parts(result, 1) == parts(result, 2) == expected  # each on a node of its own
    assert ready(result) == [0.0, 51.0, 51.0]
    assert parts(result, 0) == []


def test_on_one_node_the_image_is_pulled_once_and_the_disk_is_shared() -> None:
    cold = {
        "node_provision": 20.0,
        "image_bytes": 600,
        "image_bandwidth": 100.0,
        "weights": {"bandwidth": 50.0, "bytes": 400},
        "nodes": {"gpus": 4, "ready": 0},
    }
    steps = [{"at": 0, "replicas": 1}, {"at": 10, "replicas": 2}, {"at": 15, "replicas": 6}, {"at": 80, "replicas": 8}]
    result = run(cold, steps)
    # The first ones find the node of the replica that is there, with its image.
    assert parts(result, 1) == [(10.0, "weights from disk", 14.0)]  # alone for 5 s
    assert parts(result, 2) == parts(result, 3)
    assert parts(result, 2)[0][:2] == (15.0, "weights from disk")
    # Replicas 4 and 5 share a new node: one pull, then half the disk each.
    both = [(15.0, "node", 20.0), (35.0, "image", 6.0), (41.0, "weights from disk", 16.0)]
    assert parts(result, 4) == parts(result, 5) == both
    # Later ones find the image there.
    assert parts(result, 6) == parts(result, 7) == [(80.0, "weights from disk", 16.0)]


def test_weights_from_shared_storage_and_from_peers() -> None:
    shared = run({"weights": {"source": "shared", "bandwidth": 50.0, "bytes": 400}})
    assert parts(shared, 1) == parts(shared, 2) == [(10.0, "weights from shared", 16.0)]
    peer = {"weights": {"source": "peer", "bandwidth": 100.0, "fallback_bandwidth": 10.0, "bytes": 400}}
    steps = [{"at": 0, "replicas": 1}, {"at": 10, "replicas": 3}, {"at": 30, "replicas": 6}]
    result = run(peer, steps)
    assert parts(result, 1) == parts(result, 2) == [(10.0, "weights from peer 0", 8.0)]
    assert [parts(result, number)[0][1] for number in (3, 4, 5)] == [
        f"weights from peer {number}" for number in (0, 1, 2)
    ]
    alone = run(peer, [{"at": 0, "replicas": 0}, {"at": 10, "replicas": 2}], replicas=0)
    assert parts(alone, 0) == parts(alone, 1) == [(10.0, "weights from disk", 40.0)]


def test_an_engine_that_sleeps_is_woken_and_not_started() -> None:
    cold = {
        "engine_init": 50.0,
        "weights": {"bandwidth": 50.0, "bytes": 400},
        "sleep": {"replicas": 2, "ready": 1, "level": 1, "wake": 0.5, "share": 0.1},
    }
    steps = [
        {"at": 0, "replicas": 1},
        {"at": 10, "replicas": 3},
        {"at": 90, "replicas": 0},
        {"at": 100, "replicas": 2},
        {"at": 150, "replicas": 3},
    ]
    result = run(cold, steps)
    assert parts(result, 1) == [(10.0, "wake", 0.5)]
    assert [name for _, name, _ in parts(result, 2)] == ["weights from disk", "init"]
    # Of three that were given back two sleep, and are woken at 100 s; the third was ended, and one is started anew.
    assert parts(result, 3) == parts(result, 4) == [(100.0, "wake", 0.5)]
    assert [name for _, name, _ in parts(result, 5)] == ["weights from disk", "init"]
    kinds = result.events.filter(pl.col("kind").is_in(["asleep", "woken"])).select("time", "kind", "replica").rows()
    slept = [(0.0, "asleep", -1), (10.0, "woken", 1), (90.0, "asleep", 1), (90.0, "asleep", 2)]
    assert sorted(kinds) == sorted([*slept, (100.0, "woken", 3), (100.0, "woken", 4)])
    asleep = stays(result.events, result.replicas, {"": 0.1})
    numbers = compute(result.requests, result.steps, result.replicas, result.events, initial={"": 1}, asleep=asleep)
    asleep_from_first_arrival = (10.0 - 1.0) + 2 * 10.0
    assert numbers["asleep_gpu_hours"] == pytest.approx(asleep_from_first_arrival / 3600)


def test_weights_are_gone_at_the_second_level_of_sleep() -> None:
    sleep = {"replicas": 1, "ready": 1, "level": 2, "wake": 0.5, "share": 0.1}
    result = run(
        {"weights": {"bandwidth": 50.0, "bytes": 400}, "engine_init": 9.0, "sleep": sleep},
        [*STEPS[:1], {"at": 10, "replicas": 2}],
    )
    assert parts(result, 1) == [(10.0, "weights from disk", 8.0), (18.0, "wake", 0.5)]


def test_a_start_that_is_not_wanted_any_more_ends_and_gives_back_its_place() -> None:
    cold = {"node_provision": 30.0, "engine_init": 30.0, "nodes": {"gpus": 1, "max": 2, "keep": 0.0}}
    steps = [{"at": 0, "replicas": 1}, {"at": 10, "replicas": 3}, {"at": 20, "replicas": 1}, {"at": 50, "replicas": 2}]
    result = run(cold, steps)
    gone = result.replicas.filter(pl.col("why") == "scaled down")
    assert gone["replica"].to_list() == [1, 2]
    assert gone["ready"].to_list() == [None, None]
    assert parts(result, 1) == parts(result, 2) == []
    assert parts(result, 3) == [(50.0, "node", 30.0), (80.0, "init", 30.0)]


def test_where_there_are_no_more_nodes_a_replica_waits_for_room() -> None:
    cold = {"node_provision": 5.0, "nodes": {"gpus": 2, "max": 1}}
    steps = [{"at": 0, "replicas": 1}, {"at": 10, "replicas": 4}]
    result = run(cold, steps)
    assert ready(result) == [0.0, 10.0, None, None]
    # The youngest leave first, so the one that waits longest is kept, and gets the place of one that ends.
    stuck = requests_at([1.0, 1.1, 2.0, 200.0]).with_columns(output_tokens=pl.Series([3000, 1, 1, 1]))
    again = scaled(stuck, {"policy": "schedule", "steps": steps, "victims": "least_loaded"}, cold=cold)
    assert ready(again)[:2] == [0.0, 10.0]


def test_draws_are_of_the_replica_and_not_of_their_order() -> None:
    spread = {"mean": 10.0, "deviation": 5.0}
    one = run({"engine_init": spread}, [{"at": 0, "replicas": 1}, {"at": 10, "replicas": 4}])
    other = run(
        {"engine_init": spread}, [{"at": 0, "replicas": 1}, {"at": 10, "replicas": 2}, {"at": 20, "replicas": 4}]
    )
    took = [parts(result, number)[0][2] for result in (one, other) for number in (1, 2, 3)]
    assert took[:3] == pytest.approx(took[3:])
    assert len(set(took[:3])) == 3
    assert ready(run({"engine_init": spread}, seed=1)) != ready(run({"engine_init": spread}))


@given(st.floats(0.1, 1e3), st.floats(0, 1e3))
def test_a_log_normal_has_its_mean_and_deviation(mean: float, deviation: float) -> None:
    class Normals:
        """A generator of quantiles instead of draws."""

        def __init__(self) -> None:
            self.given: tuple[float, float] = (0.0, 0.0)

        def lognormal(self, centre: float, width: float) -> float:
            self.given = centre, width
            return float(np.exp(centre))

    normals = Normals()
    Lognormal(mean=mean, deviation=deviation).draw(normals)  # type: ignore[arg-type]
    centre, width = normals.given
    assert np.exp(centre + width**2 / 2) == pytest.approx(mean)
    assert np.sqrt(np.expm1(width**2)) * mean == pytest.approx(deviation, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.integers(1, 2),
    st.none() | st.integers(1, 3),
    st.sampled_from([0.0, 2.0, 50.0]),
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 9)), max_size=25),
)
def test_no_node_has_more_than_its_gpus_and_nobody_waits_who_has_room(
    gpus: int, per_replica: int, most: int | None, keep: float, actions: list[tuple[int, bool, int]]
) -> None:
    if gpus < per_replica:
        gpus = per_replica
    clock = Clock()
    made: list[Node] = []
    nodes = Nodes(clock, NodeSettings(gpus=gpus, max=most, keep=keep), per_replica, made.append)
    placed: dict[int, Node] = {}
    asked: list[int] = []
    left: set[int] = set()

    def look() -> None:
        there = [number for number in asked if number not in left]
        for node in made:
            used = [number for number in there if nodes._of.get(number) is node]
            assert node.free == gpus - per_replica * len(used) >= 0
        assert most is None or len(nodes._nodes) <= most
        waiting = [number for number, _, _ in nodes._queue]
        assert waiting == [number for number in there if number not in nodes._of]  # in the order in which they came
        if waiting:
            assert len(nodes._nodes) == most
            assert all(node.free < per_replica for node in nodes._nodes.values())

    def act(come: bool, which: int) -> None:
        there = [number for number in asked if number not in left]
        if come or not there:
            number = len(asked)
            asked.append(number)
            nodes.place(number, 3.0, lambda node, number=number: placed.__setitem__(number, node))
        else:
            number = there[which % len(there)]
            left.add(number)
            nodes.leave(number)
        look()

    time = 0.0
    for seconds, come, which in actions:
        time += seconds
        clock.at(time, 1).callbacks = [lambda _, come=come, which=which: act(come, which)]
    clock.run_out()
    look()
    assert set(nodes._of) <= set(placed)
    assert all(placed[number].ready for number in nodes._of)


@settings(deadline=None, max_examples=40)
@given(cold_starts().filter(lambda cold: cold is not None), st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_parts_add_up_to_the_time_from_asking_to_ready(cold: dict[str, Any], sizes: list[int]) -> None:
    """Of every replica that joins, if it never had to wait for a node that somebody else had to leave."""
    steps = [{"at": 2.0 * index, "replicas": size} for index, size in enumerate([*sizes, 1])]
    if "nodes" in cold:
        cold["nodes"]["max"] = None
    scaler = {"policy": "schedule", "min": 0, "steps": steps, "sync_interval": 0.5, "scrape_interval": 0.0}
    result = scaled(requests_at([1.0, 30.0]), scaler, cold=cold, replicas=1)
    took = result.events.filter(pl.col("kind") == "cold_start").group_by("replica").agg(pl.col("seconds").sum())
    total = dict(took.rows())
    for number, requested, began in result.replicas.select("replica", "requested", "ready").rows():
        if began is not None:
            assert began - requested == pytest.approx(total.get(number, 0.0), abs=1e-9)


def test_what_is_not_given_is_measured_or_published_and_said() -> None:
    given = ColdStartSettings.model_validate({"weights": {"bandwidth": 1e9}})
    resolved, notes = given.resolve(16_000, 35, None)
    assert resolved.engine_init == INIT_SECONDS
    assert resolved.graph_capture == pytest.approx(35 * GRAPH_SECONDS / GRAPHS)
    assert resolved.weights is not None and resolved.weights.bytes == 16_000
    told = {note.name: (note.value, note.source) for note in notes}
    assert told["fleet.cold_start.engine_init"] == (INIT_SECONDS, "assumed")
    assert told["fleet.cold_start.node_provision"] == (0.0, "assumed")
    assert told["fleet.cold_start.weights.bytes"] == (16_000, "assumed")
    measured, notes = given.resolve(16_000, 35, 0.2)
    assert measured.graph_capture == pytest.approx(7.0)
    assert next(note for note in notes if note.name.endswith("graph_capture")).source == "measured"


def test_a_pool_without_an_autoscaler_can_grow_too() -> None:
    world = World(RequestRecorder(pl.Series([1]).to_numpy(), pl.Series([1]).to_numpy()))
    pool = Pool(world, ReplicaKind(PLAIN, LinearStepTimes()), lambda *_: None, replicas=0)
    ColdStart(world, pool, ColdStartSettings(engine_init=3.0, graph_capture=1.0))
    replica = pool.grow()
    assert pool.starting == [replica]
    world.clock.run_out()
    assert pool.members == [replica]
    assert world.replicas.table()["ready"].to_list() == [4.0]
