"""The link between one engine's device, host memory and disk: each direction in turn, and the two at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.engine.offload.host_link import HostLink, HostLinkSettings
from sim.engine.offload.moves import DiskCopy, Move
from sim.engine.offload.settings import DiskSettings
from sim.engine.swap_space import BlockCopy
from sim.results.recorder import EventRecorder

OUT, INTO = 0.3, 0.2  # seconds a block
DISK = DiskSettings(blocks=100, read_bandwidth=10.0, write_bandwidth=5.0)


class StepTimes:
    def swap(self, out: int, into: int) -> float:
        return OUT * out + INTO * into


class Engine:
    """Notes when it is told what."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.told: list[tuple[float, Move | None]] = []

    def moved(self, move: Move) -> None:
        self.told.append((self.clock.now, move))

    def tend(self) -> None:
        self.told.append((self.clock.now, None))


def link() -> tuple[Clock, Engine, HostLink, EventRecorder]:
    clock, events = Clock(), EventRecorder()
    engine = Engine(clock)
    return clock, engine, HostLink(clock, 0, engine, StepTimes(), HostLinkSettings(1, DISK), events), events  # type: ignore[arg-type]


def blocks(count: int) -> BlockCopy:
    return BlockCopy(range(count), range(count))


def fetch(count: int, from_disk: int = 0) -> Move:
    return Move("fetch", blocks(count), DiskCopy(range(from_disk), range(from_disk)), request_id=7)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["fetch", "write"]), st.integers(1, 9), st.sampled_from([0.0, 0.1, 4.0]))))
def test_a_direction_carries_one_copy_after_the_other(asked: list[tuple[str, int, float]]) -> None:
    """Work is conserved: a copy begins when it is asked for or when the one before it ends, whichever is later."""
    clock, engine, way, _ = link()
    free_at, expected, now = {"fetch": 0.0, "write": 0.0}, [], 0.0
    for kind, count, gap in asked:
        now += gap
        clock.at(now, 5).callbacks.append(lambda _, kind=kind, count=count: way.begin(Move(kind, blocks(count))))
        seconds = count * (INTO if kind == "fetch" else OUT)
        free_at[kind] = max(free_at[kind], now) + seconds
        expected.append((free_at[kind], kind))
    clock.run_out()
    assert sorted((time, move.kind) for time, move in engine.told if move) == [
        (pytest.approx(time), kind) for time, kind in sorted(expected)
    ]


def test_a_step_waits_behind_what_its_direction_carries_and_others_behind_it() -> None:
    clock, engine, way, _ = link()
    way.begin(Move("write", blocks(10)))  # until 3.0
    assert way.before_step(out=1, into=0) == pytest.approx(3.3)
    assert way.before_step(out=0, into=5) == pytest.approx(1.0), "the other direction is free"
    way.begin(Move("write", blocks(1)))
    way.begin(fetch(5))
    clock.run_out()
    assert [(move.kind, time) for time, move in engine.told if move] == [
        ("fetch", pytest.approx(2.0)),
        ("write", pytest.approx(3.0)),
        ("write", pytest.approx(3.6)),
    ]


def test_a_step_copies_out_before_it_copies_in() -> None:
    _, _, way, _ = link()
    assert way.before_step(out=2, into=3) == pytest.approx(2 * OUT + 3 * INTO)


def test_a_block_comes_from_disk_by_way_of_host_memory() -> None:
    clock, engine, way, events = link()
    way.begin(fetch(6, from_disk=4))
    way.begin(fetch(1))  # it need not wait for the disk
    way.begin(Move("store", disk=DiskCopy([1, 2], [3, 4])))
    clock.run_out()
    assert [time for time, _ in engine.told] == pytest.approx([0.2, 2 / 5.0, 4 / 10.0 + 6 * INTO])
    rows = events.take_table().select("kind", "request_id", "amount", "detail").rows()
    assert rows == [("kv_fetch", 7, 1, "from host"), ("kv_store", None, 2, None), ("kv_fetch", 7, 6, "from disk")]


def test_an_engine_that_is_no_more_is_told_nothing() -> None:
    clock, engine, way, _ = link()
    way.begin(Move("write", blocks(3)))
    way.begin(fetch(3))
    way.wake(2.0)
    way.stop()
    clock.run_out()
    assert not engine.told


def test_who_wants_to_be_woken_keeps_no_clock_busy() -> None:
    clock, engine, way, _ = link()
    way.wake(2.0)
    assert clock.quiet
    clock.run_out()
    assert engine.told == [(2.0, None)]
