"""How long clients wait, and whether they try again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ground.spec import Spec


class RetryBudgetSettings(Spec):
    """Envoy's (`source/common/upstream/resource_manager_impl.h`), with its defaults."""

    percent: float = Field(default=20.0, ge=0, le=100, description="retries at once, of all requests that are open")
    min_concurrency: int = Field(default=3, ge=0, description="retries at once that are always allowed")


class RetrySettings(Spec):
    """The defaults of waits and attempts are those of OpenAI's Python client (`src/openai/_constants.py`)."""

    on: tuple[Literal["failed", "shed", "timed_out"], ...] = Field(
        default=("failed", "shed"), min_length=1, description="ends of an attempt after which there is another"
    )
    attempts: int = Field(default=3, gt=1, description="at most, the first one included")
    backoff_base: float = Field(
        default=0.5, ge=0, le=1e6, description="seconds; the n-th retry waits uniformly in 0 to base × 2ⁿ⁻¹"
    )
    backoff_max: float = Field(default=8.0, ge=0, le=1e6, description="seconds that no retry waits longer than")
    budget: RetryBudgetSettings | None = Field(
        default=None, description="no retry while there are too many of them; any number if not given"
    )


class ClientSettings(Spec):
    ttft_timeout: float | None = Field(
        default=None, gt=0, description="seconds that an attempt may take to its first token; any if not given"
    )
    timeout: float | None = Field(
        default=None, gt=0, description="seconds that an attempt may take to its last token; any if not given"
    )
    deadline: float | None = Field(
        default=None, gt=0, description="seconds that all attempts together may take; any if not given"
    )
    abort_delay: float = Field(
        default=0.0, ge=0, le=1e6, description="seconds until the service notices that a client has given up"
    )
    retries: RetrySettings | None = Field(default=None, description="further attempts; none if not given")

    @model_validator(mode="after")
    def _timeouts_fit(self) -> ClientSettings:
        if self.timeout is not None and self.ttft_timeout is not None and self.ttft_timeout > self.timeout:
            raise ValueError(f"ttft_timeout is {self.ttft_timeout:g} and timeout {self.timeout:g}; expected no more")
        waits = (self.ttft_timeout, self.timeout, self.deadline)
        if self.retries is not None and "timed_out" in self.retries.on and waits[:2] == (None, None):
            raise ValueError("retries are on timed_out and no attempt times out; expected ttft_timeout or timeout")
        if self.retries is None and waits == (None, None, None):
            raise ValueError("clients neither give up nor try again; expected a timeout, a deadline or retries")
        return self
