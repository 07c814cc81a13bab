"""What holds for every file: rows reconcile, arrivals are sorted, the same file gives the same table."""

from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from traces.checks import check
from traces.loading import read
from traces.table import Trace
from traces.writing import write

rows = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(rows)
def test_rows_reconcile_and_arrivals_are_sorted_stably(rows: list[tuple[int, int, int]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "v.csv"
        lines = [f"{time / 1000},{prompt},{output}" for time, prompt, output in rows]
        path.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *lines]))
        kept = [(time / 1000, row) for row, (time, prompt, output) in enumerate(rows) if prompt and output]
        if not kept:
            with pytest.raises(UserError, match="no request is left"):
                read(path)
            return
        trace = read(path)
        again = read(path)
    assert trace.rows_read == len(rows) == len(trace.requests) + sum(trace.dropped.values())
    assert trace.requests["source_row"].to_list() == [row for _, row in sorted(kept)]
    assert trace.requests["request_id"].to_list() == list(range(len(kept)))
    begin = min(kept)[0]
    assert trace.requests["arrival"].to_list() == [time - begin for time, _ in sorted(kept)]
    assert ("unsorted" in trace.notes) == (kept != sorted(kept, key=lambda each: each[0]))
    assert again.requests.equals(trace.requests) and again.notes == trace.notes


def canonical(**columns: list[object]) -> Trace:
    base = {"request_id": [0, 1], "arrival": [0.0, 1.0], "prompt_tokens": [20, 40], "output_tokens": [1, 1]}
    schema = {"think_time": pl.Float64, "parent": pl.Int64}
    overrides = {name: dtype for name, dtype in schema.items() if name in columns}
    return Trace(pl.DataFrame({**base, **columns}, schema_overrides=overrides), "canonical", "here", 2)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"request_id": [0, 2]}, "request_id must count"),
        ({"arrival": [1.0, 0.5]}, "arrival must not run back"),
        ({"arrival": [0.0, float("nan")]}, "arrival must be finite"),
        ({"arrival": [0.0, None]}, "arrival must not be null without a parent"),
        ({"arrival": [0.0, None], "parent": [None, 1]}, "parent must be an earlier"),
        ({"prompt_tokens": [0, 1]}, "prompt_tokens must be at least 1"),
        ({"output_tokens": [1, None]}, "output_tokens must not be null"),
        ({"think_time": [None, -1.0]}, "think_time must be finite"),
        ({"prefix_ids": [[1], [1]]}, "need the column prefix_block_tokens"),
        (
            {"prefix_ids": [[1], [1, 2, 3, 4]], "prefix_block_tokens": [16, 16]},
            "request 1: prefix_ids must not be longer",
        ),
        ({"prefix_ids": [[1], [1]], "prefix_block_tokens": [16, None]}, "request 1: prefix_ids need"),
        ({"colour": ["red", "blue"]}, "column 'colour' is not one of"),
        ({"prompt_tokens": [1.0, 2.0]}, "has type Float64"),
    ],
)
def test_check_names_the_broken_rule(columns: dict[str, list[object]], message: str) -> None:
    check(canonical())
    with pytest.raises(UserError, match=message):
        check(canonical(**columns))


def test_check_wants_counts_that_add_up() -> None:
    trace = canonical()
    trace.dropped = {"lost": 1}
    with pytest.raises(UserError, match="do not add up"):
        check(trace)


FULL = canonical(
    arrival=[0.25, None],
    session=["a", "a"],
    turn=[0, 1],
    parent=[None, 0],
    think_time=[None, 0.1],
    prefix_ids=[[1], [1, 2]],
    prefix_block_tokens=[16, 16],
    model=["m, with a comma", None],
)


def test_parquet_gives_an_equal_trace_back(tmp_path: Path) -> None:
    trace = Trace(FULL.requests, "azure", "x.csv", 5, {"no prompt tokens": 3}, {"scaling": [{"thin": 0.5}]})
    write(trace, tmp_path / "t.parquet")
    back = read(tmp_path / "t.parquet")
    assert back.requests.equals(trace.requests) and back.requests.schema == trace.requests.schema
    assert (back.format, back.source, back.rows_read, back.dropped, back.notes) == (
        trace.format,
        trace.source,
        trace.rows_read,
        trace.dropped,
        trace.notes,
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_text_gives_an_equal_table_back(tmp_path: Path, suffix: str) -> None:
    write(FULL, tmp_path / f"t{suffix}")
    back = read(tmp_path / f"t{suffix}")
    assert back.format == "canonical"
    assert back.requests.equals(FULL.requests) and back.requests.schema == FULL.requests.schema


def test_mooncake_layout_reads_back_as_mooncake(tmp_path: Path) -> None:
    trace = canonical(arrival=[0.0, 1.2345], prefix_ids=[[1], [1]], prefix_block_tokens=[512, 512])
    write(trace, tmp_path / "m.jsonl", "mooncake")
    back = read(tmp_path / "m.jsonl")
    assert back.format == "mooncake"
    assert back.requests["arrival"].to_list() == [0.0, 1.234]
    assert back.requests["prefix_ids"].to_list() == [[1], [1]]


def test_mooncake_layout_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="closed-loop"):
        write(FULL, tmp_path / "m.jsonl", "mooncake")
    with pytest.raises(UserError, match="512-token blocks"):
        write(canonical(prefix_ids=[[1], [1]], prefix_block_tokens=[16, 16]), tmp_path / "m.jsonl", "mooncake")
    with pytest.raises(UserError, match=r"expected suffix \.jsonl"):
        write(canonical(), tmp_path / "m.csv", "mooncake")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected \.parquet, \.csv or \.jsonl"):
        write(FULL, tmp_path / "t.xlsx")
    with pytest.raises(UserError, match="cannot be written"):
        write(FULL, tmp_path / "no" / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write(FULL, tmp_path / "folder.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]
