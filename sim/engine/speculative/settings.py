"""What an operator sets on speculative decoding."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ground.spec import Spec

Rate = Annotated[float, Field(ge=0, le=1)]


class SpeculativeSettings(Spec):
    """Who drafts, how much, and how often the model agrees.

    The real engine needs no `acceptance` and no `proposals`: it measures them. The simulated one draws by them.
    """

    method: Literal["ngram", "draft"] = Field(
        default="ngram",
        description="who drafts: the sequence itself, as it went on behind the same tokens before, or a smaller model",
    )
    tokens: int = Field(gt=0, le=64, description="tokens drafted for a sequence in a step, at most")
    acceptance: Rate | tuple[Rate, ...] | None = Field(
        default=None,
        description="the chance that a draft is accepted where all before it were; or for each position of a draft the "
        "chance that it and all before it are accepted, as a measured run says. A simulation needs it",
    )
    proposals: Rate = Field(
        default=1.0, description="share of a sequence's steps in which anything is drafted; a lookup may find nothing"
    )
    prompt_lookup_min: int = Field(default=5, gt=0, description="tokens that must have occurred before, at least")
    prompt_lookup_max: int = Field(default=5, gt=0, description="tokens that are looked for first")
    draft_model: str | None = Field(
        default=None, description="a bundled model, or the path of a Hugging Face config.json"
    )
    draft_profile: str | None = Field(
        default=None, description="a profile of the draft model, or datasheet:DEVICE; the scenario's if not given"
    )
    host_seconds: float | None = Field(
        default=None, ge=0, description="seconds of the host to look up one sequence; 0 if not given, and said so"
    )
    seed: int | None = Field(default=None, ge=0, description="of what is drawn; the scenario's if not given")

    @property
    def lookahead(self) -> int:
        """KV slots behind a step's own that a sequence holds: a draft model writes its drafts into them (vLLM,
        `num_lookahead_tokens`)."""
        return self.tokens if self.method == "draft" else 0

    @property
    def survival(self) -> tuple[float, ...] | None:
        """For each position of a draft the chance that it and all before it are accepted; None: not known.

        Of one rate α they are its powers (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
        Decoding", section 3.1: accepted drafts are a capped geometric variable).
        """
        if self.acceptance is None or isinstance(self.acceptance, tuple):
            return self.acceptance
        return tuple(self.acceptance**position for position in range(1, self.tokens + 1))

    @model_validator(mode="after")
    def _one_rate_a_position(self) -> SpeculativeSettings:
        rates = self.acceptance
        if isinstance(rates, tuple):
            if len(rates) != self.tokens:
                raise ValueError(
                    f"acceptance has {len(rates)} rates and tokens is {self.tokens}; expected one for each position"
                )
            if any(later > earlier for earlier, later in pairwise(rates)):
                raise ValueError(
                    f"acceptance is {list(rates)}; expected rates that do not rise, as a draft is only accepted behind "
                    "accepted ones"
                )
        return self

    @model_validator(mode="after")
    def _keys_are_of_the_method(self) -> SpeculativeSettings:
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min is {self.prompt_lookup_min} and prompt_lookup_max {self.prompt_lookup_max}; "
                "expected no more"
            )
        of_ngram = ("proposals", "prompt_lookup_min", "prompt_lookup_max", "host_seconds")
        others = of_ngram if self.method == "draft" else ("draft_model", "draft_profile")
        for name in others:
            if getattr(self, name) != SpeculativeSettings.model_fields[name].default:
                raise ValueError(f"method is {self.method} and {name} is given; expected none, as it is another's")
        if self.method == "draft" and self.draft_model is None:
            raise ValueError("method is draft and draft_model is not given; expected a model")
        return self
