"""What a search is for: metrics to make small or large, and limits that others must keep to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ground.errors import UserError
from sim.results.display import digits, metric_text, share
from sim.results.metric_names import METRICS, Metric, describe

# What pruning costs a model, which no run says: it is measured on the real one (`calibrate.quality`).
QUALITY: dict[str, Metric] = {
    "quality.top1": Metric("Top-1 agreement with the unpruned model", "share", "larger"),
    "quality.kl": Metric("Divergence from the unpruned model, nats per token", "share", "smaller"),
    "quality.perplexity": Metric("Perplexity", "share", "smaller"),
    "quality.perplexity_ratio": Metric("Perplexity over the unpruned model's", "share", "smaller"),
}
BOUNDS = ("low", "high")  # the ends of an estimate's interval: quality.top1.low

_LAST_DIGITS = 1e-12  # a mean of equal values differs from them by no more

_OBJECTIVE = re.compile(r"(?:(min|max)\s+)?(\S+)")
_CONSTRAINT = re.compile(r"(\S+?)\s*(<=|>=)\s*(\S+)")


@dataclass(frozen=True)
class Objective:
    """A metric, and whether the smallest or the largest is wanted."""

    metric: str
    wanted: Literal["min", "max"]

    def cost(self, value: float) -> float:
        """The value as something of which less is better."""
        return value if self.wanted == "min" else -value

    def __str__(self) -> str:
        return f"{self.wanted} {self.metric}"


@dataclass(frozen=True)
class Constraint:
    """A metric that must be at most, or at least, `limit`."""

    metric: str
    bound: Literal["<=", ">="]
    limit: float

    def violation(self, value: float | None) -> float:
        """By how much the value misses the limit, as a share of the limit (of 1 if that is 0); 0 where it keeps to it.
        A value that there is not, such as a percentile of no requests, misses it wholly."""
        if value is None:
            return 1.0
        if math.isclose(value, self.limit, rel_tol=_LAST_DIGITS):
            return 0.0
        beyond = value - self.limit if self.bound == "<=" else self.limit - value
        return max(0.0, beyond) / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} {self.bound} {self.limit:g}"


def parse_objective(text: str) -> Objective:
    """`min ttft.p99`, `max goodput.requests`, or the metric alone where one way is better.

    Raises:
        UserError: not of this form, no such metric, or the way that is worse.
    """
    found = _OBJECTIVE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"objective {text!r}: expected min or max and a metric, such as min ttft.p99")
    wanted, name = found.groups()
    better = metric_named(name).better
    if wanted is None and better == "neither":
        raise UserError(f"objective {text!r}: {name} is neither better large nor small; expected min or max before it")
    natural = "max" if better == "larger" else "min"
    if wanted is not None and better != "neither" and wanted != natural:
        raise UserError(f"objective {text!r}: {name} is better {better}; expected {natural} {name}")
    return Objective(name, "max" if (wanted or natural) == "max" else "min")


def parse_constraint(text: str) -> Constraint:
    """`ttft.p99 <= 0.5`, `quality.top1 >= 0.99`.

    Raises:
        UserError: not of this form, no such metric, or no number.
    """
    found = _CONSTRAINT.fullmatch(text.strip())
    if found is None:
        raise UserError(f"constraint {text!r}: expected a metric, <= or >=, and a number, such as ttft.p99 <= 0.5")
    name, bound, limit = found.groups()
    metric_named(name)
    try:
        number = float(limit)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise UserError(f"constraint {text!r}: {limit!r} is no number")
    return Constraint(name, "<=" if bound == "<=" else ">=", number)


def metric_named(name: str) -> Metric:
    """What is known of a metric of runs or of quality.

    Raises:
        UserError: there is no such metric.
    """
    if is_quality(name):
        base, _, bound = name.rpartition(".")
        known = QUALITY.get(name) or (QUALITY.get(base) if bound in BOUNDS else None)
        if known is None:
            raise UserError(
                f"metric {name!r} is unknown; expected one of {', '.join(QUALITY)}, or the .low or .high of one"
            )
        return known
    return describe(name)


def is_quality(name: str) -> bool:
    """Whether it is a matter of the model's answers and not of a run."""
    return name.startswith("quality.") and name not in METRICS


def value_text(name: str, value: float | None) -> str:
    """A value of either kind, as a person reads it."""
    if not is_quality(name):
        return metric_text(name, value)
    return share(value) if name.startswith("quality.top1") else digits(value)


def objectives_of(values: Mapping[str, float | None], objectives: tuple[Objective, ...]) -> tuple[float, ...] | None:
    """The costs (less is better) that values by metric have; None where one of them is not known."""
    known = [(each, values.get(each.metric)) for each in objectives]
    if any(value is None for _, value in known):
        return None
    return tuple(each.cost(value) for each, value in known if value is not None)
