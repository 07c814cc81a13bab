"""Which settings of the scheduler's policies go together."""

from __future__ import annotations

from typing import Any

from sim.engine.token_budget import TokenBudgetSettings

# An option → the setting and value that it is of, and its default there.
_OPTIONS: dict[str, tuple[str, str, Any]] = {
    "ageing": ("scheduling_policy", "shortest_prompt", 0.0),
    "length_buckets": ("scheduling_policy", "length_buckets", None),
    "resume_below": ("prefill_policy", "decode_first", 0),
}


def spell_out_policies(given: dict[str, Any]) -> dict[str, Any]:
    """Settings as given, with the defaults of the options whose policy was chosen."""
    usual = {option: default for option, (key, value, default) in _OPTIONS.items() if given.get(key) == value}
    return {**given, **{option: default for option, default in usual.items() if given.get(option) is None}}


def check_policies(settings: Any) -> None:
    """Of a `sim.engine.config.EngineLimits`.

    Raises:
        ValueError: settings that do not go together.
    """
    for option, (key, value, _) in _OPTIONS.items():
        if getattr(settings, option) is not None and getattr(settings, key) != value:
            raise ValueError(f"{option} is given and {key} is {getattr(settings, key)}; expected {value}")
    bounds = settings.length_buckets or ()
    if any(bound < 1 for bound in bounds) or list(bounds) != sorted(set(bounds)):
        raise ValueError(f"length_buckets are {list(bounds)}; expected rising positive integers")
    _check_token_budget(settings)
    _check_engines(settings)


def _check_token_budget(settings: Any) -> None:
    budget: TokenBudgetSettings | None = settings.token_budget
    if budget is None:
        return
    least, most = settings.max_num_seqs, settings.max_num_batched_tokens
    if not least <= budget.minimum <= most:
        raise ValueError(
            f"token_budget.minimum is {budget.minimum}; expected max_num_seqs ({least}) to max_num_batched_tokens "
            f"({most})"
        )
    if not settings.enable_chunked_prefill:
        raise ValueError(
            "token_budget is given and enable_chunked_prefill is false; expected true, or a prompt longer than the "
            "budget would wait for ever"
        )
    if settings.data_parallel > 1:
        raise ValueError(f"token_budget is given and data_parallel is {settings.data_parallel}; expected 1")


def _check_engines(settings: Any) -> None:
    """Kinds of engines that take a step in another way."""
    policies = {
        f"prefill_policy {settings.prefill_policy}": settings.prefill_policy != "mixed",
        f"capacity_policy {settings.capacity_policy}": settings.capacity_policy != "max_utilization",
        "token_budget": settings.token_budget is not None,
        "scheduling_policy fair_share": settings.scheduling_policy == "fair_share",
    }
    chosen = next((name for name, is_chosen in policies.items() if is_chosen), None)
    if chosen is None:
        return
    if settings.pipeline_parallel > 1:
        raise ValueError(f"pipeline_parallel is {settings.pipeline_parallel} and {chosen} is given; expected 1")
    if settings.speculative is not None:
        raise ValueError(f"speculative is given and so is {chosen}; expected one of them")
    if settings.kv_offload is not None and chosen != "token_budget":
        raise ValueError(f"kv_offload is given and so is {chosen}; expected one of them")
    if settings.capacity_policy != "max_utilization":
        if not settings.kv_cache:
            raise ValueError(
                f"kv_cache is false and capacity_policy {settings.capacity_policy} is given; expected a pool of blocks"
            )
        if settings.kv_reservation != "paged":
            raise ValueError(
                f"kv_reservation is {settings.kv_reservation} and capacity_policy {settings.capacity_policy} is given; "
                "expected paged, since nobody is preempted where all is reserved"
            )
