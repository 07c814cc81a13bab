"""kv-cache-tester: recorded agents become closed-loop sessions that need someone to say when they begin."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from traces import scaling
from traces.checks import check
from traces.commands import trace as command
from traces.dequantise import dequantise
from traces.describe import describe
from traces.loading import read, read_as_recorded
from traces.source import TraceSource
from traces.synth.arrivals import Poisson
from traces.table import Trace
from traces.writing import write

STARTS = Poisson(process="poisson", rate=0.01)


def call(t: float, prompt: int = 640, out: int = 5, ids: list[int] | None = None, **keys: Any) -> dict[str, Any]:
    ids = list(range(1, prompt // 64 + 1)) if ids is None else ids
    return {"t": t, "type": "n", "model": "m", "in": prompt, "out": out, "hash_ids": ids, "api_time": 2.0} | keys


def agent(t: float, *requests: dict[str, Any], **keys: Any) -> dict[str, Any]:
    entry = {"t": t, "type": "subagent", "agent_id": "agent_001", "status": "completed", "duration_ms": 10_000}
    return entry | {"requests": list(requests)} | keys


def session(name: str, *requests: dict[str, Any], **keys: Any) -> dict[str, Any]:
    head = {"id": name, "models": ["m"], "block_size": 64, "hash_id_scope": "local"}
    return head | {"tool_tokens": 10, "system_tokens": 5, "requests": list(requests)} | keys


def put(folder: Path, *sessions: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for each in sessions:
        (folder / f"{each['id']}.json").write_text(json.dumps(each))
    return folder


def rows(trace: Trace, *names: str) -> list[tuple[Any, ...]]:
    return trace.requests.select(names).rows()


def test_turns_wait_for_the_one_before_and_think_as_recorded(tmp_path: Path) -> None:
    calls = (call(0.0), call(7.0, think_time=5.0), call(20.0, think_time=None))
    trace = read_as_recorded(put(tmp_path / "s", session("trace_1", *calls)))
    check(trace)
    assert trace.clock == "session"
    # The third call's think time was not recorded: 20 − (7 + 2).
    assert rows(trace, "arrival", "session", "turn", "parent", "think_time", "source_e2e") == [
        (0.0, "trace_1", 0, None, None, 2.0),
        (None, "trace_1", 1, 0, 5.0, 2.0),
        (None, "trace_1", 2, 1, 11.0, 2.0),
    ]


def test_a_think_time_that_nothing_tells_stays_unknown(tmp_path: Path) -> None:
    calls = (call(0.0, api_time=None), call(7.0, think_time=None), call(20.0, think_time=1.5))
    trace = read_as_recorded(put(tmp_path / "s", session("a", *calls)))
    assert trace.requests["think_time"].to_list() == [None, None, 1.5]
    assert trace.notes["think_times_unknown"] == 1


def test_a_failed_call_is_dropped_and_the_next_waits_for_the_one_before_it(tmp_path: Path) -> None:
    calls = (call(0.0), call(7.0, out=0, think_time=5.0), call(20.0, think_time=3.0))
    trace = read_as_recorded(put(tmp_path / "s", session("a", *calls)))
    assert trace.dropped == {"no output tokens (failed at the source)": 1}
    assert trace.rows_read == 3
    # Its own think time counts from the failed call; from the parent it is 20 − 2.
    assert rows(trace, "parent", "think_time", "source_row") == [(None, None, 0), (0, 18.0, 2)]


def test_a_sub_agent_runs_beside_and_the_next_call_waits_for_what_ended_last(tmp_path: Path) -> None:
    # Recorded when their results came back, at 20 and 30 s; they took 10 and 26 s, so they began at 10 and 4 s.
    short = agent(20.0, call(0.0, ids=[50]), call(5.0, ids=[50, 51], think_time=3.0))
    long = agent(30.0, call(1.0, ids=[60]), call(20.0, ids=[60, 61], think_time=17.0), duration_ms=26_000)
    trace = read_as_recorded(put(tmp_path / "s", session("a", call(0.0), short, long, call(33.0, think_time=31.0))))
    check(trace)
    assert rows(trace, "arrival", "parent", "think_time") == [
        (0.0, None, None),
        (None, 0, 8.0),  # 10 + 0 − 2
        (None, 1, 3.0),
        (None, 0, 3.0),  # 4 + 1 − 2
        (None, 3, 17.0),
        (None, 4, 7.0),  # 33 − (4 + 20 + 2): the longer one's last call ended last
    ]
    assert trace.notes["sub_agents"] == 2


def test_nobody_waits_for_a_sub_agent_in_the_background(tmp_path: Path) -> None:
    apart = agent(
        2.5, call(0.0, ids=[50]), call(90.0, ids=[50], think_time=88.0), status="async_launched", duration_ms=None
    )
    trace = read_as_recorded(put(tmp_path / "s", session("a", call(0.0), apart, call(9.0, think_time=7.0))))
    assert rows(trace, "parent", "think_time") == [(None, None), (0, 0.5), (1, 88.0), (0, 7.0)]
    assert trace.notes["sub_agents_in_background"] == 1


def test_a_sub_agent_whose_calls_all_failed_holds_nobody_up(tmp_path: Path) -> None:
    failed = agent(12.0, call(0.0, out=0))
    trace = read_as_recorded(put(tmp_path / "s", session("a", call(0.0), failed, call(14.0, think_time=12.0))))
    assert rows(trace, "parent", "think_time") == [(None, None), (0, 12.0)]


def test_sub_agents_nest(tmp_path: Path) -> None:
    inner = agent(9.0, call(0.0, ids=[70]), duration_ms=4_000)
    outer = agent(15.0, call(0.0, ids=[50]), inner, call(9.5, ids=[51], think_time=1.0), duration_ms=12_000)
    trace = read_as_recorded(put(tmp_path / "s", session("a", call(0.0), outer, call(16.0, think_time=14.0))))
    check(trace)
    # Outer began at 3 s, inner at 3 + 9 − 4 = 8 s; outer's second call starts at 12.5 s, inner's ended at 10 s.
    assert rows(trace, "parent", "think_time") == [(None, None), (0, 1.0), (1, 3.0), (2, 2.5), (3, 1.5)]


def test_ids_of_two_sessions_never_meet_unless_their_scope_is_global(tmp_path: Path) -> None:
    local = read_as_recorded(put(tmp_path / "l", session("a", call(0.0)), session("b", call(0.0))))
    first, second = local.requests["prefix_ids"].to_list()
    assert len(first) == 10 and not set(first) & set(second)
    shared = (session(name, call(0.0), hash_id_scope="global") for name in "ab")
    first, second = read_as_recorded(put(tmp_path / "g", *shared)).requests["prefix_ids"].to_list()
    assert first == second


def as_parquet(folder: Path, sessions: list[dict[str, Any]]) -> Path:
    """The same sessions in the columns of the Parquet conversion."""
    folder.mkdir()
    calls, agents = [], []
    for each in sessions:
        for place, entry in enumerate(each["requests"]):
            inner = entry["requests"] if entry["type"] == "subagent" else [entry]
            if entry["type"] == "subagent":
                names = ("t", "agent_id", "status", "duration_ms")
                t_s, *rest = (entry[name] for name in names)
                agents.append((each["id"], place, t_s, *rest))
            for sub, one in enumerate(inner):
                sub_index = sub if entry["type"] == "subagent" else None
                times = (one["api_time"], one.get("think_time"), one.get("ttft"))
                calls.append(
                    (
                        each["id"],
                        place,
                        sub_index,
                        one["t"],
                        one["model"],
                        one["in"],
                        one["out"],
                        *times,
                        one["hash_ids"],
                    )
                )
    schema = {
        "trace_id": pl.String, "entry_index": pl.Int32, "sub_index": pl.Int32, "t_s": pl.Float64, "model": pl.String,
        "input_tokens": pl.Int32, "output_tokens": pl.Int32, "api_time_s": pl.Float64, "think_time_s": pl.Float64,
        "ttft_s": pl.Float64, "hash_ids": pl.List(pl.Int32),
    }  # fmt: skip
    pl.DataFrame(calls, schema=schema, orient="row").write_parquet(folder / "requests.parquet")
    schema = {
        "trace_id": pl.String, "entry_index": pl.Int64, "t_s": pl.Float64, "agent_id": pl.String, "status": pl.String,
        "duration_ms": pl.Int64,
    }  # fmt: skip
    pl.DataFrame(agents, schema=schema, orient="row").write_parquet(folder / "subagents.parquet")
    about = [(each["id"], each["block_size"], each["hash_id_scope"]) for each in sessions]
    names = ["trace_id", "block_size", "hash_id_scope"]
    pl.DataFrame(about, schema=names, orient="row").write_parquet(folder / "traces.parquet")
    return folder


seconds = st.integers(0, 50)
calls = st.builds(
    lambda t, out, blocks, api, think: call(float(t), 64 * blocks + 3, out, None, api_time=api, think_time=think),
    seconds,
    st.integers(0, 3),
    st.integers(0, 5),
    st.none() | st.integers(0, 20).map(float),
    st.none() | st.integers(0, 9).map(float),
)
agents = st.builds(
    lambda t, inner, background: agent(
        float(t),
        *inner,
        status="async_launched" if background else "completed",
        duration_ms=None if background else 9000,
    ),
    seconds,
    st.lists(calls, min_size=1, max_size=3),
    st.booleans(),
)
entries = st.lists(calls | agents, min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.lists(entries, min_size=1, max_size=4))
def test_any_sessions_give_a_table_that_holds_in_either_form(
    tmp_path_factory: Any, given_sessions: list[list[dict[str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("weka")
    sessions = [session(f"trace_{n}", *requests) for n, requests in enumerate(given_sessions)]
    every = [one for each in sessions for entry in each["requests"] for one in entry.get("requests", [entry])]
    path = put(folder / "json", *sessions)
    if not any(one["out"] for one in every):
        with pytest.raises(UserError, match="no request is left"):
            read_as_recorded(path)
        return
    recorded = read_as_recorded(path)
    check(recorded)
    assert recorded.rows_read == len(every) == len(recorded.requests) + sum(recorded.dropped.values())
    assert recorded.requests.equals(read_as_recorded(as_parquet(folder / "parquet", sessions)).requests)
    lines = folder / "lines.jsonl"
    lines.write_text("\n".join(map(json.dumps, sessions)))
    assert recorded.requests.equals(read_as_recorded(lines).requests)

    placed = read(path, session_arrivals=STARTS, seed=3)
    check(placed)
    assert placed.clock == "shared"
    assert placed.requests.equals(read(path, session_arrivals=STARTS, seed=3).requests)
    check_that_only_the_clock_changed(recorded, placed)


def check_that_only_the_clock_changed(recorded: Trace, placed: Trace) -> None:
    """Who waits for whom, how long, and the distance of arrivals within a session are as recorded."""
    before = {row["source_row"]: row for row in recorded.requests.to_dicts()}
    after = placed.requests.to_dicts()
    shift: dict[str, float] = {}
    for row in after:
        was = before.pop(row["source_row"])
        assert row["think_time"] == was["think_time"] and row["prefix_ids"] == was["prefix_ids"]
        assert (row["parent"] is None) == (was["parent"] is None)
        if row["parent"] is not None:
            assert after[row["parent"]]["source_row"] == recorded.requests["source_row"][was["parent"]]
        if row["arrival"] is not None:
            moved = row["arrival"] - was["arrival"]
            assert shift.setdefault(row["session"], moved) == pytest.approx(moved, abs=1e-6)
    assert not before


def test_prompts_extend_their_parents_ids(tmp_path: Path) -> None:
    calls = (call(0.0, 640), call(7.0, 900, think_time=5.0), call(20.0, 1300, think_time=3.0))
    trace = read(put(tmp_path / "s", session("a", *calls), session("b", *calls)), session_arrivals=STARTS)
    ids = trace.requests["prefix_ids"].to_list()
    for row, parent in enumerate(trace.requests["parent"].to_list()):
        assert parent is None or ids[row][: len(ids[parent])] == ids[parent]


def test_sessions_begin_when_the_process_says_in_the_order_of_the_files(tmp_path: Path) -> None:
    path = put(tmp_path / "s", *(session(f"trace_{n}", call(0.0), call(9.0, think_time=7.0)) for n in range(40)))
    trace = read(path, session_arrivals=STARTS, seed=5)
    starts = trace.requests.filter(pl.col("arrival").is_not_null())
    assert starts["session"].to_list() == sorted(f"trace_{n}" for n in range(40))
    assert starts["arrival"][0] == 0 and starts["arrival"].is_sorted()
    assert 1000 < starts["arrival"][-1] < 16_000  # 39 gaps of 100 s
    assert trace.notes["session_arrivals"] == {"process": "poisson", "rate": 0.01, "seed": 5}
    other = read(path, session_arrivals=STARTS, seed=6)
    assert not other.requests.equals(trace.requests)


def test_nothing_moves_or_writes_sessions_that_have_no_common_clock(tmp_path: Path) -> None:
    recorded = read_as_recorded(put(tmp_path / "s", session("a", call(0.0)), session("b", call(0.0))))
    for step in (
        lambda: scaling.first(recorded, requests=1),
        lambda: scaling.time_stretch(recorded, 2),
        lambda: scaling.thin(recorded, 0.5, 1),
        lambda: scaling.superpose(recorded, 2, 1),
        lambda: dequantise(recorded, 1),
        lambda: write(recorded, tmp_path / "out.parquet"),
    ):
        with pytest.raises(UserError, match="no common clock"):
            step()
    assert not (tmp_path / "out.parquet").exists()


def test_sessions_on_one_clock_are_scaled_whole(tmp_path: Path) -> None:
    calls = (call(0.0), agent(20.0, call(0.0, ids=[50])), call(33.0, think_time=31.0))
    path = put(tmp_path / "s", *(session(f"trace_{n}", *calls) for n in range(30)))
    trace = read(path, session_arrivals=STARTS)
    for scaled in (scaling.thin(trace, 0.5, 1), scaling.superpose(trace, 3, 1), scaling.first(trace, seconds=900)):
        check(scaled)
        assert set(scaled.requests.group_by("session").len()["len"]) == {3}


def simctl(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == code, result.output
    return result


def test_the_command_asks_for_session_arrivals_and_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "s", session("a", call(0.0), call(7.0, think_time=5.0)), session("b", call(0.0)))
    failed = simctl("convert", "s", "out.parquet", code=2)
    assert "s: its sessions have no common clock" in failed.stderr and len(failed.stderr.splitlines()) == 1
    simctl("convert", "s", "out.parquet", "--session-arrivals", "poisson:0.05", "--seed", "2")
    assert read(tmp_path / "out.parquet").requests["arrival"].null_count() == 1
    shown = simctl("info", "s", "--picture", "s.html").output
    assert "when sessions begin is not said" in shown and "turns p50 1.5" in shown
    assert json.loads(simctl("info", "s", "--json").stdout)["arrivals"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poisson", "session_arrivals.rate"),
        ("poisson:often", "found 'often', expected a number"),
        ("poisson:0", "session_arrivals.rate"),
        ("poisson:1,rate=2", "'rate' is given twice"),
        ("flood:1", "session_arrivals"),
    ],
)
def test_a_process_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path / "s", session("a", call(0.0)))
    failed = simctl("convert", str(tmp_path / "s"), "out.csv", "--session-arrivals", text, code=2)
    assert message in failed.stderr and len(failed.stderr.splitlines()) == 1


def test_a_scenario_names_the_process_too(tmp_path: Path) -> None:
    put(tmp_path / "s", session("a", call(0.0)), session("b", call(0.0)))
    with pytest.raises(UserError, match=r"session_arrivals: \{process: poisson"):
        TraceSource.model_validate({"file": "s"}).load(tmp_path, 1)
    keys = {"file": "s", "session_arrivals": {"process": "gamma", "rate": 0.1, "cv": 2}}
    trace = TraceSource.model_validate(keys).load(tmp_path, 1)
    assert trace.requests["arrival"].to_list()[0] == 0.0 and len(trace.requests) == 2


def test_a_trace_with_a_clock_takes_no_session_arrivals(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n")
    with pytest.raises(UserError, match="have arrivals of their own"):
        read(tmp_path / "v.csv", session_arrivals=STARTS)


def test_describe_leaves_out_what_needs_a_clock(tmp_path: Path) -> None:
    path = put(tmp_path / "s", session("a", call(0.0), call(7.0, think_time=5.0)), session("b", call(0.0)))
    found = describe(read_as_recorded(path))
    assert found["arrivals"] is None and found["prefix_reuse"]["lru_blocks"] is None
    assert found["prefix_reuse"]["blocks"] == pytest.approx(10 / 30)
    assert (found["turns"]["max"], found["think_time"]["p50"]) == (2, 5.0)


@pytest.mark.parametrize(
    ("requests", "keys", "message"),
    [
        ([call(0.0, prompt=-1)], {}, r"requests\[0\]: key 'in': found -1"),
        ([call(-1.0)], {}, r"requests\[0\]: key 't': found -1.0"),
        ([call(0.0), call(1.0, ids=["x"])], {}, r"requests\[1\]: key 'hash_ids'"),
        ([agent(1.0, call(0.0, out=1.5))], {}, r"requests\[0\].requests\[0\]: key 'out': found 1.5"),
        ([agent(1.0) | {"requests": None}], {}, r"requests\[0\]: expected a list `requests`"),
        (["x"], {}, r"requests\[0\]: found str"),
        ([call(0.0)], {"block_size": 0.5}, "'block_size': found 0.5"),
        ([call(0.0)], {"requests": 3}, "a list `requests`"),
        ([call(0.0, ids=list(range(99)))], {}, "prefix_ids must not be longer"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, requests: list[Any], keys: dict[str, Any], message: str) -> None:
    path = put(tmp_path / "s", session("a", *requests) | keys)
    with pytest.raises(UserError, match=message):
        read_as_recorded(path)


def test_the_tables_beside_the_requests_are_needed(tmp_path: Path) -> None:
    folder = as_parquet(tmp_path / "p", [session("a", call(0.0), agent(5.0, call(0.0)))])
    (folder / "subagents.parquet").unlink()
    with pytest.raises(UserError, match=r"subagents\.parquet: is missing, expected beside requests\.parquet"):
        read_as_recorded(folder)
    (folder / "traces.parquet").unlink()
    with pytest.raises(UserError, match=r"traces\.parquet: is missing"):
        read_as_recorded(folder / "requests.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"), [("a.json", "[1]", "found a JSON list"), ("a.json", "{", "not JSON")]
)
def test_a_document_that_is_no_session(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_as_recorded(tmp_path / name)


def test_an_empty_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found a folder without"):
        read_as_recorded(tmp_path)
