"""Every second of every finished request's latency, by cause.

A request waits by itself until the attempt that is answered is sent, then until that is first scheduled, and from each
preemption until it is admitted again; where the engine was started anew meanwhile, it waits for that, unless it waited
for the weights of its model. What it spends on the way is the network's. In between it waits for the steps of its
replica, or of one after the other, whatever they compute and for whom: of each it gets the seconds of all causes, cut
to the time that it was there. So the work is one running sum over a replica's steps a cause, looked up at the ends of
each stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sim.results.diagnosis.causes import CAUSES, STEP_CAUSES
from sim.results.diagnosis.row_causes import RowCauses
from sim.results.diagnosis.stays import stays_of


@dataclass(frozen=True)
class Pieces:
    """A replica's time from its first step to its last, cut into steps and the gaps between them.

    Attributes:
        edges: instants, (pieces + 1,), rising.
        seconds: cause → (pieces,). A gap is the host's, as far as somebody waits for it.
        gap: whether a piece is one, (pieces,).
    """

    edges: np.ndarray
    seconds: dict[str, np.ndarray]
    gap: np.ndarray


# Columns of the attributed table before the causes, from the requests table.
KEPT = ("request_id", "replica", "arrival", "first_scheduled", "first_token", "finish", "e2e", "preemptions")


def attribute(requests: pl.DataFrame, events: pl.DataFrame, rows: RowCauses) -> pl.DataFrame:
    """Finished requests in order of request_id: the columns `KEPT`, then seconds by cause, which sum to `e2e`.

    `other` is what remains: nothing but rounding in a simulated run.
    """
    finished = _finished(requests)
    count = len(finished)
    arrival, scheduled, finish = (finished[name].to_numpy() for name in ("arrival", "first_scheduled", "finish"))
    seconds: dict[str, np.ndarray] = {
        name: np.zeros(count) for name in CAUSES if name not in ("before_first_token", "after_first_token")
    }
    sent = _last_sent(finished, events)
    seconds["retry"] = sent - arrival
    loads = _waits(finished, events, "model_load", sent)
    queue = scheduled - sent
    seconds["model_load"] = np.minimum(loads, queue)
    seconds["kv_fetch"] = np.minimum(_waits(finished, events, "kv_fetch", sent), queue - seconds["model_load"])
    stays = stays_of(finished, events, sent)
    seconds["queueing"] = queue - seconds["model_load"] - seconds["kv_fetch"] - stays.there + stays.between
    seconds["network"] = stays.network

    owner, begin, end = preempted_intervals(finished, events)
    seconds["preempted"] = np.bincount(owner, weights=end - begin, minlength=count)
    lost_on = stays.replica_at(owner, begin)
    pieces = pieces_of(rows)
    for number in np.unique(stays.replica).tolist():
        if number not in pieces:
            continue
        edges = pieces[number].edges
        here, away = np.flatnonzero(stays.replica == number), np.flatnonzero(lost_on == number)
        own, stay = stays.owner[here], (_places(edges, stays.begin[here]), _places(edges, stays.end[here]))
        absence = _places(edges, begin[away]), _places(edges, end[away])
        for cause, values in pieces[number].seconds.items():
            # In extended precision where the machine has it: a day's sum must not round a request's milliseconds away.
            sums = np.concatenate((np.zeros(1, np.longdouble), np.cumsum(values, dtype=np.longdouble)))
            np.add.at(seconds[cause], own, _between(sums, values, *stay))
            absent = _between(sums, values, *absence)
            if cause == "restart":  # nobody runs meanwhile
                np.subtract.at(seconds["preempted"], owner[away], absent)
                ready = np.minimum((sent + stays.there + seconds["model_load"])[own], scheduled[own])
                queued = _between(sums, values, _places(edges, ready), stay[0])
                queued = np.minimum(queued, seconds["queueing"][own])
                seconds["queueing"][own] -= queued
                seconds["restart"][own] += queued
            else:
                np.subtract.at(seconds[cause], owner[away], absent)
    latency = finish - arrival
    seconds["other"] += latency - sum(seconds.values(), np.zeros(count))
    return finished.select(KEPT).with_columns(pl.Series(name, values) for name, values in seconds.items())


def attribute_without_steps(requests: pl.DataFrame) -> pl.DataFrame:
    """The same of a run whose steps nobody saw: before and after the first token is all that can be told."""
    finished = _finished(requests)
    first = pl.coalesce("first_token", "finish")
    return finished.select(
        *KEPT,
        before_first_token=first - pl.col("arrival"),
        after_first_token=pl.col("finish") - first,
        other=pl.lit(0.0),
    )


def cause_columns(attributed: pl.DataFrame) -> list[str]:
    return [name for name in CAUSES if name in attributed.columns]


def preempted_intervals(finished: pl.DataFrame, events: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When requests had lost their blocks: (row of `finished`, from, until), each of shape (intervals,).

    Each was admitted again: who loses them with its last token under way gets that all the same, and has no event.
    """
    ids = finished.select("request_id", "first_scheduled", owner=pl.int_range(pl.len()))
    moves = events.filter(pl.col("kind").is_in(["preempted", "resumed"])).join(ids, on="request_id")
    moves = moves.filter(pl.col("time") >= pl.col("first_scheduled"))  # others befell an attempt that failed
    moves = moves.with_columns(nth=pl.int_range(pl.len()).over("request_id", "kind"))
    lost, again = (moves.filter(pl.col("kind") == kind) for kind in ("preempted", "resumed"))
    both = lost.join(again.select("request_id", "nth", until="time"), on=["request_id", "nth"])
    both = both.filter(pl.col("until") > pl.col("time"))
    return both["owner"].to_numpy(), both["time"].to_numpy(), both["until"].to_numpy()


