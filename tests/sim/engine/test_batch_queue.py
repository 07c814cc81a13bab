"""The queue on which batches form, by itself: when it opens, for whom, and what it says of that beforehand."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from batching_workloads import batchings
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.batching.adaptive_window import AdaptiveWindow, AdaptiveWindowSettings
from sim.engine.batching.batch_queue import BatchQueue
from sim.engine.batching.make import batch_queue
from sim.engine.config import EngineConfig
from sim.engine.ordering import ORDERINGS
from sim.engine.request import Request

BLOCKS, SIZE, SEATS = 12, 4, 5


@dataclass
class Plain:
    """Who gathers in one lane, and by the definitions, visited one by one, whether its window is open."""

    batching: dict[str, Any]
    arrivals: list[float] = field(default_factory=list)  # of all who ever came
    there: list[Request] = field(default_factory=list)  # as they came

    def timeout(self) -> float:
        policy = self.batching["policy"]
        if policy == "static":
            return 0.0
        if policy == "fixed_window":
            return self.batching["seconds"]
        settings = self.batching
        average: float | None = None
        for before, arrival in zip(self.arrivals, self.arrivals[1:], strict=False):
            weight = 1.0 if average is None else settings["smoothing"]
            average = weight * (arrival - before) + (1.0 - weight) * (average or 0.0)
        return min(settings["longest"], max(settings["minimum"], settings["factor"] * (average or 0.0)))

    def opens(self) -> float:
        opens = self.there[0].arrival + self.timeout()
        full = len(self.there) >= (self.batching["cap"] or SEATS)
        return min(opens, self.there[-1].arrival) if full else opens

    def is_open(self, now: float) -> bool:
        return bool(self.there) and self.opens() <= now


class Driven:
    """A `BatchQueue` between arrivals and seats, and beside it who gathers where."""

    def __init__(self, batching: dict[str, Any], policy: str) -> None:
        self.config = EngineConfig.model_validate(
            {"kv_blocks": BLOCKS, "block_size": SIZE, "max_num_seqs": SEATS, "batching": batching}
            | {"scheduling_policy": policy}
        )
        made: Any = self.config.batching
        self.batching = made.model_dump() | {"cap": made.cap, "joins": made.joins, "lanes": made.lanes}
        make_queue = ORDERINGS[policy](self.config).make_queue
        self.running: dict[Request, None] = {}
        queue = batch_queue(self.config, make_queue, make_queue(), self.running)
        assert queue is not None
        self.queue: BatchQueue = queue
        self.lanes: dict[int, Plain] = {}
        self.members: list[Request] = []  # let in, and not yet running
        self.now = 0.0
        self.count = 0
        self.told: list[float | None] = [None]
        self.queue.watch(self.told.append)

    def lane(self, request: Request) -> Plain:
        key = request.priority if self.batching["lanes"] else 0
        return self.lanes.setdefault(key, Plain(self.batching))

    @property
    def inside(self) -> list[Request]:
        return [*self.running, *self.members]

    def blocks(self, requests: list[Request]) -> int:
        return sum(-(-(one.prompt_tokens + one.output_tokens - 1) // SIZE) for one in requests)

    def arrive(self, prompt: int, priority: int) -> None:
        request = Request(self.count, self.now, prompt, 1, priority=priority)
        self.count += 1
        lane = self.lane(request)
        lane.arrivals.append(self.now)
        lane.there.append(request)
        self.queue.push(request)

    def admit(self) -> None:
        head = self.queue.head()
        assert (head is None) == (not self.members)
        if head is not None:
            assert self.queue.pop() is head
            self.members.remove(head)
            self.running[head] = None

    def finish(self) -> None:
        if self.running:
            first = next(iter(self.running))
            del self.running[first]
            self.queue.leaves(first)

    def preempt(self) -> None:
        if self.running:
            last = next(reversed(self.running))
            del self.running[last]
            self.queue.put_back(last)
            self.members.append(last)
            assert self.queue.head() is not None, "who was in a batch is shut out no more"

    def go(self, who: int) -> None:
        """A client goes, wherever his request waits."""
        waiting = [*self.members, *(one for lane in self.lanes.values() for one in lane.there)]
        if waiting:
            gone = waiting[who % len(waiting)]
            assert self.queue.remove(gone)
            assert not self.queue.remove(gone)
            gathered = gone not in self.members
            for place in (self.members, *(lane.there for lane in self.lanes.values())):
                if gone in place:
                    place.remove(gone)
            if gathered:
                self.check_forecast()

    def form(self) -> None:
        was_inside = self.inside
        self.queue.form(self.now)
        before = {key: list(lane.there) for key, lane in self.lanes.items()}
        let_in: list[Request] = []
        for lane in self.lanes.values():
            new = [one for one in lane.there if one not in self.queue._lane_of]
            let_in += new
            lane.there = [one for one in lane.there if one not in new]
        self.members += let_in
        self.check_formed(was_inside, let_in, before)

    def check_formed(self, inside: list[Request], let_in: list[Request], before: dict[int, list[Request]]) -> None:
        room = SEATS - len(inside)
        if self.batching["joins"] == "idle":
            room = 0 if inside else min(SEATS, self.batching["cap"] or SEATS)
        assert len(let_in) <= max(0, room)
        if self.batching["fit_memory"]:
            assert self.blocks(self.inside) <= BLOCKS
        for key, there in before.items():
            new = [one for one in there if one in let_in]
            if new:
                assert Plain(self.batching, self.lanes[key].arrivals, there).is_open(self.now)
            assert all(self.order(one) < self.order(left) for one in new for left in self.lanes[key].there), "in order"
        # Where a window is open and somebody is left there is no seat for him, or no memory; and nobody goes before
        # him through another window.
        for key in sorted(self.lanes, reverse=True):
            lane = self.lanes[key]
            if lane.is_open(self.now):
                assert not any(one in let_in for other in before if other < key for one in before[other])
                if len(let_in) < room:
                    assert self.batching["fit_memory"]
                    assert self.blocks([*self.inside, min(lane.there, key=self.order)]) > BLOCKS
                break

    def check_forecast(self) -> None:
        """When a window opens next, where there are seats and memory does not matter."""
        room = SEATS - len(self.inside)
        if self.batching["joins"] == "idle" and self.inside:
            room = 0
        opens = [lane.opens() for lane in self.lanes.values() if lane.there]
        if room <= 0 or not opens:
            assert self.queue.opens_at is None
        elif not self.batching["fit_memory"]:
            assert self.queue.opens_at == pytest.approx(min(opens))

    def order(self, request: Request) -> tuple[float, ...]:
        urgency = -request.priority if self.config.scheduling_policy == "priority" else 0
        return urgency, request.arrival, request.request_id


actions = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.003, 0.02, 0.1, 0.3])),
    st.tuples(st.just("arrive"), st.integers(1, BLOCKS * SIZE), st.integers(0, 2)),
    st.tuples(st.just("arrive"), st.integers(1, 2 * SIZE), st.integers(0, 2)),
    st.just(("form",)),
    st.just(("admit",)),
    st.just(("finish",)),
    st.just(("preempt",)),
    st.tuples(st.just("go"), st.integers(0, 20)),
)


@settings(max_examples=200, deadline=None)
@given(batchings(SEATS), st.sampled_from(["fcfs", "priority"]), st.lists(actions, max_size=40))
def test_it_opens_when_it_should_and_for_whom_there_is_room(
    batching: dict[str, Any], policy: str, played: list[Any]
) -> None:
    driven = Driven(batching, policy)
    for action, *arguments in played:
        if action == "wait":
            # What it answers changes with time only where it said so.
            opens_at = driven.queue.opens_at
            later = driven.now + arguments[0]
            gathering = sum(len(lane.there) for lane in driven.lanes.values())
            if opens_at is None or opens_at > driven.now:
                driven.now = later if opens_at is None else min(later, math.nextafter(opens_at, -math.inf))
                driven.form()
                assert sum(len(lane.there) for lane in driven.lanes.values()) == gathering
                if opens_at is not None and opens_at <= later:
                    driven.now = opens_at
                    driven.form()
                    refused = batching["fit_memory"] and driven.queue.opens_at is None
                    assert sum(len(lane.there) for lane in driven.lanes.values()) < gathering or refused
            driven.now = later
        else:
            getattr(driven, action)(*arguments)
        assert driven.told[-1] == driven.queue.opens_at
        if action in ("form", "arrive"):
            driven.check_forecast()
        if (memory := driven.queue._memory) is not None:
            assert memory._inside.keys() == set(driven.inside)
            assert memory._free == SIZE * (BLOCKS - driven.blocks(driven.inside))
        assert len(driven.queue) == len(driven.members) + sum(len(lane.there) for lane in driven.lanes.values())


def test_nobody_is_shut_out_for_ever() -> None:
    """Whatever is left when nobody comes any more goes in, batch by batch, as those before it leave."""
    driven = Driven({"policy": "adaptive_window", "minimum": 0.1, "longest": 0.5, "fit_memory": True}, "fcfs")
    for prompt in range(1, 25):
        driven.now += 0.01 * prompt
        driven.arrive(prompt, 0)
    for _ in range(100):
        driven.now += 0.5
        driven.form()
        while driven.members:
            driven.admit()
        driven.finish()
    assert not len(driven.queue)
    assert not driven.running


def timeouts(arrivals: list[float], **settings: float) -> list[float]:
    made = AdaptiveWindowSettings.model_validate(
        {"policy": "adaptive_window", "minimum": 0.1, "longest": 2.0} | settings
    )
    window = AdaptiveWindow(made)
    out = []
    for number, arrival in enumerate(arrivals):
        window.arrived(Request(number, arrival, 1, 1))
        out.append(window.timeout)
    return out


def test_the_adaptive_timeout_by_hand() -> None:
    """Gaps of 1, 0.5, 0, 8 and 0.5 s: the average is 1, then 0.9, 0.72, 2.176 and 1.8408 s."""
    found = timeouts([0.0, 1.0, 1.5, 1.5, 9.5, 10.0])
    assert found == pytest.approx([0.1, 0.8, 0.72, 0.576, 1.7408, 1.47264])


def test_the_adaptive_timeout_is_between_its_bounds() -> None:
    assert timeouts([0.0, 100.0]) == [0.1, 2.0]
    assert timeouts([0.0, 0.001, 0.002]) == [0.1, 0.1, 0.1]


@given(st.lists(st.floats(0.0, 10.0), min_size=2, max_size=20))
def test_with_full_smoothing_it_is_the_last_gap(gaps: list[float]) -> None:
    arrivals = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    last = arrivals[-1] - arrivals[-2]
    expected = min(2.0, max(0.1, 0.5 * last))
    assert timeouts(arrivals, smoothing=1.0, factor=0.5)[-1] == pytest.approx(expected)


def test_every_lane_has_its_own_window_and_average() -> None:
    batching = {"policy": "adaptive_window", "minimum": 0.0, "longest": 9.0, "lanes": True, "fit_memory": False}
    driven = Driven(batching, "fcfs")
    for time, priority in ((0.0, 1), (0.5, 0), (1.0, 1), (2.5, 0)):
        driven.now = time
        driven.arrive(4, priority)
    # The urgent come a second apart, the others two: their oldest wait 0.8 and 1.6 s.
    assert driven.queue.opens_at == pytest.approx(0.8)
    driven.form()
    assert [one.priority for one in driven.members] == [1, 1, 0, 0], "both are open by now"


def test_a_reached_cap_opens_only_its_own_lane() -> None:
    driven = Driven({"policy": "fixed_window", "seconds": 5.0, "cap": 2, "lanes": True, "fit_memory": False}, "fcfs")
    for priority in (0, 1, 0):
        driven.now += 1.0
        driven.arrive(4, priority)
    driven.form()
    assert [one.request_id for one in driven.members] == [0, 2]
    assert driven.queue.opens_at == 2.0 + 5.0


def nearly_full(**batching: Any) -> Driven:
    """Ten of twelve blocks are taken; the window is never shut."""
    driven = Driven({"policy": "fixed_window", "seconds": 0.0} | batching, "priority")
    driven.arrive(10 * SIZE, 1)
    driven.form()
    driven.admit()
    return driven


def test_nobody_goes_before_a_more_urgent_lane_that_finds_no_memory() -> None:
    driven = nearly_full(lanes=True)
    driven.arrive(4 * SIZE, 1)
    driven.arrive(SIZE, 0)
    driven.form()
    assert not driven.members
    assert driven.queue.opens_at is None
    driven.finish()
    driven.form()
    assert [one.request_id for one in driven.members] == [1, 2]


def test_who_comes_before_one_that_finds_no_memory_is_let_in() -> None:
    driven = nearly_full()
    driven.arrive(4 * SIZE, 0)
    driven.form()
    assert driven.queue.opens_at is None
    driven.now = 1.0
    driven.arrive(SIZE, 0)
    assert driven.queue.opens_at is None, "he stands behind"
    driven.arrive(SIZE, 2)
    assert driven.queue.opens_at == 0.0, "at once"
    driven.form()
    assert [one.request_id for one in driven.members] == [3]
