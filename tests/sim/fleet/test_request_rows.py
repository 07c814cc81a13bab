"""Requests made from columns are the rows of the table."""

import math

import polars as pl
from engine_workloads import traces
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.fleet.request_rows import LaterTurns, RequestRows


@settings(max_examples=60, deadline=None)
@given(traces(), st.booleans(), st.booleans())
def test_a_request_is_its_row(trace: pl.DataFrame, plain: bool, named: bool) -> None:
    if plain:
        trace = trace.drop("prefix_ids", "prefix_block_tokens", "priority")
    if named:
        trace = trace.with_columns(
            session=pl.format("s{}", pl.col("request_id") % 3),
            tenant=pl.format("t{}", pl.col("request_id") % 2),
            deadline=pl.when(pl.col("request_id") % 4 > 0).then(pl.col("request_id") * 0.5),
        )
    rows = RequestRows(trace)
    assert len(rows) == len(trace)
    for place, row in enumerate(trace.iter_rows(named=True)):
        request = rows.make(place)
        for name in ("request_id", "arrival", "prompt_tokens", "output_tokens"):
            assert getattr(request, name) == row[name]
            assert type(getattr(request, name)) is type(row[name])
        assert list(request.prefix_ids) == row.get("prefix_ids", [])
        assert request.prefix_block_tokens == row.get("prefix_block_tokens", 16)
        assert request.priority == row.get("priority", 0)
        assert request.session == row.get("session")
        assert request.tenant == row.get("tenant")
        assert request.deadline == (math.inf if row.get("deadline") is None else row["deadline"])


def test_missing_values_are_the_defaults() -> None:
    trace = pl.DataFrame(
        {
            "request_id": [0, 1, 2],
            "arrival": [0.0, 1.0, 2.0],
            "prompt_tokens": [9, 9, 9],
            "output_tokens": [1, 1, 1],
            "prefix_ids": [[7], None, []],
            "prefix_block_tokens": [4, None, 8],
            "priority": [5, None, 0],
            "session": ["a", None, "b"],
        },
        schema_overrides={"prefix_ids": pl.List(pl.Int64)},
    )
    rows = RequestRows(trace)
    made = [rows.make(row) for row in range(3)]
    assert [list(request.prefix_ids) for request in made] == [[7], [], []]
    assert [request.prefix_block_tokens for request in made] == [4, 16, 8]
    assert [request.priority for request in made] == [5, 0, 0]
    assert [request.session for request in made] == ["a", None, "b"]


def test_turns_come_after_their_parent() -> None:
    trace = pl.DataFrame(
        {
            "request_id": [0, 1, 2, 3, 4],
            "arrival": [0.0, 0.0, None, None, None],
            "prompt_tokens": [1] * 5,
            "output_tokens": [1] * 5,
            "parent": [None, None, 1, 0, 1],
            "think_time": [None, None, 2.0, None, 4.0],
        }
    )
    later = LaterTurns(trace)
    turns = {parent: [(turn.request_id, think) for turn, think in later.of(parent)] for parent in range(5)}
    assert turns == {0: [(3, 0.0)], 1: [(2, 2.0), (4, 4.0)], 2: [], 3: [], 4: []}
    assert len(later) == 3
    assert len(LaterTurns(trace.drop("parent", "think_time").head(2))) == 0
