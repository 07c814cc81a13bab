"""What a run's latency went into: the ranking of causes, the slowest requests apart, and the trend over the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from calibrate.latency import StepLatency
from ground.errors import UserError
from sim.results.diagnosis.attribution import attribute, attribute_without_steps, cause_columns
from sim.results.diagnosis.causes import CAUSES
from sim.results.diagnosis.pools import row_causes_of_pools
from sim.results.diagnosis.row_causes import RowCauses, row_causes
from sim.results.folder import Run

HOUR = 3600.0
_SLOWEST = 100  # one in so many
_DUST = 1e-9  # a share below which a cause is rounding


@dataclass(frozen=True)
class Part:
    """Requests of one kind: how many, their mean E2E latency, and the mean seconds of each cause, which sum to it."""

    requests: int
    mean: float
    causes: dict[str, float]


@dataclass(frozen=True)
class Trend:
    """Requests that arrived in the first and in the last part of the run; `what` says which parts."""

    what: str
    first: Part
    last: Part
    first_until: float  # seconds on the run's clock
    last_from: float

    @property
    def main(self) -> str:
        """The cause that changed most in the direction in which the latency did."""
        grew = self.last.mean >= self.first.mean
        change = {cause: self.last.causes[cause] - self.first.causes[cause] for cause in self.first.causes}
        return max(change, key=lambda cause: change[cause] if grew else -change[cause])


@dataclass(frozen=True)
class Diagnosis:
    """The causes of one run.

    Attributes:
        attributed: finished requests, with the seconds of each cause (`attribution.attribute`).
        rows: the steps by cause; null where nobody saw them.
        left_out: requests that did not finish, by status.
        ranking: causes that took any time, the largest first.
        slowest: the hundredth of the requests with the longest E2E latency.
        explained: what the profile says the steps take over what they took; null where the two agree.
    """

    name: str
    measured: bool
    attributed: pl.DataFrame
    rows: RowCauses | None
    left_out: dict[str, int]
    all: Part
    slowest: Part
    slowest_from: float  # seconds of E2E latency
    trend: Trend | None
    explained: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def ranking(self) -> list[str]:
        ranked = sorted(self.all.causes, key=lambda cause: -self.all.causes[cause])
        return [cause for cause in ranked if self.all.causes[cause] > _DUST * self.all.mean]

    def share(self, cause: str) -> float:
        """Of all seconds that finished requests waited."""
        return self.all.causes[cause] / self.all.mean if self.all.mean else 0.0

    @property
    def sentence(self) -> str:
        """The main cause and what usually helps, in words."""
        if not self.ranking:
            return "No finished request waited for anything."
        cause = CAUSES[self.ranking[0]]
        keys = f" (scenario: {', '.join(cause.remedies)})" if cause.remedies else ""
        return (
            f"{100 * self.share(self.ranking[0]):.0f} % of the latency is {cause.label}: {cause.meaning}. "
            f"What usually helps: {cause.advice}{keys}."
        )


def sees_steps(run: Run) -> bool:
    """Whether the run's tables say when each finished request was scheduled and what the steps were."""
    finished = run.requests.filter(pl.col("status") == "finished")
    return len(run.steps) > 0 and finished["first_scheduled"].null_count() == 0


def diagnose(
    run: Run,
    times: StepLatency | Mapping[str, StepLatency] | None,
    *,
    measured: bool,
    simulated_with: bool = True,
) -> Diagnosis:
    """Attribute every second of every finished request.

    Args:
        times: step times of the run's engines, by pool where it has several; asked only where the run `sees_steps`.
        simulated_with: whether a simulated run had just these.

    Raises:
        UserError: no request finished.
    """
    counts: dict[str, int] = dict(run.requests["status"].value_counts().sort("status").iter_rows())
    if not counts.pop("finished", 0):
        raise UserError(f"{run.name}: no request finished; expected one at least, to say what it waited for")
    rows, notes = None, []
    if sees_steps(run):
        if times is None:
            raise ValueError("a run with steps needs step times")
        exact = not measured and simulated_with
        if isinstance(times, Mapping):
            rows = row_causes_of_pools(run, times, simulated=exact)
        else:
            rows = row_causes(run, times, simulated=exact)
        attributed = attribute(run.requests, run.events, rows)
        notes += rows.notes
        if not run.has_events:
            notes.append("the run has no table of events: preemptions, stalls and tokens computed again cannot be told")
    else:
        attributed = attribute_without_steps(run.requests)
        notes.append("the run has no table of its engine's steps: only before and after the first token can be told")
    slowest = attributed.top_k(-(-len(attributed) // _SLOWEST), by=["e2e", "request_id"])
    return Diagnosis(
        name=run.name,
        measured=measured,
        attributed=attributed,
        rows=rows,
        left_out=counts,
        all=_part(attributed),
        slowest=_part(slowest),
        slowest_from=float(slowest["e2e"].to_numpy().min()),
        trend=_trend(attributed),
        explained=rows.explained if rows is not None else None,
        notes=notes,
    )


def summary(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as a JSON-able dictionary; times are seconds, `mean` is a request's."""
    everything, slow = diagnosis.all, diagnosis.slowest
    trend = diagnosis.trend
    return {
        "run": diagnosis.name,
        "kind": "measured" if diagnosis.measured else "simulated",
        "requests": {"finished": everything.requests, "left_out": diagnosis.left_out},
        "seconds": everything.mean * everything.requests,
        "main_cause": diagnosis.ranking[0] if diagnosis.ranking else None,
        "sentence": diagnosis.sentence,
        "explained": diagnosis.explained,
        "causes": [
            {
                "cause": cause,
                "label": CAUSES[cause].label,
                "seconds": everything.causes[cause] * everything.requests,
                "share": diagnosis.share(cause),
                "mean": everything.causes[cause],
                "slowest_mean": slow.causes[cause],
                "remedies": list(CAUSES[cause].remedies),
            }
            for cause in sorted(everything.causes, key=lambda cause: -everything.causes[cause])
        ],
        "slowest": {"requests": slow.requests, "e2e_from": diagnosis.slowest_from, "mean": slow.mean},
        "trend": None
        if trend is None
        else {
            "what": trend.what,
            "cause": trend.main,
            "first_until": trend.first_until,
            "last_from": trend.last_from,
            "first": _part_summary(trend.first),
            "last": _part_summary(trend.last),
        },
        "notes": diagnosis.notes,
    }


def _part_summary(part: Part) -> dict[str, Any]:
    return {"requests": part.requests, "mean": part.mean, "causes": part.causes}


def _part(attributed: pl.DataFrame) -> Part:
    causes = {name: float(np.mean(attributed[name].to_numpy())) for name in cause_columns(attributed)}
    return Part(len(attributed), float(np.mean(attributed["e2e"].to_numpy())), causes)


def _trend(attributed: pl.DataFrame) -> Trend | None:
    """The first hour against the last, or the first third against the last third of less than two hours; null where
    one of them has no request."""
    arrival = attributed["arrival"].to_numpy()
    begin, end = float(arrival.min()), float(arrival.max())
    long = end - begin >= 2 * HOUR
    width = HOUR if long else (end - begin) / 3
    first, last = (
        attributed.filter(pl.col("arrival") < begin + width),
        attributed.filter(pl.col("arrival") > end - width),
    )
    if first.is_empty() or last.is_empty():
        return None
    what = "first hour against last" if long else "first third against last third"
    return Trend(what, _part(first), _part(last), begin + width, end - width)
