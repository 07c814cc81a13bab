"""What one replica's vLLM would have said of itself at each sample, from the tables of a run.

A sample shows all that happened at or before it; a real engine's is up to one step older.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sim.results.telemetry.samples import Histogram, Observations, count_until, observed, spread, together

# Counter → its value at each sample by `finished_reason`; every other counter and gauge is one array.
ByReason = dict[str, np.ndarray]
Series = np.ndarray | ByReason | Histogram


@dataclass(frozen=True)
class ReplicaTables:
    """One replica's rows of a run's tables, and its KV blocks."""

    requests: pl.DataFrame
    steps: pl.DataFrame
    events: pl.DataFrame
    kv_blocks: int | None  # None: it has none
    prefix_cache: bool  # whether the engine looks prompts up in one


class ReplicaSeries:
    """The series of one replica, sampled at `at` (seconds, rising)."""

    def __init__(self, tables: ReplicaTables, at: np.ndarray) -> None:
        self._tables = tables
        self._at = at
        self._finished = tables.requests.filter(pl.col("status") == "finished")
        self._rows = tables.steps.sort("start", "end")
        self._later_tokens, self.even = self._tokens_after_the_first()

    def of(self, name: str, bounds: np.ndarray) -> Series:
        """The metric of that name without its prefix; a histogram has these bounds, rising."""
        found: Series | Observations = getattr(self, f"_{name}")()
        return found.histogram(len(self._at), bounds) if isinstance(found, Observations) else found

    # Gauges.

    def _num_requests_running(self) -> np.ndarray:
        scheduled, left = (count_until(self._of(name), self._at) for name in ("first_scheduled", "finish"))
        return scheduled - left - self._preempted()

    def _num_requests_waiting(self) -> np.ndarray:
        arrived, scheduled = (count_until(self._of(name), self._at) for name in ("arrival", "first_scheduled"))
        return arrived - scheduled + self._preempted()

    def _preempted(self) -> np.ndarray:
        """How many requests have lost their blocks and wait to be admitted again."""
        moves = self._tables.events.join(self._finished.select("request_id"), on="request_id", how="semi")
        lost, again = (moves.filter(pl.col("kind") == kind)["time"].to_numpy() for kind in ("preempted", "resumed"))
        return count_until(lost, self._at) - count_until(again, self._at)

    def _kv_cache_usage_perc(self) -> np.ndarray:
        """Linear within a row of steps and constant between two, as in `sim.results.kv_use`."""
        rows, there = self._rows.sort("end"), self._tables.kv_blocks
        if rows.is_empty() or not there:
            return np.zeros(len(self._at))
        end, held = rows["end"].to_numpy(), rows["kv_blocks"].to_numpy()
        start = np.maximum(rows["start"].to_numpy(), np.concatenate(([0.0], end[:-1])))
        knots = np.stack((start, end), axis=1).ravel()
        blocks = np.stack((np.concatenate(([0], held[:-1])), held), axis=1).ravel()
        return np.interp(self._at, knots, blocks) / there

    # Counters.

    def _prefix_cache_queries(self) -> np.ndarray:
        return self._looked_up("prompt_tokens")

    def _prefix_cache_hits(self) -> np.ndarray:
        return self._looked_up("cached_tokens")

    def _looked_up(self, tokens: str) -> np.ndarray:
        if not self._tables.prefix_cache:
            return np.zeros(len(self._at), dtype=np.int64)
        return count_until(self._of("first_scheduled"), self._at, self._finished[tokens].to_numpy())

    def _num_preemptions(self) -> np.ndarray:
        lost = self._tables.events.filter(pl.col("kind") == "preempted")
        return count_until(lost["time"].to_numpy(), self._at)

    def _prompt_tokens(self) -> np.ndarray:
        return count_until(self._of("first_token"), self._at, self._finished["prompt_tokens"].to_numpy())

    def _generation_tokens(self) -> np.ndarray:
        return count_until(self._of("first_token"), self._at) + self._later_tokens.count(len(self._at))

    def _request_success(self) -> ByReason:
        """A request ends at the length that the trace gives it; `abort` is of clients that gave up."""
        gone = self._tables.events.filter((pl.col("kind") == "timed_out") & pl.col("request_id").is_not_null())
        ended = {"stop": np.empty(0), "length": self._of("finish"), "abort": gone["time"].to_numpy()}
        return {reason: count_until(moments, self._at) for reason, moments in ended.items()}

    # Histograms of requests.

    def _time_to_first_token_seconds(self) -> Observations:
        return self._observed("first_token", self._finished["ttft"].to_numpy())

    def _e2e_request_latency_seconds(self) -> Observations:
        return self._observed("finish", self._finished["e2e"].to_numpy())

    def _request_queue_time_seconds(self) -> Observations:
        return self._observed("finish", self._finished["queue"].to_numpy())

    def _request_inference_time_seconds(self) -> Observations:
        return self._observed("finish", self._of("finish") - self._of("first_scheduled"))

    def _request_prefill_time_seconds(self) -> Observations:
        return self._observed("finish", self._of("first_token") - self._of("first_scheduled"))

    def _request_decode_time_seconds(self) -> Observations:
        return self._observed("finish", self._of("finish") - self._of("first_token"))

    def _request_time_per_output_token_seconds(self) -> Observations:
        """vLLM counts 0 for a request of one token."""
        return self._observed("finish", self._finished["tpot"].fill_null(0.0).to_numpy())

    def _request_prompt_tokens(self) -> Observations:
        return self._observed("finish", self._finished["prompt_tokens"].to_numpy().astype(float))

    def _request_generation_tokens(self) -> Observations:
        return self._observed("finish", self._finished["output_tokens"].to_numpy().astype(float))

    # Histograms of tokens and steps.

    def _inter_token_latency_seconds(self) -> Observations:
        return self._later_tokens

    _time_per_output_token_seconds = _inter_token_latency_seconds

    def _iteration_tokens_total(self) -> Observations:
        """Of every step that gives a token. A prompt counts whole, with the step that completes it."""
        rows = self._rows
        begun = self._finished.group_by(end="first_token").agg(begun=pl.len(), tokens=pl.col("prompt_tokens").sum())
        new = rows.join(begun, on="end", how="left", maintain_order="left")
        tokens = new.select(pl.col("decode_seqs") + pl.col("begun").fill_null(0) + pl.col("tokens").fill_null(0))
        values = tokens.to_series().to_numpy().astype(float)
        start, end, steps = (rows[name].to_numpy() for name in ("start", "end", "steps"))
        given = values > 0
        return spread(start[given], end[given], steps[given], values[given], np.ones(int(given.sum()), int), self._at)

    def _tokens_after_the_first(self) -> tuple[Observations, int]:
        """Every token but a request's first, with the time since the one before, and of how many requests the steps
        tell it. Their tokens are those of the steps between first token and finish; of others they are spread evenly.
        """
        several = self._finished.filter(pl.col("output_tokens") > 1)
        first, finish = several["first_token"].to_numpy(), several["finish"].to_numpy()
        tokens = several["output_tokens"].to_numpy() - 1
        start, end, steps = (self._rows[name].to_numpy() for name in ("start", "end", "steps"))
        told = np.zeros(len(several), dtype=bool)
        decoding = np.zeros(len(self._rows), dtype=np.int64)  # of those that are told, in each row
        if len(end) and (start[1:] >= end[:-1]).all():
            before, last = np.searchsorted(end, first, side="left"), np.searchsorted(end, finish, side="left")
            inside = (before < len(end)) & (last < len(end))
            taken = np.concatenate(([0], np.cumsum(steps, dtype=np.int64)))
            before, last = np.minimum(before, len(end) - 1), np.minimum(last, len(end) - 1)
            told = (
                inside
                & (end[before] == first)
                & (end[last] == finish)
                & (taken[last + 1] - taken[before + 1] == tokens)
            )
            changes = np.zeros(len(self._rows) + 1, dtype=np.int64)
            np.add.at(changes, before[told] + 1, 1)
            np.subtract.at(changes, last[told] + 1, 1)
            decoding = changes.cumsum()[:-1]
        busy = np.flatnonzero(decoding)
        begin = end[busy - 1]  # a row before it gave the first token
        between = (end[busy] - begin) / steps[busy]
        rest = ~told
        even = (finish - first)[rest] / tokens[rest]
        ones = np.ones(int(rest.sum()), dtype=np.int64)
        return (
            together(
                spread(begin, end[busy], steps[busy], between, decoding[busy], self._at),
                spread(first[rest], finish[rest], tokens[rest], even, ones, self._at),
            ),
            int(told.sum()),
        )

    def _of(self, name: str) -> np.ndarray:
        return self._finished[name].to_numpy()

    def _observed(self, when: str, values: np.ndarray) -> Observations:
        return observed(self._of(when), values, self._at)
