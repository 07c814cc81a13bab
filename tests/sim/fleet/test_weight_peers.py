"""Weights that hosts send each other: faster or not at all, the right version, and nothing lost with a sender."""

from functools import partial
from typing import Any

import polars as pl
from engine_workloads import BURST, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from weight_runs import SIZE, cache_settings, loads, requests_for, run, told, with_models

from sim.engine.clock import Clock
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.fleet.weights.cache import WeightCache
from sim.fleet.weights.models import Models
from sim.fleet.weights.peers import WeightPeers
from sim.fleet.weights.settings import WeightCacheSettings
from sim.results.recorder import EventRecorder
from sim.study.scenario import scenario_of
from sim.study.simulate import simulate


def sent(result: Any) -> list[tuple[float, float, int, str, str]]:
    """(since, seconds, sender, receiver, model)."""
    return told(result, "weights_sent").select("time", "seconds", "replica", "why", "model").rows()


def waits(result: Any) -> list[tuple[int, float, str]]:
    return told(result, "model_load").select("request_id", "seconds", "why").sort("request_id").rows()


def test_weights_come_from_the_host_that_has_them() -> None:
    """Round robin over two hosts: the first reads a for a second, the other gets it in a quarter of one."""
    result = run(requests_for((0, "a"), (5, "a"), (7, "a")), {"peer_bandwidth": 4 * SIZE}, replicas=2)
    assert waits(result) == [(0, 1.0, "miss"), (1, 0.25, "miss")]
    assert sent(result) == [(5.0, 0.25, 0, "1", "a")]
    assert loads(result)["replica"].to_list() == [0, 1]


def test_who_is_still_loading_has_nothing_to_send() -> None:
    result = run(requests_for((0, "a"), (0.5, "a")), {"peer_bandwidth": "unlimited"}, replicas=2)
    assert waits(result) == [(0, 1.0, "miss"), (1, 1.0, "miss")] and not sent(result)


def test_from_the_disk_where_that_promises_more() -> None:
    """The third would have half of a link of 160 bytes/s, or 100 bytes/s of its own."""
    rows = ((0, "a"), (5, "a"), (5, "a"))
    result = run(requests_for(*rows), {"peer_bandwidth": 1.6 * SIZE}, replicas=3)
    assert [row[2:4] for row in sent(result)] == [(0, "1")]
    assert waits(result) == [(0, 1.0, "miss"), (1, 0.625, "miss"), (2, 1.0, "miss")]
    slower = run(requests_for(*rows), {"peer_bandwidth": 0.9 * SIZE}, replicas=3)
    assert not sent(slower)


def test_of_several_holders_the_one_that_sends_least() -> None:
    """The third host's load of a is under way when the fourth begins: each has a holder of its own."""
    rows = ((0, "a"), (0, "a"), (5, "a"), (5.1, "a"))
    result = run(requests_for(*rows), {"peer_bandwidth": 2 * SIZE}, replicas=4)
    assert [row[2:4] for row in sent(result)] == [(0, "2"), (1, "3")]
    assert [row[1] for row in waits(result)[2:]] == [0.5, 0.5]


def test_an_older_version_is_not_sent() -> None:
    models = Models(SIZE, {}, update_every=100.0, seed=0)
    change = next(time for time in range(1, 101) if models.version("a", float(time)) == 1)
    cache = {"peer_bandwidth": "unlimited", "update_every": 100.0, "preload": ["a"]}
    rows = [(change - 1.5, "a"), (change + 1, "a"), (change + 3, "a")]
    result = run(requests_for(*rows), cache, replicas=2)
    # The second finds version 0 on both hosts and reads version 1; the third's host gets it from there.
    assert waits(result) == [(1, 1.0, "stale"), (2, 0.0, "stale")]
    assert [row[2:] for row in sent(result)] == [(1, "0", "a")]


def test_weights_that_are_being_sent_stay() -> None:
    """Room for one model: b has to wait until a, which nobody runs any more, has been sent."""
    cache = {"capacity_models": 1, "peer_bandwidth": 2 * SIZE, "load_bandwidth": SIZE}
    result = run(requests_for((0, "a"), (5, "a"), (5.125, "b")), cache, replicas=2)
    assert sent(result) == [(5.0, 0.5, 0, "1", "a")]
    assert waits(result)[2][1] == 1.375  # until 5.5, and then a second


class Hosts:
    """Caches without engines: requests are handed on and finish at once."""

    def __init__(self, count: int, cache: dict[str, Any]) -> None:
        self.clock, self.events, self.served = Clock(), EventRecorder(), list[tuple[int, int, float]]()
        checked = WeightCacheSettings.model_validate({"load_bandwidth": SIZE, **cache})
        peers = WeightPeers()
        self.caches = [
            WeightCache(
                checked, Models(SIZE, {}), ["a"] * 10, self.clock, number, self.events, partial(self._serve, number),
                peers=peers,
            )
            for number in range(count)
        ]  # fmt: skip
        for one in self.caches:
            one.begin()

    def at(self, time: float, call: Any) -> None:
        self.clock.at(time, 1).callbacks = [lambda _: call()]

    def ask(self, time: float, host: int, request_id: int) -> None:
        self.at(time, lambda: self.caches[host].submit(Request(request_id, time, 1, 1)))

    def _serve(self, host: int, request: Request) -> None:
        self.served.append((request.request_id, host, self.clock.now))
        self.at(self.clock.now, lambda: self.caches[host].finished(request))


