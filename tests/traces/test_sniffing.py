"""Exactly one reader claims a file: of each format by its header, and of every public trace that is here."""

import json
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ground.errors import UserError
from traces.loading import read, read_as_recorded
from traces.readers import READERS
from traces.readers.raw import open_raw

DATA = Path(os.environ.get("SIMCTL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "traces"

# None: no request trace. Companions of another file, histograms, tables of our own making for a column map.
PUBLIC: dict[str, str | None] = {
    "azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz": "azure",
    "exgentic-agents/calls.parquet": None,
    "format-fixtures/azure-llm-2024.csv": "azure",
    "format-fixtures/azure-lmm-2025.csv": "azure",
    "format-fixtures/burstgpt-v1.csv": "burstgpt",
    "format-fixtures/mooncake-arxiv.jsonl": "mooncake",
    "format-fixtures/mooncake-fast25-readme.jsonl": "mooncake",
    "format-fixtures/qwen-bailian.jsonl": "bailian",
    "kv-cache-tester/requests.parquet": "weka",
    "kv-cache-tester/subagents.parquet": None,
    "kv-cache-tester/traces.parquet": None,
    "lmcache-agent-trace/calls.parquet": None,
    "mooncake-fast25/conversation_trace.jsonl.gz": "mooncake",
    "ragpulse/0_trace.jsonl.gz": "ragpulse",
    "ragpulse/1_sys_prompt.jsonl.gz": None,
    "ragpulse/2_passages.jsonl.gz": None,
    "ragpulse/3_history.jsonl.gz": None,
    "ragpulse/4_user_input.jsonl.gz": None,
    "ragpulse/5_web_search.jsonl.gz": None,
    "servegen/client_windows.parquet": None,
    "servegen/field_pmf.parquet": None,
    "splitwise-sim/test_trace.csv": "splitwise",
    "tracelab-example/round_trace.jsonl": "tracelab",
    "vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz": "vidur",
    "vidur/splitwise_code.csv.gz": "vidur",
    "vidur/splitwise_conv.csv.gz": "vidur",
}


def claims(path: Path) -> list[str]:
    raw = open_raw(path)
    return [reader.name for reader in READERS if reader.claims(raw)]


@pytest.mark.parametrize(("name", "expected"), PUBLIC.items())
def test_one_reader_claims_each_public_trace(name: str, expected: str | None) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"public trace {path} is not here; set SIMCTL_DATA to the folder that holds traces/")
    assert claims(path) == ([] if expected is None else [expected])


def test_every_file_that_is_here_is_in_the_list() -> None:
    if not DATA.is_dir():
        pytest.skip(f"public traces are not in {DATA}; set SIMCTL_DATA to the folder that holds traces/")
    texts = {"README.md", "MISSING.txt"}
    found = {str(path.relative_to(DATA)) for path in DATA.rglob("*") if path.is_file() and path.name not in texts}
    known = set(PUBLIC) | {
        "azure-llm-2023/AzureLLMInferenceTrace_code.csv.gz",
        "mooncake-fast25/synthetic_trace.jsonl.gz",
    }
    assert found <= known


def test_a_table_of_calls_is_read_with_a_map() -> None:
    path = DATA / "exgentic-agents" / "calls.parquet"
    if not path.exists():
        pytest.skip(f"public trace {path} is not here; set SIMCTL_DATA to the folder that holds traces/")
    columns: dict[str, str | int] = {"arrival": "timestamp", "prompt_tokens": "input_tokens", "session": "session_id"}
    trace = read(path, columns=columns | {"output_tokens": "output_tokens"}, allow_unsorted=True)
    assert trace.requests["session"].n_unique() == 18


MINIMAL: dict[str, tuple[str, dict[str, Any]]] = {
    "mooncake": ("jsonl", {"timestamp": 1, "input_length": 5, "output_length": 2, "hash_ids": [1]}),
    "aiperf": ("jsonl", {"timestamp": 1, "session_id": "a", "input_length": 5, "output_length": 2, "hash_ids": [1]}),
    "bailian": (
        "jsonl",
        {
            "chat_id": 1,
            "parent_chat_id": -1,
            "timestamp": 1.0,
            "input_length": 5,
            "output_length": 2,
            "type": "text",
            "turn": 1,
        },
    ),
    "ragpulse": (
        "jsonl",
        {
            "timestamp": "1",
            "session_id": "a",
            "input_length": 5,
            "output_length": 2,
            "hash_ids": {"sys_prompt": [1], "passages_ids": [], "history": [], "web_search": [], "user_input": []},
        },
    ),
    "weka": ("json", {"id": "a", "block_size": 64, "hash_id_scope": "local", "requests": []}),
    "tracelab": (
        "jsonl",
        {"session_id": "a", "round_index": 0, "input_tokens_total": 5, "output_tokens": 2, "timing_events": []},
    ),
    "llmservingsim": ("jsonl", {"arrival_time_ns": 1, "input_toks": 5, "output_toks": 2}),
    "azure": ("csv", {"TIMESTAMP": "x", "ContextTokens": 5, "GeneratedTokens": 2}),
    "burstgpt": ("csv", {"Timestamp": 1, "Model": "m", "Request tokens": 5, "Response tokens": 2}),
    "vidur": ("csv", {"arrived_at": 1, "num_prefill_tokens": 5, "num_decode_tokens": 2}),
    "splitwise": ("csv", {"request_id": 0, "arrival_timestamp": 1, "batch_size": 1, "prompt_size": 5, "token_size": 2}),
    "canonical": ("csv", {"request_id": 0, "arrival": 0, "prompt_tokens": 5, "output_tokens": 2}),
}


def put(folder: Path, kind: str, row: dict[str, Any]) -> Path:
    path = folder / f"t.{kind}"
    path.write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n" if kind == "csv" else json.dumps(row))
    return path


def test_every_reader_has_a_row_here() -> None:
    assert set(MINIMAL) == {reader.name for reader in READERS}


@pytest.mark.parametrize("name", MINIMAL)
def test_one_reader_claims_each_format(tmp_path: Path, name: str) -> None:
    assert claims(put(tmp_path, *MINIMAL[name])) == [name]


PAIRS = [pair for pair in combinations(sorted(MINIMAL), 2) if MINIMAL[pair[0]][0] == MINIMAL[pair[1]][0]]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_formats_in_one_file_are_nobodys_or_refused(tmp_path: Path, one: str, other: str) -> None:
    """The keys of both at once never read silently as a third format."""
    kind, row = MINIMAL[one]
    assert set(claims(put(tmp_path, kind, row | MINIMAL[other][1]))) <= {one, other}


@pytest.mark.parametrize(
    "row",
    [
        {"input_length": 5, "output_length": 2},
        {"session_id": "a", "input_length": 5, "output_length": 2, "delay": 3},
        {"session_id": "a", "text_input": "x", "output_length": 2},
        {"timestamp": 1, "messages": [{"role": "user", "content": "x"}]},
        {"timestamp": 1, "session_id": "a", "input_length": 5, "output_length": 2, "group_id": 0, "is_restart": True},
    ],
)
def test_aiperf_claims_its_rows_with_and_without_time_stamps(tmp_path: Path, row: dict[str, Any]) -> None:
    assert claims(put(tmp_path, "jsonl", row)) == ["aiperf"]


@pytest.mark.parametrize("row", [{"messages": [{"role": "user"}]}, {"timestamp": 1}, {"session_id": "a", "rounds": 3}])
def test_other_json_lines_are_nobodys(tmp_path: Path, row: dict[str, Any]) -> None:
    assert claims(put(tmp_path, "jsonl", row)) == []


def test_splitwise_reads_seconds_and_refuses_batches(tmp_path: Path) -> None:
    header = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    path = tmp_path / "s.csv"
    path.write_text(header + "0,2,0,1,1,4096,32\n1,2,0,3,1,2048,8\n")
    trace = read(path)
    assert trace.requests.select("arrival", "prompt_tokens", "output_tokens").rows() == [(0, 4096, 32), (2, 2048, 8)]
    path.write_text(header + "0,2,0,1,1,4096,32\n1,2,0,3,4,2048,8\n")
    with pytest.raises(UserError, match=r"data row 1 .*'batch_size': found '4', expected 1"):
        read(path)


def event(kind: str, second: float) -> dict[str, str]:
    return {"event_type": kind, "timestamp": f"2026-06-01T05:40:{second:06.3f}Z"}


def tracelab(session: str, prompt: int, *events: dict[str, str]) -> dict[str, Any]:
    return {
        "session_id": session,
        "round_index": 0,
        "input_tokens_total": prompt,
        "output_tokens": 7,
        "model": "m",
        "timing_events": list(events),
    }


def test_tracelab_rounds_wait_for_the_tools(tmp_path: Path) -> None:
    rows = [
        tracelab("b", 90, event("user_message", 30), event("text", 32)),
        tracelab("a", 10, event("user_message", 1), event("text", 3), event("tool_call", 4.5)),
        tracelab("a", 30, event("tool_result", 5), event("tool_result", 9), event("reasoning", 10), event("text", 12)),
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    trace = read_as_recorded(path)
    names = ("session", "turn", "arrival", "parent", "think_time", "source_ttft", "source_e2e")
    assert trace.requests.select(names).rows() == [
        ("a", 0, 0.0, None, None, 2.0, 3.5),
        ("a", 1, None, 0, 4.5, 1.0, 3.0),
        ("b", 0, 29.0, None, None, 2.0, 2.0),
    ]
    path.write_text(json.dumps(tracelab("a", 10, event("user_message", 1))))
    with pytest.raises(UserError, match=r"data row 0 .*expected an input and then an output"):
        read(path)


def test_a_folder_is_its_trace(tmp_path: Path) -> None:
    (tmp_path / "0_trace.jsonl").write_text(json.dumps(MINIMAL["ragpulse"][1]))
    assert claims(tmp_path) == ["ragpulse"]
    frame = pl.DataFrame(schema=dict.fromkeys(("trace_id", "entry_index", "sub_index", "t_s"), pl.Int64))
    names = ("input_tokens", "output_tokens", "hash_ids")
    frame.with_columns(pl.lit(1).alias(name) for name in names).write_parquet(tmp_path / "requests.parquet")
    assert claims(tmp_path) == ["weka"]
