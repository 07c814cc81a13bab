"""Requests are released once, in order, and turns after their parents."""

from hypothesis import given
from hypothesis import strategies as st

from validate.recording import Lateness
from validate.replay.arrivals import Arrivals

times = st.integers(0, 50).map(lambda n: n / 8)


@given(st.lists(times, max_size=20), st.lists(times, min_size=1, max_size=10).map(sorted))
def test_everything_due_is_released_once_and_in_order(arrivals, looks):
    pending = Arrivals({"request_id": i, "arrival": time} for i, time in enumerate(arrivals))
    seen = []
    for now in looks:
        released = list(pending.release(now))
        assert all(due <= now for due, _ in released)
        assert pending.next_due is None or pending.next_due > now
        seen += released
    expected = sorted((time, i) for i, time in enumerate(arrivals) if time <= looks[-1])
    assert [(due, row["request_id"]) for due, row in seen] == expected


def test_a_turn_is_due_its_think_time_after_its_parents_answer():
    pending = Arrivals(
        [
            {"request_id": 0, "arrival": 0.0},
            {"request_id": 1, "arrival": None, "parent": 0, "think_time": 2.0},
            {"request_id": 2, "arrival": None, "parent": 0, "think_time": None},
            {"request_id": 3, "arrival": 0.5, "parent": 0, "think_time": 9.0},  # the trace's own arrival counts
        ]
    )
    assert [row["request_id"] for _, row in pending.release(1.0)] == [0, 3]
    assert pending.next_due is None
    pending.answered(0, 4.0)
    pending.answered(3, 4.5)
    assert [(due, row["request_id"]) for due, row in pending.release(10.0)] == [(4.0, 2), (6.0, 1)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300))
def test_lateness_is_ordered(seconds):
    lateness = Lateness.of(seconds)
    assert lateness.requests == len(seconds)
    assert lateness.p99 in seconds
    assert sum(value > lateness.p99 for value in seconds) <= len(seconds) // 100
    assert 0 <= lateness.mean <= lateness.max + 1e-12
    assert lateness.max == max(seconds)


def test_no_arrival_is_not_late():
    assert Lateness.of([]) == Lateness(0, 0.0, 0.0, 0.0)
