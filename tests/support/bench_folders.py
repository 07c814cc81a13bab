"""Tiny folders in the form of LLMServingSim's `bench`: a run that a real vLLM might have made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

ARGUMENTS: dict[str, Any] = {"model": "made/Small", "max_num_seqs": 16, "max_num_batched_tokens": 512}
KV_CACHE: dict[str, Any] = {
    "num_gpu_blocks": 700,
    "block_size": 16,
    "gpu_memory_utilization": 0.9,
    "enable_prefix_caching": True,
}
META: dict[str, Any] = {
    "model": "made/Small",
    "vllm_version": "0.19.0",
    "engine_kwargs": ARGUMENTS,
    "kv_cache": KV_CACHE,
    "hardware": {"device_total_memory_bytes": 25250627584},
}
INSTANCE: dict[str, Any] = {"model_name": "made/Small", "hardware": "RTX4090", "tp_size": 1}
STAMPS = ("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")


def write_run(
    folder: Path,
    workload: Sequence[dict[str, Any]],
    times: Sequence[Sequence[float]] | None,
    *,
    meta: dict[str, Any] = META,
    instance: dict[str, Any] = INSTANCE,
) -> Path:
    """`workload`: rows of workload.parquet; `times`: `STAMPS` of each request, or None where only means are known."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"nodes": [{"instances": [instance]}]}), encoding="utf-8")
    pl.DataFrame(workload).write_parquet(folder / "workload.parquet")
    if times is not None:
        rows = [
            {"request_id": f"bench-{i}", "input_toks": row["input_toks"], "output_toks": row["output_toks"]}
            | dict(zip(STAMPS, stamps, strict=True))
            for i, (row, stamps) in enumerate(zip(workload, times, strict=True))
        ]
        write_lines(folder / "requests.jsonl", rows)
    return folder


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_means(folder: Path, throughput: float, ttft_ms: float, tpot_ms: float) -> None:
    text = "framework\tthroughput_tok_s\tmean_ttft_ms\tmean_tpot_ms\n"
    (folder / "measured.tsv").write_text(f"{text}vLLM\t{throughput}\t{ttft_ms}\t{tpot_ms}\n", encoding="utf-8")