def pieces_of(rows: RowCauses) -> dict[int, Pieces]:
    """Each replica's time by its steps."""
    replica = rows.rows["replica"].to_numpy()
    numbers, begins = np.unique(replica, return_index=True)
    parts = np.split(np.arange(len(replica)), begins[1:])
    return {number: _pieces(rows, part) for number, part in zip(numbers.tolist(), parts, strict=True)}


def _pieces(rows: RowCauses, part: np.ndarray) -> Pieces:
    """Of one replica, whose rows these are, in order."""
    start, end = (rows.rows[name].to_numpy()[part] for name in ("start", "end"))
    after_gap = np.flatnonzero(start[1:] > end[:-1]) + 1
    gaps = after_gap + np.arange(len(after_gap))
    gap = np.zeros(len(part) + len(after_gap), dtype=bool)
    gap[gaps] = True
    steps = np.flatnonzero(~gap)
    edges = np.empty(len(gap) + 1)
    edges[steps], edges[gaps], edges[-1] = start, end[after_gap - 1], end[-1]
    seconds = {}
    for cause in STEP_CAUSES:
        if cause in rows.seconds or (cause == "host" and gaps.size):
            seconds[cause] = np.zeros(len(gap))
            if cause in rows.seconds:
                seconds[cause][steps] = rows.seconds[cause][part]
            if cause == "host":
                seconds[cause][gaps] = start[after_gap] - end[after_gap - 1]
    return Pieces(edges, seconds, gap)


def _finished(requests: pl.DataFrame) -> pl.DataFrame:
    return requests.filter(pl.col("status") == "finished").sort("request_id")


def _last_sent(finished: pl.DataFrame, events: pl.DataFrame) -> np.ndarray:
    """When the attempt was sent that was answered: where there was one attempt alone, the arrival."""
    again = events.filter(pl.col("kind") == "retried").group_by("request_id").agg(sent=pl.col("time").max())
    joined = finished.join(again, on="request_id", how="left", maintain_order="left")
    return joined.select(pl.coalesce("sent", "arrival"))["sent"].to_numpy()


def _waits(finished: pl.DataFrame, events: pl.DataFrame, kind: str, sent: np.ndarray) -> np.ndarray:
    """Seconds of such events before a request was first scheduled, of the attempt that was answered, sent then."""
    waits = events.filter((pl.col("kind") == kind) & pl.col("request_id").is_not_null())
    waits = waits.join(finished.select("request_id", "first_scheduled", sent=sent), on="request_id").filter(
        pl.col("time").is_between("sent", "first_scheduled")
    )
    waited = waits.group_by("request_id").agg(pl.col("seconds").sum())
    return (
        finished.join(waited, on="request_id", how="left", maintain_order="left")["seconds"].fill_null(0.0).to_numpy()
    )


def _places(edges: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The piece in which each time lies, and what share of it has passed; within the first and last edge."""
    times = np.clip(times, edges[0], edges[-1])
    piece = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(edges) - 2)
    return piece, (times - edges[piece]) / (edges[piece + 1] - edges[piece])


def _between(
    sums: np.ndarray, values: np.ndarray, begin: tuple[np.ndarray, np.ndarray], end: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Seconds from one place to another, by the running sum and the values of the pieces."""
    (first, passed), (last, reached) = begin, end
    whole = (sums[last] - sums[first]).astype(np.float64)
    return whole + reached * values[last] - passed * values[first]
