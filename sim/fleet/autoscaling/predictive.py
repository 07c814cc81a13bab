"""Replicas for the load that a forecaster expects: by a rule of thresholds, or to a target."""

from __future__ import annotations

from math import ceil, inf
from typing import Literal

from pydantic import Field, model_validator

from sim.fleet.autoscaling.observation import Observation, Traffic
from sim.fleet.autoscaling.policy import Decision, Policy, PolicySetting, PolicySettings
from sim.fleet.autoscaling.predictor import PREDICTORS, Predictor
from sim.fleet.forecasters.forecaster import LEVELS
from traces.source import TraceSource


class PredictiveSettings(PolicySettings):
    """Utilisation is predicted requests/s over what the replicas can do. The rule `threshold`: above it `step` replicas
    more, and `step` less where that leaves it at most at `low`. The rule `target`: as many as bring it to `target`."""

    policy: Literal["predictive"]
    forecaster: str = Field(default="seasonal_naive", description="whose prediction counts")
    interval: float = Field(default=60.0, gt=0, description="seconds of load that are one value of the series")
    horizon: int = Field(default=5, gt=0, le=10_000, description="intervals ahead whose highest value counts")
    quantile: float | None = Field(default=None, gt=0, lt=1, description="which quantile counts; the mean if not given")
    season: int | None = Field(
        default=None, gt=1, description="intervals of a period; found in the history if not given"
    )
    refit: int = Field(default=60, gt=0, description="intervals after which the forecaster learns anew")
    history: TraceSource | None = Field(
        default=None, description="requests that came before the run, up to its beginning, to learn from"
    )
    at_least_observed: bool = Field(
        default=True, description="whether the last interval's load counts where it is higher"
    )
    capacity: float | None = Field(
        default=None,
        gt=0,
        description="requests/s of one replica; from its step times, within the limits, if not given",
    )
    ttft: float = Field(default=0.5, gt=0, description="limit for that, in seconds")
    itl: float = Field(default=0.05, gt=0, description="limit for that, in seconds a token")
    rule: Literal["threshold", "target"] = "threshold"
    threshold: float = Field(default=0.8, gt=0)
    step: int = Field(default=1, gt=0, description="replicas")
    low: float = Field(default=0.5, ge=0)
    target: float = Field(default=0.7, gt=0)
    down_window: float = Field(default=300.0, ge=0, description="seconds of which the highest recommendation counts")

    @model_validator(mode="after")
    def _fits(self) -> PredictiveSettings:
        if self.forecaster not in PREDICTORS:
            raise ValueError(f"unknown forecaster {self.forecaster!r}, expected one of {', '.join(PREDICTORS)}")
        if self.low >= self.threshold:
            raise ValueError(f"low is {self.low:g} and threshold is {self.threshold:g}; expected low to be below it")
        return self


class Predictive(Policy):
    name = "predictive"

    def __init__(self, settings: PredictiveSettings, setting: PolicySetting) -> None:
        self._settings = settings
        self._replica = setting.capacity
        self._series = Predictor(
            settings.forecaster,
            setting.seed,
            setting.history(settings.interval),
            horizon=settings.horizon,
            refit=settings.refit,
            season=settings.season,
            levels=LEVELS if settings.quantile is None else (settings.quantile,),
        )
        self._interval = Traffic()
        self._all = Traffic()
        self._peak: float | None = None  # requests/s that are expected
        self._capacity = settings.capacity
        self._recommended: list[tuple[float, int]] = []
        if self._series.last:
            self._expect()

    def recommend(self, observation: Observation) -> Decision:
        settings, current = self._settings, observation.replicas
        self._interval.add(observation.traffic)
        if self._interval.seconds >= settings.interval * (1 - 1e-9):
            interval, self._interval = self._interval, Traffic()
            self._all.add(interval)
            self._series.add(interval.arrived / interval.seconds)
            self._expect()
        if self._peak is None or self._capacity is None:
            return Decision(settings.bounded(current), "nothing is known yet")
        wanted = settings.bounded(self._by_rule(current) if settings.rule == "threshold" else self._by_target())
        utilisation = self._peak / (current * self._capacity) if current else inf
        return Decision(self._held_down(observation.time, current, wanted), f"predicted utilisation {utilisation:.2f}")

    def _expect(self) -> None:
        """An interval has ended."""
        settings = self._settings
        forecast = self._series.forecast()
        observed = self._series.last
        if forecast is None:
            self._peak = observed
        else:
            values = forecast.mean if settings.quantile is None else forecast.at(settings.quantile)
            self._peak = max(float(values.max()), observed if settings.at_least_observed else 0.0)
        if settings.capacity is None and self._all.finished:
            lengths = max(1.0, self._all.mean_prompt), max(1.0, self._all.mean_output)
            self._capacity = self._replica.both(*lengths, ttft=settings.ttft, itl=settings.itl).requests

    def _by_rule(self, current: int) -> int:
        settings = self._settings
        assert self._peak is not None and self._capacity is not None
        if self._peak > settings.threshold * current * self._capacity:
            return current + settings.step
        fewer = current - settings.step
        if fewer >= settings.min and self._peak <= settings.low * fewer * self._capacity:
            return fewer
        return current

    def _by_target(self) -> int:
        assert self._peak is not None and self._capacity is not None
        return ceil(self._peak / (self._settings.target * self._capacity))

    def _held_down(self, now: float, current: int, wanted: int) -> int:
        """Fewer only as far as the whole window agrees; more at once."""
        since = now - self._settings.down_window
        self._recommended = [one for one in self._recommended if one[0] > since]
        self._recommended.append((now, wanted))
        if wanted >= current:
            return wanted
        return min(current, max(replicas for _, replicas in self._recommended))
