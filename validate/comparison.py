"""Predicted beside measured: every metric, and every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from ground.errors import UserError
from sim.results.folder import Run
from sim.results.metric_names import LATENCIES, metric

# The metrics that are compared, in the order of the tables.
COMPARED = (
    *(f"{latency}.{statistic}" for latency in LATENCIES for statistic in ("mean", "p50", "p90", "p99")),
    "throughput.output_tokens",
    "throughput.requests",
    "goodput.requests",
    "slo.attainment",
    "preemptions",
    "prefix_hit_rate",
)
_PER_REQUEST = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Difference:
    """One metric of both runs; null where a run does not have it."""

    predicted: float | None
    measured: float | None

    @property
    def difference(self) -> float | None:
        """Predicted less measured, in the metric's unit."""
        if self.predicted is None or self.measured is None:
            return None
        return self.predicted - self.measured

    @property
    def error(self) -> float | None:
        """The difference as a fraction of what was measured; null where that is zero and the prediction is not."""
        difference = self.difference
        if difference is None or self.measured is None:
            return None
        if difference == 0:
            return 0.0
        return difference / self.measured if self.measured else None


@dataclass(frozen=True)
class RequestError:
    """Absolute error of one latency, as a fraction of the measured one, over requests finished in both runs."""

    mean: float | None
    p50: float | None
    requests: int


@dataclass(frozen=True)
class Comparison:
    """One policy: prediction against the mean of the measured repeats."""

    name: str
    metrics: dict[str, Difference]
    ape: dict[str, RequestError]
    unmatched: int  # requests that finished in one of both and not in the other
    repeats: int
    spread: dict[str, float]  # largest less smallest measured value; empty for a single repeat


def compare(
    predicted: Run, measured: Sequence[Run], *, name: str | None = None, also: Sequence[str] = ()
) -> Comparison:
    """Compare a prediction with one or more measured repeats of the same requests, by `COMPARED` and `also`.

    A measured metric is the mean over the repeats, a request's measured latency the mean over those repeats in which
    it finished.

    Raises:
        UserError: the runs are not of the same requests.
    """
    for run in measured:
        _check_same_requests(predicted, run)
    names = dict.fromkeys((*COMPARED, *also))
    values = {metric_name: [metric(run.metrics, metric_name) for run in measured] for metric_name in names}
    known = {metric_name: [v for v in repeats if v is not None] for metric_name, repeats in values.items()}
    joined = _join(predicted, measured)
    return Comparison(
        name=name or predicted.name,
        metrics={
            metric_name: Difference(metric(predicted.metrics, metric_name), _mean(repeats))
            for metric_name, repeats in known.items()
        },
        ape={latency: _request_error(joined, latency) for latency in _PER_REQUEST},
        unmatched=int((joined["in_predicted"] != joined["in_measured"]).sum()),
        repeats=len(measured),
        spread={metric_name: max(repeats) - min(repeats) for metric_name, repeats in known.items() if len(repeats) > 1},
    )


def measured_mean(runs: Sequence[Run]) -> pl.DataFrame:
    """Each request's mean latencies over the repeats in which it finished: request_id, status, `LATENCIES`."""
    finished = pl.concat([run.requests for run in runs]).filter(pl.col("status") == "finished")
    return finished.group_by("request_id", "status").agg(pl.col(list(LATENCIES)).mean()).sort("request_id")


def _check_same_requests(predicted: Run, measured: Run) -> None:
    columns = ["request_id", "prompt_tokens"]
    ours, theirs = (run.requests.select(columns).sort("request_id") for run in (predicted, measured))
    if not ours.equals(theirs):
        raise UserError(
            f"{measured.name}: {len(theirs)} requests measured, {len(ours)} predicted in {predicted.name}, "
            "and they are not the same; expected both to be of one trace"
        )


def _join(predicted: Run, measured: Sequence[Run]) -> pl.DataFrame:
    """request_id, each latency and its measured counterpart `_measured`, and on which side it finished."""
    every = predicted.requests.select("request_id")
    ours = predicted.requests.filter(pl.col("status") == "finished").select("request_id", *_PER_REQUEST)
    theirs = measured_mean(measured).select("request_id", *_PER_REQUEST)
    return (
        every.join(ours.with_columns(in_predicted=True), on="request_id", how="left")
        .join(theirs.with_columns(in_measured=True), on="request_id", how="left", suffix="_measured")
        .with_columns(pl.col("in_predicted", "in_measured").fill_null(False))
    )


def _request_error(joined: pl.DataFrame, latency: str) -> RequestError:
    measured = pl.col(f"{latency}_measured")
    errors = joined.filter(measured > 0).select(((pl.col(latency) - measured).abs() / measured).alias("error"))["error"]
    errors = errors.drop_nulls()
    if errors.is_empty():
        return RequestError(None, None, 0)
    return RequestError(float(errors.to_numpy().mean()), float(errors.quantile(0.5, "linear") or 0.0), len(errors))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
