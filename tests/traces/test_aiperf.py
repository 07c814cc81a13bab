"""aiperf's sessions: rows hold what is new in a turn, and later turns wait for the answer and a delay."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from traces.checks import check
from traces.loading import read, read_as_recorded
from traces.synth.arrivals import Poisson

STARTS = Poisson(process="poisson", rate=0.5)


def put(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "s.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def turn(session: str, new: int, out: int = 10, **keys: Any) -> dict[str, Any]:
    return {"session_id": session, "input_length": new, "output_length": out} | keys


def test_a_row_holds_what_is_new_and_later_rows_wait(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        turn("a", 130, timestamp=1000, hash_ids=[1, 2, 3]),
        turn("b", 128, timestamp=1500.5, hash_ids=[1, 2]),
        turn("a", 70, 20, delay=2000.5, hash_ids=[4, 5]),
        turn("a", 5, 20, delay=0, hash_ids=[6]),
    )
    trace = read(path)
    names = ("session", "turn", "arrival", "prompt_tokens", "parent", "think_time")
    assert trace.requests.select(names).rows() == [
        ("a", 0, 0.0, 130, None, None),
        ("a", 1, None, 130 + 10 + 70, 0, 2.0005),
        ("a", 2, None, 210 + 20 + 5, 1, 0.0),
        ("b", 0, 0.5005, 128, None, None),
    ]
    assert trace.requests["prefix_block_tokens"].to_list() == [64] * 4
    first, second, third, other = trace.requests["prefix_ids"].to_list()
    assert other == first == second[:2]  # the third block of the first turn grows with its answer
    assert second[: len(second)] == third[: len(second)]


def test_the_answer_is_a_part_of_the_chain(tmp_path: Path) -> None:
    # 64 + 64 tokens of answer: the second block is the answer, which the next turn finds.
    path = put(
        tmp_path,
        turn("a", 64, 64, timestamp=0, hash_ids=[1]),
        turn("a", 64, 1, delay=1, hash_ids=[2]),
        turn("b", 128, timestamp=9, hash_ids=[3, 4]),  # says that a block has 64 tokens
    )
    first, second, _ = read(path).requests["prefix_ids"].to_list()
    assert second[:2] == first and len(second) == 3


@pytest.mark.parametrize(
    ("mode", "prompts"),
    [
        ("deltas_without_responses", [100, 150]),
        ("deltas_with_responses", [100, 140]),
        ("message_array_with_responses", [100, 40]),
    ],
)
def test_the_context_mode_says_what_a_row_means(tmp_path: Path, mode: str, prompts: list[int]) -> None:
    path = put(tmp_path, turn("a", 100, timestamp=0, context_mode=mode), turn("a", 40, delay=1, context_mode=mode))
    trace = read(path)
    check(trace)
    assert trace.requests["prompt_tokens"].to_list() == prompts
    assert trace.notes["context_mode"] == [mode]


def test_without_time_stamps_the_sessions_need_a_process(tmp_path: Path) -> None:
    path = put(tmp_path, turn("a", 100), turn("b", 40), turn("a", 40, delay=500))
    with pytest.raises(UserError, match="no common clock; say how they begin with --session-arrivals poisson"):
        read(path)
    trace = read(path, session_arrivals=STARTS, seed=1)
    assert trace.requests["session"].to_list() == ["a", "a", "b"]
    assert trace.requests["arrival"].to_list()[:2] == [0.0, None]
    assert trace.requests["arrival"][2] > 0


def test_rows_without_a_session_are_sessions_of_their_own(tmp_path: Path) -> None:
    rows = [{"input_length": 9, "output_length": 3, "timestamp": n, "session_id": None} for n in (0, 2)]
    trace = read(put(tmp_path, *rows, turn("a", 4, timestamp=5)))
    assert trace.requests["session"].n_unique() == 3
    assert trace.requests["parent"].null_count() == 3


def test_later_time_stamps_are_open_loop(tmp_path: Path) -> None:
    trace = read(put(tmp_path, turn("a", 100, timestamp=0), turn("a", 40, timestamp=3000)))
    assert trace.requests.select("arrival", "parent", "think_time").rows() == [(0.0, None, None), (3.0, 0, None)]
    assert "open loop" in trace.notes["later_turns_with_time_stamps"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text_input": "hello", "output_length": 4}], "rows give 'text_input' and no 'input_length'"),
        (
            [turn("a", 4, timestamp=0), {"session_id": "a", "messages": [{"role": "user"}], "output_length": 4}],
            "row 1 .*'messages'",
        ),
        ([{"session_id": "a", "input_length": 4}], "'output_length' is missing"),
        ([turn("a", 4, timestamp=0), turn("b", 4)], "data row 1 .*session 'b' begins without a 'timestamp'"),
        ([turn("a", 4, timestamp=0, context_mode="x")], "'context_mode': found 'x'"),
        ([turn("a", 4, timestamp=0), turn("a", 4, context_mode="deltas_with_responses")], "as in the rows above"),
        (
            [turn("a", 100, timestamp=0, hash_ids=[1]), turn("a", 100, delay=1, hash_ids=[1, 2, 3, 4, 5])],
            "expected one id",
        ),
        ([turn("a", 4, timestamp=-3)], "'timestamp': found -3"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(put(tmp_path, *rows))


turns = st.tuples(st.sampled_from("abc"), st.integers(1, 300), st.integers(0, 80))


@settings(max_examples=60)
@given(st.lists(turns, min_size=1, max_size=12), st.sampled_from([16, 64, 512]), st.booleans())
def test_prompts_grow_and_extend_their_parents(
    tmp_path_factory: Any, given_turns: list[tuple[str, int, int]], block: int, has_ids: bool
) -> None:
    next_id, rows = 0, []
    for name, new, out in given_turns:
        count = -(-new // block)
        rows.append(
            turn(name, new, out, delay=100) | ({"hash_ids": [*range(next_id, next_id + count)]} if has_ids else {})
        )
        next_id += count
    path = put(tmp_path_factory.mktemp("aiperf"), *rows)
    if not any(out for _, _, out in {name: each for each in reversed(given_turns) for name in each[0]}.values()):
        with pytest.raises(UserError, match="no request is left"):
            read_as_recorded(path)
        return
    recorded = read_as_recorded(path)
    check(recorded)
    assert recorded.rows_read == len(rows) == len(recorded.requests) + sum(recorded.dropped.values())
    trace = read(path, session_arrivals=STARTS)
    check(trace)
    assert trace.requests.equals(read(path, session_arrivals=STARTS).requests)
    requests = trace.requests.to_dicts()
    for request in requests:
        if request["parent"] is not None:
            parent = requests[request["parent"]]
            assert request["prompt_tokens"] > parent["prompt_tokens"] + parent["output_tokens"]
            assert request["prefix_ids"][: len(parent["prefix_ids"])] == parent["prefix_ids"]
