"""What pruning costs, as a table on the terminal and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calibrate.quality import Estimate, LayerShares, PolicyQuality, QualityTable
from ground.page import Page
from sim.results.display import digits

_HEADER = ("pruning", "top-1 agreement", "KL, nats", "perplexity", "to the unpruned")


def show(table: QualityTable, console: Console) -> None:
    """One row a policy, the one that changes least first."""
    shown = Table(title=f"Quality of {table.model['name']}, unpruned perplexity {_interval(table.unpruned.perplexity)}")
    for column in _HEADER:
        shown.add_column(column, justify="left" if column == "pruning" else "right")
    for policy in _ordered(table):
        shown.add_row(*map(escape, _row(policy)))
    console.print(shown)


def write_quality_report(table: QualityTable, path: Path) -> None:
    """Write the page as one self-contained HTML file at `path`."""
    text = table.text
    page = Page(
        "What pruning costs",
        f"{table.model['name']}: {len(table.policies)} policies on {text.get('tokens', 0):,} tokens of "
        f"{text.get('held_out', 0)} held-out documents.",
    )
    tiles = {"perplexity": table.unpruned.perplexity, "bits a byte": table.unpruned.bits_per_byte}
    page.numbers(
        [(f"{what} of the unpruned model", digits(found.mean), "plain") for what, found in tiles.items() if found]
    )
    page.heading("Against the unpruned model")
    page.table(
        list(_HEADER),
        [_row(policy) for policy in _ordered(table)],
        "Both read the same text and never what they would have written themselves. Top-1: share of tokens behind "
        "which both find the same token the most likely. In brackets 95 % intervals, documents resampled.",
    )
    decided = [policy for policy in table.policies if policy.layers is not None]
    if decided:
        page.heading("Which tokens run which layer")
        layers = [str(layer) for layer in range(len(decided[0].layers.mlp))] if decided[0].layers else []
        rows = [
            [spelled(policy.pruning), where, part, *(f"{100 * share:.1f} %" for share in shares)]
            for policy in decided
            for where, found in (("held-out text", policy.layers), ("its own text", policy.decoded))
            if found is not None
            for part, shares in _parts(found)
        ]
        page.table(["pruning", "tokens of", "part", *layers], rows, "Share of tokens that compute it, by layer.")
    page.heading("How it was measured")
    facts = {"weights": table.weights, "text": text, "engine": table.engine}
    page.table(
        ["what", "value"], [[f"{part}, {key}", str(value)] for part, of in facts.items() for key, value in of.items()]
    )
    page.write(path)


def spelled(pruning: dict[str, Any]) -> str:
    """The settings of a policy on one line: "window: sinks 16, window 64"."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{key} {_value(value)}" for key, value in settings.items())
        for name, settings in pruning.items()
    )


def _ordered(table: QualityTable) -> list[PolicyQuality]:
    return sorted(table.policies, key=lambda policy: policy.kl.mean)


def _row(policy: PolicyQuality) -> list[str]:
    top1 = policy.top1
    return [
        spelled(policy.pruning),
        f"{100 * top1.mean:.2f} % ({100 * top1.low:.2f} to {100 * top1.high:.2f})",
        _interval(policy.kl),
        _interval(policy.perplexity),
        f"× {_interval(policy.perplexity_ratio)}",
    ]


def _parts(shares: LayerShares) -> list[tuple[str, tuple[float, ...]]]:
    if shares.attention == shares.mlp:
        return [("both", shares.mlp)]
    return [("attention", shares.attention), ("MLP", shares.mlp)]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
