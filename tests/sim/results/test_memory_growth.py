"""Growth of memory over several lives of a process: that of each, and nothing of what a restart gives back."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.results.memory_metrics import compute
from sim.results.recorder import EventRecorder
from sim.results.tables import MEMORY

MIB = 1 << 20


def table_of(rows: list[tuple[float, int]], replica: int = 0) -> pl.DataFrame:
    """Rows of (time, reserved)."""
    known = {"time": [time for time, _ in rows], "reserved": [reserved for _, reserved in rows]}
    zero = {name: [0] * len(rows) for name in MEMORY if name not in known}
    return pl.DataFrame(zero | known | {"replica": [replica] * len(rows)}, schema=MEMORY)


def restarts(*times: tuple[float, float], replica: int = 0) -> pl.DataFrame:
    """Of (time, seconds)."""
    events = EventRecorder()
    for time, seconds in times:
        events.append(time, replica, "restart", seconds=seconds)
    return events.take_table()


def saw(rate: int, lives: int, length: int, down: int) -> list[tuple[float, int]]:
    """So many lives, each of which grows by `rate` bytes a second and then gives all back."""
    rows = []
    for life in range(lives):
        begin = life * (length + down)
        rows += [(float(begin + second), rate * second) for second in range(length)] + [(float(begin + length), 0)]
    return rows


def test_a_leak_that_restarts_cut_off_is_still_its_rate() -> None:
    rows, end = saw(MIB, lives=5, length=600, down=30), 5 * 630.0
    down = restarts(*((630.0 * life + 600.0, 30.0) for life in range(5)))
    assert compute(table_of(rows), end, down)["growth"] == pytest.approx(60 * MIB, rel=1e-3)
    assert abs(compute(table_of(rows), end)["growth"]) < 10 * MIB, "one line through all of it says nothing"  # type: ignore[arg-type]


def test_restarts_of_another_replica_and_after_the_end_are_none_of_its() -> None:
    rows = [(float(second), MIB * second) for second in range(600)]
    other = restarts((300.0, 30.0), replica=1)
    late = restarts((600.0, 30.0), (700.0, 1.0))
    alone = compute(table_of(rows), 600.0)["growth"]
    assert alone == compute(table_of(rows), 600.0, other)["growth"] == compute(table_of(rows), 600.0, late)["growth"]


def test_lives_of_less_than_a_minute_say_nothing() -> None:
    rows, down = saw(MIB, lives=3, length=50, down=5), restarts((50.0, 5.0), (105.0, 5.0), (160.0, 5.0))
    assert compute(table_of(rows), 165.0, down)["growth"] is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(30, 300), st.lists(st.integers(0, 10**6), min_size=1, max_size=8)), min_size=1,
                max_size=4))  # fmt: skip
def test_it_is_the_common_slope_of_the_nearest_lines(lives: list[tuple[int, list[int]]]) -> None:
    """Against least squares over fine steps of time, with one constant a life."""
    rows, down, now = [], [], 0.0
    times, reserved, life_of = [], [], []
    fine = 16
    for number, (length, values) in enumerate(lives):
        starts = [now + length * place / len(values) for place in range(len(values))]
        rows += list(zip(starts, values, strict=True))
        middles = now + (np.arange(length * fine) + 0.5) / fine
        late = middles > now + 60.0
        times.append(middles[late])
        reserved.append(np.array(values, float)[np.searchsorted(starts, middles[late], side="right") - 1])
        life_of.append(np.full(late.sum(), number))
        now += length
        if number < len(lives) - 1:
            down.append((now, 10.0))
            rows.append((now, 0))
            now += 10.0
    growth = compute(table_of(rows), now, restarts(*down))["growth"]
    time, bytes_, life = (np.concatenate(parts) for parts in (times, reserved, life_of))
    if not len(time):
        assert growth is None
        return
    for number in np.unique(life):
        own = life == number
        time[own] -= time[own].mean()
        bytes_[own] -= bytes_[own].mean()
    slope = 60.0 * float((time * bytes_).sum() / (time * time).sum())
    assert growth == pytest.approx(slope, rel=1e-2, abs=30.0 * fine)
