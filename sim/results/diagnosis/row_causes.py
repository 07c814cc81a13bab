"""The seconds of each row of a steps table by cause; they sum to the row's duration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from calibrate.latency import StepLatency
from calibrate.step_parts import StepParts, StepRows, step_parts
from calibrate.streamed_latency import StreamedLatency
from ground.errors import UserError
from sim.results.diagnosis.causes import STEP_CAUSES
from sim.results.folder import Run

# Kind of event → the cause of the seconds that a step's row waited for it.
_STALLS = {
    "graph": "graph",
    "launch": "graph",
    "allocator": "allocator",
    "copy": "copies",
    "restart": "restart",
    "slowed": "slow_node",
    "drafted": "drafting",
}
_ROUNDING = 1e-9  # relative: no more than sums of step times differ by
_AGREEMENT = 1e-6  # relative: a profile that is further off is not the one that the run was simulated with


@dataclass(frozen=True)
class RowCauses:
    """`rows`: the steps that took time, in order of (replica, start). `seconds`: cause → array of shape (rows,); causes
    without any are left out. `explained`: what the profile says they take over what they took, where the parts had to
    be scaled to it; null where the two agree. `notes` say what a reader must know."""

    rows: pl.DataFrame
    seconds: dict[str, np.ndarray]
    explained: float | None
    notes: list[str]


def row_causes(run: Run, times: StepLatency, *, simulated: bool) -> RowCauses:
    """Take every row of a run apart.

    `simulated`: with these very `times`. Then what the rows leave open (see `calibrate.step_parts`) follows from their
    duration. Otherwise, and for engines in lock-step, of which the slowest sets the pace, the predicted parts are
    scaled to it.

    Raises:
        UserError: the engines are pipelines, whose batches overlap: seconds of theirs are no sum of steps.
    """
    if times.parallelism.pipeline > 1:
        raise UserError(
            f"{run.name}: engine.pipeline_parallel is {times.parallelism.pipeline}, and batches of a pipeline overlap; "
            "expected 1 to tell every second's cause"
        )
    rows = _in_order(run.steps)
    found, engine = _Events(rows, run.events), run.scenario.get("engine", {})
    columns = ("steps", "prefill_seqs", "prefill_tokens", "decode_seqs", "kv_tokens")
    counted = StepRows(*(rows[name].to_numpy() for name in columns))
    parts = step_parts(times, replace(counted, drafts=found.drafts))
    duration = (rows["end"] - rows["start"]).to_numpy()
    stalls = found.stalls(duration)
    # Rows of a padded prompt that stand for no token are kernels as those of its tokens.
    parts = replace(parts, prefill_weights=parts.prefill_weights + found.padding)
    if isinstance(times, StreamedLatency):
        stalls["weight_stream"] = _streamed(parts, rows, times, duration)
    core = np.maximum(duration - sum(stalls.values(), np.zeros(len(rows))), 0.0)
    notes, explained = [], None
    exact = simulated and times.parallelism.data == 1 and not found.drafts.any()
    if found.drafts.any():
        notes.append("steps that verify drafts: of their sums the parts are known, scaled to each step")
    elif simulated and not exact:
        notes.append("engines in lock-step: of their sums the parts of an even share are known, scaled to each step")
    if exact and not _agrees(parts, rows, times, core, found.host):
        exact = False
        notes.append("the profile is no longer the one that the run was simulated with: its parts are scaled")
    if exact:
        kernels, host = _solve(parts, rows, times, core, found.host)
        other = np.zeros(len(rows))
    else:
        copies = found.copies(rows, times)
        kernels, host, copies, other, explained = _scale(parts, times, core, found.host, copies)
        stalls["copies"] = stalls.get("copies", 0.0) + copies
    prefill = kernels.prefill_weights + kernels.prefill_attention
    tokens = np.maximum(rows["prefill_tokens"].to_numpy(), 1)
    again = found.recomputed
    if engine.get("kv_cache") is False:
        again = np.maximum(again, _again_without_cache(rows, run.requests))
    recomputed = np.minimum(again / tokens, 1.0)
    missed = np.minimum(found.missed / tokens, 1.0 - recomputed)
    seconds = {
        "prefill": prefill * (1.0 - recomputed - missed),
        "recompute": prefill * recomputed,
        "eviction_misses": prefill * missed,
        "decode_weights": kernels.decode_weights,
        "decode_kv": kernels.decode_attention,
        "communication": kernels.communication,
        "host": host,
        "other": other,
        **stalls,
    }
    present = {name: seconds[name] for name in STEP_CAUSES if name in seconds and seconds[name].any()}
    return RowCauses(rows, present, explained, notes)


def _streamed(parts: StepParts, rows: pl.DataFrame, times: StreamedLatency, duration: np.ndarray) -> np.ndarray:
    """Of rows that took what streaming their weights does: what that is longer than their kernels and host."""
    kernels = sum(
        (getattr(parts, name) for name in StepParts.__dataclass_fields__ if name != "host"), np.zeros(len(rows))
    )
    alone = np.maximum(kernels, parts.host) if times.host_overlaps else kernels + parts.host
    bound = np.isclose(duration, rows["steps"].to_numpy() * times.stream_seconds, rtol=_AGREEMENT, atol=0.0)
    return np.where(bound, np.maximum(duration - alone, 0.0), 0.0)


def _in_order(steps: pl.DataFrame) -> pl.DataFrame:
    """Rows that took time, by (replica, start). Where a measured row begins before the last has ended, it is cut."""
    rows = steps.sort("replica", "start", "end")
    before = pl.col("end").cum_max().shift().over("replica")
    rows = rows.with_columns(began=pl.col("start"), start=pl.max_horizontal("start", before))
    return rows.filter(pl.col("end") > pl.col("start"))


class _Events:
    """What the events table says of the rows, each an array of shape (rows,)."""

    def __init__(self, rows: pl.DataFrame, events: pl.DataFrame) -> None:
        self._count = len(rows)
        places = rows.select("replica", time="began").with_row_index("row")
        # An event belongs to the row that begins with it: the same float, on the same replica.
        self._found = events.filter(pl.col("request_id").is_null()).join(places, on=["replica", "time"], how="inner")
        self.host = self._sum("host", "seconds")
        self.recomputed = self._sum("recomputed", "amount")
        self.missed = self._sum("missed", "amount")
        self.drafts = self._sum("drafted", "amount")
        self.padding = self._sum("padding", "seconds")

    def _sum(self, kind: str, column: str) -> np.ndarray:
        found = self._found.filter(pl.col("kind") == kind)
        values = found[column].fill_null(0).to_numpy()
        return np.bincount(found["row"].to_numpy(), weights=values, minlength=self._count).astype(np.float64)

    def stalls(self, duration: np.ndarray) -> dict[str, np.ndarray]:
        """Cause → seconds, no more than the row took."""
        seconds = {cause: np.zeros(self._count) for cause in _STALLS.values()}
        for kind, cause in _STALLS.items():
            seconds[cause] += self._sum(kind, "seconds")
        total = sum(seconds.values(), np.zeros(self._count))
        share = np.minimum(1.0, duration / np.where(total > 0, total, 1.0))
        return {cause: own * share for cause, own in seconds.items() if own.any()}

    def copies(self, rows: pl.DataFrame, times: StepLatency) -> np.ndarray:
        """What copies should take whose time nobody took: a step that preempts copies out, another one in."""
        seconds = np.zeros(self._count)
        untimed = self._found.filter((pl.col("kind") == "copy") & pl.col("seconds").is_null())
        if times.copies is None:
            return seconds
        preempts = rows["preempted"].to_numpy() > 0
        for row, blocks in untimed.select("row", "amount").iter_rows():
            seconds[row] += times.swap(blocks, 0) if preempts[row] else times.swap(0, blocks)
        return seconds


def _again_without_cache(rows: pl.DataFrame, requests: pl.DataFrame) -> np.ndarray:
    """Tokens of each row that had been computed before, where nothing is kept: all but one of each sequence that
    decodes, and all but the whole of each prompt that the row completes. So what earlier chunks of a prompt computed
    counts as done again, which it is when the prompt is completed."""
    begun = requests.filter(pl.col("first_token").is_not_null()).group_by("replica", end="first_token")
    new = begun.agg(prompts=pl.len(), tokens=pl.col("prompt_tokens").sum())
    joined = rows.join(new, on=["replica", "end"], how="left", maintain_order="left")
    completed, tokens = (joined[name].fill_null(0).to_numpy().astype(np.float64) for name in ("prompts", "tokens"))
    sequences, computed = (rows[name].to_numpy() for name in ("prefill_seqs", "prefill_tokens"))
    return np.maximum(computed - (sequences - completed) - tokens, 0.0)


def _agrees(parts: StepParts, rows: pl.DataFrame, times: StepLatency, core: np.ndarray, more: np.ndarray) -> bool:
    """Whether steps that only decode equally long sequences take what the profile says."""
    if times.skew is not None:
        return True  # their contexts were not recorded
    decoding = (rows["prefill_tokens"] == 0).to_numpy() & (rows["decode_seqs"] > 0).to_numpy()
    kernels = (parts.decode_weights + parts.communication + parts.decode_attention)[decoding]
    host = (parts.host + more)[decoding]
    took = core[decoding]
    if times.host_overlaps:  # some of the steps may be the host's, others the kernels'
        low, high = np.maximum(kernels, host), kernels + host
    else:
        low = high = kernels + host
    off = np.maximum(low - took, 0.0) + np.maximum(took - high, 0.0)
    return bool(off.sum() <= _AGREEMENT * took.sum())


def _solve(
    parts: StepParts, rows: pl.DataFrame, times: StepLatency, core: np.ndarray, more: np.ndarray
) -> tuple[StepParts, np.ndarray]:
    """The parts of a simulated row: what is exact, and attention as what remains. Returns also the host's seconds."""
    prefills, decodes = (rows[name].to_numpy() > 0 for name in ("prefill_tokens", "decode_seqs"))
    known = parts.decode_weights + parts.prefill_weights + parts.communication
    wanted = parts.host + more
    if times.host_overlaps:
        kernels = known + parts.decode_attention + parts.prefill_attention
        beyond = np.maximum(core - kernels, 0.0)
        # Only of equally long decodes the kernels' time is known; else the host counts where the step lasted its time.
        hidden = (core > wanted * (1.0 + _ROUNDING)) & (prefills | (times.skew is not None))
        host = np.where(hidden | (beyond <= _ROUNDING * core), 0.0, beyond)
    else:
        host = np.minimum(wanted, core)
    host = np.where(prefills | decodes, host, core)
    left = core - host
    fits = np.minimum(1.0, left / np.where(known > 0, known, 1.0))
    attention = np.maximum(left - known * fits, 0.0)
    if times.attention.one_kernel:  # it serves both: each takes its share of what the two take alone
        both = parts.decode_attention + parts.prefill_attention
        decoding = attention * parts.decode_attention / np.where(both > 0, both, 1.0)
    else:
        decoding = np.minimum(parts.decode_attention, attention)
    decoding = np.where(prefills, decoding, attention)
    solved = StepParts(
        decode_weights=parts.decode_weights * fits,
        prefill_weights=parts.prefill_weights * fits,
        communication=parts.communication * fits,
        decode_attention=decoding,
        prefill_attention=attention - decoding,
        host=host,
    )
    return solved, host


def _scale(
    parts: StepParts, times: StepLatency, core: np.ndarray, more: np.ndarray, copies: np.ndarray
) -> tuple[StepParts, np.ndarray, np.ndarray, np.ndarray, float | None]:
    """The predicted parts, scaled to what the row took: (parts, host, copies, other, predicted over measured)."""
    kernels = sum(
        (parts.decode_weights, parts.prefill_weights, parts.communication, parts.prefill_attention),
        parts.decode_attention,
    )
    host = parts.host + more
    if times.host_overlaps:
        host = np.maximum(host - kernels, 0.0)
    predicted = kernels + host + copies
    scale = np.where(predicted > 0, core / np.where(predicted > 0, predicted, 1.0), 0.0)
    scaled = StepParts(**{name: getattr(parts, name) * scale for name in StepParts.__dataclass_fields__})
    took = float(core.sum())
    explained = float(predicted.sum()) / took if took else None
    return scaled, host * scale, copies * scale, np.where(predicted > 0, 0.0, core), explained
