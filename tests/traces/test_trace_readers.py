"""Each public format, on a few rows written by hand, with the traps that format is known for."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
import zstandard

from ground.errors import UserError
from traces.loading import formats, read

AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-11 23:59:59.500000+00:00,10,1\n"
    "2024-05-12 00:00:00+00:00,20,2\n"
    "2024-05-12 00:00:01.250000+00:00,30,3\n"
)
AZURE_2025 = (
    "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    "2024-10-15T12:00:00.269Z,0,770,491\n2024-10-15T12:00:05.819Z,2,949,126\n"
)
BURST_6 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,0,1087,Conversation log\n"
    "118,GPT-4,0,0,0,API log\n"
    "120.5,GPT-4,417,276,693,API log\n"
)
BURST_8 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "7,12,1.5,GPT-4,100,20,120,Conversation log\n"
    "9,12,,GPT-4,150,30,180,Conversation log\n"
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}\n'
    "\n"
    '{"timestamp": 30535, "input_length": 1024, "output_length": 26, "hash_ids": [46, 48]}\n'
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n"


def put(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def values(path: Path, *names: str, **options: object) -> list[tuple[object, ...]]:
    return read(path, **options).requests.select(names).rows()  # type: ignore[arg-type]


def test_azure_2023_reads_crlf_and_a_last_row_without_newline(tmp_path: Path) -> None:
    trace = read(put(tmp_path, "a.csv", AZURE_2023))
    assert trace.format == "azure"
    assert trace.requests["arrival"].to_list() == [0.0, pytest.approx(4.314579, abs=1e-9)]
    assert trace.requests["prompt_tokens"].to_list() == [374, 396]
    assert trace.requests["output_tokens"].to_list() == [44, 109]


def test_azure_2024_reads_rows_without_a_fraction(tmp_path: Path) -> None:
    assert values(put(tmp_path, "a.csv", AZURE_2024), "arrival", "prompt_tokens") == [(0.0, 10), (0.5, 20), (1.75, 30)]


def test_azure_2025_notes_the_images(tmp_path: Path) -> None:
    trace = read(put(tmp_path, "a.csv", AZURE_2025))
    assert trace.requests["arrival"].to_list() == [0.0, pytest.approx(5.55)]
    assert trace.notes["images"]["count"] == 2


def test_azure_refuses_another_time_zone(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", AZURE_2024.replace("+00:00,30", "+02:00,30"))
    with pytest.raises(UserError, match=r"data row 2 .*'TIMESTAMP'.*\+02:00"):
        read(path)


def test_burstgpt_drops_failed_rows_and_counts_them(tmp_path: Path) -> None:
    trace = read(put(tmp_path, "b.csv", BURST_6))
    assert trace.format == "burstgpt"
    assert trace.requests.select("arrival", "prompt_tokens", "model", "source_row").rows() == [
        (0.0, 472, "ChatGPT", 0),
        (115.5, 417, "GPT-4", 3),
    ]
    assert trace.dropped == {"no output tokens (failed at the source)": 1, "no prompt tokens": 1}
    assert trace.rows_read == 4


def test_burstgpt_with_8_columns_is_read_by_name(tmp_path: Path) -> None:
    rows = values(put(tmp_path, "b.csv", BURST_8), "arrival", "session", "source_e2e", "prompt_tokens", "output_tokens")
    assert rows == [(0.0, "12", 1.5, 100, 20), (2.0, "12", None, 150, 30)]


def test_mooncake_reads_milliseconds_and_chain_ids(tmp_path: Path) -> None:
    rows = values(put(tmp_path, "m.jsonl", MOONCAKE), "arrival", "prefix_ids", "prefix_block_tokens")
    assert rows == [(0.0, [46, 47], 512), (pytest.approx(3.053), [46, 48], 512)]


def test_mooncake_without_hash_ids_says_nothing_about_prefixes(tmp_path: Path) -> None:
    trace = read(put(tmp_path, "m.jsonl", '{"timestamp": 3, "input_length": 600, "output_length": 52}\n'))
    assert "prefix_ids" not in trace.requests.columns


def test_mooncake_refuses_more_ids_than_blocks(tmp_path: Path) -> None:
    path = put(tmp_path, "m.jsonl", MOONCAKE.replace("[46, 47]", "[46, 47, 49, 50]"))
    with pytest.raises(UserError, match="request 0: prefix_ids must not be longer"):
        read(path)


def test_vidur(tmp_path: Path) -> None:
    path = put(tmp_path, "v.csv", VIDUR)
    assert values(path, "arrival", "prompt_tokens", "output_tokens") == [(0.0, 374, 44), (4.314579, 396, 109)]


def test_vidur_lengths_alone_say_how_to_give_arrivals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'arrived_at'.*resample"):
        read(put(tmp_path, "v.csv", "num_prefill_tokens,num_decode_tokens\n1,2\n"))


def test_llmservingsim_hashes_token_ids_to_chains_of_16(tmp_path: Path) -> None:
    shared = list(range(100, 116))
    rows = [
        {"input_toks": 20, "output_toks": 2, "arrival_time_ns": 1_500_000_000, "input_tok_ids": [*shared, 1, 2, 3, 4]},
        {"input_toks": 32, "output_toks": 2, "arrival_time_ns": 2_000_000_000, "input_tok_ids": [*shared, *shared]},
        {"input_toks": 16, "output_toks": 2, "arrival_time_ns": 2_000_000_001, "input_tok_ids": [0, *shared[1:]]},
    ]
    path = put(tmp_path, "l.jsonl", "\n".join(map(json.dumps, rows)))
    found = values(path, "arrival", "prefix_ids", "prefix_block_tokens")
    # The second block of row 1 holds the tokens of its first, but another chain: it needs an id of its own.
    assert found == [(0.0, [0], 16), (0.5, [0, 1], 16), (pytest.approx(0.500000001), [2], 16)]


def test_llmservingsim_sessions_become_closed_loop_turns(tmp_path: Path) -> None:
    rows = [
        {
            "session_id": "s",
            "arrival_time_ns": 3_000_000_000,
            "sub_requests": [
                {"input_toks": 10, "output_toks": 1, "tool_duration_ns": 250_000_000},
                {"input_toks": 30, "output_toks": 2, "tool_duration_ns": 0},
            ],
        },
        {"input_toks": 5, "output_toks": 5, "arrival_time_ns": 1_000_000_000},
    ]
    path = put(tmp_path, "l.jsonl", "\n".join(map(json.dumps, rows)))
    trace = read(path)
    names = ("arrival", "prompt_tokens", "turn", "parent", "think_time", "source_row")
    assert trace.requests.select(names).rows() == [
        (0.0, 5, 0, None, None, 1),
        (2.0, 10, 0, None, None, 0),
        (None, 30, 1, 1, 0.25, 0),
    ]
    assert trace.rows_read == 3
    assert trace.notes["unsorted"]["steps_back"] == 1


def test_llmservingsim_drops_what_follows_a_dropped_call(tmp_path: Path) -> None:
    calls = [{"input_toks": 10, "output_toks": n, "tool_duration_ns": 0} for n in (1, 0, 1)]
    rows = [{"session_id": "s", "arrival_time_ns": 0, "sub_requests": calls}]
    trace = read(put(tmp_path, "l.jsonl", json.dumps(rows[0])))
    assert len(trace.requests) == 1
    assert trace.dropped == {"no output tokens (failed at the source)": 1, "its parent was dropped": 1}


@pytest.mark.parametrize(
    ("unit", "scale"), [("arrival", 1), ("arrival_ms", 1e3), ("arrival_us", 1e6), ("arrival_ns", 1e9)]
)
def test_generic_units(tmp_path: Path, unit: str, scale: float) -> None:
    path = put(tmp_path, "g.csv", f"ts,in,out,user\n{2 * scale:.0f},5,6,x\n{3 * scale:.0f},7,8,y\n")
    columns = {unit: "ts", "prompt_tokens": "in", "output_tokens": "out", "tenant": "user", "priority": 4}
    rows = values(path, "arrival", "prompt_tokens", "tenant", "priority", columns=columns)
    assert rows == [(0.0, 5, "x", 4), (1.0, 7, "y", 4)]


def test_generic_parquet_with_datetimes_and_lists(tmp_path: Path) -> None:
    times = pl.Series(["2024-01-01 00:00:00", "2024-01-01 00:00:01.5"]).str.to_datetime()
    frame = pl.DataFrame({"at": times, "n": [32, 40], "m": [1, 2], "ids": [[1, 2], [1, 3]]})
    frame.write_parquet(tmp_path / "g.parquet")
    columns = {
        "arrival": "at",
        "prompt_tokens": "n",
        "output_tokens": "m",
        "prefix_ids": "ids",
        "prefix_block_tokens": 16,
    }
    assert values(tmp_path / "g.parquet", "arrival", "prefix_ids", columns=columns) == [(0.0, [1, 2]), (1.5, [1, 3])]


def test_generic_refuses_unsorted_rows_unless_allowed(tmp_path: Path) -> None:
    path = put(tmp_path, "g.csv", "ts,in,out\n1,5,6\n9,5,7\n3,5,8\n")
    columns = {"arrival": "ts", "prompt_tokens": "in", "output_tokens": "out"}
    with pytest.raises(UserError, match="data row 2"):
        read(path, columns=columns)
    trace = read(path, columns=columns, allow_unsorted=True)
    assert trace.requests["source_row"].to_list() == [0, 2, 1]


def test_a_named_format_notes_a_clock_that_starts_again(tmp_path: Path) -> None:
    path = put(
        tmp_path, "v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n50,1,1\n99,1,1\n0,1,1\n60,1,1\n"
    )
    note = read(path).notes["unsorted"]
    assert note == {"steps_back": 1, "first_at_row": 3, "largest_step_seconds": 99.0, "clock_reset": True}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"arrival": "ts", "prompt_tokens": "in"}, "'output_tokens' is missing"),
        ({"arrival": "ts", "prompt_tokens": "in", "output_tokens": "nope"}, "no column 'nope'"),
        ({"arrivals": "ts"}, "unknown target 'arrivals'"),
        ({"arrival": "ts", "arrival_ms": "ts"}, "'arrival' is given twice"),
        ({"request_id": "ts"}, "unknown target 'request_id'"),
    ],
)
def test_generic_refuses_a_bad_map(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(put(tmp_path, "g.csv", "ts,in,out\n1,2,3\n"), columns=columns)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nan,1,1", r"data row 1 .*'arrived_at': found 'nan'"),
        ("inf,1,1", r"data row 1 .*'arrived_at': found 'inf'"),
        ("-1,1,1", r"data row 1 .*'arrived_at': found '-1'"),
        ("soon,1,1", r"data row 1 .*'arrived_at': found 'soon'"),
        (",1,1", r"data row 1 .*'arrived_at': found nothing"),
        ("1,-5,1", r"data row 1 .*'num_prefill_tokens': found '-5'"),
        ("1,2.5,1", r"data row 1 .*'num_prefill_tokens': found '2.5'"),
        ("1,1,nan", r"data row 1 .*'num_decode_tokens': found 'nan'"),
        ("1,1,99999999999999999999", r"data row 1 .*'num_decode_tokens'"),
        ("1,1", r"data row 1 .*'num_decode_tokens': found nothing"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = put(tmp_path, "v.csv", f"arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n{row}\n")
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", "is empty"),
        ("x.txt", "a", "found suffix '.txt'"),
        ("x.csv", "a,b\n1,2\n", "no format matches; found a csv file with a, b; known formats are mooncake"),
        ("x.jsonl", '{"a": 1}\n{"a":\n', "line 2"),
        ("x.jsonl", '{"a": NaN}\n', "line 1: NaN is not JSON"),
        ("x.jsonl", "[1]\n", "line 1: found a JSON list"),
        ("x.jsonl", '{"timestamp": [1], "input_length": 1, "output_length": 1}', "'timestamp'.*expected a finite time"),
        ("x.parquet", "PAR1", "not a Parquet file"),
        ("x.csv.gz", "plain", "not a whole gzip file"),
        ("x.csv.zst", "plain", "not a whole zstd file"),
        ("x.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,0,1\n", "no request is left of 1"),
        ("x.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request is left of 0"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_user_error(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(put(tmp_path, name, content))


def test_missing_file_and_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.csv")
    with pytest.raises(UserError, match="unknown format 'azur', expected one of mooncake, aiperf, azure"):
        read(tmp_path / "none.csv", "azur")
    with pytest.raises(UserError, match="not mooncake: found a csv file with arrived_at"):
        read(put(tmp_path, "v.csv", VIDUR), "mooncake")


@pytest.mark.parametrize("content", [AZURE_2023, AZURE_2024, BURST_6, BURST_8, VIDUR])
def test_compressed_files_read_the_same(tmp_path: Path, content: str) -> None:
    plain = read(put(tmp_path, "t.csv", content))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(content.encode()))
    halves = content[:40].encode(), content[40:].encode()
    (tmp_path / "t.csv.zst").write_bytes(b"".join(zstandard.compress(half) for half in halves))
    for name in ("t.csv.gz", "t.csv.zst"):
        assert read(tmp_path / name).requests.equals(plain.requests)


def test_every_format_is_listed() -> None:
    assert list(formats()) == [
        "mooncake",
        "aiperf",
        "azure",
        "burstgpt",
        "vidur",
        "splitwise",
        "llmservingsim",
        "bailian",
        "ragpulse",
        "weka",
        "tracelab",
        "canonical",
        "generic",
    ]
