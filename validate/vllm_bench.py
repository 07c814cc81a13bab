"""Published measured runs of a real vLLM: the folders that LLMServingSim's `bench` writes.

`requests.jsonl` has a request's timestamps, `workload.parquet` what was sent, `meta.json` the engine's arguments and,
where it was recorded, its resolved configuration; `config.json` names the GPU. A run of which only means were published
has them in `measured.tsv` instead of `requests.jsonl`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ground.errors import UserError
from sim.study.scenario import EngineSettings
from traces.table import Trace
from validate.recording import request_table

# A request that was scheduled within so many seconds of being queued did not wait for room: its time to first token is
# what an overload does not hide.
_UNQUEUED = 0.005
_ASYNC_SINCE = (0, 14)  # vLLM schedules asynchronously by default from here on


@dataclass(frozen=True)
class BenchRun:
    """One measured run.

    `requests` has the columns of `sim.results.tables.REQUESTS`, timed from arrival at the front end, and `unqueued`;
    None where only `means` are known: of output_tok_s, ttft_mean, tpot_mean (tokens/s and seconds).
    """

    name: str
    hardware: str
    model: str
    tensor_parallel: int
    data_parallel: int
    trace: Trace
    engine: dict[str, Any]  # as `EngineSettings` takes them
    kv_blocks: int | None  # measured
    device_memory: int | None
    requests: pl.DataFrame | None
    means: dict[str, float]


def read_bench_run(folder: Path) -> BenchRun:
    """Read one run.

    Raises:
        UserError: a file that is missing or not of this form.
    """
    meta = _json(folder / "meta.json") if (folder / "meta.json").is_file() else {}
    instances = _instances(folder / "config.json")
    first = instances[0]
    arguments, resolved, kv_cache, hardware = (
        _object(meta, key, folder / "meta.json") for key in ("engine_kwargs", "resolved_config", "kv_cache", "hardware")
    )
    workload = _workload(folder / "workload.parquet")
    measured = folder / "requests.jsonl"
    requests = None
    if measured.is_file():
        requests, arrivals = _measured(measured, workload)
        workload = workload.with_columns(arrival=arrivals)
    trace = Trace(workload, "vllm-bench", str(folder / "workload.parquet"), len(workload))
    return BenchRun(
        name=folder.name,
        hardware=str(first.get("hardware", "")),
        model=str(meta.get("model") or first.get("model_name", "")),
        tensor_parallel=int(arguments.get("tensor_parallel_size") or first.get("tp_size") or first.get("npu_num") or 1),
        data_parallel=int(arguments.get("data_parallel_size") or 1),
        trace=trace,
        engine=_engine(str(meta.get("vllm_version", "")), arguments, resolved, kv_cache),
        kv_blocks=kv_cache.get("num_gpu_blocks"),
        device_memory=hardware.get("device_total_memory_bytes"),
        requests=requests,
        means=_means(folder / "measured.tsv") if requests is None else {},
    )


def _engine(
    version: str, arguments: dict[str, Any], resolved: dict[str, Any], kv_cache: dict[str, Any]
) -> dict[str, Any]:
    """The engine's settings: its version's preset, changed by what was asked for and by what it resolved to."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    scheduler, cache = resolved.get("scheduler_config") or {}, resolved.get("cache_config") or {}
    graphs = resolved.get("compilation_config") or {}
    known = {
        "max_num_seqs": arguments.get("max_num_seqs") or scheduler.get("max_num_seqs"),
        "max_num_batched_tokens": arguments.get("max_num_batched_tokens") or scheduler.get("max_num_batched_tokens"),
        "async_scheduling": scheduler.get("async_scheduling"),
        "scheduler_reserve_full_isl": scheduler.get("scheduler_reserve_full_isl"),
        "enable_chunked_prefill": scheduler.get("enable_chunked_prefill"),
        "enable_prefix_caching": kv_cache.get("enable_prefix_caching", cache.get("enable_prefix_caching")),
        "block_size": kv_cache.get("block_size"),
        "gpu_memory_utilization": kv_cache.get("gpu_memory_utilization"),
        "expert_parallel": arguments.get("enable_expert_parallel"),
        "disable_custom_all_reduce": arguments.get(
            "disable_custom_all_reduce", (resolved.get("parallel_config") or {}).get("disable_custom_all_reduce")
        ),
        "cudagraph_capture_sizes": () if arguments.get("enforce_eager") else graphs.get("cudagraph_capture_sizes"),
    }
    preset = "vllm-0.19" if numbers >= _ASYNC_SINCE else "vllm-0.11"
    return {"preset": preset} | {name: value for name, value in known.items() if value is not None}


