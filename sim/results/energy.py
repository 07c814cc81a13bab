"""The energy of a run: what its GPUs drew, from the watts of each state and the time that each replica spent in it.

GPUs alone: hosts, switches and cooling are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from calibrate.power_law import PowerLaw
from sim.results.spans import run_span

STATES = ("prefill", "decode", "idle", "starting", "asleep")
_KILOWATT_HOUR = 3.6e6  # joules


@dataclass(frozen=True)
class ReplicaPower:
    """What one replica draws: `gpus` devices of one law. Its steps' sequences are shared out over `engines`."""

    law: PowerLaw
    gpus: int = 1
    engines: int = 1

    @property
    def idle(self) -> float:
        return self.gpus * self.law.idle

    def of_steps(self, prefill_tokens: np.ndarray, decode_seqs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Watts of steps that compute so many prompt tokens and decode so many sequences, both of shape (steps,).

        Returns what prefill and what decode have of them. A step that does both draws the mean of the two states,
        weighted by the tokens that it computes for each.
        """
        tokens = prefill_tokens + decode_seqs
        share = prefill_tokens / np.maximum(tokens, 1)
        decode = self.law.decode_watts(decode_seqs / self.engines)
        return self.gpus * share * self.law.prefill, self.gpus * (1.0 - share) * decode * (tokens > 0)


def compute(
    requests: pl.DataFrame,
    steps: pl.DataFrame,
    replicas: pl.DataFrame,
    powers: Sequence[ReplicaPower | None],
    *,
    electricity_price: float | None = None,
    asleep: pl.DataFrame | None = None,
) -> dict[str, Any] | None:
    """The energy of a run, from its first arrival to its last finish; None where a replica's watts are not known.

    - `joules`: of all replicas while they were there: `states` of them prefill, decode, idle and starting (which draws
      what idle does), and of engines that slept (which do too). `pools` and `sites` have each one's, `replicas` each
      one's without sleep.
    - `joules_per_output_token`: over the output tokens of finished requests.
    - `watts.mean`: joules over the duration.
    - `cost`: at `electricity_price`, of one kWh.

    Null where no request finished. Where rows of a pipeline overlap a moment counts once, for the row that began first.

    Args:
        requests, steps, replicas: tables with the columns of `sim.results.tables`.
        powers: what each replica draws, by its number.
        asleep: `sim.results.sleeping.stays` of engines that slept.
    """
    if any(power is None for power in powers):
        return None
    span = run_span(requests)
    if span is None:
        return _numbers(None, None, None, electricity_price) | {"replicas": {}, "pools": {}, "sites": {}}
    first, last = span
    joules = _joules(_in_window(steps, first, last), _in_window(replicas, first, last, "requested", "ended"), powers)
    if asleep is not None:
        slept = _in_window(asleep, first, last, "requested", "ended")
        joules = pl.concat([joules, _asleep(slept, replicas, powers)], how="vertical_relaxed")
    tokens = int(requests.filter(pl.col("status") == "finished")["output_tokens"].sum())
    total = {state: float(joules[state].sum()) for state in STATES}
    whole = joules.with_columns(joules=pl.sum_horizontal(STATES))

    def parts(name: str) -> dict[str, float]:
        there = whole.filter(pl.col(name).is_not_null())
        return dict(there.group_by(name, maintain_order=True).agg(pl.col("joules").sum()).iter_rows())

    return _numbers(total, last - first, tokens, electricity_price) | {
        "replicas": {
            str(number): joules
            for number, joules in whole.select("replica", "joules").iter_rows()
            if number is not None
        },
        "pools": parts("pool"),
        "sites": parts("site"),
    }


def _numbers(
    states: Mapping[str, float] | None, duration: float | None, tokens: int | None, price: float | None
) -> dict[str, Any]:
    joules = None if states is None else sum(states.values())
    return {
        "joules": joules,
        "joules_per_output_token": joules / tokens if joules is not None and tokens else None,
        "watts": {"mean": joules / duration if joules is not None and duration else None},
        "states": dict(states or dict.fromkeys(STATES)),
        "cost": None if joules is None or price is None else joules / _KILOWATT_HOUR * price,
    }


def _in_window(
    table: pl.DataFrame, first: float, last: float, since: str = "start", until: str = "end"
) -> pl.DataFrame:
    """Rows with `since` and `until` cut to [first, last]; one without an end lasts until then."""
    return table.with_columns(pl.col(since).clip(first, last), pl.col(until).fill_null(last).clip(first, last))


def _joules(steps: pl.DataFrame, replicas: pl.DataFrame, powers: Sequence[Any]) -> pl.DataFrame:
    """replica, pool, site and the joules of each state, one row a replica, in the order of `replicas`."""
    count = len(powers)
    rows = steps.filter(pl.col("prefill_tokens") + pl.col("decode_seqs") > 0)
    if not rows["start"].is_sorted():
        rows = rows.sort("start", "end")
    seconds = _seconds(rows)
    replica, tokens, decodes = (rows[name].to_numpy() for name in ("replica", "prefill_tokens", "decode_seqs"))
    watts = np.zeros(len(rows)), np.zeros(len(rows))
    kinds = list(dict.fromkeys(powers))
    kind_of = np.array([kinds.index(power) for power in powers])
    for number, power in enumerate(kinds):
        own = kind_of[replica] == number
        for total, part in zip(watts, power.of_steps(tokens[own], decodes[own]), strict=True):
            total[own] = part
    busy, prefill, decode = (
        np.bincount(replica, weights=weights, minlength=count)
        for weights in (seconds, seconds * watts[0], seconds * watts[1])
    )
    there = replicas.select(
        "replica",
        "pool",
        "site",
        starting=pl.min_horizontal(pl.col("ready").fill_null(float("inf")), "ended") - pl.col("requested"),
        whole=pl.col("ended") - pl.col("requested"),
    )
    numbers = there["replica"].to_numpy()
    idle_watts = np.array([power.idle for power in powers])[numbers]
    starting = np.maximum(0.0, there["starting"].to_numpy())
    idle = np.maximum(0.0, there["whole"].to_numpy() - starting - busy[numbers])
    return there.select(
        "replica",
        "pool",
        "site",
        prefill=prefill[numbers],
        decode=decode[numbers],
        idle=idle * idle_watts,
        starting=starting * idle_watts,
        asleep=pl.lit(0.0),
    )


def _asleep(slept: pl.DataFrame, replicas: pl.DataFrame, powers: Sequence[Any]) -> pl.DataFrame:
    """The same of engines that slept, one row a sleep: each draws what an idle replica of its pool does."""
    idle = {pool: powers[number].idle for pool, number in replicas.select("pool", "replica").iter_rows()}
    watts = pl.col("pool").replace_strict(idle, return_dtype=pl.Float64)
    nothing = {state: pl.lit(0.0) for state in STATES[:-1]}
    return slept.select("replica", "pool", "site", **nothing, asleep=(pl.col("ended") - pl.col("requested")) * watts)


def _seconds(rows: pl.DataFrame) -> np.ndarray:
    """Of each row, in order of their start: how long its replica ran no row that began before it."""
    start, end = rows["start"].to_numpy(), rows["end"].to_numpy()
    replica = rows["replica"].to_numpy()
    # Numpy sorts small numbers by radix.
    small = np.min_scalar_type(int(replica.max())) if len(replica) else replica.dtype
    by_replica = np.argsort(replica.astype(small), kind="stable")
    first, last, replica = start[by_replica], end[by_replica], replica[by_replica]
    if ((first[1:] >= last[:-1]) | (replica[1:] != replica[:-1])).all():
        return end - start
    began = pl.max_horizontal("start", pl.col("end").cum_max().shift().over("replica"))
    return rows.select((pl.col("end") - began).clip(lower_bound=0.0)).to_series().to_numpy()
