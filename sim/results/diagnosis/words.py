"""A diagnosis in words and rows of text, the same for the terminal and the page."""

from __future__ import annotations

from sim.results.diagnosis.causes import CAUSES
from sim.results.diagnosis.diagnosis import Diagnosis
from sim.results.display import UNKNOWN, digits, seconds, share

_HARDLY = 0.05  # relative change of the mean

Rows = tuple[list[str], list[list[str]]]


def lead(diagnosis: Diagnosis) -> str:
    """What was diagnosed: "1,000 finished requests of a simulated run waited 3.2 h; left out: 2 rejected."."""
    kind = "measured" if diagnosis.measured else "simulated"
    total = seconds(diagnosis.all.mean * diagnosis.all.requests)
    left = ", ".join(f"{count:,} {status}" for status, count in diagnosis.left_out.items())
    text = f"{diagnosis.all.requests:,} finished requests of a {kind} run waited {total} in all"
    return f"{text}; left out: {left}." if left else f"{text}."


def notes(diagnosis: Diagnosis) -> list[str]:
    """What a reader must know before he trusts the rest."""
    texts = [f"{note[0].upper()}{note[1:]}." for note in diagnosis.notes]
    if diagnosis.explained is not None:
        texts.append(
            f"The profile says that the steps take {digits(100 * diagnosis.explained)} % of what they took; "
            "its parts are scaled to each step."
        )
    return texts


def cause_rows(diagnosis: Diagnosis) -> Rows:
    """Header and rows of the ranking."""
    everything, slow = diagnosis.all, diagnosis.slowest
    rows = [
        [
            CAUSES[cause].label,
            seconds(everything.causes[cause] * everything.requests),
            share(diagnosis.share(cause)),
            seconds(everything.causes[cause]),
            seconds(slow.causes[cause]),
            share(slow.causes[cause] / slow.mean if slow.mean else None),
        ]
        for cause in diagnosis.ranking
    ]
    total = [seconds(everything.mean * everything.requests), share(1.0), seconds(everything.mean)]
    rows.append(["E2E latency", *total, seconds(slow.mean), share(1.0)])
    return ["cause", "total", "share", "mean", f"slowest {slow.requests:,}: mean", "their share"], rows


def trend_rows(diagnosis: Diagnosis) -> Rows:
    """Header and rows of the trend; there must be one."""
    trend = diagnosis.trend
    assert trend is not None
    pairs = [(CAUSES[cause].label, trend.first.causes[cause], trend.last.causes[cause]) for cause in diagnosis.ranking]
    pairs.append(("E2E latency", trend.first.mean, trend.last.mean))
    names = ("first hour", "last hour") if "hour" in trend.what else ("first third", "last third")
    return ["cause", *names, "difference", "change"], [
        [label, _shown(first), _shown(last), _signed(last - first), _change(first, last)]
        for label, first, last in pairs
    ]


def trend_sentence(diagnosis: Diagnosis) -> str:
    """How the mean changed and which cause most of it is; empty where it hardly did."""
    trend = diagnosis.trend
    if trend is None or not trend.first.mean or abs(trend.last.mean / trend.first.mean - 1) < _HARDLY:
        return ""
    change = trend.last.mean - trend.first.mean
    own = trend.last.causes[trend.main] - trend.first.causes[trend.main]
    cause = CAUSES[trend.main]
    text = (
        f"From {trend.what.replace(' against', ' to')} the mean E2E latency {'rose' if change > 0 else 'fell'} from "
        f"{seconds(trend.first.mean)} to {seconds(trend.last.mean)}; {cause.label} changed by {_signed(own)} of "
        f"{_signed(change)}."
    )
    if change > 0 and trend.main != diagnosis.ranking[0]:
        text += f" What usually helps against it: {cause.advice} ({', '.join(cause.remedies)})."
    return text


def _shown(value: float) -> str:
    return seconds(value if value > 1e-12 else 0.0)


def _signed(value: float) -> str:
    if abs(value) <= 1e-12:
        return seconds(0.0)
    return f"{'+' if value > 0 else '-'}{seconds(abs(value))}"


def _change(first: float, last: float) -> str:
    """In percent; unknown where there was nothing before."""
    return UNKNOWN if first <= 1e-12 else f"{round(100 * (last / first - 1)):+d} %"
