"""The numbers of a run, computed from its request and step tables; the same for simulated and measured runs."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import polars as pl

from sim.results import cost, kv_use, memory_metrics
from sim.results.metric_names import LATENCIES, STATISTICS, STATUSES
from sim.results.slo import Slo
from sim.results.spans import union_length


def compute(
    requests: pl.DataFrame,
    steps: pl.DataFrame,
    *,
    slo: Slo,
    gpus: int | None,
    gpu_hour_price: float | None,
    kv_blocks_total: int | None,
    memory: pl.DataFrame | None = None,
    events: pl.DataFrame | None = None,
    replicas: pl.DataFrame | None = None,
    asleep: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """The metrics of a run as a JSON-able dictionary; its dotted names are those of `metric_names.METRICS`.

    What cannot be computed (a percentile of no requests, a cost without a price) is null, never zero. Nothing depends
    on the order of the rows.

    - `requests`: number of requests, in total and by status; the statuses sum to the total.
    - `duration`: from the first arrival to the last finish.
    - `ttft`, `tpot`, `e2e`, `queue`: mean, percentiles (linear between order statistics, numpy's default) and maximum
      over finished requests that have the value.
    - `throughput`: finished requests, their output tokens and their prompt tokens (cached ones included), per second
      of `duration`.
    - `slo`: the limits and target given; `attainment` is the share of ALL requests that finished within every limit;
      `met` says whether it reaches the target.
    - `goodput`: requests that meet the SLO, and their output tokens, per second of `duration`.
    - `kv`: share of the blocks that the fleet had at each time which requests held: time-weighted `mean` over
      `duration`, and `peak` (`kv_use.compute`); `blocks` is `kv_blocks_total`.
    - `prefix_hit_rate`: prompt tokens found in the prefix cache, of all prompt tokens of requests that were scheduled.
    - `preemptions`: their number over all requests, those of engines that were started anew included.
    - `gpu_seconds`: those of every replica from when it was asked for until it was given back, within `duration`;
      without a table of replicas `gpus` × `duration`. `cost`: `total` is that at each replica's price, and what engines
      that slept cost, without a table at `gpu_hour_price`, in the price's currency; the others are of `cost.compute`,
      per what finished requests got.
    - `decode_batch`: mean number of decoding sequences over the steps that decode.
    - `memory`: what `memory_metrics.compute` says of the memory table, where there is one.
    - `busy`: share of `duration` in which a replica runs a step, for each replica that ran one, and their mean.

    Args:
        requests, steps: tables with the columns of `sim.results.tables`.
        gpus: GPUs of the whole fleet; null where the server does not say.
        gpu_hour_price: price of one GPU for one hour.
        kv_blocks_total: KV blocks of the whole fleet; null where the server does not say, there is no pool, or replicas
            come and go.
        memory: table of the devices' memory, where it was modelled.
        events: what else happened; its restarts begin processes whose memory is empty.
        replicas: when each replica came and went, where the fleet was simulated.
        asleep: `sim.results.sleeping.stays` of engines that slept.
    """
    finished = requests.filter(pl.col("status") == "finished")
    good = finished.filter(_meets(slo))
    first, last = _number(requests["arrival"].min()), _number(requests["finish"].max())
    duration = last - first if first is not None and last is not None else None
    window = steps.select("replica", "end", "start", "kv_blocks", "steps", "decode_seqs")
    window = (window if last is None else window.filter(pl.col("start") < last)).sort(
        "replica", "end", "start", "kv_blocks"
    )
    by_replica = _by_replica(window.with_columns(pl.col("start", "end").clip(lower_bound=first, upper_bound=last)))
    busy = {str(rows["replica"][0]): _ratio(_busy_time(rows), duration) for rows in by_replica}

    attainment = _ratio(len(good), len(requests))
    output_tokens = int(finished["output_tokens"].sum())
    gpu_seconds = _product(gpus, duration)
    total = None if gpu_seconds is None or gpu_hour_price is None else gpu_seconds / 3600 * gpu_hour_price
    paid = None
    if replicas is not None and first is not None and last is not None:
        paid = cost.with_paid(replicas, first, last, asleep)
        gpu_seconds, total = _totals(paid)
    decode_seqs, step_count = pl.col("decode_seqs"), pl.col("steps").cast(pl.Int64)
    decoded, decode_steps = window.select(
        decoded=(decode_seqs * step_count).sum(), steps=step_count.filter(decode_seqs > 0).sum()
    ).row(0)
    return {
        "requests": _count(requests),
        "duration": duration,
        **{name: _statistics(finished[name]) for name in LATENCIES},
        "throughput": {
            "requests": _ratio(len(finished), duration),
            "output_tokens": _ratio(output_tokens, duration),
            "prompt_tokens": _ratio(int(finished["prompt_tokens"].sum()), duration),
        },
        "slo": {
            "limits": slo.limits,
            "target": slo.attainment,
            "attainment": attainment,
            "met": None if attainment is None else attainment >= slo.attainment,
        },
        "goodput": {
            "requests": _ratio(len(good), duration),
            "output_tokens": _ratio(int(good["output_tokens"].sum()), duration),
        },
        "kv": kv_use.compute(window, by_replica, first=first, last=last, blocks=kv_blocks_total, replicas=replicas),
        "prefix_hit_rate": _prefix_hit_rate(requests),
        "preemptions": int(requests["preemptions"].sum()) if requests["preemptions"].count() else None,
        "gpus": gpus,
        "gpu_seconds": gpu_seconds,
        "gpu_hour_price": gpu_hour_price,
        "cost": cost.compute(total, finished, good, paid),
        "decode_batch": _ratio(decoded, decode_steps),
        **({} if memory is None else {"memory": memory_metrics.compute(memory, last, events)}),
        "busy": {
            "mean": float(np.mean(list(busy.values()))) if busy and duration else None,
            "replicas": busy,
        },
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _product(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left * right


def _totals(paid: pl.DataFrame) -> tuple[float, float | None]:
    """GPU seconds, and what all cost; None where a replica has no price."""
    total = None if paid["cost"].null_count() else float(paid["cost"].sum())
    return float(paid["gpu_seconds"].sum()), total


def _meets(slo: Slo) -> pl.Expr:
    within = [pl.col(name).fill_null(0.0 if name == "tpot" else float("inf")) <= x for name, x in slo.limits.items()]
    return pl.all_horizontal(pl.lit(True), *within)


def _count(requests: pl.DataFrame) -> dict[str, int]:
    by_status: dict[str, int] = dict(requests["status"].value_counts().iter_rows())
    if unknown := by_status.keys() - set(STATUSES):
        raise ValueError(f"status {min(map(str, unknown))!r}; expected one of {', '.join(STATUSES)}")
    return {"total": len(requests)} | {status: by_status.get(status, 0) for status in STATUSES}


def _statistics(latency: pl.Series) -> dict[str, float | None]:
    # Sorted, because a floating-point sum depends on the order of its terms.
    values = np.sort(latency.drop_nulls().to_numpy())
    if not values.size:
        return dict.fromkeys(STATISTICS)
    percentiles = np.percentile(values, (50, 90, 95, 99, 100))
    return dict(zip(STATISTICS, [float(values.mean()), *percentiles.tolist()], strict=True))


def _prefix_hit_rate(requests: pl.DataFrame) -> float | None:
    scheduled = requests.filter(pl.col("first_scheduled").is_not_null() & pl.col("cached_tokens").is_not_null())
    return _ratio(int(scheduled["cached_tokens"].sum()), int(scheduled["prompt_tokens"].sum()))


def _by_replica(steps: pl.DataFrame) -> list[pl.DataFrame]:
    """Each replica's part of steps that are sorted by replica; no copies."""
    lengths = steps["replica"].rle().struct.field("len").to_list()
    return [steps.slice(start, length) for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False)]


def _busy_time(rows: pl.DataFrame) -> float:
    """Of one replica, whose steps may overlap if it is a pipeline."""
    return union_length(rows["start"].to_numpy(), rows["end"].to_numpy())
