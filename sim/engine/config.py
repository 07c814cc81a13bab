"""What an operator sets on one engine; the names are vLLM's."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ground.spec import Spec
from sim.engine.batching import BatchingSettings
from sim.engine.batching.checks import check_batching
from sim.engine.batching.continuous import ContinuousSettings
from sim.engine.offload.settings import KvOffloadSettings
from sim.engine.policy_checks import check_policies, spell_out_policies
from sim.engine.pruning.checks import check_pruning
from sim.engine.pruning.settings import PruningSettings
from sim.engine.session_retention import SessionRetentionSettings
from sim.engine.speculative.checks import check_speculation
from sim.engine.speculative.settings import SpeculativeSettings
from sim.engine.token_budget import TokenBudgetSettings


def decide_prefix_caching(given: dict[str, Any]) -> dict[str, Any]:
    """Settings as given, without a prefix cache where there is nothing that it could share and nobody asked for it."""
    nothing_shared = given.get("kv_cache") is False or given.get("kv_reservation", "paged") != "paged"
    pruning = given.get("pruning")
    if isinstance(pruning, PruningSettings):
        pruning = pruning.policies
    nothing_shared = nothing_shared or (isinstance(pruning, dict) and pruning.get("heavy_hitters") is not None)
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
    scheduling_policy: Literal[
        "fcfs", "priority", "shortest_prompt", "earliest_deadline", "fair_share", "length_buckets"
    ] = Field(
        default="fcfs",
        description="whom to admit next: who came first; is most urgent; has the shortest prompt; is due first, by the "
        "trace's deadline or else slo.ttft; whose tenant had the least tokens; or all of like length, by turns",
    )
    ageing: float | None = Field(
        default=None,
        ge=0,
        description="of shortest_prompt: tokens that a second of waiting takes off a prompt. With 0, its default, long "
        "prompts may wait for ever",
    )
    length_buckets: tuple[int, ...] | None = Field(
        default=None,
        description="of length_buckets: the longest prompt of each bucket but the last; powers of two if not given",
    )
    prefill_policy: Literal["mixed", "prefill_first", "decode_first"] = Field(
        default="mixed",
        description="prompts and decodes in one step, as in vLLM V1 and, with enable_chunked_prefill false, Orca; "
        "prompts alone while any can be computed, as in vLLM V0; or none while more than resume_below decode",
    )
    resume_below: int | None = Field(
        default=None,
        ge=0,
        description="of decode_first: prompts are computed again once no more than so many decode; 0 by default",
    )
    capacity_policy: Literal["max_utilization", "guaranteed_no_evict"] = Field(
        default="max_utilization",
        description="who waits is admitted where the next step finds blocks, and somebody preempted when they run out; "
        "or only where all have blocks to their last token, as TensorRT-LLM does by default",
    )
    token_budget: TokenBudgetSettings | None = Field(
        default=None,
        description="the token budget follows the time of steps with prompts; it is max_num_batched_tokens if not "
        "given",
    )
    batching: BatchingSettings = Field(
        default=ContinuousSettings(), description="when those who wait may join those who run"
    )
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
    preemption: Literal["recompute", "swap", "auto"] = Field(
        default="swap",
        description="what becomes of a preempted request's tokens: computed again; copied to swap_blocks while any are "
        "free; copied where that is predicted to take less than to compute them again, by how many they are",
    )
    kv_offload: KvOffloadSettings | None = Field(
        default=None, description="tiers of host memory and disk behind the prefix cache; none if not given"
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
    speculative: SpeculativeSettings | None = Field(
        default=None, description="tokens are guessed and verified several at once; one a step if not given"
    )
    pruning: PruningSettings | None = Field(
        default=None, description="what of the model's layers is left out, by policy; nothing if not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _decide_prefix_caching(cls, given: Any) -> Any:
        return spell_out_policies(decide_prefix_caching(given)) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _pruning_goes_with_the_rest(self) -> "EngineLimits":
        check_pruning(self)
        return self

    @model_validator(mode="after")
    def _every_sequence_fits_the_budget(self) -> "EngineLimits":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; "
                f"expected at least max_num_seqs ({self.max_num_seqs}), so that every sequence can decode"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> "EngineLimits":
        check_batching(self)
        return self

    @model_validator(mode="after")
    def _offload_fits(self) -> "EngineLimits":
        if self.preemption == "auto" and (not self.swap_blocks or self.data_parallel > 1):
            raise ValueError(
                f"preemption is auto, swap_blocks is {self.swap_blocks} and data_parallel is {self.data_parallel}; "
                "expected swap_blocks to copy to, and 1"
            )
        others = {
            "enable_prefix_caching false": not self.enable_prefix_caching,
            f"data_parallel {self.data_parallel}": self.data_parallel > 1,
            f"pipeline_parallel {self.pipeline_parallel}": self.pipeline_parallel > 1,
            "kv_cache false": not self.kv_cache,
            f"kv_reservation {self.kv_reservation}": self.kv_reservation != "paged",
            "session_retention": self.session_retention is not None,
            "speculative": self.speculative is not None,
        }
        if self.kv_offload is not None and (given := [name for name, is_given in others.items() if is_given]):
            raise ValueError(f"kv_offload is given, and so is {given[0]}; expected one of them")
        return self

    @model_validator(mode="after")
    def _policies_fit(self) -> "EngineLimits":
        check_policies(self)
        return self

    @model_validator(mode="after")
    def _speculation_fits(self) -> "EngineLimits":
        check_speculation(self)
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

    @property
    def most_tokens(self) -> int | None:
        """Tokens of one sequence that are held at most; None: all of them."""
        return None if self.pruning is None else self.pruning.most_tokens(self.block_size)


class EngineConfig(EngineLimits):
    """The same, with the size of the block pool."""

    kv_blocks: int = Field(gt=0, description="KV cache blocks in the pool")
