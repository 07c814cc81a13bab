"""The SLA planner of NVIDIA Dynamo: replicas from what one of them can do within the limits, for the load to come.

Every throughput interval it takes the requests and mean lengths of the interval, predicts the next one's, and divides
by what one replica can do. How far the latencies that were met are from those that are expected corrects that: an ITL
of 1.2 times the expected means that only 1/1.2 of the limit may be planned with; a TTFT below the expected one (by
prefix hits) means less to prefill, and one above it is queueing and no reason for more (`min(1, correction)`). Source:
`components/planner/src/dynamo/planner/utils/planner_core.py` of ai-dynamo/dynamo.

A pool of the role `prefill` or `decode` follows that rule as it is. A co-located pool (`both`) does as Dynamo's planner
in its mode `agg` (`planner/core/throughput_scaling.py`): demand over the request rate that one replica keeps within
both limits, `Capacity.both`. Dynamo corrects nothing there; here the ITL limit is corrected as above, and the TTFT
correction shortens the prompts.

Neither asks whether a seat is free. Where `max_num_seqs` binds before the limits, a plan fills every seat and the
estimated TTFT leaves out the wait for one: then the SLO is missed by the rule, and not by its prediction.

Between, every load interval (`planner/core/load_scaling.py`, with what the engine's step times say where Dynamo fits a
regression): one replica more if every replica's next TTFT, or every one's ITL, is estimated above its limit; one less
if all would keep a share of the limits with the load of the one that goes, and never less than the throughput asks for.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

from pydantic import Field, model_validator

from sim.fleet.autoscaling.observation import RUNNING, Observation, Pod, Traffic
from sim.fleet.autoscaling.policy import Decision, Policy, PolicySetting, PolicySettings
from sim.fleet.autoscaling.predictor import PREDICTORS, Predictor

# Intervals after which a predictor's parameters follow. Dynamo's follow at every one; here that would take longer than
# all the rest of a simulated day.
_REFIT = 5


class PlannerSettings(PolicySettings):
    policy: Literal["planner"]
    sync_interval: float = Field(default=5.0, gt=0, le=86_400, description="the load interval, in seconds")
    scrape_interval: float = Field(default=5.0, ge=0, le=86_400, description="seconds between two scrapes of metrics")
    role: Literal["both", "prefill", "decode"] = Field(default="both", description="what the pool's replicas do")
    ttft: float = Field(default=0.5, gt=0, description="limit of a request's TTFT in seconds")
    itl: float = Field(default=0.05, gt=0, description="limit of the seconds a token")
    throughput_interval: float = Field(default=180.0, gt=0, description="seconds between two plans from throughput")
    predictor: str = Field(default="arima", description="of requests and lengths; `constant` is the last interval")
    correction: bool = Field(default=True, description="whether latencies that were met correct the expected ones")
    load_scaling: bool = Field(default=True, description="whether replicas are added and removed between two plans")
    down_sensitivity: float = Field(
        default=0.8, ge=0, le=1, description="share of a limit that must be kept with one replica less"
    )

    @model_validator(mode="after")
    def _known(self) -> PlannerSettings:
        if self.predictor not in PREDICTORS:
            raise ValueError(f"unknown predictor {self.predictor!r}, expected one of {', '.join(PREDICTORS)}")
        return self


class Planner(Policy):
    name = "planner"
    asks_queued_tokens = True

    def __init__(self, settings: PlannerSettings, setting: PolicySetting) -> None:
        self._settings = settings
        self._capacity = setting.capacity
        self._interval = Traffic()
        self._mean_prompt = 0.0
        self._floor = settings.min  # what the last plan from throughput asks for
        self._requests, self._prompt, self._output = (
            Predictor(settings.predictor, setting.seed, refit=_REFIT, anew=False) for _ in range(3)
        )
        self._corrections = (1.0, 1.0)  # of TTFT, of ITL

    def recommend(self, observation: Observation) -> Decision:
        settings = self._settings
        self._interval.add(observation.traffic)
        current = observation.replicas
        replicas, reason = current, "load"
        planned = self._interval.seconds >= settings.throughput_interval * (1 - 1e-9)
        if planned:
            interval, self._interval = self._interval, Traffic()
            if interval.finished:  # without traffic there is nothing to plan with
                self._floor = settings.bounded(self._from_throughput(interval, max(1, observation.ready)))
                self._mean_prompt = interval.mean_prompt
                replicas, reason = self._floor, "throughput"
        if settings.load_scaling and self._mean_prompt and not (planned and replicas > current):
            loaded = self._from_load(observation)
            replicas, reason = (loaded, "load") if loaded > self._floor else (self._floor, "throughput")
        return Decision(settings.bounded(replicas), reason)

    def _from_throughput(self, interval: Traffic, ready: int) -> int:
        """Replicas for the interval to come."""
        settings, capacity = self._settings, self._capacity
        prompt, output = interval.mean_prompt, interval.mean_output
        if settings.correction:
            concurrency = interval.arrived / ready * (interval.e2e / interval.finished) / interval.seconds
            expected = capacity.itl(concurrency, prompt + output / 2)
            itl = interval.mean_itl / expected if interval.decoded else 1.0
            self._corrections = (interval.mean_ttft / capacity.ttft(prompt), itl or 1.0)
        requests = self._requests.next(interval.arrived)
        prompt, output = max(1.0, self._prompt.next(prompt)), max(1.0, self._output.next(output))
        return self._needed(requests / interval.seconds, prompt, output)

    def _needed(self, rate: float, prompt: float, output: float) -> int:
        """Replicas for so many requests/s of such lengths."""
        settings, capacity = self._settings, self._capacity
        ttft_correction, itl_correction = self._corrections
        computed = max(1.0, prompt * min(1.0, ttft_correction))
        itl = settings.itl / itl_correction
        if settings.role == "prefill":
            return ceil(rate * computed / capacity.prefill_throughput(prompt))
        if settings.role == "decode":
            return ceil(rate * output / capacity.decode_throughput(itl, prompt + output / 2))
        return ceil(rate / capacity.both(computed, output, ttft=settings.ttft, itl=itl).requests)

    def _from_load(self, observation: Observation) -> int:
        """One more, one less, or as many as there are."""
        current, settings = observation.replicas, self._settings
        pods = [pod for pod in observation.pods if pod.metrics is not None]
        if not pods or len(pods) < current:
            return current  # replicas are coming: what they will change is not seen yet
        ups, downs = [], []
        fewer = current / (current - 1) if current > 1 else 1.0
        limits = {"prefill": ("ttft",), "decode": ("itl",), "both": ("ttft", "itl")}[settings.role]
        for name in limits:
            limit = getattr(settings, name)
            ups.append(all(self._estimate(name, pod, 1.0) > limit for pod in pods))
            downs.append(all(self._may_go(name, limit, pod, fewer) for pod in pods))
        if any(ups):
            return current + 1
        return current - 1 if current > 1 and all(downs) else current

    def _may_go(self, name: str, limit: float, pod: Pod, fewer: float) -> bool:
        """Whether this replica keeps the limit with its share of the load of one that goes."""
        spare = limit * self._settings.down_sensitivity
        if name == "itl":
            fits = pod.kv_tokens * fewer < self._capacity.kv_tokens
            return fits and self._estimate(name, pod, fewer) < spare
        own = self._estimate(name, pod, fewer, queued=False)
        behind = self._estimate(name, pod, fewer) - own if pod.queued_tokens else 0.0
        return behind < (limit - own) * self._settings.down_sensitivity

    def _estimate(self, name: str, pod: Pod, scale: float, *, queued: bool = True) -> float:
        """Seconds: TTFT of a request that would come now, or ITL, with so many times the replica's load."""
        assert pod.metrics is not None
        capacity = self._capacity
        running = min(capacity.seats, round(pod.metrics[RUNNING] * scale))
        kv_tokens = round(pod.kv_tokens * scale) if running else 0
        if name == "itl":
            return capacity.itl(running, kv_tokens / running) if running else 0.0
        behind = pod.queued_tokens * scale if queued else 0.0
        if self._settings.role == "prefill":
            return capacity.ttft(behind + self._mean_prompt)
        return capacity.ttft(behind + self._mean_prompt, running, kv_tokens)
