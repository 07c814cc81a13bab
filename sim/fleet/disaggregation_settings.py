"""What is set on a fleet whose prompts are computed by one pool and whose tokens are decoded by another."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ground.assumption import Assumption
from ground.spec import Spec
from sim.fleet.autoscaling.planner import PlannerSettings
from sim.fleet.autoscaling.predictive import PredictiveSettings
from sim.fleet.links.settings import LinkSettings
from sim.fleet.pool_settings import PoolSettings

_KEY = "fleet.disaggregation"


class DisaggregationSettings(Spec):
    prefill: PoolSettings
    decode: PoolSettings
    link: LinkSettings = Field(description="from each replica into the network and back, of all its GPUs together")
    fabric: LinkSettings | None = Field(
        default=None, description="what all transfers share between the replicas' links; no bottleneck if not given"
    )
    transfer: Literal["after_prefill", "layerwise"] = Field(
        default="after_prefill",
        description="KV blocks are sent once the prompt is computed, or layer by layer while it is",
    )
    first_token: Literal["decode", "prefill"] = Field(
        default="decode",
        description="who samples the first token: the engine that decodes, from the last prompt token computed again, "
        "or the one that computed the prompt, with whose blocks it comes",
    )
    min_prompt: int = Field(default=0, ge=0, description="prompts of fewer tokens are computed where they are decoded")
    min_prompt_counts: Literal["prompt", "uncached"] = Field(
        default="prompt",
        description="whether min_prompt counts the prompt, or what no decode replica has of it in its prefix cache",
    )

    @model_validator(mode="before")
    @classmethod
    def _planners_know_their_pool(cls, given: Any) -> Any:
        """A planner has the role of its pool."""
        filled = dict(given) if isinstance(given, dict) else {}
        for name in ("prefill", "decode"):
            pool = filled.get(name)
            if not isinstance(pool, dict):
                continue
            scaler = pool.get("autoscaler")
            if isinstance(scaler, dict) and scaler.get("policy") == "planner":
                filled[name] = pool | {"autoscaler": {"role": name, **scaler}}
        return filled or given

    @model_validator(mode="after")
    def _policies_fit(self) -> DisaggregationSettings:
        for name, pool in (("prefill", self.prefill), ("decode", self.decode)):
            scaler = pool.autoscaler
            if isinstance(scaler, PlannerSettings) and scaler.role != name:
                raise ValueError(f"{name}.autoscaler.role is {scaler.role}; expected {name}")
            if isinstance(scaler, PredictiveSettings) and scaler.capacity is None:
                raise ValueError(
                    f"{name}.autoscaler.policy is predictive and capacity is not given; expected the requests/s of one "
                    "replica, since step times tell only those of one that computes prompts and decodes"
                )
        return self

    def assumptions(self, block_bytes: int) -> list[Assumption]:
        """`block_bytes`: of one KV block, all ranks."""
        said = {
            "decode": "as vLLM: the first token is of the decode engine, which computes the last prompt token again "
            "(vllm/v1/core/sched/scheduler.py); what the prefill engine sampled is dropped",
            "prefill": "as SGLang and TensorRT-LLM: the prefill engine's token comes with the KV blocks",
        }
        when = {
            "after_prefill": "the decode engine takes blocks once the prompt is computed (vLLM, NixlConnector)",
            "layerwise": "the decode engine takes blocks before; all layers but the last are sent from when the prompt "
            "is first scheduled, the last one when it is computed",
        }
        terms = [
            Assumption(f"{_KEY}.first_token", self.first_token, "", "user", said[self.first_token]),
            Assumption(f"{_KEY}.transfer", self.transfer, "", "user", when[self.transfer]),
            Assumption(
                f"{_KEY}.block_bytes",
                block_bytes,
                "bytes",
                "assumed",
                "of a KV block of all layers and heads, sent once",
            ),
            *self.link.figures(f"{_KEY}.link").assumptions,
        ]
        if self.fabric is not None:
            terms += self.fabric.figures(f"{_KEY}.fabric").assumptions
        return terms
