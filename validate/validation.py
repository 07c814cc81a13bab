"""The result of a validation, and its file `validation.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ground.whole_file import whole_file
from sim.results.folder import Run
from validate.comparison import Comparison, compare
from validate.ranking import Ranking, ranking
from validate.recording import Lateness


@dataclass
class Policy:
    """One policy of a study: what the simulator said, and what each repeat on a real engine said."""

    name: str
    predicted: Run
    measured: list[Run]
    parameters: dict[str, Any] = field(default_factory=dict)  # what it sets, by dotted scenario key

    @cached_property
    def comparison(self) -> Comparison:
        return compare(self.predicted, self.measured, name=self.name)


@dataclass
class Validation:
    """All policies, and the circumstances of their measurement.

    `engine` says what was measured (device, threads, versions); `lateness` is the worst of all replays, null where a
    measured run does not say.
    """

    policies: Sequence[Policy]
    engine: dict[str, Any]
    lateness: Lateness | None

    @cached_property
    def ranking(self) -> dict[str, Ranking]:
        return ranking([policy.comparison for policy in self.policies])

    def as_json(self) -> dict[str, Any]:
        return {
            "policies": [_policy_json(policy) for policy in self.policies],
            "ranking": {name: asdict(rank) | {"held": rank.held} for name, rank in self.ranking.items()},
            "engine": self.engine,
            "lateness": None if self.lateness is None else asdict(self.lateness),
        }

    def write_json(self, path: Path) -> None:
        """Write the file whole or not at all."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def worst(latenesses: Sequence[Lateness]) -> Lateness | None:
    """The worst of several replays in each respect, over all their requests."""
    if not latenesses:
        return None
    return Lateness(
        requests=sum(lateness.requests for lateness in latenesses),
        mean=max(lateness.mean for lateness in latenesses),
        p99=max(lateness.p99 for lateness in latenesses),
        max=max(lateness.max for lateness in latenesses),
    )


def _policy_json(policy: Policy) -> dict[str, Any]:
    comparison = policy.comparison
    return {
        "name": comparison.name,
        "parameters": policy.parameters,
        "metrics": {
            name: {
                "predicted": metric.predicted,
                "measured": metric.measured,
                "difference": metric.difference,
                "error": metric.error,
            }
            for name, metric in comparison.metrics.items()
        },
        "ape": {name: asdict(error) for name, error in comparison.ape.items()},
        "unmatched": comparison.unmatched,
        "repeats": comparison.repeats,
        "spread": comparison.spread,
    }
