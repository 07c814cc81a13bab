"""A run as a timeline for Perfetto and chrome://tracing: Google's Trace Event Format, in JSON.

A process a replica, with a track of its steps, one of what happened beside them and counters; and a process of sampled
requests, each a track of its own with its phases. Times are microseconds. Long runs are thinned so that the file stays
below some 20 MB: steps are merged in order, so that their track has no false gaps, events are left out evenly, counters
evenly in each replica, and requests are every k-th by arrival and the slowest. `otherData` says what was done.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from sim.results.diagnosis.attribution import cause_columns, preempted_intervals
from sim.results.diagnosis.causes import CAUSES
from sim.results.diagnosis.diagnosis import Diagnosis
from sim.results.folder import Run

# How many of each a file holds at most.
_STEPS = 24_000
_EVENTS = 10_000
_COUNTS = 16_000
_REQUESTS = 1_000
_SLOWEST = 100
_STEP_TRACK, _EVENT_TRACK = 1, 2
_MICROSECONDS = 1e6

Entry = dict[str, Any]


def timeline(run: Run, diagnosis: Diagnosis) -> dict[str, Any]:
    """The file as a JSON-able dictionary."""
    sampled = _sample(diagnosis.attributed)
    steps, merged = _steps(run, diagnosis)
    events = _thinned(run.events, _EVENTS)
    memory_rows = len(run.memory) if run.memory is not None else 0
    replicas = sorted({*run.steps["replica"].unique().to_list(), *events["replica"].unique().to_list()})
    entries = [
        *_names(replicas),
        *steps,
        *_event_entries(events),
        *_counters(run),
        *_request_entries(run, sampled, _request_process(replicas)),
    ]
    return {
        "traceEvents": entries,
        "displayTimeUnit": "ms",
        "otherData": {
            "run": run.name,
            "steps": f"{merged} rows of the steps table a slice" if merged > 1 else "every row of the steps table",
            "events": f"{len(events)} of {len(run.events)}",
            "counters": f"at most {_COUNTS // 2} of {len(run.steps)} steps and of {memory_rows} samples of memory, "
            "evenly in each replica",
            "requests": f"{len(sampled)} of {len(diagnosis.attributed)} finished ones, the slowest among them",
        },
    }


def _request_process(replicas: list[int]) -> int:
    return max(replicas, default=-1) + 1


def _names(replicas: list[int]) -> list[Entry]:
    entries = []
    for replica in replicas:
        entries.append(_meta("process_name", replica, f"replica {replica}"))
        entries.append(_meta("thread_name", replica, "steps", _STEP_TRACK))
        entries.append(_meta("thread_name", replica, "events", _EVENT_TRACK))
    return [*entries, _meta("process_name", _request_process(replicas), "requests (sampled)")]


def _meta(name: str, process: int, value: str, track: int = 0) -> Entry:
    return {"ph": "M", "name": name, "pid": process, "tid": track, "args": {"name": value}}


def _steps(run: Run, diagnosis: Diagnosis) -> tuple[list[Entry], int]:
    """Slices of the steps' track, and how many rows of the table each stands for."""
    if diagnosis.rows is None:
        return [], 1
    causes = diagnosis.rows.seconds
    rows = diagnosis.rows.rows.with_columns(pl.Series(f"seconds {name}", values) for name, values in causes.items())
    merged = max(1, -(-len(rows) // _STEPS))
    place = pl.int_range(pl.len()).over("replica") // merged
    slices = rows.group_by("replica", place.alias("slice"), maintain_order=True).agg(
        pl.col("start").first(),
        pl.col("end").last(),
        pl.col("steps").cast(pl.Int64).sum(),
        pl.col("prefill_seqs", "prefill_tokens").cast(pl.Int64).sum(),
        pl.col("decode_seqs", "kv_tokens", "waiting").max(),
        pl.col("preempted").cast(pl.Int64).sum(),
        pl.col("^seconds .*$").sum(),
    )
    entries = []
    for row in slices.iter_rows(named=True):
        args = {name: row[name] for name in ("steps", "prefill_seqs", "prefill_tokens", "decode_seqs", "kv_tokens")}
        args |= {name: row[name] for name in ("waiting", "preempted") if row[name]}
        args |= {
            f"{CAUSES[name].label} (ms)": round(1e3 * row[f"seconds {name}"], 4)
            for name in causes
            if row[f"seconds {name}"]
        }
        begin, end = _instant(row["start"]), _instant(row["end"])
        entries.append(
            {"ph": "X", "name": _step_name(row), "cat": "step", "pid": row["replica"], "tid": _STEP_TRACK}
            | {"ts": begin, "dur": round(end - begin, 3), "args": args}
        )
    return entries, merged


def _step_name(row: dict[str, Any]) -> str:
    kinds = [name for name, column in (("prefill", "prefill_tokens"), ("decode", "decode_seqs")) if row[column]]
    return " + ".join(kinds) or "no work"


def _event_entries(events: pl.DataFrame) -> list[Entry]:
    """Instants: where a step waited for one, it is the step that is long."""
    entries = []
    for row in events.iter_rows(named=True):
        args = {name: row[name] for name in ("request_id", "seconds", "amount", "detail") if row[name] is not None}
        entry = {"name": row["kind"], "cat": "event", "pid": row["replica"], "tid": _EVENT_TRACK}
        entries.append({"ph": "i", "s": "t", **entry, "ts": _instant(row["time"]), "args": args})
    return entries


def _counters(run: Run) -> list[Entry]:
    """Requests and KV blocks after each step; bytes where memory was modelled."""
    entries = []
    steps = _thinned_by_replica(run.steps.sort("end"), _COUNTS // 2)
    for row in steps.iter_rows(named=True):
        at = {"ph": "C", "pid": row["replica"], "tid": 0, "ts": _instant(row["start"])}
        entries.append({**at, "name": "requests", "args": {"running": row["running"], "waiting": row["waiting"]}})
        blocks = {"ph": "C", "pid": row["replica"], "tid": 0, "ts": _instant(row["end"])}
        entries.append({**blocks, "name": "KV blocks", "args": {"held": row["kv_blocks"]}})
    if run.memory is not None:
        for row in _thinned_by_replica(run.memory, _COUNTS // 2).iter_rows(named=True):
            at = {"ph": "C", "pid": row["replica"], "tid": 0, "ts": _instant(row["time"])}
            entries.append({**at, "name": "reserved bytes", "args": {"reserved": row["reserved"]}})
            entries.append({**at, "name": "allocated bytes", "args": {"allocated": row["allocated"]}})
    return entries


def _sample(attributed: pl.DataFrame) -> pl.DataFrame:
    """Every k-th request by arrival, and the slowest."""
    slowest = attributed.top_k(_SLOWEST, by=["e2e", "request_id"])
    some = _thinned(attributed.sort("arrival", "request_id"), _REQUESTS - _SLOWEST)
    return pl.concat([some, slowest]).unique("request_id").sort("arrival", "request_id")


def _request_entries(run: Run, sampled: pl.DataFrame, process: int) -> list[Entry]:
    """Each request as nested asynchronous slices: the whole of it, and its phases."""
    causes = cause_columns(sampled)
    owner, lost, again = preempted_intervals(sampled, run.events)
    entries = []
    for index, row in enumerate(sampled.iter_rows(named=True)):
        own = owner == index
        away = sorted(zip(lost[own].tolist(), again[own].tolist(), strict=True))
        common = {"cat": "request", "id": str(row["request_id"]), "pid": process, "tid": 0}
        args = {"replica": row["replica"]}
        args |= {f"{CAUSES[name].label} (ms)": round(1e3 * row[name], 4) for name in causes if abs(row[name]) > 1e-9}
        name = f"request {row['request_id']}"
        entries.append({"ph": "b", "name": name, "ts": _instant(row["arrival"]), "args": args, **common})
        for phase, begin, end in phases(row, away):
            entries.append({"ph": "b", "name": phase, "ts": _instant(begin), **common})
            entries.append({"ph": "e", "name": phase, "ts": _instant(end), **common})
        entries.append({"ph": "e", "name": name, "ts": _instant(row["finish"]), **common})
    return entries


def phases(request: dict[str, Any], away: list[tuple[float, float]]) -> list[tuple[str, float, float]]:
    """(name, from, until) of a finished request, in order and without a gap; `away` is when it was preempted."""
    scheduled, first, finish = request["first_scheduled"], request["first_token"], request["finish"]
    cuts = [(request["arrival"], "queueing" if scheduled is not None else "prefill")]
    if scheduled is not None:
        cuts.append((scheduled, "prefill"))
    if first is not None and not any(begin < first < end for begin, end in away):
        cuts.append((first, "decode"))
    for begin, end in away:
        cuts.append((begin, "preempted"))
        if end < finish:
            cuts.append((end, "decode" if first is not None and first <= end else "prefill"))
    cuts.sort(key=lambda cut: cut[0])
    ends = [*(time for time, _ in cuts[1:]), finish]
    return [(name, begin, end) for (begin, name), end in zip(cuts, ends, strict=True) if end > begin]


def _thinned(table: pl.DataFrame, most: int) -> pl.DataFrame:
    return table.gather_every(-(-len(table) // most)) if len(table) > most else table


def _thinned_by_replica(table: pl.DataFrame, most: int) -> pl.DataFrame:
    """The first of each replica and every k-th after it: whose rows take turns are all thinned alike."""
    if len(table) <= most:
        return table
    every = -(-len(table) // max(1, most - table["replica"].n_unique()))
    return table.filter(pl.int_range(pl.len()).over("replica") % every == 0)


def _instant(seconds: float) -> float:
    """Microseconds, to the nanosecond: an end is then never before its beginning."""
    return round(seconds * _MICROSECONDS, 3)
