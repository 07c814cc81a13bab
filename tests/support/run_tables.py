"""Request and step tables of runs that need no engine: a multi-server queue, and small random ones."""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from calibrate.power_law import PowerLaw
from sim.results.recorder import with_latencies
from sim.results.tables import REPLICAS, REQUESTS, STEPS

BLOCK_TOKENS = 16
# Watts of no device in particular.
LAW = PowerLaw(60.0, 600.0, (1.0, 4.0, 8.0), (200.0, 320.0, 400.0), "measured", "")


def queue_run(
    count: int, *, replicas: int = 2, slots: int = 16, rate: float = 6.0, slowdown: float = 1.0, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables of a G/G/c queue a replica: Poisson arrivals dealt round robin, `slots` requests served at once, first
    come first served. Service is a prefill of 0.1 ms a token, then 8 to 16 ms a token, times `slowdown`. Every fiftieth
    request is rejected. A step row spans the time between two events of its replica."""
    random = np.random.default_rng(seed)
    arrival = np.cumsum(random.exponential(1 / rate, count))
    prompt = random.lognormal(5.5, 1.0, count).astype(int) + 1
    output = random.lognormal(4.5, 0.8, count).astype(int) + 1
    cached = np.where(random.random(count) < 0.4, prompt // 2, 0)
    per_token = random.uniform(0.008, 0.016, count)
    free = [[0.0] * slots for _ in range(replicas)]
    rows: list[dict[str, Any]] = []
    for i in range(count):
        replica = i % replicas
        row: dict[str, Any] = dict.fromkeys(REQUESTS) | {
            "request_id": i,
            "replica": -1,
            "arrival": arrival[i],
            "prompt_tokens": prompt[i],
            "output_tokens": output[i],
            "cached_tokens": 0,
            "preemptions": 0,
            "status": "rejected",
        }
        if i % 50 != 49:
            start = max(arrival[i], heapq.heappop(free[replica]))
            first = start + slowdown * (0.02 + 1e-4 * (prompt[i] - cached[i]))
            finish = first + slowdown * per_token[i] * (output[i] - 1)
            heapq.heappush(free[replica], finish)
            row |= {"replica": replica, "first_scheduled": start, "first_token": first, "finish": finish}
            row |= {"cached_tokens": cached[i], "preemptions": int(i % 70 == 0), "status": "finished"}
        rows.append(row)
    requests = with_latencies(pl.DataFrame(rows, schema=REQUESTS)).select(list(REQUESTS))
    steps = pl.concat([_steps(requests.filter(pl.col("replica") == replica), replica) for replica in range(replicas)])
    return requests, steps.sort("start", "replica")


def _steps(requests: pl.DataFrame, replica: int) -> pl.DataFrame:
    arrival, start, finish = (np.sort(requests[c].to_numpy()) for c in ("arrival", "first_scheduled", "finish"))
    times = np.unique(np.concatenate((start, finish)))
    begin, end = times[:-1], times[1:]
    begun = np.searchsorted(start, begin, side="right")
    running = begun - np.searchsorted(finish, begin, side="right")
    blocks = (requests["prompt_tokens"] + requests["output_tokens"]).to_numpy() // BLOCK_TOKENS + 1
    held = np.array([blocks[(requests["first_scheduled"] < t) & (requests["finish"] > t)].sum() for t in end])
    columns = {
        "replica": np.full(len(begin), replica),
        "start": begin,
        "end": end,
        "steps": np.maximum(1, ((end - begin) / 0.01).astype(int)),
        "prefill_seqs": np.zeros(len(begin)),
        "prefill_tokens": np.zeros(len(begin)),
        "decode_seqs": running,
        "kv_tokens": held * BLOCK_TOKENS,
        "running": running,
        "waiting": np.searchsorted(arrival, begin, side="right") - begun,
        "kv_blocks": held,
        "preempted": np.zeros(len(begin)),
    }
    busy = pl.DataFrame(columns).filter(pl.col("running") > 0)
    return busy.select(pl.col(name).cast(kind) for name, kind in STEPS.items())


def replica_table(*rows: dict[str, Any]) -> pl.DataFrame:
    """A replicas table of these rows; what a row does not say is of one GPU that is always there."""
    known = {"pool": "", "site": None, "gpus": 1, "gpu_hour_price": None, "requested": 0.0, "ready": 0.0}
    return pl.DataFrame(
        [known | {"ended": None, "why": None} | {"replica": number} | row for number, row in enumerate(rows)],
        schema=REPLICAS,
    )


@st.composite
def request_tables(draw: st.DrawFn, *, most: int = 30) -> pl.DataFrame:
    """Up to `most` requests of every status, with ties, zero waits, single tokens and missing values among them."""
    time = st.integers(0, 1000).map(lambda n: n / 8)
    rows = []
    for i in range(draw(st.integers(0, most))):
        status = draw(st.sampled_from(["finished", "finished", "finished", "rejected", "failed", "unfinished"]))
        arrival = draw(time)
        marks: Sequence[float | None] = np.cumsum([arrival, *draw(st.tuples(time, time, time))]).tolist()[1:]
        if status != "finished":
            marks = [None if draw(st.booleans()) else marks[0], None, None]
        prompt, output = draw(st.integers(1, 500)), draw(st.integers(1, 50))
        if status == "finished" and output == 1:
            marks = [marks[0], marks[1], marks[1]]
        rows.append(
            {
                "request_id": i,
                "replica": draw(st.integers(-1, 2)),
                "arrival": arrival,
                "first_scheduled": marks[0],
                "first_token": marks[1],
                "finish": marks[2],
                "prompt_tokens": prompt,
                "output_tokens": output,
                "cached_tokens": draw(st.integers(0, prompt)),
                "preemptions": draw(st.integers(0, 3)),
                "status": status,
            }
        )
    return with_latencies(pl.DataFrame(rows, schema=REQUESTS)).select(list(REQUESTS))


@st.composite
def step_tables(draw: st.DrawFn, *, most: int = 30) -> pl.DataFrame:
    """Up to `most` runs of steps of three replicas, each after the other on its replica, some after a pause."""
    clock = dict.fromkeys(range(3), 0.0)
    rows = []
    for _ in range(draw(st.integers(0, most))):
        replica = draw(st.integers(0, 2))
        start = clock[replica] + draw(st.sampled_from([0.0, 0.0, 0.5, 7.25]))
        clock[replica] = start + draw(st.integers(1, 80)) / 8
        decode, waiting = draw(st.integers(0, 8)), draw(st.integers(0, 9))
        rows.append(
            dict.fromkeys(STEPS, 0)
            | {"replica": replica, "start": start, "end": clock[replica], "steps": draw(st.integers(1, 9))}
            | {"decode_seqs": decode, "running": decode, "waiting": waiting, "kv_blocks": draw(st.integers(0, 100))}
        )
    return pl.DataFrame(rows, schema=STEPS)
