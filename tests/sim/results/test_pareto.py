"""The Pareto front is exact, ties included."""

from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.results.pareto import FRONTS, pareto_front, sweep_fronts

Direction = Literal["smaller", "larger"]
directions = st.lists(st.sampled_from(["smaller", "larger"]), min_size=1, max_size=4)


def dominated(row: np.ndarray, by: np.ndarray, ways: list[Direction]) -> bool:
    signs = [1 if way == "smaller" else -1 for way in ways]
    pairs = [(sign * mine, sign * other) for sign, mine, other in zip(signs, row, by, strict=True)]
    return all(other <= mine for mine, other in pairs) and any(other < mine for mine, other in pairs)


@given(st.data(), directions)
def test_against_brute_force(data: st.DataObject, ways: list[Direction]) -> None:
    """Few distinct values, so that ties and equal rows abound."""
    values = st.sampled_from([-1.5, 0.0, 1.0, 2.0, 3.0, float("inf")])
    rows = data.draw(st.lists(st.tuples(*[values] * len(ways)), max_size=25))
    table = np.array(rows, dtype=float).reshape(len(rows), len(ways))
    brute = [i for i, row in enumerate(table) if not any(dominated(row, by, ways) for by in table)]
    assert pareto_front(table, ways) == brute


def test_refuses_what_has_no_order() -> None:
    with pytest.raises(ValueError, match="NaN"):
        pareto_front(np.array([[1.0, float("nan")]]), ["smaller", "larger"])
    with pytest.raises(ValueError, match="shape"):
        pareto_front(np.zeros((3, 2)), ["smaller"])
    with pytest.raises(ValueError, match="neither"):
        pareto_front(np.zeros((3, 1)), ["neither"])


def test_fronts_of_a_sweep_leave_out_failed_and_unpriced_points() -> None:
    (cost, goodput), (ttft, throughput) = FRONTS.values()
    points = pl.DataFrame(
        {
            "point": [10, 11, 12, 13],
            "status": ["ok", "ok", "failed", "ok"],
            cost: [1.0, 2.0, 0.0, None],
            goodput: [5.0, 4.0, 9.0, 9.0],
            ttft: [0.3, 0.2, 0.1, 0.4],
            throughput: [100.0, 50.0, 999.0, 100.0],
        }
    )
    assert list(sweep_fronts(points).values()) == [[10], [10, 11]]
    assert list(sweep_fronts(points.drop(cost)).values()) == [[], [10, 11]]
