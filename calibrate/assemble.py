"""From measured points to a profile: the tables, the host's overhead, and the errors at held-out points."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Sequence
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from calibrate.curve import Curve
from calibrate.latency import StepLatency
from calibrate.profile import KEYS, Profile

Record = dict[str, Any]

_TILE = 256  # tokens: the largest that a library's products are cut into


def assemble(profile: Profile, records: Sequence[Record]) -> None:
    """Fill `tables`, `errors` and `held_out` of a profile that says all the rest.

    A record is one visit of a point: kernel_class, held_out, point, and rows of {"columns", "samples"}; visits of the
    same point are put together. A row's `seconds` is the median of its visits' medians: one disturbed visit of three
    does not move it. Points of the class "step" are whole steps; on the grid they become the overhead.
    """
    grid = _points([record for record in records if not record["held_out"]])
    held_out = _points([record for record in records if record["held_out"]])
    for kernel_class, keys in KEYS.items():
        if kernel_class in grid:
            profile.tables[kernel_class] = pl.DataFrame(grid[kernel_class]).sort(keys)
    if "step" in grid:
        profile.tables["overhead"] = _overhead(profile, grid["step"])
    profile.held_out = _predict(profile, held_out)
    profile.errors = _errors(profile)


def _points(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Kernel class → one row a point: its key columns, seconds, p10, p90, samples."""
    visits: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for row in record["rows"]:
            key = json.dumps(record["point"] | row["columns"])
            visits[record["kernel_class"]][key].append(row["samples"])
    return {
        kernel_class: [json.loads(key) | _spread(samples) for key, samples in points.items()]
        for kernel_class, points in visits.items()
    }


def _spread(visits: list[list[float]]) -> Record:
    samples = [seconds for visit in visits for seconds in visit]
    p10, p90 = np.percentile(samples, [10, 90])
    return {
        "seconds": median(median(visit) for visit in visits),
        "p10": float(p10),
        "p90": float(p90),
        "samples": len(samples),
    }


def _step_query(point: Record) -> tuple[list[tuple[int, int]], int, int]:
    """What StepLatency is asked for a measured batch: prefills, decodes, the sum of their cached tokens."""
    prefills = [(new, cached) for new, cached in point["prefills"]]
    return prefills, len(point["contexts"]), sum(point["contexts"])


def _step_times(profile: Profile) -> StepLatency:
    """As the whole steps were run: those that only decode padded to the grid's graphs, where it has any."""
    graph_sizes = profile.grid.get("graph_sizes", ())
    return StepLatency(profile, profile.shape, profile.tp, graph_sizes=graph_sizes, graphs_decode_only=True)


def _overhead(profile: Profile, steps: Sequence[Record]) -> pl.DataFrame:
    """Whole step less the sum of its kernels, by sequences and tokens."""
    kernels = _step_times(profile)
    rows = []
    for step in steps:
        prefills, decodes, kv_tokens = _step_query(step)
        predicted = kernels.step(prefills, decodes, kv_tokens)
        rows.append(
            {
                "sequences": decodes + len(prefills),
                "tokens": decodes + sum(new for new, _ in prefills),
                **{name: step[name] - predicted for name in ("seconds", "p10", "p90")},
                "samples": step["samples"],
            }
        )
    rows = on_the_grid(rows, set(profile.table("dense")["tokens"].to_list()))
    return pl.DataFrame(rows + between(rows)).sort("sequences", "tokens")


def on_the_grid(rows: Sequence[Record], grid: Collection[int]) -> list[Record]:
    """The overhead without what the products' tables get wrong between two points of their grid.

    From a tile of tokens on, products take longer in steps, and not at the grid's points alone: measured a little
    beyond a point, the rest of a step would pass for the host's time. So a row off the grid becomes what a step of one
    sequence took that is on it, and what as many sequences were measured to add where all tokens are in one tile.
    """
    known = {(row["sequences"], row["tokens"] - row["sequences"]): row for row in rows}
    found = []
    for row in rows:
        sequences, tokens = row["sequences"], row["tokens"]
        extra = tokens - sequences
        below = [at for of, at in known if of == sequences and at > 0 and of + at <= _TILE and (1, at) in known]
        if (
            tokens <= _TILE
            or not extra
            or tokens in grid
            or 1 + extra not in grid
            or (1, extra) not in known
            or not below
        ):
            found.append(row)
            continue
        base, more, less = known[1, extra], known[sequences, max(below)], known[1, max(below)]
        found.append(row | {name: base[name] + more[name] - less[name] for name in ("seconds", "p10", "p90")})
    return found


