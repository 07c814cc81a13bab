"""Autoscaling policies, by name: what is set on each, and what makes it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sim.fleet.autoscaling.hpa import Hpa, HpaSettings
from sim.fleet.autoscaling.keda import Keda, KedaSettings
from sim.fleet.autoscaling.planner import Planner, PlannerSettings
from sim.fleet.autoscaling.policy import MakePolicy
from sim.fleet.autoscaling.predictive import Predictive, PredictiveSettings
from sim.fleet.autoscaling.schedule import Schedule, ScheduleSettings

POLICIES: dict[str, MakePolicy] = {
    "hpa": Hpa,
    "keda": Keda,
    "planner": Planner,
    "predictive": Predictive,
    "schedule": Schedule,
}

AutoscalerSettings = Annotated[
    HpaSettings | KedaSettings | PlannerSettings | PredictiveSettings | ScheduleSettings, Field(discriminator="policy")
]
