"""Is the winner better? Two trials under seeds that no search has seen, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass

from sim.study.intervals import Interval, Verdict, difference, verdict
from sim.study.search.explore import BASELINE, Found
from sim.study.search.objectives import metric_named
from sim.study.search.trials import Trial


@dataclass(frozen=True)
class Compared:
    """A metric of one trial against that of another. `change` is one − other over the seeds' pairs; both fell to the
    same trace. A change whose interval holds zero is no difference."""

    trial: int
    other: int
    metric: str
    one: Interval
    against: Interval
    change: Interval
    verdict: Verdict


def shown_metrics(found: Found) -> list[str]:
    """The objectives, then what the constraints limit."""
    names = [each.metric for each in found.study.wanted] + [limit.metric for limit in found.study.limits]
    return list(dict.fromkeys(names))


def compare(found: Found, number: int, other: int) -> list[Compared]:
    """Of the metrics that both have under fresh seeds, and of which one way is better."""
    one, against = found.fresh[number], found.fresh[other]
    rows = []
    for name in shown_metrics(found):
        pair = _pair(one, against, name)
        if pair is None:
            continue
        confidence = found.study.confidence
        intervals = [trial.interval(name, confidence) for trial in (one, against)]
        assert intervals[0] is not None and intervals[1] is not None
        change = difference(*pair, confidence)
        said = verdict(change, smaller_is_better=_smaller(found, name))
        rows.append(Compared(number, other, name, intervals[0], intervals[1], change, said))
    return rows


def comparisons(found: Found) -> list[Compared]:
    """Each winner against the baseline, then the other winners against the first, where that is not the same."""
    others = [number for number in found.winners if number != BASELINE] if found.baseline is not None else []
    rows = [row for number in others for row in compare(found, number, BASELINE)]
    first = found.winners[0] if found.winners else BASELINE
    if first != BASELINE:
        rows += [row for number in found.winners[1:] if number != BASELINE for row in compare(found, number, first)]
    return rows


def broken(found: Found, number: int) -> list[str]:
    """The constraints that a winner misses under the fresh seeds, though it kept to them in the search."""
    trial = found.fresh[number]
    return [name for name, missed in trial.violations(found.study.limits).items() if missed > 0]


def seeds_draw_nothing(found: Found) -> bool:
    """Whether every seed gives the same: intervals are then points, and say nothing of another trace."""
    trials = [trial for trial in found.fresh.values() if trial.status == "ok"]
    latencies = [values for trial in trials for name, values in trial.values.items() if name in _LATENCIES]
    return found.study.seeds > 1 and bool(latencies) and all(len(set(values)) == 1 for values in latencies)


_LATENCIES = ("ttft.mean", "e2e.mean", "duration")


def _pair(one: Trial, other: Trial, name: str) -> tuple[list[float], list[float]] | None:
    if "ok" not in (one.status, other.status):
        return None
    left, right = one.values.get(name), other.values.get(name)
    if not left or not right or len(left) != len(right):
        return None
    known = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return ([a for a, _ in known], [b for _, b in known]) if len(known) == len(left) else None


def _smaller(found: Found, name: str) -> bool:
    for each in found.study.wanted:
        if each.metric == name:
            return each.wanted == "min"
    for limit in found.study.limits:
        if limit.metric == name and metric_named(name).better == "neither":
            return limit.bound == "<="
    return metric_named(name).better != "larger"
