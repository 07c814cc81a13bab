"""Where each finished request was when: on the way, on the replica that computed its prompt, on the one that decoded.

Most requests are on one replica from when they are first scheduled until they finish. Where prompts are computed by one
replica for another there are two stays, with the transfer of KV blocks and perhaps a wait between them; and behind a
network or a mesh a client sends before the service has the request, and has the answer after it was computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Stays:
    """Arrays of shape (stays,) but for those named; requests are rows of the finished ones.

    Attributes:
        owner: whose stay it is, a row.
        replica, begin, end: where it was, from when until when.
        there: seconds until the request was at the service, (requests,).
        network: seconds on the way there and back and of KV transfers, (requests,).
        between: seconds between two stays in which no KV block was on the way, (requests,).
    """

    owner: np.ndarray
    replica: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    there: np.ndarray
    network: np.ndarray
    between: np.ndarray

    def replica_at(self, owner: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Where each of these requests was last at that time; shapes (n,)."""
        found = self.replica[owner].copy()  # the first stays are in the order of the requests
        count = len(self.there)
        second = np.full(count, -1)
        second[self.owner[count:]] = np.arange(count, len(self.owner))
        place = second[owner]
        moved = np.flatnonzero(place >= 0)
        moved = moved[time[moved] >= self.begin[place[moved]]]
        found[moved] = self.replica[place[moved]]
        return found


def stays_of(finished: pl.DataFrame, events: pl.DataFrame, sent: np.ndarray) -> Stays:
    """`finished`: in order of request_id; `sent`: when the attempt that was answered was sent, (requests,)."""
    ids = finished.select("request_id", row=pl.int_range(pl.len()), sent=sent)
    kinds = ["hop", "prefilled", "kv_transfer", "joined"]
    told = (
        events.filter(pl.col("kind").is_in(kinds)).join(ids, on="request_id").filter(pl.col("time") >= pl.col("sent"))
    )
    count = len(finished)
    hops = told.filter(pl.col("kind") == "hop")
    going = hops.filter(pl.col("detail").str.starts_with("to "))
    coming = hops.filter(pl.col("detail").str.starts_with("from "))
    there, network = _sum(going, count), _sum(hops, count)

    begin, end = finished["first_scheduled"].to_numpy(), finished["finish"].to_numpy().copy()
    answered = coming.group_by("row").agg(pl.col("time").min())
    end[answered["row"].to_numpy()] = answered["time"].to_numpy()
    replica = finished["replica"].to_numpy().copy()
    owner = np.arange(count)

    joined = told.filter(pl.col("kind") == "joined").unique("row", keep="last", maintain_order=True)
    between = np.zeros(count)
    if len(joined):
        first = told.filter(pl.col("kind") == "prefilled").unique("row", keep="last", maintain_order=True)
        joined = joined.join(first.select("row", prefill="replica"), on="row", maintain_order="left")
        rows, left, wait = (joined[name].to_numpy() for name in ("row", "time", "seconds"))
        moved = np.minimum(_sum(told.filter(pl.col("kind") == "kv_transfer"), count)[rows], wait)
        network[rows] += moved
        between[rows] = wait - moved
        decode = replica[rows]
        replica[rows] = joined["prefill"].to_numpy()
        owner, replica = np.concatenate((owner, rows)), np.concatenate((replica, decode))
        begin, end = np.concatenate((begin, left + wait)), np.concatenate((end, end[rows]))
        end[rows] = left
    return Stays(owner, replica, begin, end, there, network, between)


def _sum(events: pl.DataFrame, count: int) -> np.ndarray:
    total = np.zeros(count)
    np.add.at(total, events["row"].to_numpy(), events["seconds"].to_numpy())
    return total