def test_a_load_begins_anew_where_its_sender_ends() -> None:
    """Half of it is sent when the sender ends; then it is read as a whole."""
    hosts = Hosts(2, {"peer_bandwidth": 2 * SIZE})
    hosts.ask(0.0, 0, 0)
    hosts.ask(5.0, 1, 1)
    hosts.at(5.25, hosts.caches[0].stop)
    hosts.clock.run_out()
    assert hosts.served == [(0, 0, 1.0), (1, 1, 6.25)]
    assert "weights_sent" not in hosts.events.take_table()["kind"].to_list()


def test_a_load_goes_on_from_another_holder() -> None:
    hosts = Hosts(3, {"peer_bandwidth": 2 * SIZE})
    hosts.ask(0.0, 0, 0)
    hosts.ask(0.0, 2, 1)
    hosts.ask(5.0, 1, 2)
    hosts.at(5.25, hosts.caches[0].stop)
    hosts.clock.run_out()
    assert hosts.served[-1] == (2, 1, 5.75)
    table = hosts.events.take_table().filter(pl.col("kind") == "weights_sent")
    assert table.select("time", "replica", "detail").rows() == [(5.25, 2, "1 a")]


def test_a_receiver_that_ends_is_sent_nothing_more() -> None:
    hosts = Hosts(2, {"peer_bandwidth": 2 * SIZE, "ttl": 1.0})
    hosts.ask(0.0, 0, 0)
    hosts.ask(1.5, 1, 1)
    hosts.at(1.75, hosts.caches[1].stop)
    hosts.ask(9.0, 0, 2)  # the sender's weights were idle again, and went
    hosts.clock.run_out()
    assert hosts.served == [(0, 0, 1.0), (2, 0, 10.0)]


@settings(max_examples=60, deadline=None)
@given(configs(), traces(id_tokens=16), cache_settings(), st.integers(2, 4), st.integers(0, 5))
def test_every_copy_is_of_a_holder_and_of_a_load(
    config: EngineConfig, trace: pl.DataFrame, cache: dict[str, Any], replicas: int, seed: int
) -> None:
    trace = with_models(trace)
    result = run(trace, {**cache, "peer_bandwidth": 1000.0}, config=config, replicas=replicas, seed=seed)
    assert result.requests["status"].to_list() == ["finished"] * len(trace)
    loaded = {
        (row["replica"], row["model"], row["time"]): row["seconds"] for row in loads(result).iter_rows(named=True)
    }
    there = told(result, "weights_loaded").with_columns(end=pl.col("time") + pl.col("seconds"))
    for since, seconds, sender, receiver, model in sent(result):
        assert sender != int(receiver)
        took = loaded[int(receiver), model, since]
        assert took >= seconds - 1e-9
        earlier = there.filter(
            (pl.col("replica") == sender) & (pl.col("model") == model) & (pl.col("end") <= since + 1e-9)
        )
        assert len(earlier)


@settings(max_examples=30, deadline=None)
@given(configs(), traces(id_tokens=16), cache_settings(), st.sampled_from([200.0, "unlimited"]))
def test_a_host_alone_has_no_peers(
    config: EngineConfig, trace: pl.DataFrame, cache: dict[str, Any], peer_bandwidth: Any
) -> None:
    trace = with_models(trace)
    one, other = (
        run(trace, {**cache, "peer_bandwidth": bandwidth}, config=config) for bandwidth in (None, peer_bandwidth)
    )
    assert_frame_equal(one.requests, other.requests, check_exact=True)
    assert_frame_equal(one.events, other.events, check_exact=True)


def test_in_a_scenario() -> None:
    scenario = {
        **BURST,
        "engine": {"preset": "vllm-0.11"},
        "fleet": {"replicas": 3, "weight_cache": {"load_bandwidth": 1e9, "peer_bandwidth": 1e11}},
    }
    scenario["trace"] = {"synth": {**BURST["trace"]["synth"], "arrivals": {"process": "constant", "rate": 0.05}}}
    alone = simulate(scenario_of(scenario, {"fleet.weight_cache.peer_bandwidth": None}))
    helped = simulate(scenario_of(scenario, {}))
    kinds = helped.events["kind"].to_list()
    assert kinds.count("weights_sent") == 2 and "weights_sent" not in alone.events["kind"].to_list()
    assert helped.metrics["weights"]["wait"]["mean"] < 0.4 * alone.metrics["weights"]["wait"]["mean"]
    assert any(told.name == "fleet.weight_cache.peer_bandwidth" for told in helped.assumptions)
