"""A gain as a row of text, for the terminal and the page alike."""

from __future__ import annotations

from calibrate.quality import NOT_MEASURED
from sim.results.display import UNKNOWN, digits, seconds
from sim.results.metric_names import METRICS
from validate.gains import Gain

HEADER = ("study", "policy", "metric", "predicted gain", "measured gain", "spread", "verdict", "order", "quality")
COPY_HEADER = ("study", "policy", "copies", "predicted", "measured", "predicted time", "measured time")


def gain_row(gain: Gain) -> list[str]:
    """One cell for each of `HEADER`."""
    return [
        gain.study,
        gain.policy,
        METRICS[gain.metric].label,
        signed_percent(gain.predicted),
        signed_percent(gain.measured),
        "one repeat" if gain.repeats == 1 else UNKNOWN if gain.spread is None else f"{100 * gain.spread:.1f} points",
        gain.verdict,
        _order(gain),
        quality_text(gain),
    ]


def copy_rows(gain: Gain) -> list[list[str]]:
    """Rows of one cell for each of `COPY_HEADER`."""
    return [
        [
            gain.study,
            gain.policy,
            copies.what,
            f"{digits(copies.predicted_bytes / 1e6)} MB",
            f"{digits(copies.measured_bytes / 1e6)} MB",
            seconds(copies.predicted_seconds),
            seconds(copies.measured_seconds),
        ]
        for copies in gain.copies
    ]


def quality_text(gain: Gain) -> str:
    """What pruning cost, as measured; a dash if nothing is pruned."""
    if not gain.pruned:
        return UNKNOWN
    return NOT_MEASURED if gain.quality is None else gain.quality.text


def signed_percent(share: float | None) -> str:
    """A share as a person reads a gain or an error: "+3.1 %"."""
    return UNKNOWN if share is None else f"{100 * share:+.1f} %"


def _order(gain: Gain) -> str:
    if gain.order_held is None:
        return "cannot be told"
    return "held" if gain.order_held else f"flipped with {', '.join(gain.flipped)}"
