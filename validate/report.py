"""The page of a validation: did the order of the policies hold, how far off are the numbers, then each policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ground.page import Page, Tone
from sim.results import charts
from sim.results.display import UNKNOWN, digits, metric_text, seconds
from sim.results.metric_names import LATENCIES, METRICS
from validate.comparison import Comparison
from validate.gain_page import add_gains, gain_tiles
from validate.gain_rows import signed_percent
from validate.ranking import Ranking
from validate.validation import Policy, Validation

# What a reader wants to know first, of all policies.
HEADLINES = ("ttft.mean", "ttft.p99", "tpot.mean", "e2e.mean", "e2e.p99", "throughput.output_tokens")
_PICTURED = ("ttft", "tpot", "e2e")


def write_report(validation: Validation, path: Path) -> None:
    """Write the report as one self-contained HTML file at `path`."""
    page = Page("Predicted and measured", _lead(validation))
    comparisons = [policy.comparison for policy in validation.policies]
    page.numbers([*_ranking_tiles(validation.ranking), *(_error_tile(name, comparisons) for name in HEADLINES)])

    if validation.gains or validation.refused:
        page.numbers(gain_tiles(validation.gains))
        add_gains(page, validation.gains, validation.refusals)
    if validation.ranking:
        page.heading("Did the order of the policies hold?")
        page.table(
            ["metric", "verdict", "Kendall's tau", "predicted order", "measured order", "flipped", "ties"],
            [_rank_row(name, rank) for name, rank in validation.ranking.items()],
            "Best first. A tie is a pair whose measured values differ by no more than the repeats of one policy do.",
        )
    page.heading("Error of each policy")
    page.table(
        ["policy", *(METRICS[name].label for name in HEADLINES)],
        [[c.name, *(signed_percent(c.metrics[name].error) for name in HEADLINES)] for c in comparisons],
        "Predicted less measured, as a share of what was measured.",
    )
    for policy in validation.policies:
        _policy(page, policy)
    page.heading("How it was measured")
    page.table(["what", "value"], [[name, str(value)] for name, value in _circumstances(validation)])
    page.write(path)


def _policy(page: Page, policy: Policy) -> None:
    comparison = policy.comparison
    page.heading(policy.name)
    if policy.parameters:
        page.text(", ".join(f"{key} = {value}" for key, value in policy.parameters.items()))
    page.table(
        ["metric", "predicted", "measured", "error", "spread of repeats"],
        [_metric_row(name, comparison) for name in comparison.metrics],
        f"Measured: mean of {comparison.repeats} repeat{'s' if comparison.repeats != 1 else ''}; "
        "spread: largest less smallest.",
    )
    page.table(
        ["absolute error of each request", "mean", "median", "requests"],
        [
            [LATENCIES[name], _share(error.mean), _share(error.p50), f"{error.requests:,}"]
            for name, error in comparison.ape.items()
        ],
        f"{comparison.unmatched:,} requests finished on one side only.",
    )
    first = policy.measured[0]
    for latency in _PICTURED:
        label = LATENCIES[latency]
        runs = {"predicted": policy.predicted.requests, "measured": first.requests}
        page.figure(charts.latency_cdf(runs, latency), f"{label}: share of requests at or below x.", height=300)
        figure = charts.quantile_quantile(policy.predicted.requests, first.requests, latency)
        page.figure(figure, f"{label}: quantile by quantile; on the dotted line the prediction is perfect.", height=320)


def _lead(validation: Validation) -> str:
    policies = len(validation.policies)
    requests = len(validation.policies[0].predicted.requests)
    repeats = min(policy.comparison.repeats for policy in validation.policies)
    return (
        f"{policies} polic{'y' if policies == 1 else 'ies'}, {requests:,} requests, "
        f"{repeats} measured repeat{'' if repeats == 1 else 's'} each."
    )


def _ranking_tiles(rankings: dict[str, Ranking]) -> list[tuple[str, str, Tone]]:
    decided = [rank for rank in rankings.values() if rank.held is not None]
    if not decided:
        return []
    held = sum(bool(rank.held) for rank in decided)
    tone: Tone = "good" if held == len(decided) else "bad"
    return [("metrics by which the predicted order of the policies held", f"{held} of {len(decided)}", tone)]


def _error_tile(name: str, comparisons: Sequence[Comparison]) -> tuple[str, str, Tone]:
    """The largest error of any policy."""
    errors = [error for c in comparisons if (error := c.metrics[name].error) is not None]
    largest = max(errors, key=abs, default=None)
    which = "error" if len(comparisons) == 1 else "largest error"
    return f"{METRICS[name].label}, {which}", signed_percent(largest), "plain"


def _rank_row(name: str, rank: Ranking) -> list[str]:
    verdict = {None: "cannot be told", True: "held", False: "flipped"}[rank.held]
    return [
        METRICS[name].label,
        verdict,
        digits(rank.tau),
        ", ".join(rank.predicted),
        ", ".join(rank.measured),
        _pairs(rank.flipped),
        _pairs(rank.ties),
    ]


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{a}, {b}" for a, b in pairs) or UNKNOWN


def _metric_row(name: str, comparison: Comparison) -> list[str]:
    metric = comparison.metrics[name]
    return [
        METRICS[name].label,
        metric_text(name, metric.predicted),
        metric_text(name, metric.measured),
        signed_percent(metric.error),
        metric_text(name, comparison.spread.get(name)),
    ]


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def _circumstances(validation: Validation) -> list[tuple[str, object]]:
    lateness = validation.lateness
    rows: list[tuple[str, object]] = list(validation.engine.items())
    if lateness is not None:
        rows.append(("lateness of arrivals, mean", seconds(lateness.mean)))
        rows.append(("lateness of arrivals, p99", seconds(lateness.p99)))
        rows.append(("lateness of arrivals, largest", seconds(lateness.max)))
    return rows
