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
