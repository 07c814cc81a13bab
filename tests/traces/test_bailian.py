"""Bailian: turns arrive when the source says, and know which conversation they belong to."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from traces.checks import check
from traces.loading import read
from traces.scaling import first, superpose
from traces.table import Trace


def put(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "b.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def chat(number: int, parent: int, second: float, **keys: Any) -> dict[str, Any]:
    row = {"chat_id": number, "parent_chat_id": parent, "timestamp": second, "input_length": 40, "output_length": 9}
    return row | {"type": "text", "turn": 1, "hash_ids": [1, 2, 3]} | keys


def test_turns_are_open_loop_and_keep_session_turn_and_parent(tmp_path: Path) -> None:
    rows = [chat(7, -1, 0.5), chat(9, 7, 61.114, turn=2), chat(3, -1, 62.0), chat(4, 9, 70.0, turn=3)]
    trace = read(put(tmp_path, rows))
    assert trace.format == "bailian"
    assert trace.requests.select("arrival", "session", "turn", "parent").rows() == [
        (0.0, "7", 0, None),
        (60.614, "7", 1, 0),
        (61.5, "3", 0, None),
        (69.5, "7", 2, 1),
    ]
    assert trace.requests["prefix_ids"].to_list()[0] == [1, 2, 3]
    assert trace.requests["prefix_block_tokens"].to_list() == [16] * 4
    assert "think_time" not in trace.requests.columns
    assert trace.notes["types"] == {"text": 4}


def test_a_turn_outlives_a_parent_that_failed(tmp_path: Path) -> None:
    trace = read(put(tmp_path, [chat(7, -1, 0.0, output_length=0), chat(9, 7, 5.0, turn=2)]))
    assert trace.dropped == {"no output tokens (failed at the source)": 1}
    assert trace.requests.select("arrival", "session", "parent").rows() == [(0.0, "7", None)]


def test_a_parent_outside_the_file_still_names_the_session(tmp_path: Path) -> None:
    trace = read(put(tmp_path, [chat(7, 2, 0.0), chat(9, 2, 5.0), chat(10, 9, 6.0)]))
    assert trace.requests["session"].to_list() == ["2", "2", "2"]
    assert trace.requests["parent"].to_list() == [None, None, 1]
    assert trace.notes["parents_not_in_file"] == 2


def test_a_parent_that_arrives_later_is_no_parent(tmp_path: Path) -> None:
    trace = read(put(tmp_path, [chat(7, 9, 0.0), chat(9, -1, 5.0)]))
    assert trace.requests["parent"].to_list() == [None, None]
    assert trace.notes["parents_that_arrive_later"] == 1


@given(st.lists(st.tuples(st.integers(-1, 12), st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=13))
def test_any_parents_give_a_table_that_holds(tmp_path_factory: Any, rows: list[tuple[int, int, int]]) -> None:
    chats = [chat(n, parent, float(second), output_length=out) for n, (parent, second, out) in enumerate(rows)]
    path = put(tmp_path_factory.mktemp("bailian"), chats)
    if not any(out for *_, out in rows):
        with pytest.raises(UserError, match="no request is left"):
            read(path)
        return
    trace = read(path)
    check(trace)
    assert trace.rows_read == len(rows) == len(trace.requests) + sum(trace.dropped.values())
    check_families(trace)
    for scaled in (superpose(trace, 3, 1), first(trace, requests=2)):
        check(scaled)
        check_families(scaled)


def check_families(trace: Trace) -> None:
    session = trace.requests["session"].to_list()
    for row, parent in enumerate(trace.requests["parent"].to_list()):
        assert parent is None or session[parent] == session[row]
