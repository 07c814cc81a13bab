"""As many replicas as the clock says: what operators do by cron, and compare other policies with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ground.spec import Spec
from sim.fleet.autoscaling.observation import Observation
from sim.fleet.autoscaling.policy import Decision, Policy, PolicySetting, PolicySettings


class ScheduleStep(Spec):
    at: float = Field(ge=0, description="seconds after the beginning of the run, or of the period")
    replicas: int = Field(ge=0)


class ScheduleSettings(PolicySettings):
    """Before its first step the last one holds where there is a `period`, `min` where there is none."""

    policy: Literal["schedule"]
    steps: tuple[ScheduleStep, ...] = Field(min_length=1, description="in order of time; one step: a fixed number")
    period: float | None = Field(default=None, gt=0, description="seconds after which it repeats; 86400 is a day")

    @model_validator(mode="after")
    def _in_order(self) -> ScheduleSettings:
        times = [step.at for step in self.steps]
        if times != sorted(set(times)):
            raise ValueError(f"steps are at {times}; expected rising times")
        if self.period is not None and times[-1] >= self.period:
            raise ValueError(f"a step is at {times[-1]:g} and period is {self.period:g}; expected it within the period")
        return self


class Schedule(Policy):
    name = "schedule"

    def __init__(self, settings: ScheduleSettings, setting: PolicySetting | None = None) -> None:
        self._settings = settings

    def recommend(self, observation: Observation) -> Decision:
        settings = self._settings
        time = observation.time if settings.period is None else observation.time % settings.period
        begun = [step.replicas for step in settings.steps if step.at <= time]
        before = settings.min if settings.period is None else settings.steps[-1].replicas
        replicas = begun[-1] if begun else before
        return Decision(settings.bounded(replicas), f"at {time:g} s")