def engine_settings(run: BenchRun, **changes: Any) -> EngineSettings:
    """The run's engine with some settings changed."""
    return EngineSettings.model_validate(run.engine | {"tensor_parallel": run.tensor_parallel} | changes)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}; expected an object")
    return data


def _object(data: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """An object inside another; empty where there is none."""
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: key {key} holds a {type(value).__name__}; expected an object")
    return value


def _instances(path: Path) -> list[dict[str, Any]]:
    config = _json(path)
    try:
        instances = [one for node in config["nodes"] for one in node["instances"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: expected nodes, each with instances") from error
    if not instances or not isinstance(instances[0], dict):
        raise UserError(f"{path}: has no instance")
    return instances


def _workload(path: Path) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for column in ("arrival_time_ns", "input_toks", "output_toks"):
        if column not in table.columns:
            raise UserError(f"{path}: column {column} is missing; found {', '.join(table.columns)}")
    columns = [
        pl.int_range(pl.len(), dtype=pl.Int64).alias("request_id"),
        ((pl.col("arrival_time_ns") - pl.col("arrival_time_ns").min()) / 1e9).alias("arrival"),
        pl.col("input_toks").cast(pl.Int64).alias("prompt_tokens"),
        pl.col("output_toks").cast(pl.Int64).alias("output_tokens"),
    ]
    if "chain_ids_16tok" in table.columns:
        columns += [
            pl.col("chain_ids_16tok").alias("prefix_ids"),
            pl.lit(16, dtype=pl.Int64).alias("prefix_block_tokens"),
        ]
    return table.select(columns)


def _measured(path: Path, workload: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """The request table, and when each request arrived, in the workload's order.

    `arrival_time` is the front end's wall clock and the rest the engine's monotonic one; the request that was queued
    the soonest after its arrival tells how far apart they are.
    """
    try:
        rows = pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not readable JSON lines ({str(error).splitlines()[0]})") from error
    stamps = ("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
    for column in ("request_id", "input_toks", "output_toks", *stamps):
        if column not in rows.columns:
            raise UserError(f"{path}: key {column} is missing; found {', '.join(rows.columns)}")
        if column != "request_id" and not rows[column].dtype.is_numeric():
            raise UserError(f"{path}: key {column} is {rows[column].dtype}; expected numbers")
    rows = rows.with_columns(
        request_id=pl.col("request_id").cast(pl.String).str.extract(r"(\d+)$").cast(pl.Int64)
    ).sort("request_id")
    lengths = rows.select(prompt_tokens="input_toks", output_tokens="output_toks")
    if rows["request_id"].to_list() != workload["request_id"].to_list() or not lengths.equals(
        workload.select("prompt_tokens", "output_tokens")
    ):
        raise UserError(f"{path}: its {len(rows)} requests are not the {len(workload)} of workload.parquet")
    if rows.select(stamps).null_count().sum_horizontal()[0]:
        raise UserError(f"{path}: a request has no time in one of {', '.join(stamps)}; expected every one to finish")
    apart = (pl.col("queued_ts") - pl.col("arrival_time")).min()
    arrival = pl.col("arrival_time") + apart
    rows = rows.with_columns(pl.col(*stamps[1:]) - arrival.min(), arrival=arrival - arrival.min())
    table = request_table(
        rows.select(
            "request_id",
            "arrival",
            replica=pl.lit(0),
            first_scheduled="scheduled_ts",
            first_token="first_token_ts",
            finish="last_token_ts",
            prompt_tokens="input_toks",
            output_tokens="output_toks",
            status=pl.lit("finished"),
        ).to_dicts()
    )
    unqueued = rows["scheduled_ts"] - rows["queued_ts"] < _UNQUEUED
    return table.with_columns(unqueued=unqueued), rows["arrival"]


def _means(path: Path) -> dict[str, float]:
    try:
        row = pl.read_csv(path, separator="\t").row(0, named=True)
        return {
            "output_tok_s": float(row["throughput_tok_s"]),
            "ttft_mean": float(row["mean_ttft_ms"]) / 1e3,
            "tpot_mean": float(row["mean_tpot_ms"]) / 1e3,
        }
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: expected throughput_tok_s, mean_ttft_ms and mean_tpot_ms ({reason})") from error
