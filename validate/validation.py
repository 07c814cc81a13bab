"""The result of a validation, and its file `validation.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from calibrate.quality import PolicyQuality
from ground.whole_file import whole_file
from sim.results.folder import Run
from validate.comparison import Comparison, compare
from validate.copies import Copies
from validate.gains import BASELINE, Gain, gains
from validate.ranking import Ranking, ranking
from validate.recording import Lateness


@dataclass
class Policy:
    """One policy of a study: what the simulator said, and what each repeat on a real engine said.

    `parameters` is what it sets, by dotted scenario key; `also` are metrics to compare beside the usual ones; `quality`
    is what was measured of a `pruned` model, and `copies` what moved between device, host and disk.
    """

    name: str
    predicted: Run
    measured: list[Run]
    parameters: dict[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    pruned: bool = False
    quality: PolicyQuality | None = None
    copies: list[Copies] = field(default_factory=list)

    @cached_property
    def comparison(self) -> Comparison:
        return compare(self.predicted, self.measured, name=self.name, also=self.also)


@dataclass
class Validation:
    """All policies, and the circumstances of their measurement.

    `engine` says what was measured (device, threads, versions); `lateness` is the worst of all replays, null where a
    measured run does not say. `study` names it, empty where no study was checked, and `objective` the metric by which
    it chose its winners. `refused` are the policies that the engine did not run, and why.
    """

    policies: Sequence[Policy]
    engine: dict[str, Any]
    lateness: Lateness | None
    study: str = ""
    objective: str = "goodput.requests"
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def baseline(self) -> Policy | None:
        return next((policy for policy in self.policies if policy.name == BASELINE), None)

    @cached_property
    def ranking(self) -> dict[str, Ranking]:
        return ranking([policy.comparison for policy in self.policies])

    @property
    def refusals(self) -> list[tuple[str, str, str]]:
        """(study, policy, why) of each that the engine did not run."""
        return [(self.study, policy, why) for policy, why in self.refused.items()]

    @cached_property
    def gains(self) -> list[Gain]:
        return gains([self])

    def as_json(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "objective": self.objective,
            "gains": [gain.as_json() for gain in self.gains],
            "refused": self.refused,
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
