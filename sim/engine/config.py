"""What an operator sets on one engine; the names are vLLM's."""

from typing import Literal

from pydantic import Field, model_validator

from ground.spec import Spec


class EngineLimits(Spec):
    """Limits and policies of one engine's scheduler."""

    block_size: int = Field(default=16, gt=0, description="tokens a block holds")
    max_num_batched_tokens: int = Field(default=2048, gt=0, description="token budget of a step")
    max_num_seqs: int = Field(default=256, gt=0, description="sequences running at once")
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
    swap_blocks: int = Field(
        default=0,
        ge=0,
        description="KV blocks of host memory, to which preempted requests are copied while any are free; "
        "without one they are recomputed",
    )
    reserved_blocks: int = Field(default=0, ge=0, description="blocks of the pool that are never given out")

    @model_validator(mode="after")
    def _every_sequence_fits_the_budget(self) -> "EngineLimits":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; "
                f"expected at least max_num_seqs ({self.max_num_seqs}), so that every sequence can decode"
            )
        return self


class EngineConfig(EngineLimits):
    """The same, with the size of the block pool."""

    kv_blocks: int = Field(gt=0, description="KV cache blocks in the pool")
