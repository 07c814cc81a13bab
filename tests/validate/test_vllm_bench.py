"""Published runs of a real vLLM: what is read from which file, on one clock, and refusals in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from bench_folders import ARGUMENTS, INSTANCE, KV_CACHE, META, write_lines, write_means, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from sim.results.tables import REQUESTS
from validate.vllm_bench import engine_settings, read_bench_run

WORKLOAD = [
    {"arrival_time_ns": 2_000_000_000, "input_toks": 40, "output_toks": 5, "chain_ids_16tok": [1, 2]},
    {"arrival_time_ns": 2_500_000_000, "input_toks": 20, "output_toks": 1, "chain_ids_16tok": [1]},
    {"arrival_time_ns": 2_750_000_000, "input_toks": 33, "output_toks": 3, "chain_ids_16tok": [3, 4]},
]
# The front end's clock is 900 s ahead of the engine's; the second request is queued at once.
TIMES = [
    (1000.0, 100.125, 100.1875, 100.25, 101.25),
    (1000.5, 100.5, 100.503, 100.75, 100.75),
    (1000.75, 101.0, 101.25, 101.5, 102.0),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "RTX4090-Small", WORKLOAD, TIMES)


def column(table: pl.DataFrame, name: str) -> list[Any]:
    return table[name].to_list()


def test_times_are_counted_from_the_first_arrival_on_one_clock(folder: Path) -> None:
    requests = read_bench_run(folder).requests
    assert requests is not None
    assert list(requests.columns) == [*REQUESTS, "unqueued"]
    assert column(requests, "arrival") == pytest.approx([0.0, 0.5, 0.75])
    assert column(requests, "first_scheduled") == pytest.approx([0.1875, 0.503, 1.25])
    assert column(requests, "first_token") == pytest.approx([0.25, 0.75, 1.5])
    assert column(requests, "finish") == pytest.approx([1.25, 0.75, 2.0])
    assert column(requests, "ttft") == pytest.approx([0.25, 0.25, 0.75])
    assert requests["tpot"].to_list() == [pytest.approx(0.25), None, pytest.approx(0.25)]
    assert column(requests, "unqueued") == [False, True, False], "scheduled less than 5 ms after it was queued"
    assert column(requests, "status") == ["finished"] * 3


@settings(max_examples=25)
@given(st.integers(-10_000, 10_000), st.integers(-10_000, 10_000), st.permutations(range(3)))
def test_neither_the_clocks_nor_the_order_of_the_lines_matter(
    tmp_path_factory: pytest.TempPathFactory, wall: int, monotonic: int, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    plain = read_bench_run(write_run(folder / "run", WORKLOAD, TIMES))
    times = [(arrival + wall, *(stamp + monotonic for stamp in stamps)) for arrival, *stamps in TIMES]
    moved = write_run(folder / "run", WORKLOAD, times)
    lines = (moved / "requests.jsonl").read_text().splitlines()
    (moved / "requests.jsonl").write_text("".join(lines[i] + "\n" for i in order))
    shifted = read_bench_run(moved)
    assert plain.requests is not None and shifted.requests is not None
    for name in ("arrival", "first_scheduled", "first_token", "finish"):
        assert column(shifted.requests, name) == pytest.approx(column(plain.requests, name), abs=1e-9)
    assert column(shifted.trace.requests, "arrival") == pytest.approx(column(plain.trace.requests, "arrival"), abs=1e-9)


def test_the_trace_is_what_was_sent_when_it_arrived(folder: Path) -> None:
    trace = read_bench_run(folder).trace.requests
    assert column(trace, "request_id") == [0, 1, 2]
    assert column(trace, "prompt_tokens") == [40, 20, 33] and column(trace, "output_tokens") == [5, 1, 3]
    assert column(trace, "prefix_ids") == [[1, 2], [1], [3, 4]] and set(trace["prefix_block_tokens"]) == {16}
    assert column(trace, "arrival") == pytest.approx([0.0, 0.5, 0.75])
    pl.DataFrame(WORKLOAD).drop("chain_ids_16tok").write_parquet(folder / "workload.parquet")
    assert "prefix_ids" not in read_bench_run(folder).trace.requests.columns


def test_a_run_of_which_only_means_are_known(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", WORKLOAD, None)
    write_means(folder, 1833.5, 61.5, 26.75)
    run = read_bench_run(folder)
    assert run.requests is None
    assert run.means == pytest.approx({"output_tok_s": 1833.5, "ttft_mean": 0.0615, "tpot_mean": 0.02675})
    assert column(run.trace.requests, "arrival") == [0.0, 0.5, 0.75], "as it was to be sent"


# The engine


def test_who_ran_it_on_what(folder: Path) -> None:
    run = read_bench_run(folder)
    assert (run.name, run.hardware, run.model) == ("RTX4090-Small", "RTX4090", "made/Small")
    assert (run.tensor_parallel, run.data_parallel) == (1, 1)
    assert (run.kv_blocks, run.device_memory) == (700, 25250627584)


def test_the_engine_is_its_versions_with_what_was_asked_for(folder: Path) -> None:
    engine = engine_settings(read_bench_run(folder))
    assert (engine.preset, engine.async_scheduling, engine.scheduler_reserve_full_isl) == ("vllm-0.19", True, True)
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.block_size) == (16, 512, 16)
    assert engine.gpu_memory_utilization == 0.9 and engine.enable_prefix_caching and engine.kv_blocks is None
    changed = engine_settings(read_bench_run(folder), async_scheduling=False, kv_blocks=5)
    assert (changed.async_scheduling, changed.kv_blocks) == (False, 5)


def rewrite(folder: Path, **changed: Any) -> None:
    (folder / "meta.json").write_text(json.dumps(META | changed))


@pytest.mark.parametrize(
    ("version", "preset"),
    [("0.11.2", "vllm-0.11"), ("0.13.0", "vllm-0.11"), ("0.14.0", "vllm-0.19"), ("1.0", "vllm-0.19")],
)
def test_versions_schedule_ahead_from_014_on(folder: Path, version: str, preset: str) -> None:
    rewrite(folder, vllm_version=version)
    assert engine_settings(read_bench_run(folder)).preset == preset


def test_what_it_resolved_to_fills_what_was_not_asked_for(folder: Path) -> None:
    resolved = {
        "scheduler_config": {"max_num_seqs": 99, "async_scheduling": False, "scheduler_reserve_full_isl": False},
        "cache_config": {"enable_prefix_caching": True},
        "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4]},
        "parallel_config": {"disable_custom_all_reduce": True},
    }
    rewrite(folder, resolved_config=resolved, engine_kwargs={}, kv_cache=KV_CACHE | {"enable_prefix_caching": False})
    engine = engine_settings(read_bench_run(folder))
    assert (engine.max_num_seqs, engine.async_scheduling, engine.scheduler_reserve_full_isl) == (99, False, False)
    assert engine.graph_sizes == (1, 2, 4) and engine.disable_custom_all_reduce
    assert not engine.enable_prefix_caching, "what the cache reports comes before the configuration"
    rewrite(folder, resolved_config=resolved, engine_kwargs=ARGUMENTS | {"enforce_eager": True})
    engine = engine_settings(read_bench_run(folder))
    assert engine.max_num_seqs == 16 and engine.graph_sizes == ()


def test_parallelism_is_that_of_the_arguments_or_of_the_instance(folder: Path) -> None:
    rewrite(folder, engine_kwargs={"tensor_parallel_size": 2, "data_parallel_size": 4, "enable_expert_parallel": True})
    run = read_bench_run(folder)
    assert (run.tensor_parallel, run.data_parallel) == (2, 4)
    assert engine_settings(run).tensor_parallel == 2 and engine_settings(run).expert_parallel
    write_run(folder, WORKLOAD, TIMES, meta={}, instance={"model_name": "made/Big", "hardware": "H100", "npu_num": 4})
    run = read_bench_run(folder)
    assert (run.model, run.hardware, run.tensor_parallel, run.kv_blocks) == ("made/Big", "H100", 4, None)
    assert engine_settings(run).tensor_parallel == 4 and engine_settings(run).preset == "vllm-0.11"
    write_run(folder, WORKLOAD, TIMES, instance=INSTANCE | {"tp_size": 8})
    assert read_bench_run(folder).tensor_parallel == 8


# What cannot be read


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:2], r"requests.jsonl: its 2 requests are not the 3 of workload.parquet"),
        (
            lambda rows: [row | {"input_toks": 7} for row in rows],
            r"requests.jsonl: its 3 requests are not the 3 of workload.parquet",
        ),
        (
            lambda rows: [*rows[:2], rows[2] | {"last_token_ts": None}],
            r"requests.jsonl: a request has no time in one of arrival_time, .*; expected every one to finish",
        ),
        (
            lambda rows: [{key: value for key, value in row.items() if key != "queued_ts"} for row in rows],
            r"requests.jsonl: key queued_ts is missing; found request_id, input_toks",
        ),
    ],
)
def test_measurements_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], words: str
) -> None:
    write_lines(folder / "requests.jsonl", change(lines_of(folder)))
    with pytest.raises(UserError, match=words) as caught:
        read_bench_run(folder)
    assert "\n" not in caught.value.format_message()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("meta.json", "{", r"meta.json: not a JSON file \("),
        ("meta.json", "[]", r"meta.json: holds a list; expected an object"),
        ("config.json", "{}", r"config.json: expected nodes, each with instances"),
        ("config.json", '{"nodes": [{"instances": []}]}', r"config.json: has no instance"),
        ("config.json", '{"nodes": 3}', r"config.json: expected nodes, each with instances"),
        ("requests.jsonl", "{\n", r"requests.jsonl: not readable JSON lines"),
        ("workload.parquet", "PAR", r"workload.parquet: not a readable Parquet file"),
    ],
)
def test_a_spoilt_file_is_named(folder: Path, file: str, text: str, words: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_bench_run(folder)
    assert "\n" not in caught.value.format_message()


def test_missing_files_and_columns_are_named(folder: Path) -> None:
    (folder / "requests.jsonl").unlink()
    with pytest.raises(UserError, match=r"measured.tsv: expected throughput_tok_s, mean_ttft_ms and mean_tpot_ms"):
        read_bench_run(folder)
    pl.DataFrame(WORKLOAD).drop("input_toks").write_parquet(folder / "workload.parquet")
    with pytest.raises(UserError, match=r"workload.parquet: column input_toks is missing; found arrival_time_ns"):
        read_bench_run(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: cannot be read \(No such file or directory\)"):
        read_bench_run(folder)
