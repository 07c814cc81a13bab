"""Which of vLLM's metrics a run cannot tell, and why; and what is told with a reservation."""

from __future__ import annotations

import polars as pl

from sim.results.folder import Run

_SCHEDULED = (
    "num_requests_running",
    "num_requests_waiting",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
)


def left_out(run: Run) -> dict[str, str]:
    """Metric without its prefix → why the run's tables do not tell it."""
    finished = run.requests.filter(pl.col("status") == "finished")
    reasons = {}
    if finished["first_scheduled"].null_count():
        reasons.update(dict.fromkeys(_SCHEDULED, "the run does not say when requests were scheduled"))
    if finished["first_token"].null_count():
        for name in ("prompt_tokens", "generation_tokens", "time_to_first_token_seconds", "inter_token_latency_seconds",
                     "time_per_output_token_seconds", "request_decode_time_seconds", "iteration_tokens_total",
                     "request_prefill_time_seconds"):  # fmt: skip
            reasons[name] = "the run does not say when every finished request had its first token"
    if finished["cached_tokens"].null_count():
        for name in ("prefix_cache_queries", "prefix_cache_hits"):
            reasons[name] = "the run does not say what the prefix cache held"
    if run.steps.is_empty():
        reasons["iteration_tokens_total"] = "the run has no table of steps"
    if not run.has_events:
        reasons["num_preemptions"] = "the run has no table of events"
    if not blocks_of_replicas(run):
        reasons["kv_cache_usage_perc"] = "the KV blocks of each replica are not known"
    return reasons


def blocks_of_replicas(run: Run) -> dict[int, int]:
    """Replica → its KV blocks, of those that have any and of which they are known."""
    if run.replicas is not None:
        return dict(run.replicas.drop_nulls("kv_blocks").select("replica", "kv_blocks").iter_rows())
    blocks, numbers = run.metrics["kv"]["blocks"], run.steps["replica"].unique().to_list()
    return {} if blocks is None else dict.fromkeys(numbers, int(blocks // max(1, len(numbers))))


def reservations(run: Run) -> list[str]:
    """What a reader of the metrics should know."""
    notes = [
        "a sample shows what has happened up to its instant; vLLM's own is up to one step older",
        "latencies count from the arrival at the client: where a request was held, sent on or waited for weights, that "
        "is in TTFT, E2E and queue time, which vLLM counts from its own door",
        "every finished request has finished_reason length: it ends where the trace says",
        "counters begin with a replica; its last sample is at its end, so that nothing is lost between two scrapes",
    ]
    lost = run.requests.filter((pl.col("status") != "finished") & (pl.col("replica") >= 0))
    if len(lost):
        notes.append(f"{len(lost)} requests reached an engine and did not finish: what they did there is in no metric")
    if not run.has_events:
        notes.append("without a table of events a preempted request counts as running")
    if run.scenario.get("engine", {}).get("speculative"):
        notes.append(
            "of a step with accepted drafts iteration_tokens_total counts one token a sequence, and inter-token "
            "latencies are a request's mean"
        )
    moved = run.events.filter(pl.col("kind").is_in(["retried", "kv_transfer"]))
    if len(moved):
        notes.append("a request that several replicas worked on counts where it ended")
    return notes
