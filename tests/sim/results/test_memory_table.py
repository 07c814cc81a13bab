"""The memory table and its numbers: rows where something changes, and metrics against a sum over fine steps of time."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.results.memory_metrics import compute
from sim.results.memory_recorder import MemoryRecorder, memory_table
from sim.results.tables import MEMORY

COLUMNS = list(MEMORY)[2:]


def values(reserved: int, active: int) -> tuple[int, ...]:
    known = {"reserved": reserved, "active": active}
    return tuple(known.get(name, 0) for name in COLUMNS)


# Told at rising times; small numbers, so that the same comes again.
told = st.lists(
    st.tuples(st.floats(0.01, 3.0), st.integers(1, 3), st.integers(0, 1)), min_size=1, max_size=40
)  # fmt: skip


@given(told, st.sampled_from([0.1, 1.0, 5.0]), st.data())
def test_rows_do_not_depend_on_how_often_nothing_new_is_told(
    told: list[tuple[float, int, int]], every: float, data: st.DataObject
) -> None:
    once, often = MemoryRecorder(3, every), MemoryRecorder(3, every)
    now = 0.0
    for gap, reserved, active in told:
        once.observe(now, values(reserved, active))
        often.observe(now, values(reserved, active))
        for part in sorted(data.draw(st.lists(st.floats(0.0, 0.999), max_size=3))):
            often.observe(now + part * gap, values(reserved, active))
        now += gap
    table = once.take_table()
    assert table.equals(often.take_table())
    assert dict(table.schema) == MEMORY
    assert (table["replica"] == 3).all()
    assert len(table) <= len(told)
    soon = table["time"].diff() < every * (1 - 1e-12)
    assert (table["reserved"].diff().filter(soon) != 0).all()
    # Every change of `reserved` is there, at its time.
    changes, before, now = [], None, 0.0
    for gap, reserved, _ in told:
        if reserved != before:
            changes.append((now, reserved))
        before, now = reserved, now + gap
    assert set(changes) <= set(table.select("time", "reserved").iter_rows())


def table_of(rows: list[tuple[float, int, int]], replica: int = 0) -> pl.DataFrame:
    recorder = MemoryRecorder(replica, 1e-9)
    for time, reserved, active in rows:
        recorder.observe(time, values(reserved, active))
    return memory_table([recorder])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 10**6), st.floats(0.0, 1.0)), min_size=1, max_size=20))
def test_metrics_are_those_of_the_step_function(pieces: list[tuple[int, int, float]]) -> None:
    rows, now = [], 5.0
    for gap, reserved, share in pieces:
        rows.append((now, reserved, int(share * reserved)))
        now += gap
    numbers = compute(table_of(rows), now)
    fine = 64  # a second
    middles = 5.0 + (np.arange(int((now - 5.0) * fine)) + 0.5) / fine
    at = np.searchsorted([time for time, _, _ in rows], middles, side="right") - 1
    reserved = np.array([one for _, one, _ in rows])[at].astype(float)
    active = np.array([one for _, _, one in rows])[at].astype(float)
    assert numbers["reserved_peak"] == max(one for _, one, _ in rows)
    assert numbers["reserved_end"] == rows[-1][1]
    idle = np.where(reserved > 0, 1 - active / np.where(reserved > 0, reserved, 1), 0.0)
    assert numbers["fragmentation"] == pytest.approx(idle.mean(), abs=1e-9)
    late = middles > 65.0
    if now <= 65.0:
        assert numbers["growth"] is None
    else:
        slope = np.polyfit(middles[late], reserved[late], 1)[0] * 60
        assert numbers["growth"] == pytest.approx(slope, rel=1e-2, abs=30.0 * fine)


def test_a_steady_leak_is_its_rate_and_no_leak_is_none() -> None:
    leaking = [(float(t), 10_000 * t, 10_000 * t) for t in range(3600)]
    assert compute(table_of(leaking), 3600.0)["growth"] == pytest.approx(600_000, rel=1e-6)
    assert compute(table_of([(0.0, 7, 1)]), 3600.0)["growth"] == 0.0


def test_of_several_replicas_the_worst_counts() -> None:
    both = pl.concat([table_of([(0.0, 10, 5), (50.0, 30, 15), (100.0, 20, 5)]), table_of([(0.0, 25, 25)], 1)])
    numbers = compute(both, 200.0)
    assert (numbers["reserved_peak"], numbers["reserved_end"]) == (30, 25)
    assert numbers["fragmentation"] == pytest.approx((0.5 * 0.5 + 0.75 * 0.5) / 2)
    assert set(compute(both, None).values()) == {None}
