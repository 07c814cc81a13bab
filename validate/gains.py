"""What a policy gains over its study's baseline: as predicted, as measured, and whether the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from calibrate.quality import NOT_MEASURED, PolicyQuality
from sim.results.folder import Run
from sim.results.metric_names import describe, metric
from validate.copies import Copies

if TYPE_CHECKING:
    from validate.validation import Policy, Validation

# What a study calls the policy that all others are compared with.
BASELINE = "baseline"

# From what a reader must see first.
Verdict = Literal["other sign", "not predicted", "as predicted", "no difference", "not known"]
_VERDICTS: tuple[Verdict, ...] = ("other sign", "not predicted", "as predicted", "no difference", "not known")


@dataclass(frozen=True)
class Gain:
    """One policy against the baseline of its study, by the study's objective.

    Gains are shares of the baseline's value, positive where the policy is better. `measured` is the mean over the
    repeats, each against the baseline's repeat beside it in time; `spread` is the largest less the smallest of them,
    null for one repeat. `order_held`: no policy of the study that was predicted better than this one was measured
    worse, nor the other way; null where the repeats cannot tell it from any. `flipped` names those.
    """

    study: str
    policy: str
    parameters: dict[str, Any]
    metric: str
    predicted: float | None
    measured: float | None
    spread: float | None
    repeats: int
    order_held: bool | None
    flipped: list[str]
    pruned: bool
    quality: PolicyQuality | None  # of a pruned model, where it was measured
    copies: list[Copies]

    @property
    def verdict(self) -> Verdict:
        """A gain within the spread of the repeats is no difference, whatever was predicted."""
        if self.measured is None or self.predicted is None:
            return "not known"
        if abs(self.measured) <= (self.spread or 0.0):
            return "no difference"
        if self.predicted == 0:
            return "not predicted"
        return "as predicted" if (self.measured > 0) == (self.predicted > 0) else "other sign"

    def as_json(self) -> dict[str, Any]:
        quality: Any = None
        if self.pruned:
            quality = NOT_MEASURED if self.quality is None else self.quality.model_dump(mode="json", exclude_none=True)
        facts = asdict(self)
        del facts["pruned"]
        return facts | {
            "verdict": self.verdict,
            "quality": quality,
            "copies": [copies.as_json() for copies in self.copies],
        }


def gains(validations: Sequence[Validation]) -> list[Gain]:
    """Every policy but the baselines; first those that gained what they were predicted to lose, or the other way."""
    found = [
        _gain(validation, policy, validation.baseline)
        for validation in validations
        if validation.study
        for policy in validation.policies
        if policy.name != BASELINE
    ]
    return sorted(found, key=lambda gain: _VERDICTS.index(gain.verdict))


def relative_gain(name: str, baseline: float | None, value: float | None) -> float | None:
    """By what share of the baseline's `value` is better; null where one is unknown or that share has no sense."""
    if baseline is None or value is None or describe(name).better == "neither":
        return None
    better = baseline - value if describe(name).better == "smaller" else value - baseline
    if better == 0:
        return 0.0
    return better / abs(baseline) if baseline else None


def _run_gain(name: str, baseline: Run, run: Run) -> float | None:
    return relative_gain(name, metric(baseline.metrics, name), metric(run.metrics, name))


def _gain(validation: Validation, policy: Policy, baseline: Policy | None) -> Gain:
    name = validation.objective
    predicted = None
    measured: list[float] = []
    if baseline is not None:
        predicted = _run_gain(name, baseline.predicted, policy.predicted)
        pairs = [
            _run_gain(name, before, after) for before, after in zip(baseline.measured, policy.measured, strict=True)
        ]
        measured = [gain for gain in pairs if gain is not None]
    rank = validation.ranking.get(name)
    flipped = [] if rank is None else [a if b == policy.name else b for a, b in rank.flipped if policy.name in (a, b)]
    # Of the pairs with this policy, is there one that the repeats can tell apart?
    others = len(validation.policies) - 1
    ties = 0 if rank is None else sum(policy.name in pair for pair in rank.ties)
    return Gain(
        study=validation.study,
        policy=policy.name,
        parameters=policy.parameters,
        metric=name,
        predicted=predicted,
        measured=sum(measured) / len(measured) if measured else None,
        spread=max(measured) - min(measured) if len(measured) > 1 else None,
        repeats=len(measured),
        order_held=None if rank is None or ties == others else not flipped,
        flipped=flipped,
        pruned=policy.pruned,
        quality=policy.quality,
        copies=policy.copies,
    )
