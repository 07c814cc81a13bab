"""Observations as an autoscaler would make them, for policies that are asked without a fleet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from engine_workloads import LinearStepTimes
from hypothesis import strategies as st
from pydantic import TypeAdapter

from sim.engine.config import EngineConfig
from sim.fleet.autoscaling import POLICIES, AutoscalerSettings
from sim.fleet.autoscaling.capacity import Capacity
from sim.fleet.autoscaling.observation import (
    CONCURRENCY,
    HELD,
    KV_BLOCKS,
    KV_USE,
    REQUEST_RATE,
    RUNNING,
    SEATS,
    WAITING,
    Observation,
    Pod,
    Traffic,
)
from sim.fleet.autoscaling.policy import Policy, PolicySetting

CONFIG = EngineConfig(kv_blocks=1000, block_size=16, max_num_seqs=32, max_num_batched_tokens=512)
CAPACITY = Capacity(CONFIG, LinearStepTimes())


def policy(history: Sequence[float] = (), /, **settings: Any) -> Policy:
    """The policy of these settings; `history` is in requests/s."""
    checked = TypeAdapter(AutoscalerSettings).validate_python({"max": 20, **settings})
    return POLICIES[checked.policy](checked, PolicySetting(CAPACITY, lambda _: np.array(history, dtype=float), 0))


def pod(number: int, waiting: float = 0, running: float = 0, kv_use: float = 0.0, **more: Any) -> Pod:
    metrics = {WAITING: waiting, RUNNING: running, KV_USE: kv_use}
    usage = {KV_BLOCKS: kv_use * CONFIG.kv_blocks, SEATS: running}
    requests = {KV_BLOCKS: float(CONFIG.kv_blocks), SEATS: float(CONFIG.max_num_seqs)}
    tokens = round(kv_use * CONFIG.kv_blocks * CONFIG.block_size)
    return Pod(
        number, pending=False, ready=True, metrics=metrics, usage=usage, requests=requests, kv_tokens=tokens, **more
    )


def starting(number: int, *, pending: bool = False) -> Pod:
    return Pod(number, pending=pending, ready=False)


def traffic(
    seconds: float, requests: int, prompt: int = 100, output: int = 50, ttft: float = 0.1, itl: float = 0.02
) -> Traffic:
    """As many requests came as ended, all alike."""
    decode = itl * (output - 1)
    return Traffic(
        seconds=seconds,
        arrived=requests,
        finished=requests,
        prompt_tokens=prompt * requests,
        output_tokens=output * requests,
        ttft=ttft * requests,
        decode=decode * requests,
        decoded=(output - 1) * requests,
        e2e=(ttft + decode) * requests,
    )


def observe(time: float, pods: Sequence[Pod] = (), came: Traffic | None = None, **totals: float) -> Observation:
    """`totals` of the pool's door by name; those of the replicas are summed."""
    metrics = [one.metrics for one in pods if one.metrics is not None]
    sums = {name: float(sum(one[name] for one in metrics)) for name in (WAITING, RUNNING, KV_USE)}
    door = {HELD: 0.0, CONCURRENCY: 0.0, REQUEST_RATE: 0.0}
    return Observation(time, pods, sums | door | totals, came or Traffic())


@dataclass
class Played:
    """A policy in a loop: what it says is done at once."""

    policy: Policy
    replicas: int = 1
    time: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def tick(self, seconds: float, waiting: float = 0.0, came: Traffic | None = None, **totals: float) -> int:
        """`waiting` requests in all, shared equally."""
        self.time += seconds
        pods = [pod(number, waiting / self.replicas) for number in range(self.replicas)]
        self.replicas = self.policy.recommend(observe(self.time, pods, came, **totals)).replicas
        self.sizes.append(self.replicas)
        return self.replicas


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, list[Pod], Traffic, dict[str, float]]]:
    """Any pods, with any metrics, some of them missing."""
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        pods = []
        for number in range(draw(st.integers(0, 20))):
            kind = draw(st.sampled_from(["ready", "ready", "new", "starting", "pending"]))
            if kind == "ready":
                load = draw(st.integers(0, 50)), draw(st.integers(0, 32)), draw(st.floats(0, 1))
                pods.append(pod(number, *load, queued_tokens=draw(st.integers(0, 5000))))
            else:
                pods.append(Pod(number, pending=kind == "pending", ready=kind == "new"))
        requests = draw(st.integers(0, 400))
        came = traffic(15.0, requests, draw(st.integers(1, 900)), draw(st.integers(1, 300)), draw(st.floats(0.001, 9)))
        door = {HELD: float(draw(st.integers(0, 30))), CONCURRENCY: float(requests), REQUEST_RATE: requests / 15}
        rows.append((draw(st.sampled_from([5.0, 15.0, 60.0, 300.0])), pods, came, door))
    return rows
