"""RAGPulse: segments of any length become chains of 16-token blocks, and two weeks become one clock."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ground.errors import UserError
from traces.checks import check
from traces.loading import read
from traces.table import Trace

LENGTHS = {
    "1_sys_prompt": ("sys_prompt_id", {100: 20, 101: 16}),
    "2_passages": ("passage_id", {1: 30, 2: 10}),
    "3_history": ("history_id", {200: 5}),
    "4_user_input": ("user_input_id", {300: 7, 301: 9}),
    "5_web_search": ("web_search_id", {400: 12}),
}


def row(second: int, session: str, prompt: int, **segments: list[int]) -> dict[str, Any]:
    keys = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")
    return {
        "timestamp": str(second),
        "input_length": prompt,
        "output_length": 5,
        "hash_ids": {key: segments.get(key, []) for key in keys},
        "session_id": session,
    }


def put(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for name, (key, lengths) in LENGTHS.items():
        lines = [json.dumps({key: segment, "token_length": tokens}) for segment, tokens in lengths.items()]
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines, "", ""]).encode()))
    path = folder / "0_trace.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "", ""]))
    return path


def ids(trace: Trace) -> list[list[int]]:
    return trace.requests["prefix_ids"].to_list()


def test_segments_lie_in_the_order_of_the_prompt_and_the_template_comes_last(tmp_path: Path) -> None:
    whole = {"sys_prompt": [100], "passages_ids": [1], "history": [200], "web_search": [400], "user_input": [300]}
    trace = read(put(tmp_path, [row(0, "a", 74 + 8, **whole), row(1, "b", 74 + 6, **whole | {"user_input": [301]})]))
    check(trace)
    first, second = ids(trace)
    # 20 + 30 + 5 + 12 = 67 tokens come before the user's input: four blocks are equal, none is full after them.
    assert first == second and len(first) == 4
    assert trace.requests["prefix_block_tokens"].to_list() == [16, 16]


def test_the_same_passage_behind_another_is_another_chain(tmp_path: Path) -> None:
    rows = [
        row(0, "a", 60, sys_prompt=[101], passages_ids=[1, 2]),
        row(1, "b", 60, sys_prompt=[101], passages_ids=[2, 1]),
    ]
    first, second = ids(read(put(tmp_path, rows)))
    assert first[0] == second[0]
    assert not set(first[1:]) & set(second[1:])


def test_a_clock_that_starts_again_is_a_second_week(tmp_path: Path) -> None:
    rows = [
        row(5, "a", 30, sys_prompt=[100]),
        row(604_000, "b", 30, sys_prompt=[100]),
        row(5, "a", 30, sys_prompt=[100]),
    ]
    trace = read(put(tmp_path, rows))
    assert trace.requests["arrival"].to_list() == [0.0, 603_995.0, 604_800.0]
    assert trace.requests["turn"].to_list() == [0, 0, 1]
    assert "604800 s" in trace.notes["clock"]
    assert "unsorted" not in trace.notes


def test_a_few_late_rows_are_no_second_week(tmp_path: Path) -> None:
    trace = read(put(tmp_path, [row(9, "a", 30, sys_prompt=[100]), row(5, "b", 30, sys_prompt=[100])]))
    assert trace.requests["arrival"].to_list() == [0.0, 4.0]
    assert "clock" not in trace.notes


def test_the_folder_stands_for_its_trace(tmp_path: Path) -> None:
    path = put(tmp_path, [row(5, "a", 30, sys_prompt=[100])])
    assert read(tmp_path).requests.equals(read(path).requests)


@pytest.mark.parametrize(
    ("rows", "remove", "message"),
    [
        ([row(0, "a", 30, sys_prompt=[7])], "", r"data row 0 .*hash_ids.sys_prompt.*found 7"),
        ([row(0, "a", 19, sys_prompt=[100])], "", r"input_length.*found 19, expected at least the 20 tokens"),
        ([row(0, "a", 30, sys_prompt=[100])], "5_web_search.jsonl.gz", r"5_web_search.jsonl: is missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, rows: list[dict[str, Any]], remove: str, message: str) -> None:
    path = put(tmp_path, rows)
    if remove:
        (tmp_path / remove).unlink()
    with pytest.raises(UserError, match=message):
        read(path)
