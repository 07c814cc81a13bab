"""What an operator sets on one engine; the names are vLLM's."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ground.spec import Spec
from sim.engine.session_retention import SessionRetentionSettings


def decide_prefix_caching(given: dict[str, Any]) -> dict[str, Any]:
    """Settings as given, without a prefix cache where there is nothing that it could share and nobody asked for it."""
    nothing_shared = given.get("kv_cache") is False or given.get("kv_reservation", "paged") != "paged"
    return {"enable_prefix_caching": False, **given} if nothing_shared else given


class EngineLimits(Spec):
    """Limits and policies of one engine's scheduler."""

    block_size: int = Field(default=16, gt=0, description="tokens a block holds")
    max_num_batched_tokens: int = Field(default=2048, gt=0, description="token budget of a step")
    max_num_seqs: int = Field(default=256, gt=0, description="sequences running at once")
    max_loras: int | None = Field(
        default=None,
        gt=0,
        description="adapters of which one step computes tokens; an adapter is a model of the trace other than the "
        "scenario's. Without it a request's adapter is not looked at",
    )
    max_model_len: int | None = Field(default=None, gt=0, description="longest prompt + output accepted")
    long_prefill_token_threshold: int | None = Field(
        default=None, gt=0, description="most prompt tokens one request may compute in a step"
    )
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    async_scheduling: bool = Field(default=False, description="a step is scheduled while the one before it runs")
    scheduler_reserve_full_isl: bool = Field(
        default=False,
        description="admit a request only where blocks are free for its whole prompt",
    )
    data_parallel: int = Field(
        default=1,
        gt=0,
        description="engines that share a mixture of experts and step together, each with a pool of its own",
    )
    pipeline_parallel: int = Field(
        default=1,
        gt=0,
        description="stages that hold some of the layers each, with a batch in flight for every one",
    )
    swap_blocks: int = Field(
        default=0,
        ge=0,
        description="KV blocks of host memory, to which preempted requests are copied while any are free; "
        "without one they are recomputed",
    )
    reserved_blocks: int = Field(default=0, ge=0, description="blocks of the pool that are never given out")
    kv_cache: bool = Field(
        default=True, description="keys and values are kept; without, every step computes whole sequences"
    )
    kv_reservation: Literal["paged", "oracle", "pow2", "max"] = Field(
        default="paged",
        description="blocks as they are needed, or one contiguous range for a whole request: of its length, of its "
        "output rounded up to a power of two, of max_model_len",
    )
    session_retention: SessionRetentionSettings | None = Field(
        default=None, description="KV blocks stay held for idle sessions; they are not if not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _decide_prefix_caching(cls, given: Any) -> Any:
        return decide_prefix_caching(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _every_sequence_fits_the_budget(self) -> "EngineLimits":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; "
                f"expected at least max_num_seqs ({self.max_num_seqs}), so that every sequence can decode"
            )
        return self

    @model_validator(mode="after")
    def _kv_settings_agree(self) -> "EngineLimits":
        kind = f"kv_reservation is {self.kv_reservation}" if self.kv_cache else "kv_cache is false"
        if not self.kv_cache or self.kv_reservation != "paged":
            if self.enable_prefix_caching:
                raise ValueError(
                    f"{kind} and enable_prefix_caching is true; expected no prefix cache, which is of blocks"
                )
            if self.swap_blocks:
                raise ValueError(f"{kind} and swap_blocks is {self.swap_blocks}; expected 0, since nobody is preempted")
        if not self.kv_cache and self.kv_reservation != "paged":
            raise ValueError(
                f"kv_cache is false and kv_reservation is {self.kv_reservation}; expected nothing reserved"
            )
        if (not self.kv_cache or self.kv_reservation != "paged") and self.data_parallel > 1:
            raise ValueError(f"{kind} and data_parallel is {self.data_parallel}; expected 1")
        if self.kv_reservation == "max" and self.max_model_len is None:
            raise ValueError("kv_reservation is max and max_model_len is not given; expected the length to reserve")
        if self.pipeline_parallel > 1:
            others = {
                "data_parallel": self.data_parallel > 1,
                "swap_blocks": self.swap_blocks > 0,
                "kv_cache false": not self.kv_cache,
                f"kv_reservation {self.kv_reservation}": self.kv_reservation != "paged",
                "session_retention": self.session_retention is not None,
                "max_loras": self.max_loras is not None,
            }
            if given := [name for name, is_given in others.items() if is_given]:
                raise ValueError(
                    f"pipeline_parallel is {self.pipeline_parallel} and {given[0]} is given; expected one of them"
                )
        if self.session_retention is not None:
            if not self.enable_prefix_caching:
                raise ValueError(
                    "session_retention is given and enable_prefix_caching is false; expected a prefix cache, in which "
                    "the next turn finds what was kept"
                )
            if self.data_parallel > 1:
                raise ValueError(f"session_retention is given and data_parallel is {self.data_parallel}; expected 1")
        return self


class EngineConfig(EngineLimits):
    """The same, with the size of the block pool."""

    kv_blocks: int = Field(gt=0, description="KV cache blocks in the pool")