def between(rows: Sequence[Record]) -> list[Record]:
    """Where steps of some batch size were measured without a prefill alone: those with one, linear between neighbours.

    So that every batch size has the same axis. Beyond the outermost neighbour it is the neighbour's. Such a row has no
    samples.
    """
    extras: dict[int, dict[int, Record]] = defaultdict(dict)
    for row in rows:
        extras[row["sequences"]][row["tokens"] - row["sequences"]] = row
    most = max(len(of_one) for of_one in extras.values())
    whole = sorted(sequences for sequences, of_one in extras.items() if len(of_one) == most)
    found = []
    for sequences in extras.keys() - set(whole):
        above = bisect_left(whole, sequences)
        low, high = whole[max(0, above - 1)], whole[min(above, len(whole) - 1)]
        share = (sequences - low) / (high - low) if low < sequences < high else 0.0
        near = low if sequences > low else high
        for extra in extras[near].keys() - extras[sequences].keys():
            first, second = extras[near][extra], extras[high if share else near][extra]
            values = {name: first[name] + share * (second[name] - first[name]) for name in ("seconds", "p10", "p90")}
            found.append({"sequences": sequences, "tokens": sequences + extra, **values, "samples": 0})
    return found


def _predict(profile: Profile, held_out: dict[str, list[Record]]) -> pl.DataFrame:
    """Every held-out point: class, point (JSON), measured and predicted seconds.

    Layers measured at one point are compared by their sum over a step, as they are used.
    """
    latency = _step_times(profile)
    calls = {call.layer: call.calls for call in profile.shape.calls()}
    rows: list[tuple[str, str, float, float]] = []
    for kernel_class, axis, curve in (
        ("dense", "tokens", latency.dense),
        ("per_sequence", "sequences", latency.per_sequence),
    ):
        total: dict[int, float] = defaultdict(float)
        for row in held_out.get(kernel_class, []):
            total[row[axis]] += calls[row["layer"]] * row["seconds"]
        rows += [(kernel_class, json.dumps({axis: n}), seconds, curve(n)) for n, seconds in total.items()]
    for row in held_out.get("attention", []):
        if row["n_decode"]:
            predicted = latency.decode(row["n_decode"], row["kv_decode"])
        else:
            predicted = latency.prefill(row["prefill_chunk"], row["kv_prefill"])
        point = {key: row[key] for key in KEYS["attention"]}
        rows.append(("attention", json.dumps(point), calls["attention"] * row["seconds"], predicted))
    for kernel_class in ("copy", "launch"):
        *series, axis = KEYS[kernel_class]
        for row in held_out.get(kernel_class, []):
            curve = _curves(profile.tables[kernel_class], series, axis)[tuple(row[key] for key in series)]
            point = {key: row[key] for key in KEYS[kernel_class]}
            rows.append((kernel_class, json.dumps(point), row["seconds"], curve(row[axis])))
    for row in held_out.get("step", []):
        query = _step_query(row)
        point = dict(zip(("prefills", "decodes", "kv_tokens"), query, strict=True))
        rows.append(("step", json.dumps(point), row["seconds"], latency.step(*query)))
    return pl.DataFrame(rows, schema=["kernel_class", "point", "measured", "predicted"], orient="row")


def _errors(profile: Profile) -> dict[str, dict[str, float]]:
    """Kernel class → points, and median or 90th percentile of absolute relative errors (see `Profile`)."""
    errors: dict[str, dict[str, float]] = {}
    for kernel_class, table in profile.tables.items():
        if kernel_class == "overhead":  # a difference, near nought: its relative error says nothing; "step" does
            continue
        left_out = [error for curve in _families(kernel_class, table) for error in curve.leave_one_out()]
        errors[kernel_class] = {"points": float(len(table))}
        if left_out:
            errors[kernel_class]["fit"] = median(left_out)
    if profile.held_out is not None:
        for (kernel_class,), rows in profile.held_out.group_by("kernel_class", maintain_order=True):
            errors.setdefault(str(kernel_class), {}).update(held_out_errors(rows))
    return errors


def held_out_errors(points: pl.DataFrame) -> dict[str, float]:
    """The part of `Profile.errors` that says how well points held out are predicted; they are one kernel class's."""
    relative = ((points["predicted"] - points["measured"]).abs() / points["measured"]).to_numpy()
    return {
        "held_out_points": float(len(relative)),
        "held_out_median": float(np.median(relative)),
        "held_out_p90": float(np.percentile(relative, 90)),
    }


def _families(kernel_class: str, table: pl.DataFrame) -> list[Curve]:
    """Every curve of a table; attention's are over the cached prefix of a prefill, or the context of decodes."""
    if kernel_class == "attention":
        prefills, decodes = table.filter(pl.col("n_decode") == 0), table.filter(pl.col("n_decode") > 0)
        return [
            *_curves(prefills, ["prefill_chunk"], "kv_prefill").values(),
            *_curves(decodes, ["n_decode"], "kv_decode").values(),
        ]
    *series, axis = KEYS[kernel_class]
    return list(_curves(table, series, axis).values())


def _curves(table: pl.DataFrame, series: Sequence[str], axis: str) -> dict[tuple[Any, ...], Curve]:
    """One curve over `axis` for each combination of the other keys."""
    if not series:
        return {(): Curve(table[axis].to_list(), table["seconds"].to_list())}
    return {
        key: Curve(rows[axis].to_list(), rows["seconds"].to_list())
        for key, rows in table.sort(axis).group_by(series, maintain_order=True)
    }
