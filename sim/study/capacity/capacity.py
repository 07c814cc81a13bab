"""The largest rate at which a fleet keeps its SLO, and the fewest replicas that keep it at a rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from ground.errors import UserError
from ground.folder import open_folder
from ground.spec import Spec
from sim.study.capacity.bisection import Bisection, geometric_mean, violations, whole_middle
from sim.study.capacity.load_scale import By, offered_rate, scaled_load
from sim.study.intervals import Interval, mean_interval
from sim.study.points import Point, Points
from sim.study.scenario import Scenario, scenario_of
from sim.study.search.space import Setting
from sim.study.simulate import load_trace
from sim.study.workers import Workers

# Where it is looked again: is the SLO kept below what was found, and missed above?
_RATES_AGAIN = (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5)  # as shares of the rate found
_REPLICAS_AGAIN = (-2, 1, 2)  # beside the replicas found

# A run that lasts less than so many of its slowest requests ends before a queue that grows is seen to grow.
LONG_ENOUGH = 20


class CapacityStudy(Spec):
    """What is asked of a scenario. Without `rate` the largest rate, with it the fewest replicas for that rate."""

    scenario: dict[str, Any]
    rate: float | None = Field(default=None, gt=0, description="requests a second that are to be served")
    variants: list[dict[str, Any]] = Field(default=[{}], description="dotted keys; each is answered for itself")
    by: By = Field(default="stretch", description="how there is more load: the same faster, or more at the same time")
    seeds: int = Field(default=3, gt=0, description="from the scenario's seed on")
    tolerance: float = Field(default=0.02, gt=0, lt=1, description="of a rate, as a share of it")
    confidence: float = Field(default=0.95, gt=0, lt=1)


@dataclass
class Lane:
    """One variant under one seed. `rate` is that of its trace as it stands; `probes` are the metrics of what was
    simulated, by factor of that rate, or by replicas."""

    variant: int
    seed: int
    rate: float
    bisection: Bisection
    probes: dict[float, dict[str, float | None]] = field(default_factory=dict)

    def kept(self, at: float) -> bool:
        return bool(self.probes[at]["slo.met"])


@dataclass(frozen=True)
class Answer:
    """Of one variant, a value a seed: the largest rate that was kept (requests/s), or the fewest replicas; null where
    none keeps the SLO, or no rate breaks it. `gpus`: of the fleet, or of one replica where replicas are counted.
    `violations`: the first case a seed of an SLO missed although it was kept at more load, or with fewer replicas.
    `short`: seeds whose run was too short to see a queue grow."""

    setting: Setting
    gpus: int
    values: list[float | None]
    violations: list[tuple[int, float, float]]  # seed, missed at, kept at
    short: list[int]

    def interval(self, confidence: float) -> Interval | None:
        """Around the mean over the seeds; none where a seed has no value."""
        known = [value for value in self.values if value is not None]
        return mean_interval(known, confidence) if len(known) == len(self.values) else None


@dataclass(frozen=True)
class Capacity:
    study: CapacityStudy
    lanes: list[Lane]
    answers: list[Answer]


def capacity(
    study: CapacityStudy,
    folder: Path,
    *,
    workers: Workers | None = None,
    on_run: Callable[[Point], None] = lambda _: None,
) -> Capacity:
    """Bisect for every variant and seed, then look again around what was found. `folder` keeps every run: the same call
    goes on where it was, and nothing depends on `workers`.

    Raises:
        UserError: the scenario or a variant is wrong or fails, or has no replicas to count; or the folder holds
            something else.
    """
    open_capacity_folder(study, folder)
    points = Points(study.scenario, folder / "runs.jsonl", workers=workers, on_point=on_run)
    lanes = [_lane(study, variant, seed) for variant in range(len(study.variants)) for seed in _seeds(study)]
    while asked := [(lane, lane.bisection.at) for lane in lanes if lane.bisection.at is not None]:
        _probe(study, points, asked)
        for lane, at in asked:
            # Replicas are asked whether they are too few: that turns to no as they grow.
            lane.bisection.tell(lane.kept(at) if study.rate is None else not lane.kept(at))
    _probe(study, points, [(lane, at) for lane in lanes for at in _again(study, lane)])
    return Capacity(study, lanes, [_answer(study, lanes, variant) for variant in range(len(study.variants))])


def open_capacity_folder(study: CapacityStudy, folder: Path) -> None:
    """Make `folder` that of `study`, unless it is already.

    Raises:
        UserError: it holds something else; a variant sets what is varied here, makes no scenario, or one whose replicas
            cannot be counted.
    """
    varied = ("seed",) if study.rate is None else ("seed", "fleet.replicas")
    for variant in study.variants:
        for key in varied:
            if key in variant:
                raise UserError(f"{key} is varied and is set for every run; expected other keys")
        scenario = scenario_of(study.scenario, variant)
        if study.rate is not None:
            _check_replicas_count(scenario)
    text = yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    open_folder(folder, "capacity.yaml", text)


def value_of(study: CapacityStudy, lane: Lane, at: float) -> float:
    """What a probe stands for: requests a second, or replicas."""
    return at * lane.rate if study.rate is None else at


def _check_replicas_count(scenario: Scenario) -> None:
    fleet = scenario.fleet
    for key, given in (
        ("fleet.autoscaler", fleet.autoscaler),
        ("fleet.sites", fleet.sites),
        ("fleet.disaggregation", fleet.disaggregation),
    ):
        if given:
            raise UserError(f"{key} is given; expected one pool of fleet.replicas, whose number is what is looked for")


def _seeds(study: CapacityStudy) -> range:
    first = scenario_of(study.scenario, {}).seed
    return range(first, first + study.seeds)


def _lane(study: CapacityStudy, variant: int, seed: int) -> Lane:
    scenario = scenario_of(study.scenario, {**study.variants[variant], "seed": seed})
    rate = offered_rate(load_trace(scenario))
    if study.rate is None:
        return Lane(variant, seed, rate, Bisection(1.0, geometric_mean(study.tolerance)))
    return Lane(variant, seed, rate, Bisection(1.0, whole_middle, least=1.0))


def _probe(study: CapacityStudy, points: Points, asked: Sequence[tuple[Lane, float]]) -> None:
    """Simulate lanes, each at a factor of its rate or with so many replicas."""
    for (lane, at), point in zip(asked, points.run([_setting(study, *each) for each in asked]), strict=True):
        if point["status"] == "failed":
            raise UserError(f"at {value_of(study, lane, at):g} under seed {lane.seed}: {point['error']}")
        lane.probes[at] = point["metrics"]


def _setting(study: CapacityStudy, lane: Lane, at: float) -> Setting:
    setting = {**study.variants[lane.variant], "seed": lane.seed}
    if study.rate is None:
        return {**setting, "trace.scale": scaled_load(study.scenario, setting, at, study.by)}
    scale = scaled_load(study.scenario, setting, study.rate / lane.rate, study.by)
    return {**setting, "trace.scale": scale, "fleet.replicas": int(at)}


def _found(study: CapacityStudy, lane: Lane) -> float | None:
    """The factor or the replicas that a lane ended with."""
    bisection = lane.bisection
    if study.rate is not None:
        return bisection.high
    return bisection.low if bisection.high is not None else None


def _again(study: CapacityStudy, lane: Lane) -> list[float]:
    found = _found(study, lane)
    if found is None:
        return []
    near = [found * share for share in _RATES_AGAIN] if study.rate is None else [found + n for n in _REPLICAS_AGAIN]
    return [at for at in near if at > 0 and at not in lane.probes]


def _answer(study: CapacityStudy, lanes: Sequence[Lane], variant: int) -> Answer:
    mine = [lane for lane in lanes if lane.variant == variant]
    scenario = scenario_of(study.scenario, study.variants[variant])
    values: list[float | None] = []
    broken: list[tuple[int, float, float]] = []
    short: list[int] = []
    for lane in mine:
        found = _found(study, lane)
        values.append(None if found is None else value_of(study, lane, found))
        broken += _violation(study, lane)
        if found is not None and _is_short(lane.probes[found]):
            short.append(lane.seed)
    gpus = scenario.gpus if study.rate is None else scenario.engine.gpus
    return Answer(study.variants[variant], gpus, values, broken, short)


def _violation(study: CapacityStudy, lane: Lane) -> list[tuple[int, float, float]]:
    """Where a lane's answers are not what bisection supposes: the case of least load, or of fewest replicas."""
    if study.rate is None:
        pairs = violations({at: lane.kept(at) for at in lane.probes})
        return [(lane.seed, value_of(study, lane, no), value_of(study, lane, yes)) for no, yes in pairs[:1]]
    pairs = violations({at: not lane.kept(at) for at in lane.probes})
    return [(lane.seed, missed, kept) for kept, missed in pairs[:1]]


def _is_short(metrics: dict[str, float | None]) -> bool:
    duration, slowest = metrics["duration"], metrics["e2e.p99"]
    return duration is None or slowest is None or duration < LONG_ENOUGH * slowest
